"""The two names that MONAI Label imports and does not call for volumes."""

from __future__ import annotations

from typing import Any


def make_grid(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("torchvision is not installed: this only stands in for it")


save_image = make_grid
