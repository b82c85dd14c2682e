"""What masks and the intensities under them say in numbers, case by case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from medvae3d.data.attributes import mask_attributes, surface_area
from medvae3d.data.lesions import NEIGHBOURS
from medvae3d.evaluation.cases import MIN_VOXELS, Cases

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Cells along each axis: 64 places are about as many as 50 to 200 cases can fill.
GRID = 4
RIM_MM = 3.0
AT_ONCE = 16


@dataclass(frozen=True)
class MaskNumbers:
    """Numbers of a set of cases; NaN where a case has nothing to measure.

    Attributes:
        shapes: By measure with its unit, ``(N,)`` each.
        intensities: Means in mask and rim and their difference by channel, ``(N,)`` each.
        centres: Share of the lesions of a case whose centre lies in each place, ``(N, G^3)``.
        occupancy: Share of the mask of a case that lies in each place, ``(N, G^3)``.
        voxels: Normalised intensities of every case by part and channel, each ``(V,)``.
    """

    shapes: dict[str, Array]
    intensities: dict[str, Array]
    centres: Array
    occupancy: Array
    voxels: dict[str, list[Array]] = field(repr=False)


def measure_masks(
    cases: Cases, *, labels: Sequence[str], channels: Sequence[str], spacing_mm: Sequence[float]
) -> MaskNumbers:
    """Measures masks and intensities of a set.

    A lesion is a component in the 26-neighbourhood. Sphericity and axes are those of the largest
    lesion of a case, if that has 5 voxels or more: below, the shape is that of the voxel grid.

    Args:
        cases: The set.
        labels: Names of the labels 1, 2 and so on; the volume of each of several is measured.
        channels: Names of the channels of the image.
        spacing_mm: Size of a voxel along (I, J, K).
    """
    count, shape = len(cases), cases.mask.shape[2:]
    voxel_ml = float(np.prod([float(s) for s in spacing_mm])) / 1000
    masks = cases.mask[:, 0].numpy()
    volume = (masks > 0).reshape(count, -1).sum(1) * voxel_ml
    shapes = {"volume (ml)": volume}
    if len(labels) > 1:
        for value, name in enumerate(labels, start=1):
            shapes[f"volume of {name} (ml)"] = (masks == value).reshape(count, -1).sum(1) * voxel_ml
    lesions, sizes = np.zeros(count), np.full(count, np.nan)
    largest = torch.zeros_like(cases.mask, dtype=torch.bool)
    centres, occupancy = np.zeros((count, GRID**3)), np.zeros((count, GRID**3))
    for row, mask in enumerate(masks):
        numbered, found = ndimage.label(mask > 0, NEIGHBOURS)
        lesions[row] = found
        if not found:
            continue
        voxels = np.bincount(numbered.ravel())[1:]
        sizes[row] = float(np.median(voxels)) * voxel_ml
        if voxels.max() >= MIN_VOXELS:
            largest[row, 0] = torch.from_numpy(numbered == 1 + int(voxels.argmax()))
        places = np.array(ndimage.center_of_mass(mask > 0, numbered, range(1, found + 1)))
        centres[row] = _places(places, shape)
        occupancy[row] = _places(np.argwhere(mask > 0).astype(np.float64), shape)
    area = np.concatenate(
        [surface_area(p.mask, spacing_mm).numpy() for p in cases.batches(AT_ONCE)]
    )
    shapes["lesions"] = lesions
    shapes["median lesion (ml)"] = sizes
    shapes |= _largest(largest, spacing_mm)
    with np.errstate(invalid="ignore", divide="ignore"):
        shapes["surface to volume (1/mm)"] = np.where(volume > 0, area / (volume * 1000), np.nan)
    intensities, voxels_of = _intensities(cases, channels, spacing_mm)
    return MaskNumbers(shapes, intensities, centres, occupancy, voxels_of)


def _largest(mask: torch.Tensor, spacing_mm: Sequence[float]) -> dict[str, Array]:
    """Shape of the largest lesions, ``(N,)`` each; NaN for an empty mask."""
    names = ("sphericity", "axis_ratio_2", "axis_ratio_3")
    parts = [mask_attributes(part, spacing_mm, names) for part in mask.split(AT_ONCE)]
    found = torch.cat(parts).double()
    found[~mask.flatten(1).any(1)] = torch.nan
    sphericity, second, third = found.numpy().T
    return {
        "sphericity": sphericity,
        "elongation (longest / second axis)": 1 / second,
        "flatness (second / shortest axis)": second / third,
    }


def _places(points: Array, shape: Sequence[int]) -> Array:
    """Share of points, ``(P, 3)`` in voxels, in each cell of a coarse grid, ``(G^3,)``."""
    cells = np.minimum(((points + 0.5) / np.array(shape) * GRID).astype(int), GRID - 1)
    flat = np.ravel_multi_index(tuple(cells.T), (GRID,) * 3)
    return np.bincount(flat, minlength=GRID**3) / len(points)


def rim_mm(spacing_mm: Sequence[float]) -> float:
    """Width of the rim: 3 mm, or one voxel where that is larger."""
    return max(RIM_MM, *(float(s) for s in spacing_mm))


def _intensities(
    cases: Cases, channels: Sequence[str], spacing_mm: Sequence[float]
) -> tuple[dict[str, Array], dict[str, list[Array]]]:
    """Means by case, and all voxels, in mask and rim by channel."""
    means = {
        f"{name}, {part}": np.full(len(cases), np.nan)
        for name in channels
        for part in ("mask", "rim", "mask less rim")
    }
    voxels: dict[str, list[Array]] = {
        f"{name}, voxels of {part}": [] for name in channels for part in ("mask", "rim")
    }
    width = rim_mm(spacing_mm)
    reach = [int(np.ceil(width / float(s))) for s in spacing_mm]
    for row in range(len(cases)):
        mask = cases.mask[row, 0].numpy() > 0
        boxes = ndimage.find_objects(mask.astype(np.uint8))
        # The distance is needed within a few mm of the mask alone, so no more of it is computed.
        box = tuple(
            slice(max(0, side.start - r), side.stop + r)
            for side, r in zip(boxes[0] if boxes else (slice(0, 0),) * 3, reach, strict=True)
        )
        inside, seen = mask[box], cases.valid[row, 0].numpy()[box] > 0
        rim = np.zeros_like(inside)
        if inside.any():
            distance = ndimage.distance_transform_edt(
                ~inside, sampling=[float(s) for s in spacing_mm]
            )
            rim = (distance > 0) & (distance <= width) & seen
        image = cases.image[row].numpy()[(slice(None), *box)]
        for channel, name in zip(image, channels, strict=True):
            mean = {}
            for part, where in (("mask", inside & seen), ("rim", rim)):
                found = channel[where].astype(np.float64)
                voxels[f"{name}, voxels of {part}"].append(found)
                mean[part] = found.mean() if len(found) else np.nan
                means[f"{name}, {part}"][row] = mean[part]
            means[f"{name}, mask less rim"][row] = mean["mask"] - mean["rim"]
    return means, voxels
