"""What volumes are compared by when they are not compared voxel by voxel.

Features turn each case into a row of numbers. Those here need no download: radiomic features, which
have names and units, and the responses of a fixed random network, which see texture at a few
scales. Trained networks are in :mod:`medvae3d.evaluation.feature_networks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medvae3d.data.attributes import mask_attributes
from medvae3d.data.preparation import FILL
from medvae3d.errors import MedvaeError, SettingError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.radiomics import (
    bounding_box,
    centre_of_mass_shift,
    region_features,
    shape_features,
)
from medvae3d.evaluation.voxelwise import unit
from medvae3d.objectives.perceptual import RandomFeatureDistance

Rows = NDArray[np.float64]

# Of the range of intensities: above it, something is there.
BODY_LEVEL = 0.05
BINS_OF_RANGE = 32
MOST_LEVELS = 64


@runtime_checkable
class Features(Protocol):
    """Turns cases into rows of numbers.

    Attributes:
        name: Short name, in tables and files.
        licence: Of the weights; ``Apache-2.0`` for what is part of this package.
    """

    name: str
    licence: str

    def describe(self) -> Mapping[str, Any]:
        """Settings that the numbers depend on, as plain values."""
        ...

    def feature_names(self, channels: int) -> tuple[str, ...]:
        """Names of the columns; none where they have no meaning of their own."""
        ...

    def __call__(self, cases: Cases, spacing_mm: Sequence[float]) -> Rows:
        """Features, ``(N, D)``; a row of NaN for a case that has none."""
        ...


class Radiomics:
    """Radiomic features by IBSI's definitions, over the mask and over the whole case.

    Families: intensity statistics, histogram, co-occurrence matrix (of each channel), and
    morphology (of the mask). Higher-order matrices are left out for their time. Where a mask is
    empty, the body takes its place. Grey levels have a fixed bin size, a 32nd of the range.

    Measured: 0.03 s for a case of 48 voxels a side with two channels, on one core.
    """

    name = "radiomics"
    licence = "Apache-2.0"

    def describe(self) -> dict[str, Any]:
        return {
            "definitions": "IBSI, arXiv:1612.07003",
            "families": ["statistics", "histogram", "co-occurrence", "morphology"],
            "bins of the range": BINS_OF_RANGE,
            "regions": ["mask, or the body where it is empty", "all that was observed"],
        }

    def feature_names(self, channels: int) -> tuple[str, ...]:
        one = torch.ones(1, 1, 2, 2, 2)
        probe = Cases(one.expand(-1, channels, -1, -1, -1), one, one, one, ("",))
        return tuple(self._of_case(probe, 0, (1.0, 1.0, 1.0)))

    def __call__(self, cases: Cases, spacing_mm: Sequence[float]) -> Rows:
        count = len(self.feature_names(cases.image.shape[1]))
        rows = np.full((len(cases), count), np.nan)
        for row in range(len(cases)):
            if bool((cases.valid[row] > 0).any()):
                rows[row] = list(self._of_case(cases, row, spacing_mm).values())
        return rows

    def _of_case(self, cases: Cases, row: int, spacing_mm: Sequence[float]) -> dict[str, float]:
        image = unit(cases.image[row]).double().numpy()
        observed = (cases.valid[row, 0] > 0).numpy()
        inside = mask_or_body(cases, row).numpy()
        box = bounding_box(inside)
        found = {f"shape: {k}": v for k, v in shape_features(inside[box], spacing_mm).items()}
        round_ = mask_attributes(
            torch.from_numpy(inside)[None, None], spacing_mm, ("sphericity",)
        ).item()
        # From line crossings rather than from a mesh, as elsewhere in this package.
        found["shape: sphericity"] = round_
        for channel, x in enumerate(image):
            width = 1 / BINS_OF_RANGE
            regions = {"mask": inside, "whole": observed}
            for region, where in regions.items():
                for key, value in region_features(x, where, width, MOST_LEVELS).items():
                    found[f"channel {channel}, {region}: {key}"] = value
            shift = centre_of_mass_shift(x[box], inside[box], spacing_mm)
            found[f"channel {channel}, mask: centre of mass shift"] = shift
        return found


def mask_or_body(cases: Cases, row: int) -> Tensor:
    """The mask of a case; where it is empty, its body; without one, all that was observed."""
    observed = cases.valid[row, 0] > 0
    mask = (cases.mask[row, 0] > 0) & observed
    if bool(mask.any()):
        return mask
    body = (unit(cases.image[row]).mean(0) > BODY_LEVEL) & observed
    return body if bool(body.any()) else observed


class FixedNetwork:
    """Responses of a fixed random network, as mean and deviation over what was observed.

    It is the network of the perceptual distance, drawn from its seed: no weights to download, the
    same numbers everywhere, and sensitive to texture rather than to meaning.

    Args:
        dims: 3 for volumes, 2 for slices along all three axes (2.5-D).
        seed: Draws the weights.
        slice_step: In 2.5-D, the distance between slices that are looked at.
    """

    licence = "Apache-2.0"

    def __init__(self, dims: Literal[2, 3] = 3, seed: int = 0, slice_step: int = 3) -> None:
        self.name = "fixed network" if dims == 3 else "fixed network, 2.5-D"
        self.dims, self.seed, self.slice_step = dims, seed, slice_step
        self._network = RandomFeatureDistance(dims, seed=seed, slice_step=slice_step)

    def describe(self) -> dict[str, Any]:
        found = {"dims": self.dims, "seed": self.seed, "trained": False}
        return found | ({"slice step": self.slice_step} if self.dims == 2 else {})

    def feature_names(self, channels: int) -> tuple[str, ...]:
        return ()

    @torch.no_grad()
    def __call__(self, cases: Cases, spacing_mm: Sequence[float]) -> Rows:
        rows = []
        for part in cases.batches(4):
            valid = (part.valid > 0).float()
            image = torch.where(valid > 0, part.image.float(), FILL)
            columns = [
                self._pooled(image[:, channel, None], valid) for channel in range(image.shape[1])
            ]
            rows.append(torch.cat(columns, dim=1))
        found = torch.cat(rows).double().numpy()
        found[~(cases.valid > 0).flatten(1).any(1).numpy()] = np.nan
        return found

    def _pooled(self, x: Tensor, valid: Tensor) -> Tensor:
        """Mean and deviation of each response of one-channel volumes, ``(B, F)``."""
        if self.dims == 3:
            return torch.cat([_moments(y, valid, len(x)) for y in self._network.features(x)], dim=1)
        planes = []
        for axis in (2, 3, 4):
            slices, seen = (slices_along(v, axis, self.slice_step) for v in (x, valid))
            levels = self._network.features(slices)
            planes.append(torch.cat([_moments(y, seen, len(x)) for y in levels], dim=1))
        return torch.stack(planes).mean(0)


def slices_along(x: Tensor, axis: int, step: int) -> Tensor:
    """Every ``step``-th slice along one axis of volumes, as images.

    Shape:
        - ``x``: :math:`(B, C, I, J, K)`
        - output: :math:`(B S, C, H, W)`, the slices of a volume one after the other
    """
    return x.movedim(axis, 1)[:, (step // 2) % x.shape[axis] :: step].flatten(0, 1)


def _moments(y: Tensor, valid: Tensor, count: int) -> Tensor:
    """Mean and deviation over observed voxels and slices, ``(B, 2 F)``."""
    pool: Any = F.adaptive_avg_pool3d if y.ndim == 5 else F.adaptive_avg_pool2d
    weight = pool(valid, y.shape[2:])
    # Slices of one volume stand together.
    y = y.reshape(count, -1, y.shape[1], math.prod(y.shape[2:]))
    weight = weight.reshape(count, -1, 1, y.shape[3])
    total = weight.sum((1, 3)).clamp_min(1e-12)
    mean = (y * weight).sum((1, 3)) / total
    square = (y.square() * weight).sum((1, 3)) / total
    return torch.cat([mean, (square - mean.square()).clamp_min(0).sqrt()], dim=1)


class Remembered:
    """Features that are computed once for each set of cases, for several sections of a report.

    Args:
        features: What computes them.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.name, self.licence = features.name, features.licence
        self._known: WeakKeyDictionary[Cases, dict[tuple[float, ...], Rows]] = WeakKeyDictionary()

    def describe(self) -> Mapping[str, Any]:
        return self.features.describe()

    def feature_names(self, channels: int) -> tuple[str, ...]:
        return self.features.feature_names(channels)

    def __call__(self, cases: Cases, spacing_mm: Sequence[float]) -> Rows:
        known = self._known.setdefault(cases, {})
        key = tuple(float(s) for s in spacing_mm)
        if key not in known:
            known[key] = self.features(cases, spacing_mm)
        return known[key]


