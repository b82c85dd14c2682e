"""Bundles with small networks, trained once for all tests of a session."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from monai.utils import set_determinism
from small_bundles import config, run, small_copy, workflow, write_cases


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    """Undoes what a run changes in its process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)
    set_determinism(None)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Data list for a bundle."""
    known: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in known:
            folder = tmp_path_factory.mktemp(f"cases_{name}")
            known[name] = write_cases(folder, config(name, "train"))
        return known[name]

    return make


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, cases: Callable[[str], Path]
) -> Callable[[str], Path]:
    """A small copy of a bundle with weights from a training of 24 steps; do not write into it."""
    known: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in known:
            folder = small_copy(name, tmp_path_factory.mktemp("bundles") / name)
            made = workflow(folder / "configs" / "train.json", datalist=str(cases(name)))
            run(made)
            known[name] = folder
        return known[name]

    return make
