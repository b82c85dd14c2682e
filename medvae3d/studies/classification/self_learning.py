"""Self-learning: a classifier labels synthetic images, and learns from those it is sure of.

One VAE is fitted on the real training images of both classes. In each round the classifier of the
round before labels its images; kept are those whose two augmented views agree with a probability of
0.9 and more, the surest first, as many of either class. Then a classifier is trained anew on real
and kept images, for as many steps. How often such labels are wrong is measured on real images that
no classifier was trained on.

References:
    In the style of Naga Srinivasu et al., J. Healthcare Engineering 2023:1566123.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medvae3d.data.augmentation import Augmentation
from medvae3d.errors import SettingError
from medvae3d.seeding import derive_generator, derive_seed
from medvae3d.studies.classification.classifiers import probabilities
from medvae3d.studies.classification.tasks import Images, balanced

VIEWS = 2


@dataclass(frozen=True)
class SelfLearningSettings:
    """When a label is trusted, and how often to go round.

    Attributes:
        threshold: Least probability of the label in every view.
        rounds: Rounds after the first training; at most 3.
    """

    threshold: float = 0.9
    rounds: int = 3

    def __post_init__(self) -> None:
        if not 0.5 < self.threshold < 1 or not 1 <= self.rounds <= 3:
            raise SettingError(
                f"self-learning has threshold {self.threshold} and {self.rounds} rounds; allowed "
                f"are a threshold between 0.5 and 1, and 1 to 3 rounds."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels that a classifier gave.

    Attributes:
        y: Class of each image, :math:`(N,)`.
        confidence: Its least probability over views, :math:`(N,)`.
        is_sure: Whether views agree and reach the threshold, :math:`(N,)`.
    """

    y: Tensor
    confidence: Tensor
    is_sure: Tensor


def label(
    network: nn.Module, x: Tensor, augmentation: Augmentation, threshold: float, seed: int
) -> Labels:
    """Labels images by two augmented views of each.

    Args:
        network: Gives two logits.
        x: Images.
        augmentation: Makes the views.
        threshold: Least probability in both.
        seed: Seed of the views.
    """
    views = []
    for view in range(VIEWS):
        generator = derive_generator(seed, "view", view)
        views.append(
            torch.from_numpy(probabilities(network, augmentation({"image": x}, generator)["image"]))
        )
    p = torch.stack(views)
    called = (p >= 0.5).long()
    agree = (called == called[0]).all(0)
    confidence = torch.where(called == 1, p, 1 - p).amin(0)
    return Labels(called[0], confidence, agree & (confidence >= threshold))


def trusted(x: Tensor, found: Labels) -> Images | None:
    """Images whose label is sure, the surest first, as many of either class; ``None`` for none."""
    rows = torch.argsort(found.confidence, descending=True, stable=True)
    rows = rows[found.is_sure[rows]]
    kept = balanced(Images(x[rows], found.y[rows]))
    return kept if len(kept) else None


def label_noise(found: Labels, y: Tensor) -> dict[str, float | None]:
    """How many labels are sure, and how many of these are wrong."""
    sure = int(found.is_sure.sum())
    wrong = int((found.is_sure & (found.y != y)).sum())
    return {"sure": sure / max(1, len(y)), "wrong": wrong / sure if sure else None}


def learn(
    pool: Tensor | None,
    train: Callable[[Images | None, int], nn.Module],
    held_out: Images | None,
    augmentation: Augmentation,
    settings: SelfLearningSettings,
    seed: int,
    judge: Callable[[nn.Module], dict[str, float]],
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Goes round; without a pool, trains as often and adds nothing.

    Args:
        pool: Synthetic images without a label.
        train: Images with labels to add, and a seed, to a trained classifier.
        held_out: Real labelled images on which the noise of labels is measured.
        augmentation: Makes the views.
        settings: When a label is trusted.
        seed: Seed of all.
        judge: Scores that are reported for each round; nothing is chosen by them.

    Returns:
        The classifier of the last round, and what was found in each.
    """
    network = train(None, derive_seed(seed, "round", 0))
    rounds: list[dict[str, Any]] = [{"round": 0, "added": 0, **judge(network)}]
    for number in range(1, settings.rounds + 1):
        added: Images | None = None
        report: dict[str, Any] = {"round": number}
        views = derive_seed(seed, "views", number)
        if pool is not None:
            added = trusted(pool, label(network, pool, augmentation, settings.threshold, views))
            if held_out is not None and len(held_out):
                found = label(network, held_out.x, augmentation, settings.threshold, views)
                report["labels"] = label_noise(found, held_out.y)
        network = train(added, derive_seed(seed, "round", number))
        report |= {"added": 0 if added is None else len(added), **judge(network)}
        rounds.append(report)
    return network, rounds
