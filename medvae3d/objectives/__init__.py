"""Objectives: weighted sums of terms, each a named function of a trace and its batch."""

from medvae3d.objectives.adversarial import (
    AdaptiveWeight,
    AdversarialScore,
    FeatureMatching,
    discriminator_loss,
    pair,
)
from medvae3d.objectives.perceptual import (
    Perceptual,
    RandomFeatureDistance,
    TrainedFeatureDistance,
)
from medvae3d.objectives.schedules import constant, cyclic, delayed, warm_up
from medvae3d.objectives.terms import (
    Objective,
    Term,
    absolute_error,
    analytic_kl,
    elbo,
    free_bits,
    free_bits_kl,
    head_nll,
    in_mask_error,
    negative_elbo,
    nll,
    one_sample_kl,
    overlap,
)

__all__ = [
    "AdaptiveWeight",
    "AdversarialScore",
    "FeatureMatching",
    "Objective",
    "Perceptual",
    "RandomFeatureDistance",
    "Term",
    "TrainedFeatureDistance",
    "absolute_error",
    "analytic_kl",
    "constant",
    "cyclic",
    "delayed",
    "discriminator_loss",
    "elbo",
    "free_bits",
    "free_bits_kl",
    "head_nll",
    "in_mask_error",
    "negative_elbo",
    "nll",
    "one_sample_kl",
    "overlap",
    "pair",
    "warm_up",
]
