"""Which values of what real masks show synthetic masks reach: volume, roundness, number.

Bins are deciles of the real cases, or single values where there are few of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medvae3d.data.attributes import mask_attributes
from medvae3d.data.lesions import NEIGHBOURS
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.intervals import mean_interval
from medvae3d.evaluation.sections import Distribution, Light, Measure, Section, Verdict
from medvae3d.evaluation.two_sample import percentiles
from medvae3d.seeding import derive_seed

BINS = 10
RESAMPLES = 200
ENOUGH_TO_SAY = 20
LEAST_SHARE = 0.6
UNITS = {"volume": "ml"}

Values = NDArray[np.float64]

RULE_COVERAGE = (
    "green: at least what 97.5 % of equally many real cases reach; amber: at least 0.6 of the "
    "floor; red: less; grey: fewer than 20 masks that are not empty in one set."
)


def lesion_count(cases: Cases) -> Values:
    """Connected components of each mask, in the 26-neighbourhood, ``(N,)``."""
    return np.array(
        [ndimage.label(mask[0].numpy() > 0, NEIGHBOURS)[1] for mask in cases.mask], dtype=float
    )


def mask_measures(cases: Cases, spacing_mm: Sequence[float]) -> dict[str, Values]:
    """Volume in ml, sphericity and number of lesions by case; NaN where a mask is empty."""
    found = mask_attributes(cases.mask, spacing_mm, ("log_volume", "sphericity")).double().numpy()
    filled = (cases.mask > 0).flatten(1).any(1).numpy()
    volume, sphericity = np.where(filled[:, None], found, np.nan).T
    return {
        "volume": np.exp(volume),
        "sphericity": sphericity,
        "number of lesions": lesion_count(cases),
    }


def bins_of(real: Values, most: int = BINS) -> Values:
    """Edges of the bins of real values: between deciles, or between values where there are few.

    The outer edges are the smallest and the largest real value.

    Args:
        real: At least two different values.
        most: Most bins.
    """
    different = np.unique(real)
    if len(different) <= most:
        between = (different[:-1] + different[1:]) / 2
        return np.array([different[0], *between, different[-1]])
    return np.unique(np.quantile(real, np.linspace(0, 1, most + 1)))


def bins_reached(values: Values, edges: Values) -> NDArray[np.bool_]:
    """Which bins hold a value; what lies beyond the outer edges is in none."""
    inside = values[(values >= edges[0]) & (values <= edges[-1])]
    place = np.clip(np.searchsorted(edges, inside, side="right") - 1, 0, len(edges) - 2)
    return np.bincount(place, minlength=len(edges) - 1) > 0


def add_coverage(
    section: Section,
    real: Cases,
    synthetic: Cases,
    spacing_mm: Sequence[float],
    seed: int,
) -> None:
    """Adds the coverage of each attribute with its floor, and verdicts.

    Args:
        section: Is added to.
        real: Real cases.
        synthetic: Samples.
        spacing_mm: Size of a voxel along (I, J, K).
        seed: Seed of the floor.
    """
    sets = [mask_measures(cases, spacing_mm) for cases in (real, synthetic)]
    table: dict[str, dict[str, Measure]] = {}
    for name in sets[0]:
        x, y = (values[name][np.isfinite(values[name])] for values in sets)
        sizes = (len(x), len(y))
        if not len(x) or np.ptp(x) == 0 or not len(y):
            why = "the real cases are all alike" if len(x) and len(y) else "masks are empty"
            table[name] = {"coverage": Measure(None, n=sizes, note=f"not computed: {why}")}
            continue
        edges = bins_of(x)
        count = bins_reached(x, edges)
        covered = float((bins_reached(y, edges) & count).sum() / count.sum())
        rng = np.random.default_rng(derive_seed(seed, "coverage", name))
        draws = x[rng.integers(0, len(x), (RESAMPLES, len(y)))]
        floor = np.array([bins_reached(draw, edges).sum() / count.sum() for draw in draws])
        outside = mean_interval((y < edges[0]) | (y > edges[-1]), seed)
        coverage = Measure(
            covered,
            n=sizes,
            floor=float(floor.mean()),
            floor_low=percentiles(floor)[0],
            floor_high=percentiles(floor)[1],
            note=f"of {int(count.sum())} bins; no interval, as resampling can only lose bins",
        )
        table[name] = {
            "coverage": coverage,
            "share outside of the range of real cases": Measure.of(outside),
        }
        section.distributions.append(
            Distribution(
                name,
                UNITS.get(name, ""),
                {"real": [float(v) for v in x], "synthetic": [float(v) for v in y]},
                is_log=name == "volume",
            )
        )
        section.verdicts.append(_verdict(name, coverage, min(sizes)))
    section.tables["attributes of masks"] = table


def _verdict(name: str, coverage: Measure, fewest: int) -> Verdict:
    value, floor = coverage.value or 0.0, coverage.floor or 0.0
    if fewest < ENOUGH_TO_SAY:
        light = Light.GREY
    elif value >= (coverage.floor_low or 0.0):
        light = Light.GREEN
    else:
        light = Light.AMBER if value >= LEAST_SHARE * floor else Light.RED
    return Verdict(
        f"synthetic masks cover the {name} of real ones",
        light,
        f"{value:.0%} of the bins; floor {floor:.0%}",
        RULE_COVERAGE,
    )
