r"""What images of generators are like, beside what they do for a classifier.

Sharpness is the mean step between neighbouring voxels, over that of real images,

.. math:: \frac{\overline{|\nabla \hat x|}}{\overline{|\nabla x|}},

PSNR that of unseen images of a class, rebuilt by its generator, and the kernel distance is taken of
features of a fixed network between made and training images, with the cubic kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.features import FixedNetwork
from medvae3d.evaluation.two_sample import Standard, kernel_distance, polynomial
from medvae3d.evaluation.voxelwise import error_scores
from medvae3d.studies.classification.tasks import Images

if TYPE_CHECKING:
    from medvae3d.studies.classification.generators import ClassGenerators


def quality_of(
    generators: ClassGenerators, made: Images, real: Images, unseen: Images, seed: int
) -> dict[str, float | None]:
    """Sharpness, PSNR, kernel distance and size of the generators of both classes.

    Args:
        generators: One for each class.
        made: Their images.
        real: Training images.
        unseen: Real images that they have not seen.
        seed: Seed of what is drawn twice from one posterior.
    """
    psnr: list[float] = []
    twice: list[float] = []
    for value, one in enumerate(generators.each):
        if one.start_from is not None:
            twice.append(one.twice(seed))
        x = unseen.of_class(value)
        if one.model.encoder is not None and len(x):
            where = torch.ones_like(x[:, :1])
            psnr += error_scores(one.rebuild(x), x, where)["psnr"].tolist()
    return {
        "sharpness": step_size(made.x) / max(step_size(real.x), 1e-9),
        "psnr": float(np.mean(psnr)) if psnr else None,
        "kernel_distance": _kernel_distance(real.x, made.x),
        "decoder_parameters": sum(p.numel() for p in generators.each[0].model.decoder.parameters()),
        "twice": float(np.mean(twice)) if twice else None,
    }


def step_size(x: Tensor) -> float:
    """Mean absolute difference of neighbouring voxels of images, over the axes that have any."""
    steps = [x.diff(dim=axis).abs().mean() for axis in (2, 3, 4) if x.shape[axis] > 1]
    return float(torch.stack(steps).mean()) if steps else 0.0


def as_cases(x: Tensor) -> Cases:
    """Images as cases without a mask, observed everywhere."""
    nothing = torch.zeros_like(x[:, :1])
    names = tuple(str(index) for index in range(len(x)))
    return Cases(x, nothing, nothing + 1, nothing, names)


def _kernel_distance(real: Tensor, made: Tensor) -> float | None:
    if min(len(real), len(made)) < 2:
        return None
    network = FixedNetwork(3)
    rows, other = (network(as_cases(x), (1.0, 1.0, 1.0)) for x in (real, made))
    standard = Standard.fit(rows, other)
    return kernel_distance(standard(rows), standard(other), polynomial)
