"""Transforms that put synthetic lesions into training cases on the fly.

`RandSynthesizeLesiond` is for MONAI, `RandomSynthesizeLesion` and `SynthesizeLesion` for torchio.
They are looked up when they are first used, so that neither library is loaded for the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvae3d.transforms.dictionary import RandSynthesizeLesiond as RandSynthesizeLesiond
    from medvae3d.transforms.subjects import RandomSynthesizeLesion as RandomSynthesizeLesion
    from medvae3d.transforms.subjects import SynthesizeLesion as SynthesizeLesion

__all__ = ["RandSynthesizeLesiond", "RandomSynthesizeLesion", "SynthesizeLesion"]


def __getattr__(name: str) -> Any:
    value: Any
    if name == "RandSynthesizeLesiond":
        from medvae3d.transforms.dictionary import RandSynthesizeLesiond

        value = RandSynthesizeLesiond
    elif name in ("RandomSynthesizeLesion", "SynthesizeLesion"):
        from medvae3d.transforms import subjects

        value = getattr(subjects, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
