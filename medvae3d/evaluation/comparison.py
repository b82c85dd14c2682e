"""Measures of two sets of features with their intervals, and with what two real sets would get.

A distance of two sets depends on how large they are, and is not zero between two sets of real
cases. So each is given twice: of all cases, with its interval, and at the sizes at which two
disjoint sets of real cases can be had, beside the same measure of those, the floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medvae3d.evaluation.intervals import mean_interval
from medvae3d.evaluation.sections import Measure, Table
from medvae3d.evaluation.two_sample import (
    Clusters,
    Rows,
    Standard,
    frechet,
    gaussian,
    inception_score,
    kernel_distance,
    median_distance,
    neighbours,
    neighbours_for,
    percentiles,
    polynomial,
    weighted_kernel_distance,
)
from medvae3d.seeding import derive_seed

RESAMPLES = 200
FRECHET_RESAMPLES = 100  # 0.02 s each at 256 features
SPLITS = 10
FEWEST = 2

DISTANCES = ("Fréchet distance", "kernel distance, cubic", "kernel distance, Gaussian")
SHARES = ("precision", "recall", "density", "coverage")
SCORE = "inception-type score"
ALL, SAME = "all cases", "at the sizes of the floor"


@dataclass
class Prepared:
    """Standardised features of both sets, and what was left out of them."""

    real: Rows
    made: Rows
    facts: dict[str, Any] = field(default_factory=dict)


def prepare(real: Rows, made: Rows) -> Prepared:
    """Leaves out what is not finite and standardises by the real set.

    Columns that are missing in more than half of all cases go first, then cases that still miss
    one.
    """
    both = np.isfinite(np.concatenate([real, made]))
    columns = both.mean(0) >= 0.5
    real, made = real[:, columns], made[:, columns]
    sound = [np.isfinite(rows).all(1) for rows in (real, made)]
    facts: dict[str, Any] = {
        "features": int(columns.sum()),
        "features left out": int((~columns).sum()),
        "real cases left out": int((~sound[0]).sum()),
        "synthetic cases left out": int((~sound[1]).sum()),
    }
    real, made = real[sound[0]], made[sound[1]]
    if min(len(real), len(made)) >= FEWEST and real.shape[1]:
        standard = Standard.fit(real, made)
        real, made = standard(real), standard(made)
        facts["features that vary"] = int(standard.kept.sum())
        facts["dimensions"] = real.shape[1]
    return Prepared(real, made, facts)


@dataclass
class Comparison:
    """A table of measures and what has to be said of it."""

    table: Table
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    nearest: dict[str, list[float]] = field(default_factory=dict)


def compare(prepared: Prepared, seed: int) -> Comparison:
    """All measures of standardised features, with intervals and floors.

    Args:
        prepared: Features of both sets.
        seed: Seed of resampling, splitting and clustering.
    """
    x, y = prepared.real, prepared.made
    sizes = (len(x), len(y))
    why = ""
    if min(sizes) < FEWEST:
        why = f"only {sizes[0]} real and {sizes[1]} synthetic cases have all features"
    elif not prepared.facts["features"]:
        why = "no feature could be computed for most of the cases"
    elif not x.shape[1] or not (np.ptp(x, 0) > 0).any():
        why = "no feature varies among the real cases"
    if why:
        empty = Measure(None, n=sizes, note=f"not computed: {why}")
        rows = {name: {ALL: empty} for name in (*DISTANCES, *SHARES, SCORE)}
        return Comparison(rows, {"not computed": why})
    scale = median_distance(x)
    whole = _all_cases(x, y, scale, seed)
    made = min(len(y), len(x) // 2)
    reference = len(x) - made
    table: dict[str, dict[str, Measure]] = {name: {ALL: whole[name]} for name in whole}
    found = Comparison(table, {"resamples": RESAMPLES, "splits": SPLITS, "k": _k(sizes)})
    found.facts["shrunk covariances"] = min(reference, made) <= x.shape[1]
    if made < FEWEST:
        found.warnings.append(
            f"{len(x)} real cases cannot be split into two sets: there is no floor."
        )
    else:
        found.facts["sizes of the floor"] = [reference, made]
        value, floor = _splits(x, y, reference, made, scale, seed)
        for name, measure in whole.items():
            table[name][SAME] = _beside_floor(
                measure, value[name], floor[name], (reference, made), name
            )
        if made < len(y):
            found.warnings.append(
                f"the floor has {reference} and {made} real cases, as {len(x)} allow; values "
                f"beside it are of as many synthetic cases."
            )
    if found.facts["shrunk covariances"]:
        found.warnings.append(
            f"Fréchet distance with covariances shrunk by Ledoit and Wolf: {x.shape[1]} features "
            f"and fewer cases. Compare it with its floor only."
        )
    found.nearest = {"synthetic": [float(v) for v in _nearest(x, y)]}
    if made >= FEWEST:
        order = np.random.default_rng(derive_seed(seed, "split", 0)).permutation(len(x))
        apart = _nearest(x[order[:reference]], x[order[reference:]])
        found.nearest["real"] = [float(v) for v in apart]
    return found


def _nearest(x: Rows, y: Rows) -> Rows:
    return neighbours(x, y, _k((len(x), len(y)))).nearest


def _k(sizes: tuple[int, int]) -> int:
    return neighbours_for(min(sizes))


def _estimates(x: Rows, y: Rows, scale: float, shrink: bool, seed: int) -> dict[str, float]:
    """All measures of two sets; NaN where one cannot be computed."""
    near = neighbours(x, y, _k((len(x), len(y))))
    return {
        DISTANCES[0]: frechet(x, y, shrink),
        DISTANCES[1]: kernel_distance(x, y, polynomial),
        DISTANCES[2]: kernel_distance(x, y, gaussian(scale)) if scale else np.nan,
        **{name: float(getattr(near, name).mean()) for name in SHARES},
        SCORE: inception_score(Clusters(x, seed).shares(y)),
    }


def _all_cases(x: Rows, y: Rows, scale: float, seed: int) -> dict[str, Measure]:
    """Every measure of all cases with its bootstrap interval."""
    sizes = (len(x), len(y))
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    shrink = min(sizes) <= x.shape[1]
    # Resampled sets hold copies, which makes their distance larger: only the spread is taken.
    draws = [
        frechet(x[rng.integers(0, len(x), len(x))], y[rng.integers(0, len(y), len(y))], shrink)
        for _ in range(FRECHET_RESAMPLES)
    ]
    value = frechet(x, y, shrink)
    low, high = percentiles(np.array(draws) - np.mean(draws) + value)
    found = {DISTANCES[0]: Measure(value, max(0.0, low), high, sizes)}
    w, v = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64) for n in sizes)
    kernels = {DISTANCES[1]: polynomial} | ({DISTANCES[2]: gaussian(scale)} if scale else {})
    for name, kernel in kernels.items():
        parts = kernel(x, x), kernel(y, y), kernel(x, y)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = weighted_kernel_distance(*parts, w, v)
        low, high = percentiles(spread)
        found[name] = Measure(kernel_distance(x, y, kernel), low, high, sizes)
    if not scale:
        note = "not computed: most real cases have the same features"
        found[DISTANCES[2]] = Measure(None, n=sizes, note=note)
    near = neighbours(x, y, _k(sizes))
    for name in SHARES:
        # Copies would be each other's neighbours: the neighbourhoods stay, their members vary.
        interval = mean_interval(getattr(near, name), derive_seed(seed, name))
        found[name] = Measure(interval["mean"], interval["low"], interval["high"], sizes)
    shares = Clusters(x, seed).shares(y)
    draws = [inception_score(shares[rng.integers(0, len(y), len(y))]) for _ in range(RESAMPLES)]
    found[SCORE] = Measure(inception_score(shares), *percentiles(np.array(draws)), sizes)
    return found


def _splits(
    x: Rows, y: Rows, reference: int, made: int, scale: float, seed: int
) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Every measure in random splits: against synthetic cases, and against other real ones."""
    value: list[dict[str, float]] = []
    floor: list[dict[str, float]] = []
    shrink = min(reference, made) <= x.shape[1]
    for split in range(SPLITS):
        rng = np.random.default_rng(derive_seed(seed, "split", split))
        order = rng.permutation(len(x))
        one, two = x[order[:reference]], x[order[reference:]]
        other = y[rng.permutation(len(y))[:made]]
        value.append(_estimates(one, other, scale, shrink, seed))
        floor.append(_estimates(one, two, scale, shrink, seed))
    return _stacked(value), _stacked(floor)


def _stacked(rows: Sequence[Mapping[str, float]]) -> dict[str, Rows]:
    return {name: np.array([each[name] for each in rows]) for name in rows[0]}


def _beside_floor(
    whole: Measure, value: Rows, floor: Rows, sizes: tuple[int, int], name: str
) -> Measure:
    """A measure at the sizes of the floor; its interval is as wide as that of all cases."""
    if whole.value is None or not np.isfinite(value).all() or not np.isfinite(floor).all():
        return Measure(None, n=sizes, note=whole.note or "not computed: not finite")
    mean = float(value.mean())
    ends = (whole.value if end is None else end for end in (whole.low, whole.high))
    low, high = (mean + end - whole.value for end in ends)
    if name not in DISTANCES[1:]:
        low = max(0.0, low)
    if name in SHARES and name != "density":
        high = min(1.0, high)
    return Measure(mean, low, high, sizes, float(floor.mean()), *percentiles(floor))
