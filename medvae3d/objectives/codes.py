"""Terms of models whose latent is one of codes, and their objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from medvae3d.objectives.terms import Batch, Objective, Term, nll, one_sample_kl, overlap
from medvae3d.probability.codebook import Codes

if TYPE_CHECKING:
    from medvae3d.models.latent import Trace


def commitment(trace: Trace, batch: Batch) -> Tensor:
    r""":math:`\overline{\|z_e - \mathrm{sg}[e]\|^2}`: the encoder keeps to the codes, ``(B,)``."""
    return cast(Codes, trace.posterior).commitment()


def perplexity(trace: Trace, batch: Batch) -> Tensor:
    """How many codes are in use, the least over levels; the same number for each case, ``(B,)``."""
    least = torch.stack(cast(Codes, trace.posterior).perplexity).amin()
    return least.expand(len(trace.first_z)).detach()


def code_objective(*, commitment_weight: float = 0.25, overlap_weight: float = 0.0) -> Objective:
    r"""The bound of a joint VQ-VAE, and the commitment of its encoder.

    .. math::
        -\log p(x, m \mid z) + T \log K + b N\, \overline{\|z_e - \mathrm{sg}[e]\|^2} + w_o N L_o

    The second term is a constant; it stands here so that what is logged is a bound of the evidence.
    Codes follow running means, so no term moves them. The use of the codebook is logged beside the
    terms and counts for nothing.

    Args:
        commitment_weight: Weight :math:`b`, against a reconstruction in nats a voxel.
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
    if overlap_weight:
        terms.append(Term("overlap", overlap, weight=overlap_weight, is_mean=True))
    return Objective(terms, per_voxel=True)
