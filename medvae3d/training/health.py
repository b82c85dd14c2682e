r"""How a latent is used: which parts carry something, and how they lie.

Over the posteriors of a set of cases, for each element of the latent: the mean divergence from the
standard normal in nats, and the moments of the aggregated posterior,
:math:`\mathbb E[\mu]` and :math:`\mathrm{Var}[\mu] + \mathbb E[\sigma^2]`. An element is active
when it carries more than 0.05 nat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from medvae3d.probability.posteriors import Posterior

ACTIVE_NATS = 0.05


@dataclass(frozen=True)
class LatentHealth:
    r"""A summary over cases and elements of a latent.

    Attributes:
        kl: Divergence from the prior of training in nats, mean over cases.
        kl_per_element: The same, mean over elements as well.
        active_share: Share of elements that carry more than 0.05 nat.
        mean_square: Mean over elements of :math:`\mathbb E[\mu^2 + \sigma^2]`; 1 when the
            aggregated posterior is as wide as the prior.
        worst_mean: Largest absolute mean of an element over cases.
        latent_scale: One over the standard deviation of the latent over cases and elements.
        cases: Number of posteriors.
    """

    kl: float
    kl_per_element: float
    active_share: float
    mean_square: float
    worst_mean: float
    latent_scale: float
    cases: int

    def to_dict(self) -> dict[str, float]:
        """Plain numbers for logs and files."""
        return asdict(self)


@torch.no_grad()
def latent_health(posteriors: Sequence[Posterior]) -> LatentHealth:
    """Summarises the posteriors of a set of cases."""
    mean = torch.cat([posterior.mean.flatten(1).float() for posterior in posteriors])
    scale = torch.cat([posterior.scale.flatten(1).float() for posterior in posteriors])
    kl = torch.cat([posterior.kl_per_element().flatten(1).float() for posterior in posteriors])
    second = mean.square() + scale.square()
    variance = second.mean() - mean.mean().square()
    return LatentHealth(
        kl=float(kl.sum(1).mean()),
        kl_per_element=float(kl.mean()),
        active_share=float((kl.mean(0) > ACTIVE_NATS).float().mean()),
        mean_square=float(second.mean()),
        worst_mean=float(mean.mean(0).abs().max()),
        latent_scale=float(variance.rsqrt()),
        cases=len(mean),
    )
