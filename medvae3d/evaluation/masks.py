"""Whether synthetic masks are spread like real ones: sizes, shapes, places, intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.casewise import by_case
from medvae3d.evaluation.divergence import (
    ADDED_CASES,
    DRAWS,
    JUDGED_FROM,
    Comparison,
    bin_edges,
    compare_numbers,
    compare_rows,
    judged,
)
from medvae3d.evaluation.intervals import mean_interval
from medvae3d.evaluation.mask_numbers import GRID, MaskNumbers, measure_masks, rim_mm
from medvae3d.evaluation.sections import Distribution, Measure, Section
from medvae3d.seeding import derive_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

NAME, TITLE = "masks", "Masks: sizes, shapes, places, intensities"
TEXT = (
    "Each case is measured, and the two sets are compared by the Jensen-Shannon divergence (JSD, 0 "
    "for the same, 1 bit for nothing in common) and the Kullback-Leibler divergence of the "
    "synthetic from the real cases (KLD, bits). Kolmogorov-Smirnov (KS) and Wasserstein distances "
    "need no bins; the latter is in the unit of its row. Two sets of real cases are apart too: "
    "read each number against its floor."
)
INTENSITY_BINS = 16
VOLUMES = "volume (ml)", "median lesion (ml)", "surface to volume (1/mm)"


def masks_section(
    real: Cases,
    synthetic: Cases,
    *,
    labels: Sequence[str],
    channels: Sequence[str],
    spacing_mm: Sequence[float],
    seed: int,
) -> Section:
    """Compares the masks of two sets, and the intensities in them and in a rim around them.

    Args:
        real: Real cases, best those that no model was fitted to.
        synthetic: Samples.
        labels: Names of the labels 1, 2 and so on.
        channels: Names of the channels of the image.
        spacing_mm: Size of a voxel along (I, J, K).
        seed: Seed of intervals and floors.
    """
    section = Section(NAME, TITLE, TEXT)
    if not len(real) or not len(synthetic):
        section.not_computed = (
            f"{len(real)} real and {len(synthetic)} synthetic cases; both sets need one at least"
        )
        return section
    options: dict[str, Any] = {"labels": labels, "channels": channels, "spacing_mm": spacing_mm}
    sets = {
        "real": measure_masks(real, **options),
        "synthetic": measure_masks(synthetic, **options),
    }
    first, second = sets["real"], sets["synthetic"]

    shapes = _compared(first.shapes, second.shapes, seed)
    means = _compared(first.intensities, second.intensities, seed)
    places = {
        name: compare_rows(*pair, derive_seed(seed, name))
        for name, pair in (
            ("lesion centres", (first.centres, second.centres)),
            ("mask occupancy", (first.occupancy, second.occupancy)),
        )
    }
    voxels = {
        name: _voxels(first.voxels[name], second.voxels[name], derive_seed(seed, "voxels", name))
        for name in first.voxels
    }
    section.tables = {
        "Sizes and shapes": _table(shapes),
        "Places": _table(places),
        "Intensities, means of cases (normalised, from -1)": _table(means),
        "Intensities, voxels": _table(voxels),
        "Empty masks": {name: {"share": _empty(each, seed)} for name, each in sets.items()},
    }
    section.facts = _facts(sets, spacing_mm)
    section.distributions = [
        *(_drawn(name, sets, "shapes") for name in first.shapes),
        *(_drawn(name, sets, "intensities") for name in first.intensities),
    ]
    for key, cases in (("real", real), ("synthetic", synthetic)):
        columns = {**sets[key].shapes, **sets[key].intensities}
        section.cases[key] = by_case(
            cases.names, {name: values.tolist() for name, values in columns.items()}
        )
    section.verdicts = [
        judged("Masks have sizes and shapes as real ones have", shapes),
        judged("Lesions lie where real ones lie", places),
        judged("Lesions and their rims are as bright as real ones", {**means, **voxels}),
    ]
    if min(len(real), len(synthetic)) < JUDGED_FROM:
        section.warnings.append(
            f"{len(real)} real and {len(synthetic)} synthetic cases: below {JUDGED_FROM}, chance "
            f"alone sets the sets apart, and no verdict is given."
        )
    return section


def _compared(
    real: Mapping[str, Array], synthetic: Mapping[str, Array], seed: int
) -> dict[str, Comparison]:
    return {
        name: compare_numbers(real[name], synthetic[name], derive_seed(seed, name)) for name in real
    }


def _voxels(real: Sequence[Array], synthetic: Sequence[Array], seed: int) -> Comparison:
    """Compares the voxels of two sets; every case counts the same, however large its mask."""
    pooled = np.concatenate(real)
    edges = bin_edges(pooled, INTENSITY_BINS) if len(pooled) else np.zeros(1)
    return compare_rows(_shares(real, edges), _shares(synthetic, edges), seed)


def _shares(voxels: Sequence[Array], edges: Array) -> Array:
    """One row of shares a case, ``(N, B)``; zeros for a case without voxels."""
    rows = np.zeros((len(voxels), len(edges) + 1))
    for row, values in zip(rows, voxels, strict=True):
        if len(values):
            index = np.searchsorted(edges, values, side="left")
            row[:] = np.bincount(index, minlength=len(row)) / len(values)
    return rows


def _table(comparisons: Mapping[str, Comparison]) -> dict[str, Mapping[str, Measure]]:
    return {name: each.measures for name, each in comparisons.items()}


def _empty(numbers: MaskNumbers, seed: int) -> Measure:
    return Measure.of(mean_interval(numbers.shapes["volume (ml)"] == 0, seed))


def _drawn(name: str, sets: Mapping[str, MaskNumbers], kind: str) -> Distribution:
    values = {key: getattr(each, kind)[name] for key, each in sets.items()}
    finite = {key: each[np.isfinite(each)].tolist() for key, each in values.items()}
    plain, _, unit = name.partition(" (")
    is_log = name in VOLUMES and all(v > 0 for each in finite.values() for v in each)
    return Distribution(plain, unit.rstrip(")"), finite, is_log)


def _facts(sets: Mapping[str, MaskNumbers], spacing_mm: Sequence[float]) -> dict[str, Any]:
    shares = {
        key: {
            "lesion centres": np.round(each.centres.mean(0), 4).tolist(),
            "mask occupancy": np.round(each.occupancy.mean(0), 4).tolist(),
        }
        for key, each in sets.items()
    }
    return {
        "logarithm": "base 2, bits",
        "divergence": "KLD(real, synthetic): bits lost by coding real cases as synthetic ones",
        "bins": "equal shares of the real numbers, outer bins open; one a value for few values",
        "smoothing": f"{ADDED_CASES:g} case more in each set, spread evenly over all bins",
        "interval": f"bootstrap over cases of both sets, {DRAWS} draws",
        "floor": f"sets of both sizes drawn from the real cases, {DRAWS} pairs",
        "intensity_bins": INTENSITY_BINS,
        "rim_mm": rim_mm(spacing_mm),
        "places": {"grid": [GRID] * 3, "order": "I, J, K, last fastest", "shares": shares},
    }
