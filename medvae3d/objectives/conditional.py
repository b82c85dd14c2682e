r"""Objectives of conditional models: hybrid bound of a region, outputs at several resolutions.

.. math::
    \mathcal L = a\,\big(-\mathbb E_{q(z|x,c)} \log p(x \mid z, c)
        + \beta\, \mathrm{KL}(q(z|x,c) \,\|\, p(z|c))\big)
        - (1 - a)\, \mathbb E_{p(z|c)} \log p(x \mid z, c)

The second part is that of a Gaussian stochastic network: what the prior network draws has to fit
too, so that training and use do not drift apart.

References:
    Sohn, Lee and Yan, "Learning structured output representation using deep conditional generative
    models", NeurIPS 2015.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medvae3d.models.latent import LatentModel
from medvae3d.objectives.samples import prior_draw
from medvae3d.objectives.schedules import warm_up
from medvae3d.objectives.terms import (
    Batch,
    Objective,
    Term,
    free_bits,
    one_sample_kl,
    overlap,
    valid_for,
)
from medvae3d.objectives.terms import nll as whole_nll
from medvae3d.probability.posteriors import DiagonalGaussian

if TYPE_CHECKING:
    from medvae3d.models.latent import Trace


def region_nll(
    heads: Mapping[str, Any], batch: Batch, region: Tensor | None, visible: float
) -> Tensor:
    """Minus log likelihood in nats, ``(B,)``: full weight in the region, less where it was seen.

    Args:
        heads: Distributions by name.
        batch: Their targets.
        region: 1 where voxels are asked for, :math:`(B, 1, I, J, K)`; ``None`` for everywhere.
        visible: Weight of all other voxels.
    """
    total = torch.zeros(())
    for name, head in heads.items():
        valid = valid_for(name, batch)
        inside = region if valid is None or region is None else region * (valid > 0)
        value = head.log_prob(batch[name], valid if region is None else inside)
        if region is not None and visible:
            value = (1 - visible) * value + visible * head.log_prob(batch[name], valid)
        total = total.to(value) - value
    return total


@dataclass(frozen=True)
class RegionNLL:
    """The reconstruction term of a region; see `region_nll`."""

    visible: float = 0.1

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        return region_nll(trace.heads, batch, trace.condition.region, self.visible)


@dataclass(frozen=True)
class PriorNLL:
    """The same with a latent from the prior under the condition, as a sample has it.

    The noise is that of the trace's own draw, which is one of the standard normal.

    Attributes:
        model: Whose decoder makes the volume.
        visible: See `region_nll`.
    """

    model: LatentModel
    visible: float = 0.1

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        noise, prior = prior_draw(trace), trace.prior
        z = noise
        if isinstance(prior, DiagonalGaussian):
            z = prior.mean + prior.scale * noise
        heads = self.model.decode(z, trace.condition)
        return region_nll(heads, batch, trace.condition.region, self.visible)


def fill_objective(
    model: LatentModel,
    *,
    share: float = 0.7,
    visible: float = 0.1,
    beta: float = 1.0,
    warm_up_steps: int = 0,
    free_nats: float = 0.0,
    overlap_weight: float = 0.0,
) -> Objective:
    r"""The hybrid objective of a model that fills regions.

    Args:
        model: Draws from its prior.
        share: Weight :math:`a` of the conditional bound; 1 - a is that of the prior's own draws. 1
            leaves them out, 0 is the Gaussian stochastic network alone.
        visible: Weight of voxels that were seen.
        beta: Final weight of the KL.
        warm_up_steps: Steps over which it rises.
        free_nats: Divergence per latent element that costs nothing.
        overlap_weight: Weight of one minus the soft Dice of the mask.
    """
    rise = warm_up(warm_up_steps, top=share * beta)
    terms = [
        Term("nll", RegionNLL(visible), weight=share),
        Term("kl", one_sample_kl, weight=rise),
    ]
    if share < 1:
        terms.append(Term("prior_nll", PriorNLL(model, visible), weight=1 - share))
    if free_nats:
        terms.append(Term("free_bits", free_bits(free_nats), weight=rise))
    if overlap_weight:
        terms.append(Term("overlap", overlap, weight=overlap_weight, is_mean=True))
    return Objective(terms, per_voxel=True)


# -- several resolutions ------------------------------------------------------------------------


def coarser(batch: Batch, stride: Sequence[int], values: Sequence[int]) -> dict[str, Tensor]:
    """Targets at a lower resolution: means of what was observed, and the label with most voxels.

    Args:
        batch: With ``image`` and ``mask``, as far as there are any.
        stride: Voxels that become one along (I, J, K).
        values: Label values, background first; it wins ties.
    """
    size = tuple(stride)
    small: dict[str, Tensor] = {}
    if batch.get("image") is not None:
        image, valid = batch["image"].float(), batch.get("valid")
        seen = torch.ones_like(image) if valid is None else (valid > 0).to(image).expand_as(image)
        share = F.avg_pool3d(seen, size)
        known = torch.where(seen > 0, image, torch.zeros_like(image))
        small["image"] = F.avg_pool3d(known, size) / share.clamp_min(1e-6)
        if valid is not None:
            small["valid"] = (share > 0).to(image)
    if batch.get("mask") is not None:
        shares = torch.cat(
            [F.avg_pool3d((batch["mask"] == value).float(), size) for value in values], dim=1
        )
        shares[:, 0] += 1e-5
        table = torch.tensor(values, device=shares.device, dtype=torch.float32)
        small["mask"] = table[shares.argmax(1, keepdim=True)]
        if batch.get("mask_valid") is not None:
            small["mask_valid"] = batch["mask_valid"]
    return small


@dataclass(frozen=True)
class CoarseNLL:
    r"""Fit of the outputs at lower resolution in nats, ``(B,)``.

    .. math:: -\sum_s \lambda_s\, n_s \log p_s(x_s, m_s \mid z)

    with :math:`n_s` voxels of the volume per coarse voxel, so that a weight says what a coarse
    voxel counts for the voxels that it stands for.

    Attributes:
        weights: :math:`\lambda_s`, coarsest first.
        values: Label values, background first.
    """

    weights: tuple[float, ...] = (0.25, 0.5)
    values: tuple[int, ...] = (0, 1)

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        total = trace.first_z.new_zeros(len(trace.first_z))
        for weight, (stride, heads) in zip(self.weights, trace.coarse.items(), strict=True):
            small = coarser(batch, stride, self.values)
            for name, head in heads.items():
                fit = head.log_prob(small[name], valid_for(name, small))
                total = total - weight * math.prod(stride) * fit
        return total


def multiscale_objective(
    *,
    weights: Sequence[float] = (0.25, 0.5),
    values: Sequence[int] = (0, 1),
    beta: float = 1.0,
    warm_up_steps: int = 0,
    free_nats: float = 0.0,
) -> Objective:
    """The bound at full resolution, and the fit at the lower ones; see `CoarseNLL`."""
    rise = warm_up(warm_up_steps, top=beta)
    terms = [
        Term("nll", whole_nll),
        Term("coarse", CoarseNLL(tuple(weights), tuple(values))),
        Term("kl", one_sample_kl, weight=rise),
    ]
    if free_nats:
        terms.append(Term("free_bits", free_bits(free_nats), weight=rise))
    return Objective(terms, per_voxel=True)
