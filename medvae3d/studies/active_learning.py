r"""Which synthetic candidates a round of generative active learning keeps.

Candidates :math:`g` are made around scans :math:`u` that a segmenter is uncertain of. Kept are
those whose features lie nearest to one of these,

.. math:: s(g) = -\min_u \lVert f(g) - f(u) \rVert ,

but none that is nearer to a real case than one in a hundred of those is to another: such a one may
be a copy. Synthetic cases never outnumber the real ones, and a case that is held out for validation
stays so.

References:
    Lee et al., generative active learning for a small set of radiographs, IEEE CAI 2024, has the
    loop; bounds against copies and against too many synthetic cases are ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from medvae3d.studies.classification.selection import copy_limit

MOST_SYNTHETIC = 0.5
VALIDATION_SHARE = 0.25


@dataclass(frozen=True)
class Picked:
    """Which candidates are kept.

    Attributes:
        rows: Of the candidates, the nearest to an uncertain scan first.
        near_copies: Share of the candidates that were too near to a real case.
        limit: Distance below which one is.
    """

    rows: list[int]
    near_copies: float
    limit: float


def pick(
    candidates: Tensor,
    real: Tensor,
    uncertain: Tensor | None,
    count: int,
    near_percent: float = 1.0,
) -> Picked:
    """Picks candidates by their features.

    Args:
        candidates: Features, :math:`(N, D)`.
        real: Those of real cases, labelled or not, :math:`(R, D)`.
        uncertain: Those of the scans to come near to; any order without.
        count: How many to keep at most.
        near_percent: Percentile of the distances between real cases that is too near.
    """
    z, known = candidates.double(), real.double()
    limit, is_near = 0.0, torch.zeros(len(z), dtype=torch.bool)
    if len(known) > 1:
        limit = copy_limit(known, near_percent)
        is_near = torch.cdist(z, known).amin(1) < limit
    order = torch.arange(len(z))
    if uncertain is not None and len(uncertain):
        order = torch.cdist(z, uncertain.double()).amin(1).argsort(stable=True)
    rows = [int(row) for row in order if not is_near[row]][: max(0, count)]
    return Picked(rows, float(is_near.double().mean()), limit)


def room_for(real: int, synthetic: int, wanted: int, most: float = MOST_SYNTHETIC) -> int:
    """How many synthetic cases may be added.

    Args:
        real: Real training cases.
        synthetic: Synthetic ones that there are.
        wanted: How many are wanted.
        most: Largest share of synthetic cases.

    Example:
        >>> room_for(real=4, synthetic=3, wanted=3)
        1
    """
    return max(0, min(wanted, int(real * most / (1 - most)) - synthetic))


def held_out(known: Mapping[str, str], new: Iterable[str]) -> dict[str, str]:
    """Says of new cases whether they are for ``training`` or ``validation``; the known stay.

    A quarter is held out, and one of the first three. Which, is drawn from the names, so that it
    does not depend on the order in which cases were labelled.

    Args:
        known: Split of the cases that have one.
        new: Names of others.

    Example:
        >>> sorted(held_out({}, ["a", "b", "c"]).values())
        ['training', 'training', 'validation']
    """
    splits = dict(known)
    for name in sorted(new, key=lambda text: hashlib.sha256(text.encode()).digest()):
        total = len(splits) + 1
        wanted = max(round(total * VALIDATION_SHARE), int(total > 2))
        have = sum(split == "validation" for split in splits.values())
        splits[name] = "validation" if have < wanted else "training"
    return splits
