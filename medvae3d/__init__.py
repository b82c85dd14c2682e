"""Synthetic 3D medical volumes with their lesion masks, from variational autoencoders.

A bundle holds a trained model; it generates samples, and each sample is an image, its mask, the
grid they lie on and a record of how they were made::

    bundle = medvae3d.load_bundle("sts_petct_hvae")
    for sample in bundle.generate(count=4, seed=20):
        ...

Names are looked up when they are first used, so that ``import medvae3d`` does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvae3d import transforms as transforms
    from medvae3d.apps.bundle import load_bundle as load_bundle
    from medvae3d.apps.datasets import list_as_dataset as list_as_dataset

    __version__: str

__all__ = ["__version__", "list_as_dataset", "load_bundle", "transforms"]


def __getattr__(name: str) -> Any:
    if name == "load_bundle":
        from medvae3d.apps.bundle import load_bundle

        value: Any = load_bundle
    elif name == "list_as_dataset":
        from medvae3d.apps.datasets import list_as_dataset

        value = list_as_dataset
    elif name == "transforms":
        from importlib import import_module

        value = import_module("medvae3d.transforms")
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("medvae3d")
    except metadata.PackageNotFoundError:  # a source tree on the path, not installed
        return "0+unknown"
