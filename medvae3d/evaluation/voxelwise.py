r"""Scores of a volume against the one it should be, voxel by voxel.

On :math:`t = (x + 1) / 2`, normalised intensities from 0 on, over the voxels :math:`v` that count:

.. math::
    \mathrm{NMSE} = \frac{\sum_v (t - \hat t)^2}{\sum_v t^2}, \qquad
    \mathrm{PSNR} = -10 \log_{10} \frac{1}{|v|} \sum_v (t - \hat t)^2

SSIM is MONAI's, with a Gaussian window of standard deviation 1.5, 11 voxels wide, or 7 where a side
is under 48; its map is averaged over the voxels that count and whose window lies within the volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.metrics import compute_dice
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor

SSIM_DEVIATION = 1.5


def unit(x: Tensor) -> Tensor:
    """Normalised intensities, from -1 on, as a share of the range, from 0 on."""
    return (x.float() + 1) / 2


def window_for(shape: Sequence[int]) -> int:
    """Width of the SSIM window for a volume."""
    return 11 if min(shape) >= 48 else 7


def image_scores(
    made: Tensor, real: Tensor, where: Tensor, channels: Sequence[str] = ()
) -> dict[str, Tensor]:
    """NMSE, PSNR and SSIM, each ``(B,)``; a case without a voxel that counts gets NaN.

    Args:
        made: Normalised images.
        real: What they should be.
        where: 1 at voxels that count.
        channels: Names of the channels, to score each of several by itself as well.

    Shape:
        - ``made`` and ``real``: :math:`(B, C, I, J, K)`; ``where``: :math:`(B, 1, I, J, K)`
    """
    made, real = unit(made), unit(real)
    counted = (where > 0).float().expand_as(real)
    error = ((made - real).square() * counted).flatten(2).sum(2).double()
    power = (real.square() * counted).flatten(2).sum(2).double()
    count = counted.flatten(2).sum(2).double()
    similarity = ssim(made, real, where)
    scores = {
        "nmse": error.sum(1) / power.sum(1),
        "psnr": _decibel(error.sum(1), count.sum(1)),
        "ssim": similarity.mean(1),
    }
    if len(channels) > 1:
        for index, name in enumerate(channels):
            scores[f"nmse {name}"] = error[:, index] / power[:, index]
            scores[f"psnr {name}"] = _decibel(error[:, index], count[:, index])
            scores[f"ssim {name}"] = similarity[:, index]
    return scores


def ssim(made: Tensor, real: Tensor, where: Tensor) -> Tensor:
    """Structural similarity of images from 0 to 1 by channel, ``(B, C)``."""
    width = window_for(real.shape[2:])
    values, _ = compute_ssim_and_cs(
        made, real, 3, (width,) * 3, (SSIM_DEVIATION,) * 3, data_range=1.0
    )
    edge = width // 2
    i, j, k = (slice(edge, n - edge) for n in real.shape[2:])
    counted = (where[..., i, j, k] > 0).float().expand_as(values)
    total: Tensor = (values * counted).flatten(2).sum(2) / counted.flatten(2).sum(2)
    return total.double()


def mask_scores(
    made: Tensor, real: Tensor, labels: Sequence[str], where: Tensor | None = None
) -> dict[str, Tensor]:
    """Dice of the foreground and, where there are several labels, of each, ``(B,)``.

    Two empty masks agree.

    Args:
        made: Label maps.
        real: What they should be.
        labels: Names of the labels 1, 2 and so on.
        where: 1 at voxels that count; all by default.

    Shape:
        - all: :math:`(B, 1, I, J, K)`
    """
    if where is not None:
        made, real = made * (where > 0), real * (where > 0)
    scores = {"dice": _dice(made > 0, real > 0)}
    if len(labels) > 1:
        for value, name in enumerate(labels, start=1):
            scores[f"dice {name}"] = _dice(made == value, real == value)
        each = torch.stack([scores[f"dice {name}"] for name in labels])
        scores["dice of labels"] = each.mean(0)
    return scores


def dice_key(labels: Sequence[str]) -> str:
    """Name of the score that stands for all labels."""
    return "dice of labels" if len(labels) > 1 else "dice"


def _dice(made: Tensor, real: Tensor) -> Tensor:
    value: Tensor = compute_dice(made.float(), real.float(), ignore_empty=False)
    return value[:, 0].double()


def _decibel(error: Tensor, count: Tensor) -> Tensor:
    return -10 * (error / count).clamp_min(1e-12).log10()
