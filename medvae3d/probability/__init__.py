"""Distributions: posteriors over latents, priors of latents, likelihoods of volumes and masks."""

from medvae3d.probability.likelihoods import (
    BernoulliHead,
    BernoulliMask,
    GaussianHead,
    GaussianImage,
    LabelHead,
    LabelMap,
    LaplaceHead,
    LaplaceImage,
    LogisticHead,
    LogisticImage,
)
from medvae3d.probability.posteriors import DiagonalGaussian, PointMass, Posterior
from medvae3d.probability.priors import (
    FittedPrior,
    FullGaussianPrior,
    MixturePrior,
    Prior,
    StandardNormal,
)

__all__ = [
    "BernoulliHead",
    "BernoulliMask",
    "DiagonalGaussian",
    "FittedPrior",
    "FullGaussianPrior",
    "GaussianHead",
    "GaussianImage",
    "LabelHead",
    "LabelMap",
    "LaplaceHead",
    "LaplaceImage",
    "LogisticHead",
    "LogisticImage",
    "MixturePrior",
    "PointMass",
    "Posterior",
    "Prior",
    "StandardNormal",
]
