r"""The segmenter of a study: the same for every arm, fed with another mixture of cases.

Every arm takes the same number of steps with the same first weights; only what a batch holds
differs. With :math:`n` real and :math:`m` extra cases, a batch of :math:`B` holds on average

.. math:: B \max\Big(s, \frac{n}{n + m}\Big)

real cases: as many as there are of them, but never less than the share :math:`s`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_confusion_matrix_metric,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    get_confusion_matrix,
)
from torch import Tensor, nn

from medvae3d.errors import SettingError
from medvae3d.evaluation.cases import Cases, joined
from medvae3d.evaluation.segmenter import (
    Batch,
    SegmenterSettings,
    as_segment,
    augmented,
    fit_segmenter,
    make_segmenter,
)
from medvae3d.seeding import derive_generator, derive_seed

# Measured on one core, batches of 2 x 48^3, 2 channels: these channels take 0.09 s a step and the
# augmentation 0.06 s, so that 400 steps take a minute; twice as wide 0.17 s, a DynUNet of this
# width 0.84 s. bfloat16 brings 0.09 to 0.088 s, which is not worth other bits on other machines.
CHANNELS = (8, 16, 32, 64)
MEASURES = ("dice", "jaccard", "asd_mm", "hd95_mm", "sensitivity", "precision")


def study_settings(steps: int, spacing_mm: Sequence[float] = (1, 1, 1)) -> SegmenterSettings:
    """Settings of the segmenter for a number of steps, on voxels of some size."""
    settings = SegmenterSettings(channels=CHANNELS, steps=steps)
    sizes = (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2]))
    pose = replace(settings.augmentation.pose, spacing_mm=sizes)
    return replace(settings, augmentation=replace(settings.augmentation, pose=pose))


@dataclass(frozen=True, eq=False)
class Mixture:
    """What an arm is fed with.

    Attributes:
        real: Real training cases; ``None`` for none.
        extra: Further cases; ``None`` for none.
        least_real: Smallest share of real cases in a batch, where there are any.
        extra_until: Share of the training after which only real cases are drawn.
        is_augmented: Whether batches are moved and changed in brightness.
    """

    real: Cases | None = field(repr=False)
    extra: Cases | None = field(default=None, repr=False)
    least_real: float = 0.5
    extra_until: float = 1.0
    is_augmented: bool = True

    def real_share(self, done: float = 0.0) -> float:
        """Share of real cases in a batch on average, after a share of the training."""
        if self.real is None:
            return 0.0
        if self.extra is None or done >= self.extra_until:
            return 1.0
        return max(self.least_real, len(self.real) / (len(self.real) + len(self.extra)))

    def draw(self, size: int, done: float, generator: torch.Generator) -> Cases:
        """One batch.

        Args:
            size: Cases in it.
            done: Share of the training that is over.
            generator: Random numbers.
        """
        wanted = size * self.real_share(done)
        # Rounded up or down by chance, so that the share holds on average for any batch size.
        count = int(wanted + float(torch.rand((), generator=generator)))
        count = min(count, size)
        parts = []
        for cases, number in ((self.real, count), (self.extra, size - count)):
            if cases is not None and number:
                parts.append(cases[torch.randint(len(cases), (number,), generator=generator)])
        return joined(parts)


def train_on(
    mixture: Mixture,
    labels: int,
    settings: SegmenterSettings,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Trains a segmenter on a mixture; the same seed gives the same weights on the CPU.

    Args:
        mixture: What it is fed with.
        labels: Label values, background included; they are 0, 1, 2 and so on.
        settings: Size and training.
        seed: Seed of the first weights, of the batches and of the augmentation.
        progress: Called after each step with steps done and wanted.

    Raises:
        SettingError: If there is nothing to train on, or the volumes do not fit the network.
    """
    cases = mixture.real if mixture.real is not None else mixture.extra
    if cases is None or not len(cases):
        raise SettingError("there is no case to train on. Take an arm that has cases.")
    _require_fitting(cases, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "segmenter"))
        network = make_segmenter(cases.image.shape[1], labels, settings)

    def draw(step: int) -> Batch:
        generator = derive_generator(seed, "study step", step)
        part = mixture.draw(settings.batch_size, step / settings.steps, generator)
        if mixture.is_augmented:
            return augmented(part, labels, settings, generator)
        return part.image, part.mask, part.valid

    layout = torch.channels_last_3d
    return fit_segmenter(network, draw, settings, layout=layout, progress=progress)


