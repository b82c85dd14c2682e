r"""Scores of a volume against the one it should be, voxel by voxel.

On :math:`t = (x + 1) / 2`, normalised intensities from 0 on, over the voxels :math:`v` that count:

.. math::
    \mathrm{NMSE} = \frac{\sum_v (t - \hat t)^2}{\sum_v t^2}, \qquad
    \mathrm{PSNR} = -10 \log_{10} \frac{1}{|v|} \sum_v (t - \hat t)^2

SSIM is MONAI's, with a Gaussian window of standard deviation 1.5, 11 voxels wide, or 7 where a side
is under 48; its map is averaged over the voxels that count and whose window lies within the volume.
MS-SSIM takes the same maps at halved resolutions :math:`s`, as many as the window fits into,

.. math:: \mathrm{MS} = \mathrm{SSIM}_S^{w_S} \prod_{s < S} \mathrm{cs}_s^{w_s}

with contrast and structure :math:`\mathrm{cs}` and Wang's weights, scaled to a sum of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
)
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor

SSIM_DEVIATION = 1.5
# Wang, Simoncelli and Bovik (2003), from the finest scale to the coarsest.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def unit(x: Tensor) -> Tensor:
    """Normalised intensities, from -1 on, as a share of the range, from 0 on."""
    return (x.float() + 1) / 2


def window_for(shape: Sequence[int]) -> int:
    """Width of the SSIM window for a volume."""
    return 11 if min(shape) >= 48 else 7


def scales_for(shape: Sequence[int], width: int, share: float = 0.0) -> int:
    """How many scales of MS-SSIM a volume allows.

    Args:
        shape: Voxels along (I, J, K).
        width: Width of the window, which has to fit into the coarsest scale.
        share: Share of the shortest side at which windows have to lie within the volume there:
            what is inside of a small mask is otherwise seen by none.
    """
    sides = [min(shape) // 2**scale for scale in range(len(MS_SSIM_WEIGHTS))]
    return sum(side >= width and side - width + 1 >= share * side for side in sides)


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
    errors = error_scores(made, real, where, channels)
    scores = errors | by_channel("ssim", ssim(unit(made), unit(real), where), channels)
    names = ["", *(f" {name}" for name in channels if len(channels) > 1)]
    return {f"{m}{name}": scores[f"{m}{name}"] for name in names for m in ("nmse", "psnr", "ssim")}


def error_scores(
    made: Tensor, real: Tensor, where: Tensor, channels: Sequence[str] = ()
) -> dict[str, Tensor]:
    """NMSE and PSNR alone, as in :func:`image_scores`."""
    made, real = unit(made), unit(real)
    counted = (where > 0).float().expand_as(real)
    error = ((made - real).square() * counted).flatten(2).sum(2).double()
    power = (real.square() * counted).flatten(2).sum(2).double()
    count = counted.flatten(2).sum(2).double()
    scores = {
        "nmse": error.sum(1) / power.sum(1),
        "psnr": _decibel(error.sum(1), count.sum(1)),
    }
    if len(channels) > 1:
        for index, name in enumerate(channels):
            scores[f"nmse {name}"] = error[:, index] / power[:, index]
            scores[f"psnr {name}"] = _decibel(error[:, index], count[:, index])
    return scores


def by_channel(measure: str, values: Tensor, channels: Sequence[str] = ()) -> dict[str, Tensor]:
    """A score ``(B, C)`` as its mean over channels and, of several, each by name."""
    scores = {measure: values.mean(1)}
    if len(channels) > 1:
        scores |= {f"{measure} {name}": values[:, index] for index, name in enumerate(channels)}
    return scores


def ssim(made: Tensor, real: Tensor, where: Tensor) -> Tensor:
    """Structural similarity of images from 0 to 1 by channel, ``(B, C)``."""
    width = window_for(real.shape[2:])
    return _averaged(_similarity_maps(made, real, width)[0], where, width)


def similarities(
    made: Tensor,
    real: Tensor,
    wheres: Mapping[str, Tensor],
    width: int | None = None,
    scales: Mapping[str, int] | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """SSIM and MS-SSIM of images from 0 to 1 by channel, ``(B, C)`` each, from the same maps.

    A voxel of a coarser scale counts if one of those below it does. Where no voxel counts, and
    where the volume is smaller than the window, the score is NaN.

    Args:
        made: Images from 0 to 1.
        real: What they should be.
        wheres: By name, 1 at voxels that count.
        width: Width of the window; that of :func:`window_for` by default.
        scales: By name, scales of MS-SSIM; those of :func:`scales_for` by default.

    Shape:
        - ``made`` and ``real``: :math:`(B, C, I, J, K)`; of each ``where``:
          :math:`(B, 1, I, J, K)`
    """
    width = width or window_for(real.shape[2:])
    most = scales_for(real.shape[2:], width)
    nothing = torch.full(real.shape[:2], torch.nan, dtype=torch.float64)
    if not most:
        return dict.fromkeys(wheres, (nothing, nothing))
    last = {name: min((scales or {}).get(name, most), most) - 1 for name in wheres}
    counted = {name: (where > 0).float() for name, where in wheres.items()}
    first: dict[str, Tensor] = {}
    product = dict.fromkeys(wheres, torch.ones_like(nothing))
    for scale in range(max(last.values()) + 1):
        if scale:
            made, real = F.avg_pool3d(made, 2), F.avg_pool3d(real, 2)
            counted = {name: F.max_pool3d(where, 2) for name, where in counted.items()}
        whole, contrast = _similarity_maps(made, real, width)
        for name, where in counted.items():
            if not scale:
                first[name] = _averaged(whole, where, width)
            if scale <= last[name]:
                value = _averaged(whole if scale == last[name] else contrast, where, width)
                weight = MS_SSIM_WEIGHTS[scale] / sum(MS_SSIM_WEIGHTS[: last[name] + 1])
                product[name] = product[name] * value.relu() ** weight
    return {name: (first[name], product[name]) for name in wheres}


def _similarity_maps(made: Tensor, real: Tensor, width: int) -> tuple[Tensor, Tensor]:
    maps: tuple[Tensor, Tensor] = compute_ssim_and_cs(
        made, real, 3, (width,) * 3, (SSIM_DEVIATION,) * 3, data_range=1.0
    )
    return maps


def _averaged(values: Tensor, where: Tensor, width: int) -> Tensor:
    """Mean of a map whose voxels are the middles of windows, by channel."""
    edge = width // 2
    i, j, k = (slice(edge, n - edge) for n in where.shape[2:])
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


def overlap_scores(made: Tensor, real: Tensor, spacing_mm: Sequence[float]) -> dict[str, Tensor]:
    """Dice, Jaccard and surface distances in mm of one structure, ``(B,)`` each.

    Two empty masks agree in full; a distance to an empty mask is NaN. All are MONAI's.

    Args:
        made: 1 inside of the structure.
        real: What it should be.
        spacing_mm: Size of a voxel along (I, J, K).

    Shape:
        - ``made`` and ``real``: :math:`(B, 1, I, J, K)`
    """
    made, real = made > 0, real > 0
    spacing = [float(s) for s in spacing_mm]
    jaccard: Tensor = compute_iou(made.float(), real.float(), ignore_empty=False)
    found = {"dice": _dice(made, real), "jaccard": jaccard[:, 0].double()}
    rows = (made.flatten(1).any(1) & real.flatten(1).any(1)).nonzero()[:, 0]
    pair = made[rows].float(), real[rows].float()
    for name, measure, options in (
        ("asd", compute_average_surface_distance, {"symmetric": True}),
        ("hd", compute_hausdorff_distance, {}),
        ("hd95", compute_hausdorff_distance, {"percentile": 95}),
    ):
        found[name] = torch.full((len(made),), torch.nan, dtype=torch.float64)
        if len(rows):
            values = measure(*pair, include_background=True, spacing=spacing, **options)
            found[name][rows] = torch.as_tensor(values)[:, 0].double()
    return found


def dice_key(labels: Sequence[str]) -> str:
    """Name of the score that stands for all labels."""
    return "dice of labels" if len(labels) > 1 else "dice"


def _dice(made: Tensor, real: Tensor) -> Tensor:
    value: Tensor = compute_dice(made.float(), real.float(), ignore_empty=False)
    return value[:, 0].double()


def _decibel(error: Tensor, count: Tensor) -> Tensor:
    return -10 * (error / count).clamp_min(1e-12).log10()
