r"""What a sample is asked to be: attribute vectors drawn from the training set, volumes as wished.

Without a request, a training example is drawn and jittered. With one, the volume is drawn evenly
in its logarithm over the range asked for, and the rest of the vector is taken from one of the
examples of about that volume, scaled to it: its extents grow with :math:`\sqrt[3]{V}`, its shape
stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from medvae3d.data.attributes import AttributeSpec
from medvae3d.data.transforms import resample_to_grid
from medvae3d.data.volumes import Volume, label_values
from medvae3d.errors import GridMismatchError, LabelError, RangeError, SettingError
from medvae3d.geometry import Grid, Triple
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.synthesis.levels import bounding_box
from medvae3d.synthesis.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

Range: TypeAlias = tuple[float, float]
VolumeRequest: TypeAlias = Range | Mapping[str, Range] | None
"""Smallest and largest volume in ml, of the mask or of each label by name."""

# How many of the examples nearest in volume the rest of a vector is drawn from.
NEIGHBOURS = 8
# Draws of an example before a volume outside of the percentiles is let through.
TRIES = 100


@dataclass(frozen=True)
class Told:
    """What one sample is asked to be.

    Attributes:
        attributes: Natural attribute values, :math:`(F,)`; ``None`` if the model is told none.
        volume_ml: Wanted volume of each label value, or of all together; ``None`` for any.
    """

    attributes: Tensor | None = field(default=None, repr=False)
    volume_ml: Mapping[int, float] | float | None = None

    def voxels(self, voxel_ml: float) -> Mapping[int, float] | float | None:
        """The wanted volume in voxels."""
        if isinstance(self.volume_ml, Mapping):
            return {value: ml / voxel_ml for value, ml in self.volume_ml.items()}
        return None if self.volume_ml is None else self.volume_ml / voxel_ml

    @property
    def total_ml(self) -> float | None:
        """The wanted volume of all labels together."""
        if isinstance(self.volume_ml, Mapping):
            return sum(self.volume_ml.values())
        return self.volume_ml


class ConditionDraw:
    """Draws conditions for a model, each from a sample's own generator.

    Args:
        statistics: What the weights remember of their training set.
        recipe: Names the attributes that are volumes.
        request: Volumes asked for, in ml.
        extrapolate: Whether volumes beyond the training set may be asked for.
        class_name: Class asked for; any by default.

    Raises:
        SettingError: If the request names labels, classes or sizes that the weights are not told.
        RangeError: If it leaves the training set and ``extrapolate`` is not set.
    """

    def __init__(
        self,
        statistics: TrainingStatistics,
        recipe: Recipe,
        request: VolumeRequest = None,
        extrapolate: bool = False,
        class_name: str | None = None,
    ) -> None:
        self.statistics = statistics
        self.recipe = recipe
        self.extrapolate = extrapolate
        self.volumes = recipe.synthesis.volume_attributes if statistics.names else ()
        unknown = [name for name in self.volumes if name not in statistics.names]
        if unknown:
            raise SettingError(
                f"volume_attribute names {', '.join(unknown)}; these weights are told "
                f"{', '.join(statistics.names)}. Correct `synthesis` in inference.json."
            )
        self.columns = [statistics.names.index(name) for name in self.volumes]
        count = int(statistics.example_count)
        self.examples = statistics.example_values[:count].cpu()
        self.among = None if class_name is None else self._of_class(class_name)
        if self.among is not None:
            self.examples = self.examples[self.among]
        self.percentiles_ml = self._percentiles_ml()
        self.request = self._checked(request)

    def _of_class(self, name: str) -> Tensor:
        """Numbers of the examples of a class."""
        wanted = self.statistics.of_class(name)
        known = self.examples[:, self.statistics.class_columns].round()
        rows = (known == wanted).all(1).nonzero()[:, 0]
        if not len(rows):
            raise SettingError(
                f"class {name!r} was asked for, and none of the {len(known)} training examples of "
                f"these weights is of it. Ask for another, or train with cases of this class."
            )
        return rows

    def _percentiles_ml(self) -> Range | None:
        """Volumes between which the training set lies, by the recipe's percentiles."""
        if not self.volumes or not len(self.examples):
            return None
        shares = [percent / 100 for percent in self.recipe.synthesis.volume_range_percent]
        totals = self._totals(self.examples).double()
        low, high = torch.quantile(totals, torch.tensor(shares, dtype=torch.float64)).tolist()
        return low, high

    def __call__(self, generator: torch.Generator) -> Told:
        """Draws what one sample is asked to be."""
        if not self.statistics.names:
            return Told()
        if self.request is None:
            return self._told(self._example(generator))
        ends = torch.tensor([[math.log(v) for v in pair] for pair in self.request])
        drawn = torch.rand(len(ends), generator=generator)
        wanted = ends[:, 0] + drawn * (ends[:, 1] - ends[:, 0])
        if len(wanted) < len(self.columns):  # one volume for all labels: parted as the example is
            known = self._totals(self.examples).log()[:, None]
        else:
            known = self.examples[:, self.columns]
        distance = (known - wanted).abs().sum(1)
        nearest = distance.argsort(stable=True)[:NEIGHBOURS]
        pick = torch.randint(len(nearest), (1,), generator=generator)
        row = self.examples[nearest[pick[0]]].clone()
        return self._told(self._grown(row, wanted))

    def _example(self, generator: torch.Generator) -> Tensor:
        limits = self.percentiles_ml
        row = self.statistics.draw([generator], among=self.among)[0]
        for _ in range(TRIES):
            total = None if limits is None else float(self._totals(row[None])[0])
            if limits is None or total is None or limits[0] <= total <= limits[1]:
                break
            row = self.statistics.draw([generator], among=self.among)[0]
        return row

    def _grown(self, row: Tensor, wanted: Tensor) -> Tensor:
        """An example at another volume: its extents follow, its shape stays."""
        if len(wanted) < len(self.columns):
            factors = (wanted - self._totals(row[None]).log()).expand(len(self.columns))
        else:
            factors = wanted - row[self.columns]
        before = self._totals(row[None])[0]
        row[self.columns] += factors
        growth = (self._totals(row[None])[0] / before).log()
        other = [
            index
            for index, name in enumerate(self.statistics.names)
            if name.startswith("log_") and index not in self.columns
        ]
        for index in other:
            is_volume = self.statistics.names[index].startswith("log_volume")
            row[index] += growth if is_volume else growth / 3
        if not self.extrapolate:
            edges = self.statistics.low.cpu(), self.statistics.high.cpu()
            kept = row[self.columns].clone()
            row = torch.minimum(torch.maximum(row, edges[0]), edges[1])
            row[self.columns] = kept
        return row

    def _told(self, row: Tensor) -> Told:
        parts = {
            name: float(row[c].exp()) for name, c in zip(self.volumes, self.columns, strict=True)
        }
        if not parts:
            return Told(row)
        if self.is_by_label:
            return Told(row, {int(name.partition(":")[2]): ml for name, ml in parts.items()})
        return Told(row, next(iter(parts.values())))

    @property
    def is_by_label(self) -> bool:
        """Whether the weights are told the volume of each label."""
        return bool(self.volumes) and ":" in self.volumes[0]

    def _totals(self, rows: Tensor) -> Tensor:
        """Volumes of all labels together in ml, ``(N,)``."""
        return rows[:, self.columns].exp().sum(1)

    def _checked(self, request: VolumeRequest) -> list[Range] | None:
        """One range a volume attribute, or one for their sum."""
        if request is None:
            return None
        if not self.volumes or not len(self.examples):
            raise SettingError(
                "a volume was asked for, but these weights are not told any. Leave out "
                "--volume-ml, or use a bundle that is conditioned on volume."
            )
        if not isinstance(request, Mapping):
            ranges: Sequence[Range] = [request]
            if not self.extrapolate:
                self._require_total(*request)
        else:
            by_name = {self._label_of(name): name for name in self.volumes}
            if set(request) != set(by_name):
                raise SettingError(
                    f"volumes were asked for {', '.join(request)}; these weights are told those of "
                    f"{', '.join(by_name)}. Give a range for each of them, or one for all."
                )
            ranges = [request[label] for label in by_name]
            if not self.extrapolate:
                for (low, high), name in zip(ranges, self.volumes, strict=True):
                    self.statistics.require_within(name, low, high)
        return [(float(low), float(high)) for low, high in ranges]

    def _require_total(self, low: float, high: float) -> None:
        if not self.is_by_label:
            self.statistics.require_within(self.volumes[0], low, high)
            return
        totals = self._totals(self.examples)
        least, most = float(totals.min()), float(totals.max())
        if low < least * 0.999 or high > most * 1.001:
            raise RangeError(
                f"asked for {low:g} to {high:g} ml in all; the weights were trained on "
                f"{least:.3g} to {most:.3g} ml. Ask within that range, or add --extrapolate to go "
                f"beyond it at your own risk."
            )

    def _label_of(self, attribute: str) -> str:
        value = attribute.partition(":")[2]
        if value:
            return self.recipe.label_name(int(value))
        return next(name for name, known in self.recipe.labels.items() if known)


