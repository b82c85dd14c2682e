"""What is known of a latent before anything is seen, fitted after training or not."""

from medvae3d.probability.priors.base import (
    Aggregate,
    FittedPrior,
    HeldOut,
    Prior,
    StandardNormal,
)
from medvae3d.probability.priors.choice import PRIORS, make_prior
from medvae3d.probability.priors.flow import FlowPrior
from medvae3d.probability.priors.mixture import FullGaussianPrior, MixturePrior
from medvae3d.probability.priors.vamp import VampPrior

__all__ = [
    "PRIORS",
    "Aggregate",
    "FittedPrior",
    "FlowPrior",
    "FullGaussianPrior",
    "HeldOut",
    "MixturePrior",
    "Prior",
    "StandardNormal",
    "VampPrior",
    "make_prior",
]
