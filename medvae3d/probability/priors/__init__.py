"""What is known of a latent before anything is seen, fitted after training or not."""

from medvae3d.probability.priors.base import (
    Aggregate,
    FittedPrior,
    HeldOut,
    Prior,
    StandardNormal,
)
from medvae3d.probability.priors.mixture import FullGaussianPrior, MixturePrior

__all__ = [
    "Aggregate",
    "FittedPrior",
    "FullGaussianPrior",
    "HeldOut",
    "MixturePrior",
    "Prior",
    "StandardNormal",
]