class Unavailable:
    """Features that cannot be had; says why when it is asked for them.

    Args:
        name: What they are called.
        error: Why.
    """

    licence = ""

    def __init__(self, name: str, error: MedvaeError) -> None:
        self.name, self.error = name, error

    def describe(self) -> dict[str, Any]:
        return {}

    def feature_names(self, channels: int) -> tuple[str, ...]:
        return ()

    def __call__(self, cases: Cases, spacing_mm: Sequence[float]) -> Rows:
        raise self.error


def included_features(names: Sequence[str] = ("radiomics", "fixed network")) -> list[Features]:
    """Features that need no download, each computed once for each set of cases.

    Args:
        names: ``radiomics``, ``fixed network``, ``fixed network, 2.5-D``.

    Raises:
        SettingError: If a name is unknown.
    """
    known: dict[str, Features] = {
        each.name: each for each in (Radiomics(), FixedNetwork(3), FixedNetwork(2))
    }
    if unknown := [name for name in names if name not in known]:
        raise SettingError(
            f"features {', '.join(map(repr, unknown))} are unknown; allowed are "
            f"{', '.join(map(repr, known))}, and networks with weights from a file "
            f"(medvae3d.evaluation.feature_networks)."
        )
    return [Remembered(known[name]) for name in names]
