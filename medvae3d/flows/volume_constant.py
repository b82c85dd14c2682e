r"""The normalising constant of a bounded volume element, by importance sampling.

The proposal knows what the density looks like. Around a centre it is close to a Gaussian,
:math:`\sqrt{\det K} \approx \sqrt{\det M_i}\, e^{-d q_i / 2}`, on a floor that reaches as far as
the bound: half of the draws are Gaussians around centres, a little wide, half are uniform within
reach of a centre, or from the Gaussian that a decaying floor is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medvae3d.flows.volume import VolumeTarget
from medvae3d.numerics import standard_normal, uniform

_WIDER = 1.3
_CHUNK = 2000


@torch.no_grad()
def log_normaliser(
    target: VolumeTarget, generator: torch.Generator, draws: int = 20_000
) -> tuple[float, float]:
    r"""Estimates :math:`\log \int \sqrt{\det K}` over the bounded set, with its standard error.

    Args:
        target: What is to be normalised.
        generator: Source of the draws.
        draws: Number of draws.
    """
    metric = target.metric
    size, device = metric.centroids.shape[1], metric.centroids.device
    half = draws // 2
    log_width = size * math.log(metric.bandwidth)
    centres = metric.half_log_det(metric.centroids).softmax(0)
    centres = 0.5 * centres + 0.5 / len(metric)
    # Log of 1 / sqrt(det P) of each kernel, and a root of P to draw with.
    if metric.shaped:
        factors = torch.linalg.cholesky(metric.matrices)
        log_root = log_width - factors.diagonal(dim1=1, dim2=2).log().sum(1)
    else:
        factors = None
        log_root = metric.centroids.new_full((len(metric),), log_width)

    def around(count: int, u: Tensor) -> Tensor:
        """Points that lie at ``u`` bandwidths from a random centre."""
        share = uniform((count,), generator, torch.float64, device)
        rows = torch.searchsorted(centres.cumsum(0), share).clamp_max(len(metric) - 1)
        if factors is not None:
            u = torch.linalg.solve_triangular(factors[rows].mT, u[:, :, None], upper=True)[:, :, 0]
        return metric.centroids[rows] + metric.bandwidth * u

    spread = _WIDER / math.sqrt(size)
    near = around(half, spread * standard_normal((half, size), generator, torch.float64, device))
    bounded = math.isfinite(target.reach)
    noise = standard_normal((draws - half, size), generator, torch.float64, device)
    wide = 1 / math.sqrt(max(metric.decay, 1e-300) * size)
    if bounded:
        radius = uniform((draws - half, 1), generator, torch.float64, device) ** (1 / size)
        far = around(draws - half, target.reach * radius * noise / noise.norm(dim=1, keepdim=True))
    else:
        far = wide * noise
    log_ball = 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size + 1)
    weights = []
    for z in torch.cat([near, far]).split(_CHUNK):
        q = metric.distances(z)
        gaussians = -0.5 * q / spread**2 - size * math.log(spread * math.sqrt(2 * math.pi))
        first = (centres.log() + gaussians - log_root).logsumexp(1)
        if bounded:
            inside = torch.where(q <= target.reach**2, 0.0, -torch.inf)
            level = centres.log() - log_ball - size * math.log(target.reach) - log_root
            second = (level + inside).logsumexp(1)
        else:
            second = -0.5 * z.square().sum(1) / wide**2
            second = second - size * math.log(wide * math.sqrt(2 * math.pi))
        proposal = torch.logaddexp(first, second) - math.log(2)
        weights.append(target.log_density(z) - proposal)
    log_weights = torch.cat(weights)
    constant = float(log_weights.logsumexp(0)) - math.log(len(log_weights))
    spread_of = (log_weights - constant).exp().std() / math.sqrt(len(log_weights))
    return constant, float(spread_of)
