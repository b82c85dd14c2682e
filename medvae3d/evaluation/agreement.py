r"""Whether an image shows what its mask says.

A small segmenter is trained on real cases alone. Where it finds the mask of a synthetic image about
as well as that of a real one that it has not seen, image and mask belong together. If it does as
well with the masks of other samples, the measure says nothing, so shuffled pairs stand beside it:

.. math:: r = \frac{\overline{\mathrm{Dice}}(\text{synthetic})}
                   {\overline{\mathrm{Dice}}(\text{real, unseen})}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from medvae3d.errors import LabelError, SettingError
from medvae3d.evaluation.cases import Cases, framed_as
from medvae3d.evaluation.casewise import require_apart
from medvae3d.evaluation.intervals import mean_interval
from medvae3d.evaluation.pairs import derangement, fill_in, like_volumes, ratio_interval, ratio_of
from medvae3d.evaluation.sections import Section
from medvae3d.evaluation.segmenter import (
    Segment,
    SegmenterSettings,
    as_segment,
    cross_fitted,
    fitted,
    folds_of,
    found_masks,
    make_segmenter,
    settings_for,
    train_segmenter,
)
from medvae3d.evaluation.voxelwise import dice_key, mask_scores
from medvae3d.seeding import derive_seed

__all__ = [
    "Segment",
    "SegmenterSettings",
    "agreement",
    "agreement_section",
    "as_segment",
    "derangement",
    "found_dice",
    "kept",
    "make_segmenter",
    "train_segmenter",
]


def found_dice(segment: Segment, cases: Cases, labels: tuple[str, ...], size: int = 4) -> Tensor:
    """Dice of the masks that a segmenter finds, mean over labels, ``(N,)``.

    Args:
        segment: The segmenter.
        cases: What to find.
        labels: Names of the labels, background left out.
        size: Cases at a time.
    """
    key = dice_key(labels)
    parts = [
        mask_scores(segment(part.image), part.mask, labels, part.valid)[key]
        for part in cases.batches(size)
    ]
    return torch.cat(parts)


def agreement(
    segment: Segment,
    real: Cases,
    synthetic: Cases,
    labels: tuple[str, ...] = ("lesion",),
    seed: int = 0,
) -> dict[str, Any]:
    """Dice on real unseen cases, on synthetic pairs and on shuffled pairs; plain numbers.

    Args:
        segment: Trained on real cases that are in neither set.
        real: Real cases.
        synthetic: Samples; at least two, so that they can be shuffled.
        labels: Names of the labels, background left out.
        seed: Seed of the shuffling and of the intervals.
    """
    truth = found_dice(segment, real, labels)
    made = found_dice(segment, synthetic, labels)
    shuffled = found_dice(
        segment, synthetic.with_masks_of(derangement(len(synthetic), seed)), labels
    )
    alike = made[like_volumes(synthetic, real)]
    return {
        "rows": {
            "real, unseen": {"dice": mean_interval(truth, seed)},
            "synthetic": {"dice": mean_interval(made, seed)},
            "synthetic, shuffled": {"dice": mean_interval(shuffled, seed)},
            "synthetic, volumes as of the unseen": {"dice": mean_interval(alike, seed)},
        },
        "ratio": ratio_of(made, truth),
        "ratio_interval": ratio_interval(made.numpy(), truth.numpy(), seed),
        "ratio_at_volumes_of_the_unseen": ratio_of(alike, truth),
    }


NAME, TITLE = "agreement", "Agreement of image and mask"
TEXT = (
    "A segmenter trained on real cases alone looks for the masks of images that it has not seen. "
    "Where it finds those of synthetic images about as well as those of real ones (ratio "
    "about 1), image and mask belong together. A ratio well above 1 says that samples are easier "
    "than real cases. Masks of other samples (shuffled) have to score less, or the measure says "
    "nothing. Empty masks have no Dice to speak of; they stand apart and are in no mean."
)
FOLDS = 3


def agreement_section(
    train: Cases,
    unseen: Cases | None,
    synthetic: Cases,
    *,
    labels: Sequence[str],
    seed: int,
    segmenter: Segment | None = None,
    settings: SegmenterSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Section:
    """Says whether synthetic images show what their masks say.

    Without unseen cases the segmenter is trained three times, each time without a third of the
    training cases, which then are the unseen ones; samples get the mean Dice of the three.

    Args:
        train: Real cases that the segmenter is trained on.
        unseen: Real cases that it is not trained on; may be empty or ``None``.
        synthetic: Samples.
        labels: Names of the labels 1, 2 and so on.
        seed: Seed of the training, the shuffling and the intervals.
        segmenter: A trained one instead, which has seen neither unseen cases nor samples.
        settings: Size and training of the segmenter; by default what fits the volumes.
        progress: Called with steps done and wanted.

    Raises:
        DataListError: If an unseen case is a training case.
        LabelError: If a mask holds another value than the labels.
    """
    section = Section(NAME, TITLE, TEXT)
    labels = tuple(labels)
    real = unseen if unseen is not None and len(unseen) else None
    for what, cases in (("training", train), ("unseen", real), ("synthetic", synthetic)):
        _require_labels(cases, labels, what)
    if real is not None:
        require_apart(train, real, what="unseen")
    folds = folds_of(train.names, FOLDS, seed) if real is None and segmenter is None else []
    section.not_computed = _why_not(train, synthetic, segmenter, real is None, len(folds))
    if section.not_computed:
        return section

    settings = settings or settings_for(train.image.shape[2:])
    steps = settings.steps
    synthetic = framed_as(synthetic, train, seed)

    def fit(cases: Cases, number: int) -> Segment:
        def told(step: int, _: int) -> None:
            if progress is not None:
                progress(number * steps + step, max(1, len(folds)) * steps)

        seed_of = derive_seed(seed, "fold", number) if folds else seed
        return fitted(cases, len(labels) + 1, settings, seed_of, told)

    truth: Tensor | None
    if folds:
        real = train
        truth, made = cross_fitted(train, synthetic, fit, folds)
    else:
        segment = segmenter or fit(train, 0)
        truth = None if real is None else found_masks(segment, real)
        made = [found_masks(segment, synthetic)]
    how = "given" if segmenter else f"cross-fitted, {len(folds)} folds" if folds else "held out"
    section.facts = {"segmenter": how, "train": len(train), "labels": list(labels)}
    if segmenter is None:
        section.facts["settings"] = settings.to_dict()
    fill_in(section, real, truth, synthetic, made, labels, seed)
    return section


def kept(section: Section, threshold: float | None = None) -> list[str]:
    """Names of the samples whose image shows what their mask says, in their order.

    Args:
        section: What `agreement_section` returned.
        threshold: Smallest Dice; by default the 5th percentile of real, unseen cases.

    Raises:
        SettingError: If there are no scores, or no threshold.
    """
    if section.not_computed:
        raise SettingError(f"samples cannot be filtered by agreement: {section.not_computed}.")
    least = section.facts["threshold"] if threshold is None else threshold
    if least is None:
        raise SettingError(
            "there is no Dice of real, unseen cases to derive a threshold from. Give the smallest "
            "Dice of a sample, such as 0.5, or real cases that were not trained on."
        )
    rows = section.cases["synthetic"].items()
    return [name for name, row in rows if (row["dice"] or 0.0) >= least]


def _require_labels(cases: Cases | None, labels: tuple[str, ...], what: str) -> None:
    if cases is None or not len(cases):
        return
    values = torch.unique(cases.mask)
    strange = [float(v) for v in values if float(v) not in range(len(labels) + 1)]
    if strange:
        raise LabelError(
            f"{what} masks hold the values {strange[:5]}; {len(labels)} labels {labels} allow 0 to "
            f"{len(labels)}. Name all labels, or correct the masks."
        )


def _why_not(
    train: Cases, synthetic: Cases, segmenter: Segment | None, is_alone: bool, folds: int
) -> str:
    """Why there is nothing to compute; empty if there is."""
    if not len(synthetic):
        return "there are no samples"
    if segmenter is not None:
        return ""
    if not len(train) or not bool((train.mask > 0).any()):
        return (
            f"none of {len(train)} training cases has a mask that is not empty, so that a "
            f"segmenter has nothing to learn from"
        )
    if is_alone and folds < 2:
        return "without unseen cases, training cases of two volumes are needed to cross-fit"
    return ""