def natural(names: Sequence[str], values: Tensor | None) -> dict[str, float]:
    """Attribute values with their units, for a record: ``{"volume_ml": 4.0}``."""
    if values is None or not names:
        return {}
    blank = (0.0,) * len(names)
    spec = AttributeSpec(tuple(names), blank, (1.0,) * len(names), blank, blank)
    return spec.natural(values.double().cpu())


def fit_mask(mask: Volume, recipe: Recipe) -> tuple[NDArray[np.uint8], Grid]:
    """Brings a given mask onto a grid of the recipe's size, in the place that it has.

    A mask of the recipe's spacing keeps its voxels as they are, and is only cropped around its
    lesion or padded; any other is resampled.

    Args:
        mask: Label map.
        recipe: Says spacing and shape, and which values there are.

    Returns:
        The label map and its grid.

    Raises:
        LabelError: If it is empty or has values that the weights do not know.
        GridMismatchError: If the lesion is larger than a volume.
    """
    found = label_values(mask.array)
    unknown = [value for value in found if value not in recipe.values]
    if unknown or found == (0,):
        raise LabelError(
            f"{mask.path} holds the values {list(found)}; allowed are {list(recipe.values)} "
            f"({', '.join(recipe.labels)}), and not background alone. Draw or map the labels."
        )
    array, grid = mask.array, mask.grid
    aligned = np.diag([*recipe.spacing, 1.0])
    if not np.allclose(grid.affine[:3, :3], aligned[:3, :3], atol=1e-3):
        # All of it first, on a grid with the recipe's spacing around the same centre.
        corners = grid.corners
        low, high = corners.min(0), corners.max(0)
        shape = tuple(int(n) + 1 for n in np.ceil((high - low) / recipe.spacing))
        affine = aligned.copy()
        affine[:3, 3] = (low + high) / 2 - (np.array(shape) - 1) / 2 * recipe.spacing
        label = resample_to_grid(array[None], grid.affine.copy(), shape, affine, "label")
        array, grid = label[0].numpy(), Grid(cast(Triple, shape), affine)
    box = bounding_box(array > 0)
    if box is None:
        raise LabelError(
            f"{mask.path} vanishes at the voxel size of the weights, {recipe.spacing} mm. Give a "
            f"larger lesion."
        )
    start = []
    for side, n, wanted in zip(box, grid.shape, recipe.spatial_shape, strict=True):
        if side.stop - side.start > wanted - 2:
            raise GridMismatchError(
                f"{mask.path}: the lesion spans {side.stop - side.start} voxels of "
                f"{recipe.spacing} mm along one axis; a volume of these weights has {wanted}, and "
                f"one is needed free on each side. Give a smaller lesion."
            )
        if n <= wanted:
            start.append(-((wanted - n) // 2))
        else:
            centre = (side.start + side.stop - wanted) // 2
            start.append(min(max(centre, 0), n - wanted))
    shape = recipe.spatial_shape
    return _cut(array, start, shape).astype(np.uint8), grid.crop(start, shape)


def _cut(array: NDArray[np.generic], start: Sequence[int], shape: Triple) -> NDArray[np.generic]:
    """A box of an array; what lies beyond is 0."""
    made = np.zeros(shape, dtype=array.dtype)
    there, here = [], []
    for a, n, size in zip(start, shape, array.shape, strict=True):
        low, high = max(a, 0), min(a + n, size)
        there.append(slice(low, high))
        here.append(slice(low - a, high - a))
    made[tuple(here)] = array[tuple(there)]
    return made
