"""Means with the interval that so few cases allow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

RESAMPLES = 2000
CONFIDENCE = 0.95


def mean_interval(values: ArrayLike, seed: int = 0) -> dict[str, Any]:
    """Mean, bootstrap interval over cases and number of cases; NaN counts as not measured.

    Percentiles of the means of 2,000 resamples; with one case there is no interval.

    Args:
        values: One number a case.
        seed: Seed of the resampling.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    array = array[np.isfinite(array)]
    if not len(array):
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = float(array.mean())
    if len(array) == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    rng = np.random.default_rng(seed)
    means = array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = (float(v) for v in np.percentile(means, (tail, 100 - tail)))
    return {"mean": mean, "low": low, "high": high, "n": len(array)}


def mean_error(values: ArrayLike) -> dict[str, Any]:
    """Mean and standard error over cases; the error of one case is not known."""
    array = np.asarray(values, dtype=np.float64).ravel()
    error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return {"mean": float(array.mean()), "standard_error": error, "n": len(array)}


def summary(scores: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """`mean_interval` of each entry."""
    return {name: mean_interval(values, seed) for name, values in scores.items()}
