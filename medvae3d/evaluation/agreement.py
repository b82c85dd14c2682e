r"""Whether an image shows what its mask says.

A small segmenter is trained on real cases alone. Where it finds the mask of a synthetic image about
as well as that of a real one that it has not seen, image and mask belong together. If it does as
well with the masks of other samples, the measure says nothing, so shuffled pairs stand beside it:

.. math:: r = \frac{\overline{\mathrm{Dice}}(\text{synthetic})}
                   {\overline{\mathrm{Dice}}(\text{real, unseen})}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor, nn

from medvae3d.data.augmentation import Augmentation, RandomIntensity, RandomPose
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.intervals import CONFIDENCE, RESAMPLES, mean_interval
from medvae3d.evaluation.voxelwise import dice_key, mask_scores
from medvae3d.seeding import derive_generator, derive_seed

Segment = Callable[[Tensor], Tensor]
"""Normalised images :math:`(B, C, I, J, K)` to label maps :math:`(B, 1, I, J, K)`."""


@dataclass(frozen=True)
class SegmenterSettings:
    """Size and training of the segmenter.

    Attributes:
        channels: Channels of each level of the U-Net.
        steps: Optimiser steps.
        batch_size: Cases a step.
        learning_rate: First learning rate of Adam; falls to 0 along a cosine.
        augmentation: On every batch; mirrored along the first axis, turned, scaled, gain.
    """

    channels: tuple[int, ...] = (16, 32, 64, 128)
    steps: int = 400
    batch_size: int = 2
    learning_rate: float = 2e-3
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(
            RandomPose(flip_axes=(0,), rotation_deg=10, scale=0.1, translation=3),
            RandomIntensity(gain=0.1, gamma=0.1, offset=0.03, noise=0.02),
        )
    )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file beside the weights."""
        return asdict(self)


def make_segmenter(image_channels: int, labels: int, settings: SegmenterSettings) -> nn.Module:
    """A small U-Net of MONAI, without weights worth anything.

    Args:
        image_channels: Channels of the image.
        labels: Label values, background included.
        settings: Its size.
    """
    network: nn.Module = UNet(
        spatial_dims=3,
        in_channels=image_channels,
        out_channels=labels,
        channels=settings.channels,
        strides=(2,) * (len(settings.channels) - 1),
        num_res_units=1,
        norm="instance",
    )
    return network


def train_segmenter(
    train: Cases,
    labels: int,
    settings: SegmenterSettings | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Trains a segmenter on real cases; the same seed gives the same weights on the CPU.

    Args:
        train: Cases.
        labels: Label values, background included.
        settings: Size and training.
        seed: Seed of the first weights, of the order of cases and of the augmentation.
        progress: Called after each step with steps done and wanted.
    """
    settings = settings or SegmenterSettings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "segmenter"))
        network = make_segmenter(train.image.shape[1], labels, settings)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    network.train()
    for step in range(settings.steps):
        generator = derive_generator(seed, "segmenter step", step)
        rows = torch.randint(len(train), (settings.batch_size,), generator=generator)
        part = train[rows]
        # Where a voxel was observed moves along, as one more channel.
        stacked = torch.cat([part.image, 2 * part.valid - 1], dim=1)
        batch = settings.augmentation.pose(stacked, part.mask, generator, range(labels))
        moved, mask = batch
        if moved is None or mask is None:
            continue
        image = settings.augmentation.intensity(moved[:, :-1], generator)
        seen = (moved[:, -1:] > 0).float()
        logits = network(image)
        # Beyond what was observed, background is certain.
        logits = torch.where(seen > 0, logits, _certain(logits))
        loss = loss_of(logits, mask * seen)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        decay.step()
        if progress is not None:
            progress(step + 1, settings.steps)
    return network.eval()


def _certain(logits: Tensor) -> Tensor:
    background = torch.full_like(logits, -20.0)
    background[:, 0] = 20.0
    return background


def as_segment(network: nn.Module) -> Segment:
    """A network of logits as a function to label maps."""

    def segment(image: Tensor) -> Tensor:
        with torch.no_grad():
            label: Tensor = network(image).argmax(1, keepdim=True)
        return label

    return segment


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
    alike = made[_like_volumes(synthetic, real)]
    return {
        "rows": {
            "real, unseen": {"dice": mean_interval(truth, seed)},
            "synthetic": {"dice": mean_interval(made, seed)},
            "synthetic, shuffled": {"dice": mean_interval(shuffled, seed)},
            "synthetic, volumes as of the unseen": {"dice": mean_interval(alike, seed)},
        },
        "ratio": _ratio(made, truth),
        "ratio_interval": _ratio_interval(made.numpy(), truth.numpy(), seed),
        "ratio_at_volumes_of_the_unseen": _ratio(alike, truth),
    }


def _ratio(made: Tensor, truth: Tensor) -> float | None:
    return float(made.mean() / truth.mean()) if len(made) and float(truth.mean()) else None


def _like_volumes(cases: Cases, others: Cases) -> Tensor:
    """Which masks are neither smaller nor larger than all of the others, ``(N,)``.

    Dice falls with the volume, and samples cover the volumes of the training set, which few unseen
    cases do not.
    """
    volume, known = ((each.mask > 0).flatten(1).sum(1) for each in (cases, others))
    return (volume >= known.min()) & (volume <= known.max())


def derangement(count: int, seed: int = 0) -> list[int]:
    """An order in which nothing keeps its place."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=int)
    other[order] = np.roll(order, 1)
    return [int(index) for index in other]


def _ratio_interval(made: Any, truth: Any, seed: int) -> list[float] | None:
    """Bootstrap interval of a ratio of means of two independent sets."""
    if min(len(made), len(truth)) < 2 or truth.mean() == 0:
        return None
    rng = np.random.default_rng(seed)
    draws = [
        values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
        for values in (made, truth)
    ]
    tail = 50 * (1 - CONFIDENCE)
    ratios = draws[0] / np.maximum(draws[1], 1e-9)
    return [float(v) for v in np.percentile(ratios, (tail, 100 - tail))]
