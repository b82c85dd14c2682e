"""What a marker on a test does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

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
