r"""VAE-GAN: what a discriminator's features say of a reconstruction, in the place of voxels.

.. math::
    L_\mathrm{feat} = \tfrac12 \|D_l(x) - D_l(\hat x)\|^2

is the reconstruction error of both sides of the VAE. The encoder minimises it beside the
divergence, the decoder beside the adversarial score of reconstructions and samples; no adversarial
gradient reaches the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medvae3d.errors import SettingError
from medvae3d.models.latent import LatentModel
from medvae3d.numerics import sum_per_sample
from medvae3d.objectives.adversarial import AdversarialScore, Discriminator, judging, pair
from medvae3d.objectives.samples import SampleScore
from medvae3d.objectives.terms import (
    Batch,
    Objective,
    Term,
    TermValue,
    absolute_error,
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
    """

    discriminator: Discriminator
    level: int = -1

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted = self.discriminator(pair(batch, trace=trace, real=True))[:-1][self.level]
        with judging(self.discriminator):
            found = self.discriminator(pair(batch, trace=trace, real=False))[:-1][self.level]
        return 0.5 * sum_per_sample((wanted.float() - found.float()).square())


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
    voxel_weight: float = 0.1,
    level: int = -1,
) -> tuple[Objective, Objective]:
    r"""The objectives of encoder and decoder.

    .. math::
        L_E &= \beta\,\mathrm{KL} + L_\mathrm{feat} + w\,\|x - \hat x\|_1 \\
        L_D &= \gamma \big[L_\mathrm{feat} + w\,\|x - \hat x\|_1\big]
            - N \big[\log D(\hat x) + \log D(x_p)\big]

    Args:
        model: Whose decoder makes the samples.
        discriminator: Gives features and scores.
        beta: Weight of the KL.
        gamma: Weight :math:`\gamma` of the reconstruction in the decoder.
        voxel_weight: Weight :math:`w` of absolute differences of the image; 0 for the paper's
            losses.
        level: See `FeatureError`.

    References:
        Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", 2016.
    """
    features = FeatureError(discriminator, level)

    def rebuilt(weight: float) -> list[Term]:
        terms = [Term("features", features, weight=weight)]
        if voxel_weight:
            terms.append(Term("absolute_error", absolute_error, weight=weight * voxel_weight))
        return terms

    fakes: dict[str, TermValue] = {
        "adversarial": AdversarialScore(discriminator, kind="logistic"),
        "adversarial_samples": SampleScore(model, discriminator, kind="logistic"),
    }
    scores = [Term(name, score, is_mean=True) for name, score in fakes.items()]
    encoder = Objective([Term("kl", one_sample_kl, weight=beta), *rebuilt(1.0)], per_voxel=True)
    return encoder, Objective([*rebuilt(gamma), *scores], per_voxel=True)
