"""The training that tests of interrupted and disturbed runs compare with, as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def train(trainable: Path, cases: Path, out: Path, *words: Any) -> tuple[Any, ...]:
    """Words of a short training."""
    return ("train", trainable, "--datalist", cases, "--out", out, "--recipe", "small", *words)


def weights_of(folder: Path) -> bytes:
    """What a run has come to."""
    return (folder / "models" / "model.pt").read_bytes()
