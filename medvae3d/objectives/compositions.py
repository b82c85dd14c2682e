r"""The objectives of the named models, composed of terms.

All are minimised, in nats per observed voxel. With :math:`\alpha = 0` the joint objective is minus
the evidence lower bound (apart from the warm-up of its KL and the overlap term).
"""

from __future__ import annotations

from torch import nn

from medvae3d.models.latent import LatentModel
from medvae3d.objectives.adversarial import AdversarialScore, FeatureMatching
from medvae3d.objectives.samples import SampleScore
from medvae3d.objectives.schedules import Schedule, warm_up
from medvae3d.objectives.terms import (
    Objective,
    Term,
    absolute_error,
    free_bits,
    in_mask_error,
    nll,
    one_sample_kl,
    overlap,
)


def joint_objective(
    discriminator: nn.Module | None = None,
    *,
    alpha: float = 0.0,
    beta: float = 1.0,
    warm_up_steps: int = 0,
    overlap_weight: float = 0.0,
    feature_weight: float = 1.0,
    adversarial_weight: float = 1.0,
    adversarial_start: int = 0,
    free_nats: float = 0.0,
    kind: str = "hinge",
) -> Objective:
    r"""The bound of a joint VAE or HVAE with discriminative regularisation.

    .. math::
        (1-\alpha)\,\big[-\log p(x, m \mid z_K) + \beta\,\mathrm{KL}\big]
        + \alpha\, N \big[\tfrac1N \|x - \hat x\|_1 + w_f L_f + w_a L_G\big] + w_o N L_o

    Args:
        discriminator: Judges image and mask together; none for the plain bound.
        alpha: Weight of the regularisation.
        beta: Final weight of the KL.
        warm_up_steps: Steps over which the KL rises to that weight.
        overlap_weight: Weight :math:`w_o` of one minus the soft Dice of the mask.
        feature_weight: Weight :math:`w_f` of feature matching.
        adversarial_weight: Weight :math:`w_a` of the adversarial score.
        adversarial_start: First step of both.
        free_nats: Divergence per latent element that costs nothing.
        kind: ``hinge`` or ``least_squares``.

    References:
        Kebaili et al., "Discriminative Hamiltonian variational autoencoder for accurate tumor
        segmentation in data-scarce regimes", 2024.
    """
    rise: Schedule = warm_up(warm_up_steps, top=(1 - alpha) * beta)
    terms = [Term("nll", nll, weight=1 - alpha), Term("kl", one_sample_kl, weight=rise)]
    if free_nats:
        terms.append(Term("free_bits", free_bits(free_nats), weight=rise))
    if overlap_weight:
        terms.append(Term("overlap", overlap, weight=overlap_weight, is_mean=True))
    if alpha:
        terms.append(Term("absolute_error", absolute_error, weight=alpha))
    if alpha and discriminator is not None:
        score = AdversarialScore(discriminator, adversarial_start, kind)
        match = FeatureMatching(discriminator, adversarial_start)
        terms += [
            Term("adversarial", score, weight=alpha * adversarial_weight, is_mean=True),
            Term("features", match, weight=alpha * feature_weight, is_mean=True),
        ]
    return Objective(terms, per_voxel=True)


def mask_objective(
    *, beta: float = 1.0, warm_up_steps: int = 0, overlap_weight: float = 0.5
) -> Objective:
    r"""First stage of the two-stage model: the bound of a mask and its overlap.

    .. math:: -\log p(m \mid z, c) + \beta\,\mathrm{KL} + w_o N L_o
    """
    return Objective(
        [
            Term("nll", nll),
            Term("kl", one_sample_kl, weight=warm_up(warm_up_steps, top=beta)),
            Term("overlap", overlap, weight=overlap_weight, is_mean=True),
        ],
        per_voxel=True,
    )


