"""What a marker on a test does, and how tests are dealt out to processes."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import dealing
import pytest
import torch


@pytest.mark.parametrize("has_device", [True, False])
def test_what_needs_a_gpu_is_skipped_without_one(
    has_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("conftest_under_test", path)
    assert spec is not None and spec.loader is not None
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_device)
    added: dict[str, list[str]] = {"gpu": [], "slow": []}
    items = [
        SimpleNamespace(
            nodeid=f"tests/{own}.py::test",
            get_closest_marker=lambda wanted, own=own: own if wanted == own else None,
            add_marker=lambda marker, own=own: added[own].append(marker.name),
        )
        for own in added
    ]
    conftest.pytest_collection_modifyitems(items)
    assert added == {"gpu": [] if has_device else ["skip"], "slow": []}


def test_what_is_dealt_out_by_name_is_there() -> None:
    root = Path(__file__).parents[1]
    named = [each for each in dealing.FIRST if each not in dealing.TOGETHER.values()]
    for file in (*dealing.APART, *dealing.TOGETHER, *named):
        path, _, test = file.partition("::")
        assert f"def {test.partition('[')[0]}" in (root / path).read_text(encoding="utf-8"), file


def test_a_file_stays_whole_unless_its_tests_share_nothing() -> None:
    assert dealing.unit("tests/a.py::test_b[c::d]") == dealing.unit("tests/a.py::A::test_e")
    assert dealing.unit("tests/test_docs.py::test_b") != dealing.unit("tests/test_docs.py::test_c")
    assert len({dealing.unit(f"{file}::test_a") for file in dealing.TOGETHER}) == 1


def test_what_takes_long_begins_first() -> None:
    others = ["tests/test_docs.py::test_links_lead_to_files[a.md]", "medvae3d/errors.py::a"]
    long = [f"{begin}::a" for begin in dealing.FIRST if begin.endswith(".py")]
    assert sorted([*others, *long], key=dealing.place) == [*long, *others]


def test_there_is_a_process_for_each_core_that_may_be_used(monkeypatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7})
    assert dealing.pytest_xdist_auto_num_workers() == 3
