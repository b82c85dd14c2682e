"""Lesions made by hand: what a learned generator has to beat, without training.

An ellipsoid, bent by a smooth field; its texture is smoothed noise about the mean of real lesions;
it pushes what surrounds it outwards and has a brighter rim. Where the published recipe has fixed
sizes and contrasts for tumours of the liver, these come from the real training lesions here, which
makes it a stronger control for any organ and any modality.

References:
    Hu et al., "Label-free liver tumor segmentation", CVPR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medvae3d.data.lesions import NEIGHBOURS
from medvae3d.errors import LabelError
from medvae3d.evaluation.cases import MIN_VOXELS, Cases
from medvae3d.seeding import derive_seed
from medvae3d.studies.mixing import Pair, as_cases, body, with_lesion

# Factors of each semi-axis and depth of the bending, as shares of the radius.
AXES = (0.75, 1.25)
BENDING = 0.25
# How far the surroundings are pushed, and how far out that is felt, as shares of the radius.
PUSH, REACH = 0.15, 1.6
# How much brighter the rim is than the lesion, as a share of the contrast.
RIM = 0.15
# Places tried; the last one is taken, cut to the body.
ATTEMPTS = 30


@dataclass(frozen=True, eq=False)
class LesionStyle:
    """What real lesions look like, one entry a lesion.

    Attributes:
        radius_mm: Radius of a ball of the same volume.
        contrast: Mean in the lesion less that of the shell round it, :math:`(L, C)`.
        deviation: Standard deviation in the lesion, :math:`(L, C)`.
        value: Label value that most of its voxels have.
    """

    radius_mm: NDArray[np.float64]
    contrast: NDArray[np.float64]
    deviation: NDArray[np.float64]
    value: NDArray[np.int64]


def lesion_style(cases: Cases, spacing_mm: Sequence[float]) -> LesionStyle:
    """Measures the lesions of real cases.

    Args:
        cases: Real training cases.
        spacing_mm: Size of a voxel along (I, J, K).

    Raises:
        LabelError: If no mask has a lesion.
    """
    rows = []
    for row in with_lesion(cases):
        image, mask = cases.image[row].numpy(), cases.mask[row, 0].numpy()
        tissue = body(cases.image[row])
        numbered, count = ndimage.label(mask > 0, NEIGHBOURS)
        for number in range(1, count + 1):
            lesion = numbered == number
            shell = ndimage.binary_dilation(lesion, iterations=3) & (mask == 0) & tissue
            size = int(lesion.sum())
            if (size >= MIN_VOXELS or count == 1) and shell.any():
                inside, outside = image[:, lesion], image[:, shell]
                volume = size * math.prod(spacing_mm)
                rows.append(
                    (
                        (3 * volume / (4 * math.pi)) ** (1 / 3),
                        inside.mean(1) - outside.mean(1),
                        inside.std(1),
                        int(np.bincount(mask[lesion].astype(int)).argmax()),
                    )
                )
    if not rows:
        raise LabelError(
            f"no lesion of {MIN_VOXELS} voxels or more with tissue round it was found in "
            f"{len(cases)} training cases, so there is nothing to make lesions after. Leave out "
            f"the arm handmade."
        )
    radius, contrast, deviation, value = zip(*rows, strict=True)
    return LesionStyle(
        np.array(radius), np.array(contrast), np.array(deviation), np.array(value, dtype=np.int64)
    )


def handmade_cases(
    cases: Cases, count: int, spacing_mm: Sequence[float], seed: int, name: str = "handmade"
) -> Cases:
    """Puts a hand-made lesion into copies of real cases; case *i* depends on seed and *i* alone.

    Args:
        cases: Hosts, and the lesions that sizes and contrasts are taken from.
        count: How many.
        spacing_mm: Size of a voxel along (I, J, K).
        seed: Seed of all of them.
        name: What the new cases are called.
    """
    style = lesion_style(cases, spacing_mm)
    made = []
    for index in range(count):
        rng = np.random.default_rng(derive_seed(seed, name, index))
        host = Pair.of(cases, int(rng.integers(len(cases))))
        made.append(with_handmade_lesion(host, style, spacing_mm, rng))
    return as_cases(made, name)


def with_handmade_lesion(
    host: Pair, style: LesionStyle, spacing_mm: Sequence[float], rng: np.random.Generator
) -> Pair:
    """A host with one more lesion, which lies within its body; the host itself is left alone.

    Args:
        host: Real case; lesions of its own stay, pushed aside where the new one is near.
        style: What real lesions look like.
        spacing_mm: Size of a voxel along (I, J, K).
        rng: Random numbers.
    """
    row = int(rng.integers(len(style.radius_mm)))
    radius = float(style.radius_mm[row])
    tissue, taken = body(host.image), host.mask[0].numpy() > 0
    shape = tissue.shape
    semi_axes = radius * rng.uniform(*AXES, 3)
    bend = _smooth(rng, shape, radius / np.asarray(spacing_mm) / 2)
    free = tissue & ~taken
    depth = ndimage.distance_transform_edt(free, sampling=spacing_mm)
    # As deep below the surface as the lesion is large, where the body is large enough for that.
    places = np.argwhere(depth >= min(radius, 0.8 * depth.max()))
    lesion, centre = np.zeros(shape, dtype=bool), np.zeros(3)
    for _ in range(ATTEMPTS if len(places) else 0):
        centre = places[rng.integers(len(places))]
        lesion = _blob(shape, centre, semi_axes, bend, spacing_mm)
        if not (lesion & ~free).any():
            break
    lesion &= free
    if not lesion.any():
        return host
    image, mask = _pushed(host, centre, radius, spacing_mm)
    mask[0][lesion] = style.value[row]
    _paint(image, lesion, style.contrast[row], style.deviation[row], rng)
    return Pair(torch.from_numpy(image), torch.from_numpy(mask), host.valid)


def _offset_mm(
    shape: Sequence[int], centre: NDArray[np.float64], spacing_mm: Sequence[float]
) -> NDArray[np.float64]:
    """Offset of each voxel from a place, in mm, ``(3, I, J, K)``."""
    axes = [
        (np.arange(n) - c) * s
        for n, c, s in zip(shape, np.asarray(centre), spacing_mm, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _blob(
    shape: Sequence[int],
    centre: NDArray[np.float64],
    semi_axes: NDArray[np.float64],
    bend: NDArray[np.float64],
    spacing_mm: Sequence[float],
) -> NDArray[np.bool_]:
    """An ellipsoid with a bent surface, ``(I, J, K)``."""
    offset = _offset_mm(shape, centre, spacing_mm) / semi_axes.reshape(3, 1, 1, 1)
    blob: NDArray[np.bool_] = np.sqrt(np.square(offset).sum(0)) < 1 + BENDING * bend
    return blob


def _smooth(
    rng: np.random.Generator, shape: Sequence[int], width: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Smoothed noise of deviation 1, ``(I, J, K)``; ``width`` in voxels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(tuple(shape)), np.maximum(width, 0.5))
    return np.asarray(noise / max(float(noise.std()), 1e-9))


def _pushed(
    host: Pair, centre: NDArray[np.float64], radius: float, spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Image and mask of the host, moved outwards round a place; nothing moves farther away."""
    offset = _offset_mm(host.mask.shape[1:], centre, spacing_mm)
    distance = np.sqrt(np.square(offset).sum(0))
    share = np.clip(1 - distance / (REACH * radius), 0, 1)
    # What is read lies nearer to the centre than where it comes to lie. As a share of the offset,
    # this is smooth, and below 1 everywhere: no fold.
    back = offset * (PUSH * share**2) / np.reshape(spacing_mm, (3, 1, 1, 1))
    where = np.indices(distance.shape) - back
    image = np.stack(
        [ndimage.map_coordinates(x, where, order=1, mode="nearest") for x in host.image.numpy()]
    )
    mask = ndimage.map_coordinates(host.mask[0].numpy(), where, order=0, mode="nearest")[None]
    still = share == 0
    image[:, still] = host.image.numpy()[:, still]
    return image.astype(np.float32), mask.astype(np.float32)


def _paint(
    image: NDArray[np.float32],
    lesion: NDArray[np.bool_],
    contrast: NDArray[np.float64],
    deviation: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Gives a lesion its brightness, texture and rim, in place."""
    shell = ndimage.binary_dilation(lesion, iterations=3) & ~lesion
    rim = ndimage.binary_dilation(lesion) & ~lesion
    texture = _smooth(rng, lesion.shape, np.ones(3))
    for channel, gain, width in zip(image, contrast, deviation, strict=True):
        around = channel[shell & (channel > -1)]
        level = float(around.mean()) if len(around) else float(channel[lesion].mean())
        channel[lesion] = np.maximum(level + gain + width * texture[lesion], -1)
        channel[rim] = np.maximum(channel[rim] + RIM * gain, -1)
