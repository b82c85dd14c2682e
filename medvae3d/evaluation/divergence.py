r"""How far two sets of cases are apart in what was measured of each.

Every case is a row of shares over bins: a one in the bin of its number, or the shares of its own
voxels over intensities or places. Sets are compared by their mean rows :math:`p` (real) and
:math:`q` (synthetic), in bits:

.. math::
    \mathrm{KLD} = \sum_b p_b \log_2 \frac{p_b}{q_b}, \qquad
    \mathrm{JSD} = \tfrac12 \mathrm{KLD}\big(p, \tfrac{p + q}2\big)
                 + \tfrac12 \mathrm{KLD}\big(q, \tfrac{p + q}2\big) \le 1

One more case, spread evenly over all bins, is added to each set, so that an empty bin does not make
the KLD infinite. Numbers are also compared without bins, by Kolmogorov-Smirnov and Wasserstein.

Intervals come from drawing cases of both sets with replacement. All four measures are positive by
chance alone, and a redrawn set adds chance of its own; the interval is moved back by the mean that
this adds. The floor says what chance alone gives: both sets, at their sizes, drawn from the real
cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from medvae3d.evaluation.intervals import CONFIDENCE
from medvae3d.evaluation.sections import Light, Measure, Verdict
from medvae3d.seeding import derive_seed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

ADDED_CASES = 1.0
# 1,000 draws: the limit of 20 measures together is the 5th largest, and stands still within 10 %.
DRAWS = 1000
MOST_BINS = 12
HIGHEST = {"JSD": 1.0, "KS": 1.0}
SMALLEST_SET = 2
# Below this many cases in a set there is no verdict: floors of 10 cases reach 0.2 bit.
JUDGED_FROM = 20
# A normal distribution moved by half a standard deviation is 0.044 bit from itself.
SMALL_BITS = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two sets compared in one number or map.

    Attributes:
        measures: By column: ``JSD``, ``KLD`` and, for numbers, ``KS`` and ``Wasserstein``.
        floor: JSD in bits of each pair of sets drawn from the real cases.
    """

    measures: Mapping[str, Measure]
    floor: Sequence[float] = ()


def kld_bits(p: ArrayLike, q: ArrayLike) -> Array:
    """KLD of shares over the last axis; infinite where ``q`` lacks a bin of ``p``."""
    return np.asarray(entropy(p, q, base=2, axis=-1), dtype=np.float64)


def jsd_bits(p: ArrayLike, q: ArrayLike) -> Array:
    """JSD of shares over the last axis: 0 for the same, 1 for those without a bin in common."""
    return np.asarray(jensenshannon(p, q, base=2, axis=-1) ** 2, dtype=np.float64)


def bin_edges(real: ArrayLike, bins: int | None = None) -> Array:
    r"""Upper ends of all bins but the last; the outer bins are open.

    Bins hold equal shares of the real numbers, about :math:`\sqrt N` and at most 12 of them. Where
    there are no more different numbers than that, such as for counts, each has a bin of its own,
    and what lies below or above all of them has one too.

    Args:
        real: Numbers of the real cases.
        bins: How many instead.
    """
    values = np.sort(np.asarray(real, dtype=np.float64).ravel())
    wanted = bins or int(np.clip(round(len(values) ** 0.5), 4, MOST_BINS))
    known = np.unique(values)
    if len(known) > wanted:
        return np.unique(np.quantile(values, np.arange(1, wanted) / wanted))
    slack = 1e-6 * max(1.0, float(np.abs(known).max()))
    middles = (known[1:] + known[:-1]) / 2
    return np.concatenate([known[:1] - slack, middles, known[-1:] + slack])


def rows_of(values: ArrayLike, edges: Array) -> Array:
    """One row a number with a one in its bin, ``(N, B)``."""
    index = np.searchsorted(edges, np.asarray(values, dtype=np.float64), side="left")
    return np.eye(len(edges) + 1)[index]


def compare_numbers(real: ArrayLike, synthetic: ArrayLike, seed: int) -> Comparison:
    """Compares two sets in one number a case; NaN counts as not measured.

    Args:
        real: One number a real case.
        synthetic: One number a synthetic case.
        seed: Seed of all draws.
    """
    sets = [np.asarray(each, dtype=np.float64).ravel() for each in (real, synthetic)]
    first, second = (each[np.isfinite(each)] for each in sets)
    if min(len(first), len(second)) < SMALLEST_SET:
        return _nothing(len(first), len(second), ("JSD", "KLD", "KS", "Wasserstein"))
    edges = bin_edges(first)
    found = compare_rows(rows_of(first, edges), rows_of(second, edges), seed)
    grid = np.unique(np.concatenate([first, second]))
    steps = np.diff(grid)

    def apart(p: Array, q: Array) -> dict[str, Array]:
        gap = np.abs(np.cumsum(p - q, axis=-1))
        return {"KS": gap.max(-1), "Wasserstein": gap[..., :-1] @ steps}

    # Every number that occurs is a bin: then the cumulative sums are the distribution functions.
    ones = [np.eye(len(grid))[np.searchsorted(grid, each)] for each in (first, second)]
    others, _ = _measured(ones[0], ones[1], apart, seed)
    return Comparison({**found.measures, **others}, found.floor)


