"""Copies of training cases that a check for copies has to find."""

from __future__ import annotations

import numpy as np
import torch

from medvae3d.data.preparation import FILL
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.poses import FLIPS, moved
from medvae3d.seeding import derive_generator

COPIES = 10
# Of the range of a case from its 1st to its 99th percentile, as MR of another gain may fill but a
# tenth of the common scale; and of the intensity from -1 on.
NOISE = 0.01
GAIN = 0.02


def planted_copies(train: Cases, seed: int, count: int = COPIES) -> Cases:
    """Copies of training cases: mirrored, moved by 1 or 2 voxels, brighter or darker, with noise.

    Args:
        train: Training cases; those with an empty mask come last.
        seed: Seed of which cases and how.
        count: Copies; at most one a case.
    """
    generator = derive_generator(seed, "planted copies")
    order = torch.randperm(len(train), generator=generator)
    is_empty = ~(train.mask[order] > 0).flatten(1).any(1)
    chosen = train[order[is_empty.int().argsort(stable=True)][:count]]
    parts = []
    for row in range(len(chosen)):
        axes = FLIPS[int(torch.randint(len(FLIPS), (), generator=generator))]
        size = torch.randint(1, 3, (3,), generator=generator)
        sign = 2 * torch.randint(0, 2, (3,), generator=generator) - 1
        gain = 1 + GAIN * (2 * float(torch.rand((), generator=generator)) - 1)
        part = posed(chosen[[row]], axes, (size * sign).tolist())
        noise = NOISE * _ranges(chosen[[row]]) * torch.randn(part.image.shape, generator=generator)
        image = ((part.image + 1) * gain - 1 + noise).clamp_min(FILL)
        parts.append((image, part.mask, part.region))
    image, mask, region = (torch.cat(each) for each in zip(*parts, strict=True))
    names = tuple(f"copy of {name}" for name in chosen.names)
    # A sample was observed everywhere, whatever it was copied from.
    return Cases(image, mask, torch.ones_like(mask), region, names)


def _ranges(case: Cases) -> torch.Tensor:
    """Range of each channel of one case over what was observed, :math:`(1, C, 1, 1, 1)`."""
    seen = case.valid[0, 0] > 0
    if not bool(seen.any()):
        return torch.zeros(1, case.image.shape[1], 1, 1, 1)
    # NumPy, as torch.quantile refuses more than 2**24 voxels.
    low, high = np.percentile(case.image[0][:, seen].numpy(), (1, 99), axis=1)
    return torch.from_numpy(high - low).float().view(1, -1, 1, 1, 1)


def posed(cases: Cases, axes: tuple[int, ...], shift: list[int]) -> Cases:
    """Cases mirrored along axes 1 to 3 and moved; what comes in from beyond was not observed."""
    sides = [axis + 1 for axis in axes]
    image, mask, valid, region = (
        moved(x.flip(sides), shift, fill)
        for x, fill in (
            (cases.image, FILL),
            (cases.mask, 0.0),
            (cases.valid, 0.0),
            (cases.region, 0.0),
        )
    )
    return Cases(image, mask, valid, region, cases.names)
