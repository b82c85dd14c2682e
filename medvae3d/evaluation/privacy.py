r"""Whether a sample is a copy of a training case.

The distance of two images is the root of their mean squared difference on :math:`(x + 1) / 2`, over
the voxels that were observed in both, that of two masks one minus their Dice, each the smallest
over the eight combinations of flips. How near real cases lie to each other says how near is too
near:

.. math:: d(a) = \min_{b, f} \| a - f(b) \|, \qquad \text{share} = P\big[d(s) < q_{1\%}(d(r))\big]

for samples :math:`s` and training cases :math:`r`, each against all other training cases.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.voxelwise import unit

PERCENT = 1.0
FLIPS = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)]


def nearest(cases: Cases, train: Cases, *, same: bool = False) -> dict[str, Tensor]:
    """Distance of each case to the nearest training case, by image and by mask, ``(N,)``.

    Args:
        cases: What is judged.
        train: What it may have been copied from.
        same: Whether both are the same set: then a case is not compared with itself, flipped or
            not.
    """
    image = torch.full((len(cases),), torch.inf, dtype=torch.float64)
    mask = image.clone()
    known, seen = _observed(train)
    masks = (train.mask > 0).flatten(1).float()
    for axes in FLIPS:
        x, valid = _observed(cases, axes)
        # The sum over voxels observed in both of (x - y)^2, taken apart into products of matrices.
        squared = x.square() @ seen.T + valid @ known.square().T - 2 * (x @ known.T)
        count = valid @ seen.T
        apart = torch.where(count > 0, squared.clamp_min(0) / count, torch.inf).double().sqrt()
        m = (cases.mask > 0).flip(axes).flatten(1).float()
        both = m.sum(1)[:, None] + masks.sum(1)
        overlap = 1 - 2 * (m @ masks.T).double() / both.clamp_min(1)
        if same:
            apart.fill_diagonal_(torch.inf)
            overlap.fill_diagonal_(torch.inf)
        image = torch.minimum(image, apart.amin(1))
        mask = torch.minimum(mask, overlap.amin(1))
    return {"image": image, "mask": mask}


def _observed(cases: Cases, flips: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Images, 0 where not observed, and where they were, ``(N, D)`` each."""
    valid = (cases.valid > 0).float().flip(flips).expand_as(cases.image)
    return (unit(cases.image.flip(flips)) * valid).flatten(1), valid.flatten(1)


def copy_check(made: Cases, train: Cases, unseen: Cases | None = None) -> dict[str, Any]:
    """Share of samples nearer to a training case than one in a hundred of those is to another.

    Args:
        made: Samples.
        train: Training cases; at least two.
        unseen: Cases that were not trained on, as a control that the check does not cry wolf.

    Returns:
        By ``image`` and ``mask``: the limit, the median distances, and the shares below the limit.
        A share is ``None`` where no two training cases can be compared.
    """
    if len(train) < 2:
        return {"train": len(train), "samples": len(made)}
    real = nearest(train, train, same=True)
    sets = {"samples": nearest(made, train)}
    if unseen is not None:
        sets["unseen"] = nearest(unseen, train)
    rows: dict[str, dict[str, float]] = {}
    for kind in ("image", "mask"):
        limit = float(np.percentile(real[kind].numpy(), PERCENT))
        rows[kind] = {"limit": limit, "training to training": float(real[kind].median())}
        for name, distance in sets.items():
            rows[kind][f"{name} to training"] = float(distance[kind].median())
            rows[kind][f"share of {name} below"] = float((distance[kind] < limit).double().mean())
    return {"train": len(train), "samples": len(made), "rows": rows}
