r"""Whether one arm of a study does better than another on the same subjects.

The scores of a subject are averaged over seeds first, so that a subject counts once. Then, over
subjects :math:`s`,

.. math:: \Delta = \frac{1}{S} \sum_s (a_s - b_s)

with a bootstrap interval over subjects, and the p value of Wilcoxon's signed-rank test, corrected
after Holm for the number of arms that are compared with the same reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from medvae3d.evaluation.intervals import mean_interval

Scores = Mapping[str, float | None]
"""One number a subject; ``None`` where it could not be measured."""


@dataclass(frozen=True)
class Paired:
    """What the paired difference of two arms comes to.

    Attributes:
        difference: Mean over subjects; ``None`` without a subject.
        low: Lower end of its bootstrap 95 % interval.
        high: Upper end.
        subjects: Subjects measured in both arms.
        p: Of the two-sided signed-rank test; ``None`` without a subject.
        p_corrected: The same after Holm, over all arms compared with the same reference.
    """

    difference: float | None
    low: float | None
    high: float | None
    subjects: int
    p: float | None
    p_corrected: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0 and the corrected p value is below 0.05."""
        if self.low is None or self.high is None or self.p_corrected is None:
            return False
        return (self.low > 0 or self.high < 0) and self.p_corrected < 0.05

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def over_seeds(runs: Sequence[Scores]) -> dict[str, float | None]:
    """Mean over seeds for each subject; ``None`` where no seed has a number.

    Args:
        runs: Scores by subject, one entry a seed.
    """
    subjects = list(dict.fromkeys(name for run in runs for name in run))
    means: dict[str, float | None] = {}
    for subject in subjects:
        known = [value for run in runs if (value := run.get(subject)) is not None]
        means[subject] = float(np.mean(known)) if known else None
    return means


def paired(scores: Scores, reference: Scores, seed: int = 0) -> Paired:
    """Compares two arms on the subjects that both have a number for.

    Args:
        scores: Of the arm, by subject.
        reference: Of what it is compared with.
        seed: Seed of the bootstrap.
    """
    pairs = [
        (a, b)
        for subject, a in scores.items()
        if a is not None and (b := reference.get(subject)) is not None
    ]
    differences = np.asarray([a - b for a, b in pairs])
    found = mean_interval(differences, seed)
    p = signed_rank(differences) if len(differences) else None
    return Paired(found["mean"], found["low"], found["high"], found["n"], p)


def signed_rank(differences: Any) -> float:
    """The p value of Wilcoxon's two-sided signed-rank test; 1 where nothing differs."""
    values = np.asarray(differences, dtype=np.float64)
    # The sum of two equal means may differ in its last bit, which is no difference.
    values = np.where(np.abs(values) < 1e-12, 0.0, values)
    if not values.any():
        return 1.0
    with warnings.catch_warnings():
        # Said of few subjects and of ties; how many subjects there are is said beside the value.
        warnings.simplefilter("ignore", UserWarning)
        return float(stats.wilcoxon(values).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    r"""Corrects p values for their number, after Holm, in the order given.

    The :math:`i`-th smallest of :math:`m` is multiplied by :math:`m - i + 1`, and none becomes
    smaller than one before it.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(value) for value in corrected]


def compare(arms: Mapping[str, Scores], reference: str, seed: int = 0) -> dict[str, Paired]:
    """Compares every other arm with a reference, with p values corrected for their number.

    Args:
        arms: Scores by subject, by arm; averaged over seeds (`over_seeds`).
        reference: Name of the arm that the others are compared with.
        seed: Seed of the bootstrap.
    """
    found = {
        arm: paired(scores, arms[reference], seed)
        for arm, scores in arms.items()
        if arm != reference
    }
    tested = [arm for arm, each in found.items() if each.p is not None]
    corrected = holm([found[arm].p or 0.0 for arm in tested])
    for arm, p in zip(tested, corrected, strict=True):
        found[arm] = Paired(**(asdict(found[arm]) | {"p_corrected": p}))
    return found
