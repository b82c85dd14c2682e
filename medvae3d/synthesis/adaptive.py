r"""How many samples of each class to make, when a classifier is better at some than at others.

Of :math:`n` samples, class :math:`k` with recall :math:`r_k` gets the share

.. math:: \pi_k = \frac{f}{K} + (1 - f)\, \frac{e_k^{\gamma}}{\sum_j e_j^{\gamma}}, \qquad
   e_k = 1 - r_k

with a floor :math:`f` that no class falls below. With :math:`\gamma = 0` or equal recalls this is
uniform sampling. Recalls have to be of validation cases: on training cases they are all 1, and on
test cases the policy would have seen them.

References:
    Pesteie, Abolmaesumi and Rohling, "Adaptive augmentation of medical data using independently
    conditional variational auto-encoders", IEEE TMI 2019, for the idea; shares and floor are this
    library's reading of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from medvae3d.errors import SettingError


def adaptive_counts(
    recalls: Mapping[str, float], total: int, *, floor: float = 0.2, sharpness: float = 1.0
) -> dict[str, int]:
    """Parts a number of samples among classes, more to those that a classifier misses.

    Args:
        recalls: Share of the validation cases of each class that were recognised.
        total: Samples in all.
        floor: Share of the samples that is parted evenly, whatever the recalls.
        sharpness: Exponent of the error; above 1, the weakest class gets nearly all.

    Returns:
        Samples of each class, in the order of ``recalls``; they add up to ``total``.

    Raises:
        SettingError: If there is no class, or a number cannot be used.

    Example:
        >>> adaptive_counts({"benign": 0.9, "malignant": 0.6}, 100, floor=0.0)
        {'benign': 20, 'malignant': 80}
    """
    wrong = {name: value for name, value in recalls.items() if not 0 <= value <= 1}
    if not recalls or wrong:
        raise SettingError(
            f"recalls are {dict(recalls)}; allowed is a share from 0 to 1 for each of at least one "
            f"class. Measure them on validation cases."
        )
    if total < 0 or not 0 <= floor <= 1 or not 0 <= sharpness < math.inf:
        raise SettingError(
            f"total is {total}, floor {floor}, sharpness {sharpness}; allowed are 0 or more, 0 to "
            f"1, and 0 or more."
        )
    weights = [(1 - value) ** sharpness for value in recalls.values()]
    even = 1 / len(weights)
    whole = sum(weights)
    shares = [floor * even + (1 - floor) * (w / whole if whole else even) for w in weights]
    # Largest remainders: the counts add up, and none is off by one sample or more.
    exact = [share * total for share in shares]
    counts = [math.floor(value + 1e-9) for value in exact]
    order = sorted(range(len(counts)), key=lambda k: counts[k] - exact[k])
    for k in order[: total - sum(counts)]:
        counts[k] += 1
    return dict(zip(recalls, counts, strict=True))
