r"""Whether one can tell which cases a model was trained on.

An attacker holds a case and a score of it that is higher for members, such as the model's own
likelihood of the case or minus its distance to the nearest sample. How well that tells training
cases :math:`t` from held-out ones :math:`r` is the area under the ROC curve,

.. math:: \mathrm{AUC} = P\big[s(t) > s(r)\big] + \tfrac12 P\big[s(t) = s(r)\big]

which is 1/2 for a model that gives nothing away.

References:
    Hayes et al., LOGAN: membership inference attacks against generative models, PoPETs 2019.
    Chen et al., GAN-Leaks: a taxonomy of membership inference attacks, CCS 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from medvae3d.evaluation.intervals import CONFIDENCE, RESAMPLES
from medvae3d.evaluation.sections import Light, Measure, Verdict
from medvae3d.seeding import derive_seed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

SMALLEST_SET = 2
# With 20 members and 20 others chance alone reaches 0.68.
JUDGED_FROM = 20
LEAKS = 0.65


def membership_auc(members: ArrayLike, others: ArrayLike, seed: int) -> Measure:
    """Area under the ROC curve, with its bootstrap interval over both sets.

    The floor is what scores that know nothing would give: a half, and the range of 95 of 100 pairs
    of sets of these sizes.

    Args:
        members: Scores of training cases; NaN counts as not measured.
        others: Scores of held-out cases.
        seed: Seed of the resampling.
    """
    sets = [np.asarray(each, dtype=np.float64).ravel() for each in (members, others)]
    first, second = (each[~np.isnan(each)] for each in sets)
    n, m = len(first), len(second)
    if min(n, m) < SMALLEST_SET:
        note = f"{n} training and {m} held-out cases have a score; each needs {SMALLEST_SET}"
        return Measure(None, n=(n, m), note=note)
    wins = (first[:, None] > second) + 0.5 * (first[:, None] == second)
    rng = np.random.default_rng(derive_seed(seed, "membership"))
    # How often each case is drawn: a product with the wins is the AUC of the redrawn sets.
    times = [rng.multinomial(k, np.full(k, 1 / k), RESAMPLES) for k in (n, m)]
    areas = ((times[0] @ wins) * times[1]).sum(1) / (n * m)
    tail = 50 * (1 - CONFIDENCE)
    low, high = (float(v) for v in np.percentile(areas, (tail, 100 - tail)))
    chance = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * ((n + m + 1) / (12 * n * m)) ** 0.5
    floors = max(0.0, 0.5 - chance), min(1.0, 0.5 + chance)
    return Measure(float(wins.mean()), low, high, (n, m), 0.5, *floors)


def judged_membership(rows: Mapping[str, Measure]) -> Verdict:
    """Says whether any of the scores gives membership away.

    Args:
        rows: AUC by what the score is.
    """
    rule = (
        f"Green: the interval of every AUC reaches down to 0.5. Amber: one does not, and is below "
        f"{LEAKS}. Red: one does not, and is {LEAKS} or more: an attacker is right about two times "
        f"in three. Grey: fewer than {JUDGED_FROM} training or held-out cases."
    )
    claim = "Training cases cannot be told from held-out ones"
    able = {name: each for name, each in rows.items() if each.value is not None}
    sizes = [min(each.n) for each in able.values() if isinstance(each.n, tuple)]
    if min(sizes, default=0) < JUDGED_FROM:
        return Verdict(claim, Light.GREY, f"{min(sizes, default=0)} cases in the smaller set", rule)
    over = [each.value or 0.0 for each in able.values() if (each.low or 0.0) > 0.5]
    light = Light.RED if max(over, default=0.0) >= LEAKS else Light.AMBER if over else Light.GREEN
    found = ", ".join(
        f"AUC {each.value:.2f} ({each.low:.2f} to {each.high:.2f}) by {name}"
        for name, each in able.items()
    )
    return Verdict(claim, light, found, rule)
