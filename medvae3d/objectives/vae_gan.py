r"""VAE-GAN: what a discriminator's features say of a reconstruction, beside its voxels.

.. math::
    L_\mathrm{feat} = \tfrac12 \|D_l(x) - D_l(\hat x)\|^2

is part of the reconstruction error of both sides of the VAE. The encoder minimises it beside the
divergence, the decoder beside the adversarial score of reconstructions and samples; no adversarial
gradient reaches the encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from medvae3d.errors import SettingError
from medvae3d.models.latent import LatentModel
from medvae3d.numerics import sum_per_sample
from medvae3d.objectives.adversarial import (
    AdaptiveWeight,
    AdversarialScore,
    Discriminator,
    judging,
    pair,
)
from medvae3d.objectives.samples import SampleScore
from medvae3d.objectives.terms import (
    Batch,
    Objective,
    Term,
    TermValue,
    absolute_error,
    head_nll,
    one_sample_kl,
)

if TYPE_CHECKING:
    from medvae3d.models.latent import Trace


@dataclass(frozen=True)
class FeatureError:
    r"""Half of the squared distance of one feature map of real and made volumes, ``(B,)``.

    Attributes:
        discriminator: Gives the features. Its parameters receive no gradient from this term.
        level: Which of its feature maps, as an index of what it returns without the logits.
        relative: Whether to give the mean over elements instead of their sum, as a share of the
            mean square of the features of real volumes. The features of a discriminator with batch
            norm are of size 1; those of one whose weights are normalised are of any size, and
            shrink from level to level.
        start: First step at which the term counts.
    """

    discriminator: Discriminator
    level: int = -1
    relative: bool = False
    start: int = 0

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted = self.discriminator(pair(batch, trace=trace, real=True))[:-1][self.level]
        with judging(self.discriminator):
            found = self.discriminator(pair(batch, trace=trace, real=False))[:-1][self.level]
        wanted, found = wanted.float(), found.float()
        error = 0.5 * sum_per_sample((wanted - found).square())
        if not self.relative:
            return error
        return error / (wanted.square().mean().clamp_min(1e-12) * wanted[0].numel())


@dataclass(frozen=True)
class Equilibrium:
    """Says who rests in a step, so that neither decoder nor discriminator runs away.

    The discriminator rests if either of its costs is below ``middle - margin``, the decoder if
    either is above ``middle + margin``; if both would, neither does.

    Attributes:
        middle: The cost in equilibrium, about log 2 nats.
        margin: How far a cost may be from it.
    """

    middle: float = 0.68
    margin: float = 0.4

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise SettingError(f"margin {self.margin} of the equilibrium; allowed are 0 and above.")

    def __call__(self, real_cost: float, fake_cost: float) -> tuple[bool, bool]:
        """Whether the decoder and whether the discriminator learn."""
        discriminator = min(real_cost, fake_cost) >= self.middle - self.margin
        decoder = max(real_cost, fake_cost) <= self.middle + self.margin
        return (decoder, discriminator) if decoder or discriminator else (True, True)


def vae_gan_objectives(
    model: LatentModel,
    discriminator: nn.Module,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    voxel_weight: float = 5.0,
    mask_weight: float = 3.0,
    feature_weight: float = 0.3,
    adversarial_weight: float = 0.05,
    adversarial_start: int = 0,
    level: int = -1,
) -> tuple[Objective, Objective]:
    r"""The objectives of encoder and decoder.

    .. math::
        R &= w\,\|x - \hat x\|_1 - w_m \log p(m \mid z) \\
        L_E &= \beta\,\mathrm{KL} + R + w_f N L_\mathrm{feat} \\
        L_D &= \gamma R + w_f \lambda_f L_\mathrm{feat}
            - a \big[\lambda \log D(\hat x) + \lambda_p \log D(x_p)\big]

    The error of features is relative to their size. The factors :math:`\lambda` give what the
    discriminator says a gradient of the norm of that of :math:`\gamma R` at the decoder's last
    layer, in every step (:class:`~medvae3d.objectives.adversarial.AdaptiveWeight`): what it weighs
    depends neither on the size of a volume nor on how far either has come.

    Args:
        model: Whose decoder makes the samples.
        discriminator: Gives features and scores.
        beta: Weight of the KL.
        gamma: Weight :math:`\gamma` of the reconstruction in the decoder.
        voxel_weight: Weight :math:`w` of absolute differences of the image.
        mask_weight: Weight :math:`w_m` of the likelihood of the mask, if the model makes one.
        feature_weight: Weight :math:`w_f` of the features.
        adversarial_weight: Strength :math:`a` of each score.
        adversarial_start: First step of scores and features. A decoder that has learned nothing yet
            would answer a discriminator with a pattern of its up-sampling.
        level: See `FeatureError`.

    References:
        Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", 2016.
    """
    features = FeatureError(discriminator, level, relative=True, start=adversarial_start)

    def rebuilt(weight: float) -> list[Term]:
        terms = []
        if "image" in model.heads:
            terms.append(Term("absolute_error", absolute_error, weight * voxel_weight))
        if "mask" in model.heads:
            mask_nll = partial(head_nll, head="mask")
            terms.append(Term("mask_nll", mask_nll, weight * mask_weight))
        return terms

    against = tuple(term.name for term in rebuilt(gamma))
    last = cast(nn.Parameter, model.decoder.output.conv.weight)
    judged: dict[str, tuple[TermValue, float]] = {
        "features": (features, feature_weight),
        "adversarial": (
            AdversarialScore(discriminator, adversarial_start, "logistic"),
            adversarial_weight,
        ),
        "adversarial_samples": (
            SampleScore(model, discriminator, adversarial_start, "logistic"),
            adversarial_weight,
        ),
    }
    balanced = [
        # The reconstruction is a sum over voxels and these are means, hence no upper limit.
        Term(name, value, weight, balance=AdaptiveWeight(last, against, math.inf))
        for name, (value, weight) in judged.items()
    ]
    encoder = Objective(
        [
            Term("kl", one_sample_kl, weight=beta),
            *rebuilt(1.0),
            Term("features", features, weight=feature_weight, is_mean=True),
        ],
        per_voxel=True,
    )
    return encoder, Objective([*rebuilt(gamma), *balanced], per_voxel=True)
