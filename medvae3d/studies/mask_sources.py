"""Masks that the second stage of a pair is asked to fill, instead of those of its first stage.

Masks of training cases say what the texture is worth by itself, without what the first stage makes
wrong; balls of the same volumes say what the shape of the mask adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medvae3d.data.volumes import Volume
from medvae3d.errors import SettingError
from medvae3d.evaluation.cases import Cases
from medvae3d.geometry import Grid
from medvae3d.seeding import derive_generator

REAL, BALLS = "real", "balls"
SOURCES = (REAL, BALLS)


def given_masks(source: str, cases: Cases, grid: Grid, count: int, seed: int) -> list[Volume]:
    """Masks of cases drawn without putting back, or balls in their place.

    With the same seed, both sources draw the same cases. Masks that are empty or leave no voxel
    free at a border are left out; where there are fewer than asked for, they are used again.

    Args:
        source: ``real`` or ``balls``.
        cases: The cases, on ``grid``.
        grid: Voxels of all of them.
        count: Masks wanted.
        seed: Seed of the draw.

    Raises:
        SettingError: If the source is unknown, or no mask can be used.
    """
    if source not in SOURCES:
        raise SettingError(
            f"masks from {source!r}; allowed are {', '.join(SOURCES)}. Name one of them."
        )
    usable = [row for row in range(len(cases)) if _is_usable(cases.mask[row, 0].numpy())]
    if not usable:
        raise SettingError(
            f"none of {len(cases)} masks can be filled: each is empty or spans the whole volume. "
            f"Take a larger volume."
        )
    order = torch.randperm(len(usable), generator=derive_generator(seed, "given masks")).tolist()
    found = []
    for index in range(count):
        row = usable[order[index % len(order)]]
        label = cases.mask[row, 0].numpy().astype(np.uint8)
        if source == BALLS:
            label = ball_like(label, grid.spacing)
        path = Path(f"{cases.names[row]}, {source}")
        found.append(Volume(label, grid, label.dtype, None, path))
    return found


def ball_like(label: NDArray[np.uint8], spacing_mm: Sequence[float]) -> NDArray[np.uint8]:
    """A ball with as many voxels of each value as a label map, round its centre of mass.

    It holds the voxels nearest to the centre, in mm, that are not on the border of the volume. With
    several values, these are layers across the line from the centre of the first to that of the
    last.

    Args:
        label: Label map, :math:`(I, J, K)`, not empty.
        spacing_mm: Size of a voxel along (I, J, K).
    """
    place = np.indices(label.shape).reshape(3, -1).T * np.asarray(spacing_mm, float)
    flat = label.ravel()
    values = [int(value) for value in np.unique(flat) if value]
    distance = np.square(place - place[flat > 0].mean(0)).sum(1)
    inner = np.zeros(label.shape, bool)
    inner[1:-1, 1:-1, 1:-1] = True
    distance[~inner.ravel()] = np.inf
    chosen = np.argsort(distance, kind="stable")[: int((flat > 0).sum())]
    centres = {value: place[flat == value].mean(0) for value in values}
    axis = centres[values[-1]] - centres[values[0]]
    chosen = chosen[np.argsort(place[chosen] @ axis, kind="stable")]
    layers = sorted(values, key=lambda value: float(centres[value] @ axis))
    made = np.zeros_like(flat)
    made[chosen] = np.repeat(layers, [int((flat == value).sum()) for value in layers])
    return made.reshape(label.shape)


def _is_usable(label: NDArray[Any]) -> bool:
    there = np.nonzero(label)
    if not len(there[0]):
        return False
    return all(
        int(axis.max() - axis.min()) + 1 <= n - 2
        for axis, n in zip(there, label.shape, strict=True)
    )
