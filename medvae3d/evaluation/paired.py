"""How close volumes come to those that they should be: reconstructions, and lesions filled in.

Every score is taken over all that was observed and inside the mask of the real case. Masks are
compared by overlap and by surface distances in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medvae3d.errors import DataListError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.intervals import mean_interval
from medvae3d.evaluation.lpips import LPIPS
from medvae3d.evaluation.sections import Distribution, Measure, Section
from medvae3d.evaluation.voxelwise import (
    MS_SSIM_WEIGHTS,
    by_channel,
    error_scores,
    overlap_scores,
    scales_for,
    similarities,
    unit,
    window_for,
)
from medvae3d.seeding import derive_seed

WHOLE, INSIDE = "all that was observed", "inside the mask"
IMAGE_ROWS = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "ms-ssim": "MS-SSIM",
    "nmse": "NMSE",
    "snr": "SNR (dB)",
    "lpips": "LPIPS",
}
MASK_ROWS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "asd": "mean surface distance (mm)",
    "hd": "Hausdorff distance (mm)",
    "hd95": "Hausdorff distance, 95 % (mm)",
}
NO_WEIGHTS = (
    "not computed: LPIPS needs trained weights, and none were given; nothing is downloaded here"
)
TEXT = (
    "Each volume is compared with the one that it should be. NMSE is the squared error over the "
    "squared intensities from the bottom of the range on, SNR its inverse in dB; PSNR and both "
    "SSIM refer to the full range. Two empty masks agree in full and have no surface distance."
)

Scores = dict[str, Tensor]


def paired_section(
    made: Cases,
    real: Cases,
    *,
    channels: Sequence[str],
    labels: Sequence[str],
    spacing_mm: Sequence[float],
    seed: int,
    lpips: LPIPS | None = None,
    no_lpips: str = "",
    without: Sequence[str] = (),
) -> Section:
    """Scores of volumes and masks against those that they should be.

    Args:
        made: Reconstructions, or scans with lesions filled in.
        real: What they should be; the same names in the same order.
        channels: Names of the channels.
        labels: Names of the labels 1, 2 and so on.
        spacing_mm: Size of a voxel along (I, J, K).
        seed: Seed of the intervals.
        lpips: The learned distance, if its weights are at hand.
        no_lpips: Why there is none.
        without: ``image`` or ``mask``, where the cases have none that could be scored.

    Raises:
        DataListError: If the cases are not the same, or of another size.
    """
    _check_same(made, real)
    if "image" in without:
        # What blank images leave unobserved is not hidden from the masks.
        made, real = (replace(each, valid=torch.ones_like(each.valid)) for each in (made, real))
    section = Section("paired", "Reconstruction", TEXT)
    if not len(real):
        section.not_computed = "there is no pair of cases."
        return section
    shape = real.image.shape[2:]
    scales = _scales(shape)
    section.facts |= {
        "cases": len(real),
        "window of SSIM": window_for(shape),
        "scales of MS-SSIM": dict(scales),
        "licence of LPIPS weights": lpips.licence if lpips else "",
    }
    notes = {where: _notes(count) for where, count in scales.items()}
    images: dict[str, Scores] = {}
    masks: dict[str, Scores] = {}
    if "image" not in without:
        images = image_comparison(made, real, channels, lpips)
        names = ["", *(f" {name}" for name in channels if len(channels) > 1)]
        table = {
            f"{title}, {name.strip()}" if name else title: {
                where: _measure(
                    scores[measure + name],
                    derive_seed(seed, measure, where),
                    notes[where].get(measure, ""),
                )
                for where, scores in images.items()
            }
            for measure, title in IMAGE_ROWS.items()
            if measure != "lpips" or lpips
            for name in names
        }
        if not lpips:
            missing = Measure(None, n=0, note=no_lpips or NO_WEIGHTS)
            table[IMAGE_ROWS["lpips"]] = dict.fromkeys(images, missing)
        section.tables["images"] = table
    if "mask" not in without:
        masks = mask_comparison(made, real, labels, spacing_mm)
        section.tables["masks"] = {
            title: {
                name: _measure(scores[measure], derive_seed(seed, measure, name), "")
                for name, scores in masks.items()
            }
            for measure, title in MASK_ROWS.items()
        }
    section.cases["pairs"] = _by_case(real.names, images, masks)
    section.distributions = _distributions(images, masks)
    one_empty = sum(
        bool(a.any()) != bool(b.any()) for a, b in zip(made.mask > 0, real.mask > 0, strict=True)
    )
    if one_empty:
        section.warnings.append(
            f"{one_empty} of {len(real)} pairs have a mask on one side only; they have no surface "
            f"distance, and a Dice of 0."
        )
    return section


def _check_same(made: Cases, real: Cases) -> None:
    if made.names != real.names:
        first = next(
            (pair for pair in zip(made.names, real.names, strict=False) if pair[0] != pair[1]),
            (f"{len(made)} cases", f"{len(real)} cases"),
        )
        raise DataListError(
            f"paired cases differ: {first[0]!r} was made where {first[1]!r} is real. Give the same "
            f"cases in the same order; match them by their names in the data lists."
        )
    if made.image.shape != real.image.shape or made.mask.shape != real.mask.shape:
        raise DataListError(
            f"paired cases have images {tuple(made.image.shape)} and {tuple(real.image.shape)}, "
            f"masks {tuple(made.mask.shape)} and {tuple(real.mask.shape)}; they must be equal. "
            f"Prepare both with the same spacing, shape and channels."
        )


def image_comparison(
    made: Cases, real: Cases, channels: Sequence[str] = (), lpips: LPIPS | None = None
) -> dict[str, Scores]:
    """Scores of images by place and measure, ``(N,)`` each; several channels also one by one.

    What was not observed in both counts nowhere, and the learned distance sees the real case there;
    inside the mask, it sees the real case all round it.

    Args:
        made: What was made.
        real: What it should be; its mask is the one inside of which is scored.
        channels: Names of the channels.
        lpips: The learned distance, if its weights are at hand.
    """
    parts: dict[str, list[Scores]] = {WHOLE: [], INSIDE: []}
    for one, two in zip(made.batches(4), real.batches(4), strict=True):
        observed = (one.valid > 0) & (two.valid > 0)
        wheres = {WHOLE: observed, INSIDE: observed & (two.mask > 0)}
        scales = _scales(real.image.shape[2:])
        similar = similarities(unit(one.image), unit(two.image), wheres, scales=scales)
        for name, where in wheres.items():
            scores = error_scores(one.image, two.image, where, channels)
            scores |= {
                key.replace("nmse", "snr", 1): -10 * value.clamp_min(1e-12).log10()
                for key, value in scores.items()
                if key.startswith("nmse")
            }
            for measure, value in zip(("ssim", "ms-ssim"), similar[name], strict=True):
                scores |= by_channel(measure, value, channels)
            if lpips is not None:
                composed = torch.where(where, one.image, two.image)
                apart = lpips(composed, two.image)
                # A case without a voxel that counts has no distance, not the distance 0.
                apart[~where.flatten(1).any(1)] = torch.nan
                scores |= by_channel("lpips", apart, channels)
            parts[name].append(scores)
    return {
        name: {key: torch.cat([each[key] for each in found]) for key in found[0]}
        for name, found in parts.items()
    }


def mask_comparison(
    made: Cases, real: Cases, labels: Sequence[str], spacing_mm: Sequence[float]
) -> dict[str, Scores]:
    """Overlap and surface distances of the foreground and of each of several labels.

    Args:
        made: What was made.
        real: What it should be.
        labels: Names of the labels 1, 2 and so on.
        spacing_mm: Size of a voxel along (I, J, K).
    """
    seen = (made.valid > 0) & (real.valid > 0)
    pair = made.mask * seen, real.mask * seen
    found = {"foreground": overlap_scores(*pair, spacing_mm)}
    if len(labels) > 1:
        for value, name in enumerate(labels, start=1):
            found[name] = overlap_scores(pair[0] == value, pair[1] == value, spacing_mm)
    return found


def _scales(shape: Sequence[int]) -> dict[str, int]:
    width = window_for(shape)
    return {WHOLE: scales_for(shape, width), INSIDE: scales_for(shape, width, share=0.5)}


def _notes(scales: int) -> dict[str, str]:
    if not scales:
        small = "not computed: the volume is smaller than the window"
        return {"ssim": small, "ms-ssim": small}
    if scales < len(MS_SSIM_WEIGHTS):
        return {
            "ms-ssim": f"{scales} of {len(MS_SSIM_WEIGHTS)} scales, weights scaled to a sum of "
            f"one: the volume is too small for coarser ones"
        }
    return {}


def _measure(values: Tensor, seed: int, note: str) -> Measure:
    interval = mean_interval(values, seed)
    missing = len(values) - interval["n"]
    said = [note] if note else []
    if not interval["n"]:
        said = said if note.startswith("not") else ["not computed: undefined for every case"]
    elif missing:
        said.append(f"undefined for {missing} of {len(values)} cases")
    return Measure.of(interval, note="; ".join(said))


def _by_case(
    names: Sequence[str], images: dict[str, Scores], masks: dict[str, Scores]
) -> dict[str, dict[str, float | None]]:
    columns = {
        f"{key}, {where}": values
        for where, scores in (images | masks).items()
        for key, values in scores.items()
    }
    return {
        name: {key: float(values[row]) for key, values in columns.items()}
        for row, name in enumerate(names)
    }


def _distributions(images: dict[str, Scores], masks: dict[str, Scores]) -> list[Distribution]:
    drawn = [
        ("SSIM", "", {where: scores["ssim"] for where, scores in images.items()}),
        ("Dice", "", {name: scores["dice"] for name, scores in masks.items()}),
    ]
    return [
        Distribution(
            name, unit_, {k: [float(v) for v in each if v.isfinite()] for k, each in sets.items()}
        )
        for name, unit_, sets in drawn
        if sets
    ]