def texture_objective(
    discriminator: nn.Module | None = None,
    *,
    beta: float = 1.0,
    warm_up_steps: int = 0,
    in_mask_weight: float = 1.0,
    adversarial_weight: float = 0.05,
    feature_weight: float = 1.0,
    adversarial_start: int = 0,
    free_nats: float = 0.0,
    kind: str = "hinge",
) -> Objective:
    r"""Second stage of the two-stage model: the bound of an image, more inside of its lesion.

    .. math::
        -\log p(x \mid z, m, b) + \beta\,\mathrm{KL}
        + N \big[w_m \overline{|x - \hat x|}_m + w_a L_G + w_f L_f\big]

    Args:
        discriminator: Judges the image beside its mask; none for the plain bound.
        beta: Final weight of the KL.
        warm_up_steps: Steps over which the KL rises to that weight.
        in_mask_weight: Weight :math:`w_m` of the mean absolute error inside of the mask.
        adversarial_weight: Weight :math:`w_a`.
        feature_weight: Weight :math:`w_f`.
        adversarial_start: First step of both.
        free_nats: Divergence per latent element that costs nothing. Mask and surroundings tell so
            much of an image that a latent which costs from the first nat on falls silent.
        kind: ``hinge`` or ``least_squares``.
    """
    rise: Schedule = warm_up(warm_up_steps, top=beta)
    terms = [
        Term("nll", nll),
        Term("kl", one_sample_kl, weight=rise),
        Term("in_mask", in_mask_error, weight=in_mask_weight, is_mean=True),
    ]
    if free_nats:
        terms.append(Term("free_bits", free_bits(free_nats), weight=rise))
    if discriminator is not None:
        score = AdversarialScore(discriminator, adversarial_start, kind)
        match = FeatureMatching(discriminator, adversarial_start)
        terms += [
            Term("adversarial", score, weight=adversarial_weight, is_mean=True),
            Term("features", match, weight=feature_weight, is_mean=True),
        ]
    return Objective(terms, per_voxel=True)


def generator_objective(discriminator: nn.Module, *, kind: str = "logistic") -> Objective:
    r"""The generator of a GAN: its volumes pass for real, and nothing else.

    With ``logistic`` it is the non-saturating loss :math:`-\overline{\log \sigma(D(x_p))}`, with
    ``least_squares`` that of an LSGAN, :math:`\overline{(D(x_p) - 1)^2}`.

    Args:
        discriminator: Judges image and mask together.
        kind: ``logistic``, ``least_squares`` or ``hinge``.

    References:
        Radford et al., "Unsupervised representation learning with deep convolutional generative
        adversarial networks", 2016. Mao et al., "Least squares generative adversarial networks",
        2017.
    """
    score = AdversarialScore(discriminator, kind=kind)
    return Objective([Term("adversarial", score, is_mean=True)], per_voxel=True)


def disc_vae_objective(
    model: LatentModel,
    discriminator: nn.Module,
    *,
    beta: float = 1.0,
    warm_up_steps: int = 0,
    adversarial_weight: float = 0.01,
    adversarial_start: int = 0,
    kind: str = "logistic",
) -> Objective:
    r"""A VAE in the place of a GAN's generator, its reconstruction in voxel space.

    .. math::
        -\log p(x, m \mid z) + \beta\,\mathrm{KL}
        + \lambda N \big[L_G(\hat x) + L_G(x_p)\big]

    with reconstructions :math:`\hat x` and samples of the prior :math:`x_p`. The encoder is taught
    by the score of reconstructions, not by that of samples. With :math:`\lambda = 0` it is the
    bound of a VAE. Its discriminator is trained by
    :class:`~medvae3d.training.sample_discriminator.SampleDiscriminatorPlayer`.

    Args:
        model: Whose decoder makes the samples.
        discriminator: Judges image and mask together.
        beta: Final weight of the KL.
        warm_up_steps: Steps over which the KL rises to that weight.
        adversarial_weight: Weight :math:`\lambda` of both scores.
        adversarial_start: First step of both; a fifth of a run is a good value.
        kind: ``hinge``, ``least_squares`` or ``logistic``.

    References:
        Rais et al., "Medical image generation techniques for data augmentation: Disc-VAE versus
        GAN", 2024. The equations are this library's reading of it.
    """
    rebuilt = AdversarialScore(discriminator, adversarial_start, kind)
    sampled = SampleScore(model, discriminator, adversarial_start, kind)
    return Objective(
        [
            Term("nll", nll),
            Term("kl", one_sample_kl, weight=warm_up(warm_up_steps, top=beta)),
            Term("adversarial", rebuilt, weight=adversarial_weight, is_mean=True),
            Term("adversarial_samples", sampled, weight=adversarial_weight, is_mean=True),
        ],
        per_voxel=True,
    )
