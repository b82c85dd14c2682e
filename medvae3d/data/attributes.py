r"""What a mask says in numbers: volume, extent, roundness, elongation.

For a mask :math:`m` with voxel sizes :math:`s` in mm:

.. math::
    V = s_i s_j s_k \sum m, \qquad
    \psi = \frac{\pi^{1/3} (6 V)^{2/3}}{A}, \qquad
    r_2 = \sqrt{\lambda_2 / \lambda_1}, \quad r_3 = \sqrt{\lambda_3 / \lambda_1}

with the surface area :math:`A` and the eigenvalues :math:`\lambda_1 \ge \lambda_2 \ge \lambda_3`
of the covariance of the mask. The area comes from the Cauchy-Crofton formula: the number of times
that parallel lines enter or leave the mask, over the 13 directions of a voxel's neighbours,

.. math:: A = 2 \sum_d w_d \, \frac{s_i s_j s_k}{\|d\|} \, N_d

where :math:`N_d` counts changes between a voxel and its neighbour in direction :math:`d` and
:math:`w_d` is the share of the sphere that lies closest to that direction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.spatial import SphericalVoronoi
from torch import Tensor

from medvae3d.errors import LabelError, RangeError, SettingError

AXES = ("i", "j", "k")
MEASURES = (
    "log_volume",
    *(f"log_extent_{axis}" for axis in AXES),
    "sphericity",
    "axis_ratio_2",
    "axis_ratio_3",
)
# Names of attributes that say of which class a case is: one 0 or 1 for each class.
CLASS = "class:"
# Half a voxel: an empty mask gets finite numbers that no real mask has.
EMPTY_VOXELS = 0.5


@lru_cache(maxsize=64)
def _directions(spacing: tuple[float, float, float]) -> tuple[tuple[tuple[int, ...], float], ...]:
    """The 13 neighbour steps and the area in mm^2 that one change along each stands for."""
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if s > (0, 0, 0)]
    size = np.array(spacing)
    vectors = np.array(steps) * size
    lengths = np.linalg.norm(vectors, axis=1)
    unit = vectors / lengths[:, None]
    areas = SphericalVoronoi(np.concatenate([unit, -unit])).calculate_areas()
    weights = (areas[: len(steps)] + areas[len(steps) :]) / areas.sum()
    per_change = 2 * weights * size.prod() / lengths
    return tuple((step, float(area)) for step, area in zip(steps, per_change, strict=True))


def surface_area(mask: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """Estimates the surface area of masks from line crossings in 13 directions.

    Measured: within 4 % of the sphere from 4 voxels radius on, at spacings up to 1 : 3. Boxes along
    the axes, which 13 directions see worst, come out 9 % (40 voxels a side) to 18 % (5) small.

    Args:
        mask: Masks; voxels other than 0 are inside. Beyond the border is outside.
        spacing_mm: Size of a voxel along (I, J, K).

    Shape:
        - ``mask``: :math:`(B, 1, I, J, K)`
        - output: :math:`(B)` in mm^2, float32
    """
    inside = torch.nn.functional.pad(mask[:, 0] != 0, (1, 1, 1, 1, 1, 1))
    shape = inside.shape[1:]
    area = torch.zeros(len(inside), dtype=torch.float64, device=mask.device)
    for step, weight in _directions(_triple(spacing_mm)):
        here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, shape, strict=True))
        there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, shape, strict=True))
        changes = inside[(slice(None), *here)] ^ inside[(slice(None), *there)]
        area += weight * changes.flatten(1).sum(1)
    return area.float()


def mask_attributes(mask: Tensor, spacing_mm: Sequence[float], names: Sequence[str]) -> Tensor:
    """Measures masks.

    Names are ``log_volume`` (of ml), ``log_extent_i``, ``_j``, ``_k`` (of mm, bounding box),
    ``sphericity``, ``axis_ratio_2``, ``axis_ratio_3``. ``NAME:VALUE`` measures one label value;
    a bare name measures everything that is not background. An empty mask counts as half a voxel,
    so that no result is infinite.

    Args:
        mask: Boolean masks or integer label maps.
        spacing_mm: Size of a voxel along (I, J, K).
        names: What to measure.

    Shape:
        - ``mask``: :math:`(B, 1, I, J, K)`
        - output: :math:`(B, F)` for :math:`F` names, float32

    Raises:
        SettingError: If a name is unknown.
        LabelError: If the mask is not :math:`(B, 1, I, J, K)`.

    Example:
        >>> mask = torch.ones(1, 1, 10, 10, 10, dtype=torch.bool)
        >>> mask_attributes(mask, (1.0, 1.0, 1.0), ("log_volume",)).exp()
        tensor([[1.]])
    """
    if mask.ndim != 5 or mask.shape[1] != 1:
        raise LabelError(
            f"mask has shape {tuple(mask.shape)}; masks are (B, 1, I, J, K) with one channel of "
            f"integer labels. Join channels to one label map first."
        )
    spacing = _triple(spacing_mm)
    parsed = [_parse(name) for name in names]
    columns: dict[tuple[str, int | None], Tensor] = {}
    for value in dict.fromkeys(value for _, value in parsed):
        wanted = {measure for measure, other in parsed if other == value}
        chosen = mask != 0 if value is None else mask == value
        columns |= {(m, value): column for m, column in _measure(chosen, spacing, wanted).items()}
    if not parsed:
        return torch.zeros(len(mask), 0, device=mask.device)
    return torch.stack([columns[key] for key in parsed], dim=1).float()


def _triple(spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    i, j, k = (float(s) for s in spacing_mm)
    if min(i, j, k) <= 0 or not math.isfinite(i + j + k):
        raise SettingError(f"spacing is {(i, j, k)} mm; each size must be positive and finite.")
    return i, j, k


def _parse(name: str) -> tuple[str, int | None]:
    measure, _, value = name.partition(":")
    if measure not in MEASURES or (":" in name and not value.isdecimal()):
        raise SettingError(
            f"attribute {name!r} is unknown; it is one of {', '.join(MEASURES)}, "
            f"each with or without ':VALUE' for one label value."
        )
    return measure, int(value) if value else None


def _measure(
    mask: Tensor, spacing: tuple[float, float, float], wanted: set[str]
) -> dict[str, Tensor]:
    # Sums over 1e5 voxels of squared positions need more than float32.
    size = torch.tensor(spacing, dtype=torch.float64, device=mask.device)
    count = mask.flatten(1).sum(1).double()
    volume = count.clamp(min=EMPTY_VOXELS) * size.prod()
    found = {"log_volume": (volume / 1000).log()}
    profiles = [mask.sum(dim=[1, *({2, 3, 4} - {axis})]).double() for axis in (2, 3, 4)]
    for axis, profile in enumerate(profiles):
        if f"log_extent_{AXES[axis]}" not in wanted:
            continue
        hit = profile > 0
        first = hit.byte().argmax(1)
        last = hit.shape[1] - 1 - hit.flip(1).byte().argmax(1)
        extent = torch.where(count > 0, (last - first + 1).double(), EMPTY_VOXELS)
        found[f"log_extent_{AXES[axis]}"] = (extent * size[axis]).log()
    if "sphericity" in wanted:
        area = surface_area(mask, spacing).double()
        round_area = math.pi ** (1 / 3) * (6 * volume) ** (2 / 3)
        found["sphericity"] = torch.where(count > 0, round_area / area, 1.0)
    if wanted & {"axis_ratio_2", "axis_ratio_3"}:
        l3, l2, l1 = torch.linalg.eigvalsh(_covariance(mask, profiles, count, size)).unbind(1)
        found["axis_ratio_2"] = (l2 / l1).sqrt()
        found["axis_ratio_3"] = (l3 / l1).sqrt()
    return found


def _covariance(mask: Tensor, profiles: list[Tensor], count: Tensor, size: Tensor) -> Tensor:
    """Covariance in mm^2, ``(B, 3, 3)``, of voxels as boxes: even a flat mask has a thickness."""
    total = count.clamp(min=1.0)
    places = [torch.arange(p.shape[1], device=p.device).double() for p in profiles]
    means = [(p * at).sum(1) / total for p, at in zip(profiles, places, strict=True)]
    offsets = [at - mean[:, None] for at, mean in zip(places, means, strict=True)]
    covariance = torch.zeros(len(mask), 3, 3, dtype=torch.float64, device=mask.device)
    for a in range(3):
        variance = (profiles[a] * offsets[a].square()).sum(1) / total
        covariance[:, a, a] = (variance + 1 / 12) * size[a].square()
        for b in range(a + 1, 3):
            flat = mask.sum(dim=[1, *({2, 3, 4} - {a + 2, b + 2})]).double()
            cross = torch.einsum("bi,bij,bj->b", offsets[a], flat, offsets[b]) / total
            covariance[:, a, b] = covariance[:, b, a] = cross * size[a] * size[b]
    return covariance


@dataclass(frozen=True)
class AttributeSpec:
    """Which attributes a model is told, and how the training set was spread over them.

    Attributes:
        names: As for :func:`mask_attributes`.
        mean: Mean of each over the training set.
        scale: Standard deviation of each; 1 where all cases agree.
        low: Smallest value seen in training.
        high: Largest value seen in training.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        for field in ("mean", "scale", "low", "high"):
            numbers = tuple(float(n) for n in getattr(self, field))
            object.__setattr__(self, field, numbers)
            if len(numbers) != len(self.names):
                raise SettingError(
                    f"attributes: {field} has {len(numbers)} entries for {len(self.names)} names "
                    f"{self.names}. Write one number a name."
                )
        for name in self.names:
            if not name.startswith(CLASS):
                _parse(name)
        if any(scale <= 0 for scale in self.scale):
            raise SettingError(f"attributes: scale is {self.scale}; each must be positive.")

    @classmethod
    def fit(cls, values: Tensor, names: Sequence[str]) -> AttributeSpec:
        """Takes the spread of ``values``, ``(N, F)``, of a training set."""
        if values.ndim != 2 or values.shape[1] != len(names) or not len(values):
            raise SettingError(
                f"attributes of the training set have shape {tuple(values.shape)}; "
                f"{len(names)} names need (cases, {len(names)}) and at least one case."
            )
        values = values.detach().double().cpu()
        scale = values.std(dim=0, unbiased=False)
        return cls(
            names=tuple(names),
            mean=tuple(values.mean(0).tolist()),
            scale=tuple(torch.where(scale > 1e-6, scale, 1.0).tolist()),
            low=tuple(values.amin(0).tolist()),
            high=tuple(values.amax(0).tolist()),
        )

    def measure(self, mask: Tensor, spacing_mm: Sequence[float]) -> Tensor:
        """Measures masks by these names, not standardised; see :func:`mask_attributes`."""
        return mask_attributes(mask, spacing_mm, self.names)

    def standardise(self, values: Tensor) -> Tensor:
        """Brings ``(..., F)`` to mean 0 and standard deviation 1 of the training set."""
        return (values - values.new_tensor(self.mean)) / values.new_tensor(self.scale)

    def undo(self, standardised: Tensor) -> Tensor:
        """Inverts :meth:`standardise`."""
        return standardised * standardised.new_tensor(self.scale) + standardised.new_tensor(
            self.mean
        )

    def check(self, values: Tensor) -> None:
        """Checks that values, ``(..., F)``, not standardised, lie in the range of training.

        Raises:
            RangeError: If one does not; in ml and mm where the attribute is a logarithm.
        """
        rows = values.detach().double().cpu().reshape(-1, len(self.names))
        for column, (name, low, high) in enumerate(
            zip(self.names, self.low, self.high, strict=True)
        ):
            # A float32 round trip through standardise and undo must pass.
            slack = 1e-4 + 1e-5 * (high - low)
            for value in rows[:, column].tolist():
                if not low - slack <= value <= high + slack:
                    label, unit = _label(name)
                    found, least, most = (_natural(name, v) for v in (value, low, high))
                    raise RangeError(
                        f"{label} {found:.3g}{unit} was asked; the weights were trained on "
                        f"{least:.3g} to {most:.3g}{unit}. Ask within that range, or allow "
                        f"more with --extrapolate."
                    )

    def natural(self, values: Tensor) -> dict[str, float]:
        """Names and numbers of one case, ``(F,)``, for a record: ``{"volume_ml": 4.0, ...}``."""
        report = {}
        for name, value in zip(self.names, values.tolist(), strict=True):
            label, unit = _label(name)
            key, _, which = label.partition(" of label ")
            key = key.replace(" ", "_") + unit.replace(" ", "_") + (f"_label_{which}" * bool(which))
            report[key] = _natural(name, value)
        return report

    def to_dict(self) -> dict[str, Any]:
        """Numbers and names that JSON can hold."""
        return {key: list(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AttributeSpec:
        """Reads what :meth:`to_dict` wrote."""
        return cls(**{key: tuple(value) for key, value in data.items()})


def _natural(name: str, value: float) -> float:
    return math.exp(value) if name.startswith("log_") else value


def _label(name: str) -> tuple[str, str]:
    if name.startswith(CLASS):
        return name.replace(":", " "), ""
    measure, value = _parse(name)
    unit = {"log_v": " ml", "log_e": " mm"}.get(measure[:5], "")
    label = measure.removeprefix("log_").replace("_", " ")
    return label + ("" if value is None else f" of label {value}"), unit
