r"""Heads: the decoder's features as a distribution over intensities or labels.

.. math:: \log p(x, m \mid z) = \log p(x \mid z) + \log p(m \mid z)

Every head says how many channels of features it needs and turns them into a distribution whose
``log_prob(target, valid)`` is in nats, summed over channels and voxels, :math:`(B,)`, in float32
whatever autocast does. ``valid`` is 1 where the target was observed; elsewhere it may hold
anything.

A ``scale`` is the standard deviation of its density, also for Laplace and logistic densities, so
that one number means the same for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvae3d.errors import LabelError, SettingError
from medvae3d.numerics import (
    Generators,
    at_least_float32,
    standard_normal,
    sum_per_sample,
    uniform,
)

_LAPLACE_WIDTH = 1 / math.sqrt(2)
_LOGISTIC_WIDTH = math.sqrt(3) / math.pi


def _observed(x: Tensor, mean: Tensor, valid: Tensor | None) -> Tensor:
    """Puts the mean where nothing was observed, so that a NaN there reaches no gradient."""
    x = at_least_float32(x)
    return x if valid is None else torch.where(valid > 0, x, mean.detach())


def _sum_valid(density: Tensor, valid: Tensor | None) -> Tensor:
    return sum_per_sample(density if valid is None else density * (valid > 0))


@dataclass(frozen=True)
class ImageDistribution:
    """A location and a scale for each voxel; the density is up to the kind of image.

    Shape:
        - ``mean``, ``x`` and the mode: :math:`(B, C, I, J, K)`
        - ``scale``: broadcasts against them, :math:`(C, 1, 1, 1)` as a rule
        - ``valid``: :math:`(B, C, I, J, K)` or :math:`(B, 1, I, J, K)`
    """

    mean: Tensor
    scale: Tensor

    output: ClassVar[Literal["image", "mask"]] = "image"

    def mode(self) -> Tensor:
        """The likeliest image."""
        return self.mean


@dataclass(frozen=True)
class GaussianImage(ImageDistribution):
    """Gaussian intensities."""

    def log_prob(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Log density in nats, ``(B,)``."""
        error = (_observed(x, self.mean, valid) - self.mean) / self.scale
        density = -0.5 * (error.square() + math.log(2 * math.pi)) - self.scale.log()
        return _sum_valid(density, valid)

    def sample(self, generator: Generators = None) -> Tensor:
        """Draws an image, noise of the likelihood included."""
        noise = standard_normal(self.mean.shape, generator, self.mean.dtype, self.mean.device)
        return self.mean + self.scale * noise


