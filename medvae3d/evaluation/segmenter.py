"""The small segmenter that says whether images show what their masks say, and its cross-fitting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor, nn

from medvae3d.data.augmentation import Augmentation, RandomIntensity, RandomPose
from medvae3d.data.preparation import FILL
from medvae3d.evaluation.cases import Cases
from medvae3d.seeding import derive_generator, derive_seed

Segment = Callable[[Tensor], Tensor]
"""Normalised images :math:`(B, C, I, J, K)` to label maps :math:`(B, 1, I, J, K)`."""
Batch: TypeAlias = "tuple[Tensor, Tensor, Tensor]"
"""Images :math:`(B, C, I, J, K)`; label maps and where both were observed, one channel each."""


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

    def draw(step: int) -> Batch:
        generator = derive_generator(seed, "segmenter step", step)
        rows = torch.randint(len(train), (settings.batch_size,), generator=generator)
        return augmented(train[rows], labels, settings, generator)

    return fit_segmenter(network, draw, settings, progress=progress)


def fit_segmenter(
    network: nn.Module,
    draw: Callable[[int], Batch],
    settings: SegmenterSettings,
    *,
    layout: torch.memory_format = torch.contiguous_format,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Trains a network of logits by Dice and cross-entropy, with Adam along a cosine.

    Args:
        network: The network; trained in place.
        draw: Gives the image, mask and where both were observed of a step.
        settings: Steps and learning rate.
        layout: Of the network and its input.
        progress: Called after each step with steps done and wanted.
    """
    # MONAI's networks and torch's stubs disagree on which of the two `to` this is.
    network = cast(Any, network).to(memory_format=layout)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    network.train()
    for step in range(settings.steps):
        image, mask, seen = draw(step)
        logits = network(image.contiguous(memory_format=layout))
        # Beyond what was observed, background is certain and teaches nothing.
        logits = torch.where(seen > 0, logits, _certain(logits))
        loss = loss_of(logits, mask * (seen > 0))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        decay.step()
        if progress is not None:
            progress(step + 1, settings.steps)
    return network.eval()


def augmented(
    part: Cases, labels: int, settings: SegmenterSettings, generator: torch.Generator
) -> Batch:
    """Image, mask and where both were observed of some cases, moved and changed in brightness."""
    # Where a voxel was observed moves along, as one more channel.
    stacked = torch.cat([part.image, 2 * part.valid - 1], dim=1)
    moved, mask = settings.augmentation.pose(stacked, part.mask, generator, range(labels))
    if moved is None or mask is None:
        return part.image, part.mask, part.valid
    image = settings.augmentation.intensity(moved[:, :-1], generator)
    return image, mask, (moved[:, -1:] > 0).float()


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


def settings_for(shape: Sequence[int]) -> SegmenterSettings:
    """Settings with as many levels as leave 4 voxels along the shortest side, and at least 2."""
    settings = SegmenterSettings()
    levels = int(np.log2(max(1.0, min(shape) / 4))) + 1
    return replace(settings, channels=settings.channels[: max(2, levels)])


def fitted(
    train: Cases,
    labels: int,
    settings: SegmenterSettings,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Segment:
    """A segmenter trained on volumes of any shape, which are padded to one that its levels divide.

    Args:
        train: Cases.
        labels: Label values, background included.
        settings: Size and training.
        seed: As for `train_segmenter`.
        progress: As for `train_segmenter`.
    """
    block = 2 ** (len(settings.channels) - 1)
    shape = train.image.shape[2:]
    pad = [
        side for n in reversed(shape) for side in (0, max(2 * block, -(-n // block) * block) - n)
    ]
    wide = replace(
        train,
        image=F.pad(train.image, pad, value=FILL),
        mask=F.pad(train.mask, pad),
        valid=F.pad(train.valid, pad),
        region=F.pad(train.region, pad),
    )
    inner = as_segment(train_segmenter(wide, labels, settings, seed, progress))

    def segment(image: Tensor) -> Tensor:
        i, j, k = shape
        return inner(F.pad(image, pad, value=FILL))[..., :i, :j, :k]

    return segment


def found_masks(segment: Segment, cases: Cases, size: int = 4) -> Tensor:
    """Label maps that a segmenter finds, uint8, :math:`(N, 1, I, J, K)`.

    Args:
        segment: The segmenter.
        cases: What to find.
        size: Cases at a time.
    """
    return torch.cat([segment(part.image).to(torch.uint8) for part in cases.batches(size)])


def folds_of(names: Sequence[str], count: int, seed: int) -> list[list[int]]:
    """Rows of cases in parts of about the same size; lesions of one volume stay together.

    Args:
        names: Of the cases; what stands before `` lesion `` names the volume.
        count: Parts; fewer where there are fewer volumes.
        seed: Seed of the order.
    """
    volumes = [name.partition(" lesion ")[0] for name in names]
    known = sorted(set(volumes))
    order = torch.randperm(len(known), generator=derive_generator(seed, "folds")).tolist()
    fold_of = {known[place]: number % count for number, place in enumerate(order)}
    folds = [[row for row, v in enumerate(volumes) if fold_of[v] == part] for part in range(count)]
    return [fold for fold in folds if fold]


def cross_fitted(
    cases: Cases,
    others: Cases,
    fit: Callable[[Cases, int], Segment],
    folds: Sequence[Sequence[int]],
) -> tuple[Tensor, list[Tensor]]:
    """Label maps of every case by a segmenter that has not seen it, and of others by each.

    Args:
        cases: Each is in one fold.
        others: Cases in no fold.
        fit: Trains a segmenter on cases; it is handed the number of the fold that is left out.
        folds: Rows of cases.

    Returns:
        Label maps of ``cases``, and those of ``others`` by the segmenter of each fold.
    """
    found = torch.zeros(cases.mask.shape, dtype=torch.uint8)
    made = []
    for number, fold in enumerate(folds):
        rest = sorted(set(range(len(cases))) - set(fold))
        segment = fit(cases[rest], number)
        found[list(fold)] = found_masks(segment, cases[list(fold)])
        made.append(found_masks(segment, others))
    return found, made
