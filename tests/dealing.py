"""How the tests are dealt out to the workers of pytest-xdist; no tests in here.

A file goes to one worker, so that a model that its tests share is trained once. Where tests of a
file share nothing that takes long, each goes by itself; files that use what stands but once on a
machine go together. What takes longest goes first, so that no worker idles at the end.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

# Each of their tests goes by itself: they begin with nothing and run for up to minutes.
APART = (
    "tests/apps/test_nodes.py",
    "tests/soak/test_kills.py",
    "tests/test_code_blocks.py",
    "tests/test_docs.py",
    "tests/test_gallery.py",
    "tests/test_notebooks.py",
)
# Files that start Ray: two clusters at once would look for the same ports and memory.
TOGETHER = {"tests/apps/test_ranges.py": "ray", "tests/test_spreading.py": "ray"}
# Beginnings of the names of what takes about a minute or more, longest first.
FIRST = (
    "tests/test_docs.py::test_a_tutorial_runs_from_top_to_bottom[better-segmenter.md]",
    "tests/bundles/test_multi_gpu.py",
    "tests/training/test_trained_systems.py",
    "ray",
    "tests/test_notebooks.py::test_a_segmenter_learns",
    "tests/models/test_conditional_systems.py",
    "tests/models/test_vqvae.py",
)


def unit(test: str) -> str:
    """What a test goes together with: its file, several files, or nothing but itself."""
    file = test.partition("::")[0]
    return test if file in APART else TOGETHER.get(file, file)


def place(test: str) -> int:
    """When the unit of a test begins: its number in `FIRST`, or after all of these."""
    name = unit(test)
    return next((n for n, begin in enumerate(FIRST) if name.startswith(begin)), len(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """``-n auto``: the cores that this process may use, which are fewer than there are in a
    container; xdist itself counts those of the machine.
    """
    told = "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ
    return None if told else len(os.sched_getaffinity(0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile``, with our units for files."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Units(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid)

    config.option.loadscopereorder = False  # the order is that of the workers, see `place`
    return Units(config, log)
