r"""What the encoder says of a latent: :math:`q(z \mid x, c)`.

The scale is read from the features in one place, :meth:`DiagonalGaussian.from_features`, so that
training and scoring cannot disagree on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from medvae3d.numerics import (
    Generators,
    at_least_float32,
    softplus_scale,
    standard_normal,
    sum_per_sample,
)

MIN_SCALE = 1e-3
"""Smallest posterior scale: a latent of unit size is never known to better than a thousandth."""


@runtime_checkable
class Posterior(Protocol):
    """A distribution over the latent, in the hands of the terms of an objective."""

    @property
    def mean(self) -> Tensor:
        """The mean, in the shape of the latent."""

    @property
    def scale(self) -> Tensor:
        """The standard deviation of each element; 0 where there is no noise."""

    def rsample(self, generator: Generators = None) -> Tensor:
        """Draws once for each sample of the batch, differentiably."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats, ``(B,)``."""

    def kl_per_element(self) -> Tensor:
        """KL to the prior of training in nats, in the shape of the latent."""

    def kl(self) -> Tensor:
        """KL to the prior of training in nats, ``(B,)``; the standard normal for a Gaussian."""

    def mode(self) -> Tensor:
        """The likeliest latent."""


@dataclass(frozen=True)
class DiagonalGaussian:
    """A Gaussian over each element of a latent, ``mean`` and ``scale`` of one shape."""

    mean: Tensor
    scale: Tensor

    is_standard: ClassVar[bool] = False
    """As a prior, it is one that a condition gave."""

    @classmethod
    def from_features(cls, features: Tensor, min_scale: float = MIN_SCALE) -> DiagonalGaussian:
        """Splits ``(B, 2L, ...)`` features in two. Float32, so that autocast cannot overflow it."""
        mean, raw_scale = at_least_float32(features).chunk(2, dim=1)
        return cls(mean, softplus_scale(raw_scale, min_scale))

    def rsample(self, generator: Generators = None) -> Tensor:
        noise = standard_normal(self.mean.shape, generator, self.mean.dtype, self.mean.device)
        return self.mean + self.scale * noise

    def log_prob(self, z: Tensor) -> Tensor:
        density = torch.distributions.Normal(self.mean, self.scale, validate_args=False)
        return sum_per_sample(density.log_prob(z))

    def kl_per_element(self) -> Tensor:
        """KL to the standard normal in nats, element by element of the latent."""
        return 0.5 * (self.mean.square() + self.scale.square() - 1) - self.scale.log()

    def kl(self) -> Tensor:
        """KL to the standard normal in nats, summed over the latent, ``(B,)``."""
        return sum_per_sample(self.kl_per_element())

    def kl_to(self, prior: DiagonalGaussian) -> Tensor:
        r"""KL to another Gaussian in nats, element by element of the latent.

        .. math::
            \log\frac{\sigma_p}{\sigma_q} + \frac{\sigma_q^2 + (\mu_q - \mu_p)^2}{2\sigma_p^2}
            - \frac12
        """
        ratio = (self.scale / prior.scale).square()
        away = ((self.mean - prior.mean) / prior.scale).square()
        return 0.5 * (ratio + away - 1 - ratio.log())

    def mode(self) -> Tensor:
        return self.mean


@dataclass(frozen=True)
class PointMass:
    """All mass on one latent: the encoder of an autoencoder without noise.

    Its density and its divergence are infinite constants; by convention both count as 0 nats, so
    that the objectives of a VAE train an autoencoder too.
    """

    mean: Tensor

    @property
    def scale(self) -> Tensor:
        return torch.zeros_like(self.mean)

    def rsample(self, generator: Generators = None) -> Tensor:
        return self.mean

    def log_prob(self, z: Tensor) -> Tensor:
        return self.mean.new_zeros(len(self.mean))

    def kl_per_element(self) -> Tensor:
        """Zeros, of the shape of the latent."""
        return torch.zeros_like(self.mean)

    def kl(self) -> Tensor:
        return self.mean.new_zeros(len(self.mean))

    def mode(self) -> Tensor:
        return self.mean