@dataclass(frozen=True)
class LaplaceImage(ImageDistribution):
    """Laplace intensities, robust against outlying voxels."""

    def log_prob(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Log density in nats, ``(B,)``."""
        width = self.scale * _LAPLACE_WIDTH
        error = (_observed(x, self.mean, valid) - self.mean).abs()
        return _sum_valid(-error / width - (2 * width).log(), valid)

    def sample(self, generator: Generators = None) -> Tensor:
        """Draws an image, noise of the likelihood included."""
        u = uniform(self.mean.shape, generator, self.mean.dtype, self.mean.device) - 0.5
        noise = -u.sign() * torch.log1p(-2 * u.abs().clamp_max(0.5 - 1e-7))
        return self.mean + self.scale * _LAPLACE_WIDTH * noise


@dataclass(frozen=True)
class LogisticImage(ImageDistribution):
    """Logistic intensities: smooth at the mode, with tails like those of a Laplace."""

    def log_prob(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Log density in nats, ``(B,)``."""
        width = self.scale * _LOGISTIC_WIDTH
        error = (_observed(x, self.mean, valid) - self.mean) / width
        return _sum_valid(F.logsigmoid(error) + F.logsigmoid(-error) - width.log(), valid)

    def sample(self, generator: Generators = None) -> Tensor:
        """Draws an image, noise of the likelihood included."""
        u = uniform(self.mean.shape, generator, self.mean.dtype, self.mean.device)
        return self.mean + self.scale * _LOGISTIC_WIDTH * torch.logit(u)


@dataclass(frozen=True)
class BernoulliMask:
    """A voxel is foreground or not; every label value but 0 counts as foreground.

    Shape:
        - ``logits``, ``mask``, ``valid`` and the mode: :math:`(B, 1, I, J, K)`
    """

    logits: Tensor

    output: ClassVar[Literal["image", "mask"]] = "mask"
    values: ClassVar[tuple[int, ...]] = (0, 1)

    def log_prob(self, mask: Tensor, valid: Tensor | None = None) -> Tensor:
        """Log probability in nats, ``(B,)``."""
        nll = F.binary_cross_entropy_with_logits(self.logits, self.encode(mask), reduction="none")
        return -_sum_valid(nll, valid)

    def encode(self, mask: Tensor) -> Tensor:
        """Turns an integer mask into 0 and 1, in the channel of :meth:`foreground`."""
        return (mask != 0).to(self.logits.dtype)

    def foreground(self) -> Tensor:
        """Probability of foreground, differentiable, ``(B, 1, I, J, K)``."""
        return self.logits.sigmoid()

    def field(self) -> Tensor:
        """Log odds of foreground, ``(B, 1, I, J, K)``; its level sets are the possible masks."""
        return self.logits

    def mode(self, level: float = 0.0) -> Tensor:
        """The mask above a level of the field, ``uint8``; the likeliest mask at level 0."""
        return (self.logits > level).to(torch.uint8)

    def sample(self, generator: Generators = None) -> Tensor:
        """Draws each voxel on its own, ``uint8``; rarely what one wants to look at."""
        u = uniform(self.logits.shape, generator, self.logits.dtype, self.logits.device)
        return (u < self.foreground()).to(torch.uint8)


@dataclass(frozen=True)
class LabelMap:
    """A categorical voxel over the values a mask may take; never interpolated, always integer.

    Shape:
        - ``logits``: :math:`(B, N, I, J, K)` for :math:`N` label values, that of background first
        - ``mask``, ``valid`` and the mode: :math:`(B, 1, I, J, K)`
    """

    logits: Tensor
    values: tuple[int, ...]

    output: ClassVar[Literal["image", "mask"]] = "mask"

    def log_prob(self, mask: Tensor, valid: Tensor | None = None) -> Tensor:
        """Log probability in nats, ``(B,)``.

        Raises:
            LabelError: If the mask holds a value that the head does not know, where observed.
        """
        matches = torch.stack([mask[:, 0] == value for value in self.values])
        known = matches.any(0) if valid is None else matches.any(0) | (valid[:, 0] <= 0)
        if not bool(known.all()):
            found = sorted(set(mask[:, 0][~known].unique().tolist()))[:8]
            raise LabelError(
                f"the mask holds the values {found}; allowed are {list(self.values)}. "
                f"Check the data list with `medvae3d data check`, or give the head these values."
            )
        nll = F.cross_entropy(self.logits, matches.long().argmax(0), reduction="none")
        return -_sum_valid(nll[:, None], valid)

    def encode(self, mask: Tensor) -> Tensor:
        """Turns an integer mask into one channel a label value, in those of :meth:`foreground`."""
        channels = [mask[:, 0] == value for value in self.values[1:]]
        return torch.stack(channels, dim=1).to(self.logits.dtype)

    def foreground(self) -> Tensor:
        """Probability of each value but background, differentiable, ``(B, N - 1, I, J, K)``."""
        return self.logits.softmax(1)[:, 1:]

    def field(self) -> Tensor:
        """Margin of the best label over background in nats, ``(B, 1, I, J, K)``; above 0 inside."""
        return self.logits[:, 1:].amax(1, keepdim=True) - self.logits[:, :1]

    def mode(self, level: float = 0.0) -> Tensor:
        """The labels above a level of the field, ``uint8``; the likeliest at level 0."""
        values = torch.tensor(self.values, dtype=torch.uint8, device=self.logits.device)
        best = values[self.logits[:, 1:].argmax(1, keepdim=True) + 1]
        return torch.where(self.field() > level, best, values[0])

    def sample(self, generator: Generators = None) -> Tensor:
        """Draws each voxel on its own, ``uint8``; rarely what one wants to look at."""
        u = uniform(self.logits.shape, generator, self.logits.dtype, self.logits.device)
        values = torch.tensor(self.values, dtype=torch.uint8, device=self.logits.device)
        return values[(self.logits - (-u.log()).log()).argmax(1, keepdim=True)]


class ImageHead(nn.Module):
    """A mean for each voxel and channel, and a scale for each channel; its kinds add the density.

    Args:
        channels: Channels :math:`C` of the image, and of the features.
        scale: First standard deviation of the likelihood, in normalised intensity.
        learn_scale: Whether the scale is learned. A learned scale weighs fit against KL by itself.
        min_scale: What a learned scale never falls below; guards against a density that runs away
            on voxels that are constant.
    """

    output: ClassVar[Literal["image", "mask"]] = "image"
    log_scale: Tensor

    def __init__(
        self,
        channels: int,
        scale: float = 0.1,
        learn_scale: bool = True,
        min_scale: float = 0.01,
    ) -> None:
        super().__init__()
        floor = min_scale if learn_scale else 0.0
        if channels < 1 or not scale > floor >= 0:
            raise SettingError(
                f"{type(self).__name__}(channels={channels}, scale={scale}, "
                f"min_scale={min_scale}): allowed are channels >= 1 and scale above min_scale "
                f"(above 0 if not learned)."
            )
        self.features = channels
        self.min_scale = floor
        log_scale = torch.full((channels,), math.log(scale - floor))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def location_and_scale(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the density is made of, in float32 at least."""
        mean = at_least_float32(features)
        scale = self.min_scale + at_least_float32(self.log_scale).exp()
        return mean, scale.to(mean.dtype)[:, None, None, None]


class GaussianHead(ImageHead):
    """Gaussian intensities; arguments as in :class:`ImageHead`."""

    def forward(self, features: Tensor) -> GaussianImage:
        return GaussianImage(*self.location_and_scale(features))


class LaplaceHead(ImageHead):
    """Laplace intensities; arguments as in :class:`ImageHead`."""

    def forward(self, features: Tensor) -> LaplaceImage:
        return LaplaceImage(*self.location_and_scale(features))


class LogisticHead(ImageHead):
    """Logistic intensities; arguments as in :class:`ImageHead`."""

    def forward(self, features: Tensor) -> LogisticImage:
        return LogisticImage(*self.location_and_scale(features))


class BernoulliHead(nn.Module):
    """One logit a voxel: foreground or not."""

    output: ClassVar[Literal["image", "mask"]] = "mask"

    def __init__(self) -> None:
        super().__init__()
        self.features = 1
        self.values = BernoulliMask.values

    def forward(self, features: Tensor) -> BernoulliMask:
        return BernoulliMask(at_least_float32(features))


class LabelHead(nn.Module):
    """One logit a label value and voxel.

    Args:
        values: The integers a mask may hold, 0 (background) first.
    """

    output: ClassVar[Literal["image", "mask"]] = "mask"

    def __init__(self, values: Sequence[int]) -> None:
        super().__init__()
        self.values = tuple(int(value) for value in values)
        known = set(self.values)
        if (
            len(known) < max(2, len(self.values))
            or self.values[0] != 0
            or not known <= set(range(256))
        ):
            raise SettingError(
                f"label values {self.values}: allowed are 0 first, then different integers from 1 "
                f"to 255. Renumber the labels in the data list."
            )
        self.features = len(self.values)

    def forward(self, features: Tensor) -> LabelMap:
        return LabelMap(at_least_float32(features), self.values)
