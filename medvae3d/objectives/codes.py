"""Terms of models whose latent is one of codes, and their objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.models.latent import LatentModel
from medvae3d.objectives.schedules import delayed, warm_up
from medvae3d.objectives.terms import Batch, Objective, Term, nll, one_sample_kl, overlap
from medvae3d.probability.codebook import Codebooks, Codes

if TYPE_CHECKING:
    from medvae3d.models.traces import Trace


def commitment(trace: Trace, batch: Batch) -> Tensor:
    r""":math:`\overline{\|z_e - \mathrm{sg}[e]\|^2}`: the encoder keeps to the codes, ``(B,)``."""
    return cast(Codes, trace.posterior).commitment()


def perplexity(trace: Trace, batch: Batch) -> Tensor:
    """How many codes are in use, the least over levels; the same number for each case, ``(B,)``."""
    least = torch.stack(cast(Codes, trace.posterior).perplexity).amin()
    return least.expand(len(trace.first_z)).detach()


def encoded_again(model: LatentModel, trace: Trace, batch: Batch) -> Tensor:
    """What the encoder says of what was decoded, for `Codebooks`, ``(B, D, i, j, k)``.

    It is shown the mode of the image and the most likely labels, the gradient of the latter handed
    on to their probabilities. Nothing is hidden and no number is drawn.
    """
    parts = dict(batch)
    if "image" in trace.heads:
        parts["image"] = trace.heads["image"].mode()
    if "mask" in trace.heads:
        head = trace.heads["mask"]
        soft = head.foreground()
        hard = head.encode(head.mode().to(soft))
        parts["mask_probability"] = soft + (hard - soft).detach()
    x = model.encoder_input(parts, trace.condition, hiding=False)
    return model.encoded(x, trace.condition)[1]


@dataclass(frozen=True)
class Return:
    r"""How far the decoded is from being encoded to the codes it was made of, ``(B,)``.

    Between two codes a small change decides, and what is decoded is smoother than what was seen;
    without this, a part of the codes is not what comes back.

    Attributes:
        model: Whose encoder and codebook are asked.
        start: First step at which the term counts. What is decoded has to be worth reading by then.
    """

    model: LatentModel
    start: int = 0

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        codebooks = cast(Codebooks, self.model.posterior)
        features = encoded_again(self.model, trace, batch)
        return codebooks.misnaming(features, cast(Codes, trace.posterior).indices)


@torch.no_grad()
def returned(model: LatentModel, trace: Trace, batch: Batch) -> Tensor:
    """Share of codes that come back when what was decoded is encoded again, ``(B,)``.

    Over the places of all levels together. The model is in evaluation mode: codes stay.
    """
    again = cast(Codebooks, model.posterior)(encoded_again(model, trace, batch)).indices
    pairs = zip(cast(Codes, trace.posterior).indices, again, strict=True)
    return torch.cat([(a == b).float().flatten(1) for a, b in pairs], 1).mean(1)


def code_objective(
    model: LatentModel | None = None,
    *,
    commitment_weight: float = 0.25,
    return_weight: float = 0.0,
    return_start: int = 0,
    return_rise: int = 0,
    overlap_weight: float = 0.0,
) -> Objective:
    r"""The bound of a joint VQ-VAE, and the commitment of its encoder.

    .. math::
        -\log p(x, m \mid z) + T \log K + b N\, \overline{\|z_e - \mathrm{sg}[e]\|^2}
        + w_r N L_r + w_o N L_o

    The second term is a constant; it stands here so that what is logged is a bound of the evidence.
    Codes follow running means, so no term moves them. The use of the codebook is logged beside the
    terms and counts for nothing.

    Args:
        model: The model, for the term that asks it; needed with ``return_weight``.
        commitment_weight: Weight :math:`b`, against a reconstruction in nats a voxel.
        return_weight: Final weight :math:`w_r` of `Return`.
        return_start: First step of it; before, it costs nothing.
        return_rise: Steps from there over which its weight rises.
        overlap_weight: Weight :math:`w_o` of one minus the soft Dice of the mask.

    References:
        van den Oord et al., "Neural discrete representation learning", 2017.
    """
    terms = [
        Term("nll", nll),
        Term("kl", one_sample_kl),
        Term("commitment", commitment, weight=commitment_weight, is_mean=True),
        Term("perplexity", perplexity, weight=0.0),
    ]
    if return_weight and model is None:
        raise SettingError(f"return_weight {return_weight} without a model. Set `model` too.")
    if return_weight and model is not None:
        rise = delayed(return_start, warm_up(return_rise, top=return_weight))
        back = Return(model, return_start)
        terms.append(Term("return", back, weight=rise, is_mean=True))
    if overlap_weight:
        terms.append(Term("overlap", overlap, weight=overlap_weight, is_mean=True))
    return Objective(terms, per_voxel=True)
