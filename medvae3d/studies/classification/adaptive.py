r"""How many synthetic images of each class a study takes, by what a classifier misses without them.

The :math:`n_k` real training cases of class :math:`k` are parted into folds, all cases of a patient
in one. A classifier trained on the other folds, on real cases alone, judges each of them once:

.. math:: r_k = \frac{1 + \sum_{i:\, y_i = k} [\hat y_{-f(i)}(x_i) = k]}{2 + n_k},

the rule of succession, so that one case more or less does not decide over all where there are few.
Of :math:`m` synthetic images, `medvae3d.synthesis.adaptive.adaptive_counts` makes
:math:`m_k = \pi_k m` ones of class :math:`k`, and a batch of which the share :math:`s` is real
holds class :math:`k` with the share

.. math:: \frac{s}{K} + (1 - s)\, \frac{m_k}{m}:

real cases even, every synthetic image as often as any other. The weaker class so has more images
that differ, and more weight. With equal recalls this is uniform sampling.

Recalls are of folds and not of validation cases for two reasons: the arms that are compared know
the same cases then, and with as few patients as small data sets hold out (4 of sarcomas in
`sts_petct`), a recall would be a matter of chance.

References:
    Pesteie, Abolmaesumi and Rohling, "Adaptive augmentation of medical data using independently
    conditional variational auto-encoders", IEEE TMI 2019, for the idea; the abstract alone was
    available, and all of the above is this library's reading of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.studies.classification.tasks import Images
from medvae3d.synthesis.adaptive import adaptive_counts

# More would train on a few cases more and take as many times as long.
FOLDS = 4

Judge = Callable[[Images, Tensor, int], np.ndarray]
"""Trains on images and gives the probability of class 1 of others; also told the fold's number."""


def held_out_recalls(
    real: Images, subjects: Sequence[str], judge: Judge, seed: int
) -> tuple[float, float]:
    """Recall of each class on folds that a classifier was not trained on.

    Args:
        real: Real training cases.
        subjects: Patient of each.
        judge: Trains and judges.
        seed: Seed of the folds.

    Raises:
        SettingError: If a class is of one patient.
    """
    y = real.y.numpy()
    groups = np.asarray(subjects)
    fewest = min(len(set(groups[y == value])) for value in (0, 1))
    if fewest < 2:
        raise SettingError(
            f"arm adaptive parts the {len(real)} training cases by patient, and a class has "
            f"{fewest}; it needs two or more. Ask for more cases with --n, or leave out the arm."
        )
    parts = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed % 2**31)
    hits = np.zeros(len(y), dtype=bool)
    for number, (known, held_out) in enumerate(parts.split(y, y, groups)):
        p = judge(real[torch.from_numpy(known)], real.x[torch.from_numpy(held_out)], number)
        hits[held_out] = (p > 0.5) == y[held_out]
    first, second = ((1 + hits[y == v].sum()) / (2 + (y == v).sum()) for v in (0, 1))
    return float(first), float(second)


def counts_of(recalls: tuple[float, float], total: int) -> tuple[int, int]:
    """Synthetic images of each class, as many as ``total`` in all.

    Args:
        recalls: Of each class.
        total: Images of both.
    """
    counts = adaptive_counts({"0": recalls[0], "1": recalls[1]}, total)
    return counts["0"], counts["1"]