def compare_rows(real: Array, synthetic: Array, seed: int) -> Comparison:
    """Compares two sets by the mean of their rows of shares; rows of zeros count as not measured.

    Args:
        real: Shares over bins, ``(N, B)``.
        synthetic: Shares over the same bins, ``(M, B)``.
        seed: Seed of all draws.
    """
    first, second = (each[each.sum(1) > 0] for each in (real, synthetic))
    sizes = len(first), len(second)
    if min(sizes) < SMALLEST_SET:
        return _nothing(*sizes, ("JSD", "KLD"))

    def divergences(p: Array, q: Array) -> dict[str, Array]:
        p, q = (_smoothed(each, n) for each, n in zip((p, q), sizes, strict=True))
        return {"JSD": jsd_bits(p, q), "KLD": kld_bits(p, q)}

    measures, floors = _measured(first, second, divergences, seed)
    return Comparison(measures, [float(v) for v in floors["JSD"]])


def judged(claim: str, comparisons: Mapping[str, Comparison]) -> Verdict:
    """Says whether sets differ in any of several numbers or maps by more than chance.

    Args:
        claim: What is asked.
        comparisons: By what was measured.
    """
    rule = (
        f"Green: no JSD is larger than what one pair of real sets of the same sizes in 20 has in "
        f"any of these measures. Amber: one is, by no more than {SMALL_BITS} bit over the mean of "
        f"such pairs, about a shift by half a standard deviation. Red: by more. Grey: fewer than "
        f"{JUDGED_FROM} cases in a set."
    )
    able = {name: each for name, each in comparisons.items() if len(each.floor)}
    sizes = [each.measures["JSD"].n for each in able.values()]
    least = min((min(n) for n in sizes if isinstance(n, tuple)), default=0)
    if least < JUDGED_FROM:
        return Verdict(claim, Light.GREY, f"{least} cases in the smaller set", rule)
    light, over = Light.GREEN, []
    worst_name, worst = "", -np.inf
    for name, each in able.items():
        value = each.measures["JSD"].value or 0.0
        limit = float(np.quantile(each.floor, 1 - 0.05 / len(able)))
        excess = value - float(np.mean(each.floor))
        if excess > worst:
            worst_name, worst = name, excess
        if value > limit:
            over.append(name)
            if excess > SMALL_BITS:
                light = Light.RED
            elif light is Light.GREEN:
                light = Light.AMBER
    found = f"{len(over)} of {len(able)} measures apart" + (f": {', '.join(over)}" if over else "")
    found += f"; largest JSD over its floor {worst:.3f} bit ({worst_name})"
    return Verdict(claim, light, found, rule)


def _smoothed(mean: Array, cases: int) -> Array:
    """The mean row with one more case, spread evenly."""
    return (mean * cases + ADDED_CASES / mean.shape[-1]) / (cases + ADDED_CASES)


def _measured(
    real: Array, synthetic: Array, score: Callable[[Array, Array], dict[str, Array]], seed: int
) -> tuple[dict[str, Measure], dict[str, Array]]:
    """Scores of mean rows with interval and floor, and the floors of all draws."""
    sizes = len(real), len(synthetic)
    value = score(real.mean(0), synthetic.mean(0))
    rng = np.random.default_rng(derive_seed(seed, "drawn cases"))
    again = score(_redrawn(real, sizes[0], rng), _redrawn(synthetic, sizes[1], rng))
    floors = score(_redrawn(real, sizes[0], rng), _redrawn(real, sizes[1], rng))
    tail = 50 * (1 - CONFIDENCE)
    measures = {}
    for name, found in value.items():
        ends = np.percentile(again[name], (tail, 100 - tail)) - again[name].mean() + found
        low, high = (float(end) for end in np.clip(ends, 0.0, HIGHEST.get(name)))
        least, most = (float(v) for v in np.percentile(floors[name], (tail, 100 - tail)))
        floor = float(floors[name].mean())
        measures[name] = Measure(float(found), low, high, sizes, floor, least, most)
    return measures, floors


def _redrawn(rows: Array, count: int, rng: np.random.Generator) -> Array:
    """Mean rows of sets of ``count`` rows drawn with replacement, ``(DRAWS, B)``."""
    drawn = rng.integers(0, len(rows), (DRAWS, count))
    drawn += len(rows) * np.arange(DRAWS)[:, None]
    times = np.bincount(drawn.ravel(), minlength=DRAWS * len(rows)).reshape(DRAWS, len(rows))
    means: Array = times @ rows / count
    return means


def _nothing(first: int, second: int, columns: Sequence[str]) -> Comparison:
    note = f"{first} real and {second} synthetic cases could be measured; each needs {SMALLEST_SET}"
    return Comparison({column: Measure(None, n=(first, second), note=note) for column in columns})
