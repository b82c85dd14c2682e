r"""How good the probabilities of a classifier are, with intervals over subjects.

With probabilities :math:`p_i` of the second class and classes :math:`y_i \in \{0, 1\}`, of
:math:`P` cases with :math:`y = 1` and :math:`Q` with :math:`y = 0`,

.. math::
    \mathrm{AUC} = \frac{1}{PQ} \sum_{i: y_i = 1} \sum_{j: y_j = 0} \psi(p_i, p_j), \qquad
    \mathrm{Brier} = \frac1N \sum_i (p_i - y_i)^2

with :math:`\psi` 1, 1/2 or 0 where the first is larger, equal or smaller. Where each subject has
one case, the variance of the AUC is DeLong's,

.. math:: \mathrm{var} = \frac{\mathrm{var}_i(V_i)}{P} + \frac{\mathrm{var}_j(W_j)}{Q}, \qquad
    V_i = \frac1Q \sum_j \psi(p_i, p_j), \quad W_j = \frac1P \sum_i \psi(p_i, p_j)

Several classifiers of one arm (its seeds) have the mean of their AUCs, whose :math:`V` and
:math:`W` are the means of theirs. All else is bootstrapped over subjects, which take all of their
cases with them.

References:
    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver
    operating characteristic curves", 1988. Sun and Xu, "Fast implementation of DeLong's algorithm",
    2014.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from medvae3d.evaluation.intervals import CONFIDENCE, RESAMPLES
from medvae3d.evaluation.sections import Measure
from medvae3d.studies.comparison import Paired

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

MEASURES = (
    "auc",
    "balanced_accuracy",
    "accuracy",
    "sensitivity",
    "specificity",
    "precision",
    "recall",
    "f1",
    "brier",
)
THRESHOLD = 0.5
ONE = "no interval: one subject"
NORMAL = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))


def scores(y: ArrayLike, p: ArrayLike, weights: ArrayLike | None = None) -> dict[str, Array]:
    """All measures, once for each row of weights.

    A class is called at a probability of 0.5 and more. Precision is 0 where nothing is called
    positive. NaN where a class has no weight and the measure needs it.

    Args:
        y: Classes, 0 or 1, ``(N,)``.
        p: Probabilities of class 1, ``(N,)``.
        weights: How often each case counts, ``(B, N)``; once by default.

    Returns:
        By measure, ``(B,)``.
    """
    truth = np.asarray(y).astype(bool)
    chance = np.asarray(p, dtype=np.float64)
    w = np.ones((1, len(truth))) if weights is None else np.asarray(weights, dtype=np.float64)
    called = chance >= THRESHOLD
    total, positive, negative = w.sum(1), w[:, truth].sum(1), w[:, ~truth].sum(1)
    hit, false = (w[:, called & each].sum(1) for each in (truth, ~truth))
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, specificity = hit / positive, 1 - false / negative
        precision = np.where(hit + false > 0, hit / (hit + false), 0.0)
        return {
            "auc": _weighted_auc(truth, chance, w) / (positive * negative),
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "accuracy": (hit + negative - false) / total,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": precision,
            "recall": sensitivity,
            "f1": 2 * hit / (hit + false + positive),
            "brier": w @ (chance - truth) ** 2 / total,
        }


def _order(truth: NDArray[np.bool_], chance: Array) -> Array:
    """1, 1/2 or 0 for each pair of a positive and a negative case, ``(P, Q)``."""
    above = chance[truth][:, None] - chance[~truth][None]
    return (np.sign(above) + 1) / 2


def _weighted_auc(truth: NDArray[np.bool_], chance: Array, w: Array) -> Array:
    summed: Array = ((w[:, truth] @ _order(truth, chance)) * w[:, ~truth]).sum(1)
    return summed


def auc_parts(y: ArrayLike, runs: ArrayLike) -> tuple[Array, Array]:
    """DeLong's :math:`V` ``(S, P)`` and :math:`W` ``(S, Q)`` of several classifiers, by ranks.

    Args:
        y: Classes, 0 or 1, ``(N,)``.
        runs: Probabilities of class 1, ``(S, N)``.
    """
    truth = np.asarray(y).astype(bool)
    p = np.atleast_2d(np.asarray(runs, dtype=np.float64))
    positives, negatives = p[:, truth], p[:, ~truth]
    rank = stats.rankdata(p, axis=1)
    v = (rank[:, truth] - stats.rankdata(positives, axis=1)) / negatives.shape[1]
    w = 1 - (rank[:, ~truth] - stats.rankdata(negatives, axis=1)) / positives.shape[1]
    return v, w


def delong(y: ArrayLike, arms: Sequence[ArrayLike]) -> tuple[Array, Array]:
    """AUCs of several arms on the same cases, and their covariance.

    Args:
        y: Classes, 0 or 1, ``(N,)``; at least two of each.
        arms: For each arm the probabilities of its seeds, ``(S, N)`` or ``(N,)``.

    Returns:
        Mean AUC over seeds ``(A,)`` and covariance ``(A, A)``.
    """
    parts = [auc_parts(y, runs) for runs in arms]
    v = np.stack([each[0].mean(0) for each in parts])
    w = np.stack([each[1].mean(0) for each in parts])
    covariance = np.cov(v).reshape(len(arms), -1) / v.shape[1]
    covariance = covariance + np.cov(w).reshape(len(arms), -1) / w.shape[1]
    return v.mean(1), covariance


def subject_weights(subjects: Sequence[str], seed: int, draws: int = RESAMPLES) -> Array:
    """How often each case counts in each bootstrap draw of subjects, ``(B, N)``."""
    _, group = np.unique(np.asarray(subjects), return_inverse=True)
    count = int(group.max()) + 1
    rng = np.random.default_rng(seed)
    drawn: Array = rng.multinomial(count, np.full(count, 1 / count), draws)[:, group].astype(float)
    return drawn


def are_clustered(subjects: Sequence[str]) -> bool:
    """Whether any subject has several cases."""
    return len(set(subjects)) < len(subjects)


def measured(
    y: ArrayLike, runs: ArrayLike, subjects: Sequence[str], seed: int = 0
) -> dict[str, Measure]:
    """All measures of one arm with their 95 % intervals.

    Args:
        y: Classes, 0 or 1, ``(N,)``.
        runs: Probabilities of class 1 by seed, ``(S, N)``; measures are means over seeds.
        subjects: Patient of each case.
        seed: Seed of the bootstrap.
    """
    point, drawn = _over_seeds(y, runs, subject_weights(subjects, seed))
    count = len(set(subjects))
    if count < 2:
        # Drawn again and again, one subject is always itself: an interval of no width.
        return {name: Measure(_or_none(point[name]), n=count, note=ONE) for name in MEASURES}
    found = {
        name: Measure(_or_none(point[name]), *_ends(drawn[name]), n=count) for name in MEASURES
    }
    if not are_clustered(subjects) and _has_pairs(y):
        value, variance = delong(y, [runs])
        found["auc"] = _normal(float(value[0]), float(variance[0, 0]), count)
    return found


def compared(
    y: ArrayLike, runs: ArrayLike, reference: ArrayLike, subjects: Sequence[str], seed: int = 0
) -> dict[str, Paired]:
    """Differences of one arm to another on the same cases, for all measures.

    The p value is DeLong's for the AUC where each subject has one case, and else the share of
    bootstrap draws on the other side of 0, doubled.

    Args:
        y: Classes, 0 or 1, ``(N,)``.
        runs: Probabilities of class 1 by seed, ``(S, N)``.
        reference: The same of the arm that it is compared with.
        subjects: Patient of each case.
        seed: Seed of the bootstrap.
    """
    weights = subject_weights(subjects, seed)
    one, two = (_over_seeds(y, each, weights) for each in (runs, reference))
    count = len(set(subjects))
    found = {}
    if count < 2:
        alone = {name: _or_none(one[0][name] - two[0][name]) for name in MEASURES}
        return {name: Paired(value, None, None, count, None) for name, value in alone.items()}
    for name in MEASURES:
        value, drawn = one[0][name] - two[0][name], one[1][name] - two[1][name]
        low, high = _ends(drawn)
        p = _two_sided(drawn)
        found[name] = Paired(_or_none(value), low, high, count, p)
    if not are_clustered(subjects) and _has_pairs(y):
        found["auc"] = delong_test(y, runs, reference)
    return found


def delong_test(y: ArrayLike, runs: ArrayLike, reference: ArrayLike) -> Paired:
    """Difference of two AUCs on the same cases, each a subject of its own, after DeLong."""
    value, covariance = delong(y, [runs, reference])
    difference = float(value[0] - value[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    # Rounding leaves some 1e-17 of two arms that order all cases alike.
    error = float(np.sqrt(variance)) if variance > 1e-15 else 0.0
    if error:
        p = float(2 * stats.norm.sf(abs(difference) / error))
    else:
        p = 1.0 if difference == 0 else 0.0
    reach = NORMAL * error
    return Paired(difference, difference - reach, difference + reach, len(np.asarray(y)), p)


def _over_seeds(
    y: ArrayLike, runs: ArrayLike, weights: Array
) -> tuple[dict[str, float], dict[str, Array]]:
    rows = np.atleast_2d(np.asarray(runs, dtype=np.float64))
    all_weights = np.concatenate([np.ones((1, weights.shape[1])), weights])
    each = [scores(y, p, all_weights) for p in rows]
    mean = {name: np.mean([run[name] for run in each], axis=0) for name in MEASURES}
    return {k: float(v[0]) for k, v in mean.items()}, {k: v[1:] for k, v in mean.items()}


def _has_pairs(y: ArrayLike) -> bool:
    truth = np.asarray(y).astype(bool)
    return int(truth.sum()) >= 2 and int((~truth).sum()) >= 2


def _normal(value: float, variance: float, count: int) -> Measure:
    reach = NORMAL * float(np.sqrt(max(variance, 0.0)))
    note = "no interval: all pairs are in order" if variance <= 0 and value == 1 else ""
    if note:
        return Measure(value, n=count, note=note)
    return Measure(value, max(0.0, value - reach), min(1.0, value + reach), count)


def _ends(drawn: Array) -> tuple[float | None, float | None]:
    known = drawn[np.isfinite(drawn)]
    if len(known) < 2:
        return None, None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(known, (tail, 100 - tail))
    return float(low), float(high)


def _two_sided(drawn: Array) -> float | None:
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return None
    # Never 0: so many draws cannot say more than this.
    side = min(int((known <= 0).sum()), int((known >= 0).sum())) + 1
    return min(1.0, 2 * side / (len(known) + 1))


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
