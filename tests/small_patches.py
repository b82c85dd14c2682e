"""What tests on patches have in common; no tests in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def assert_same(batches: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> None:
    """Batches of a patch loader are equal in all that they hold, and there are some."""
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert batch["case"] == other["case"]
        for key in ("image", "mask", "valid", "location"):
            assert torch.equal(batch[key], other[key]), key