def _require_fitting(cases: Cases, settings: SegmenterSettings) -> None:
    shape = tuple(cases.image.shape[2:])
    factor = 2 ** (len(settings.channels) - 1)
    if any(n % factor or n < 2 * factor for n in shape):
        raise SettingError(
            f"volumes have {' x '.join(map(str, shape))} voxels; the segmenter takes multiples of "
            f"{factor} from {2 * factor} on. Take a bundle with another spatial_shape."
        )


def score_cases(
    network: nn.Module,
    cases: Cases,
    labels: Sequence[str],
    spacing_mm: Sequence[float],
    size: int = 4,
) -> dict[str, dict[str, float]]:
    """Scores of what a segmenter finds, by case and measure; means over labels.

    Dice is given for each label as well. Two empty masks agree, at a distance of 0; where one of
    two is empty, distances are the diagonal of the volume, so that a miss is not left out.

    Args:
        network: Gives logits.
        cases: What to find.
        labels: Names of the labels 1, 2 and so on.
        spacing_mm: Size of a voxel along (I, J, K).
        size: Cases at a time.
    """
    segment = as_segment(network)
    found: dict[str, dict[str, float]] = {}
    for part in cases.batches(size):
        seen = part.valid > 0
        made = segment(part.image.contiguous(memory_format=torch.channels_last_3d)) * seen
        scores = label_scores(made, part.mask * seen, len(labels), spacing_mm)
        for row, name in enumerate(part.names):
            numbers = {key: float(values[row].mean()) for key, values in scores.items()}
            if len(labels) > 1:
                each = scores["dice"][row].tolist()
                numbers |= {
                    f"dice {label}": value for label, value in zip(labels, each, strict=True)
                }
            found[name] = numbers
    return found


def label_scores(
    made: Tensor, real: Tensor, labels: int, spacing_mm: Sequence[float]
) -> dict[str, Tensor]:
    """All measures for each case and label, ``(B, L)``.

    Args:
        made: Label maps.
        real: What they should be.
        labels: Number of labels besides the background.
        spacing_mm: Size of a voxel along (I, J, K).

    Shape:
        - ``made`` and ``real``: :math:`(B, 1, I, J, K)`
    """
    values = torch.arange(1, labels + 1).view(1, -1, 1, 1, 1)
    y_pred, y = (made == values).float(), (real == values).float()
    confusion = get_confusion_matrix(y_pred, y)
    has_pred, has = y_pred.flatten(2).any(2), y.flatten(2).any(2)
    both, none = has_pred & has, ~has_pred & ~has
    scores: dict[str, Tensor] = {
        "dice": compute_dice(y_pred, y, ignore_empty=False).double(),
        "jaccard": compute_iou(y_pred, y, ignore_empty=False).double(),
    }
    scores |= _surfaces(y_pred, y, both, none, spacing_mm)
    for name in ("sensitivity", "precision"):
        values = compute_confusion_matrix_metric(name, confusion).double()
        # Nothing to find and nothing found is right; nothing found of something is not.
        scores[name] = torch.where(none, 1.0, values.nan_to_num(0.0))
    return scores


def _surfaces(
    y_pred: Tensor, y: Tensor, both: Tensor, none: Tensor, spacing_mm: Sequence[float]
) -> dict[str, Tensor]:
    """Mean and 95th percentile of the distances between two surfaces, in mm, ``(B, L)``."""
    extent = [n * s for n, s in zip(y.shape[2:], spacing_mm, strict=True)]
    blank = torch.where(none, 0.0, math.hypot(*extent)).double()
    distances = {"asd_mm": blank.clone(), "hd95_mm": blank.clone()}
    for row, label in torch.nonzero(both).tolist():
        a, b = y_pred[row : row + 1, label : label + 1], y[row : row + 1, label : label + 1]
        options: dict[str, Any] = {"include_background": True, "spacing": list(spacing_mm)}
        with warnings.catch_warnings():
            # MONAI's surface metrics use an argument that it has deprecated itself.
            warnings.filterwarnings("ignore", message=".*always_return_as_numpy")
            mean = compute_average_surface_distance(a, b, symmetric=True, **options)
            worst = compute_hausdorff_distance(a, b, percentile=95, **options)
        distances["asd_mm"][row, label] = float(mean)
        distances["hd95_mm"][row, label] = float(worst)
    return distances
