"""Priors by name, as configurations ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medvae3d.errors import SettingError
from medvae3d.probability.priors.base import FittedPrior
from medvae3d.probability.priors.flow import FlowPrior
from medvae3d.probability.priors.mixture import FullGaussianPrior, MixturePrior
from medvae3d.probability.priors.vamp import VampPrior

Make = Callable[[Sequence[int], int, int, int], "FittedPrior | None"]

PRIORS: dict[str, Make] = {
    "normal": lambda shape, components, rank, attributes: None,
    "gaussian": lambda shape, components, rank, attributes: FullGaussianPrior(
        shape, rank=rank, attributes=attributes
    ),
    "mixture": lambda shape, components, rank, attributes: MixturePrior(
        shape, components=components, rank=rank, attributes=attributes
    ),
    "vamp": lambda shape, components, rank, attributes: VampPrior(
        shape, components=components, attributes=attributes
    ),
    "flow": lambda shape, components, rank, attributes: FlowPrior(
        shape, rank=rank, attributes=attributes
    ),
}
"""What makes each prior, from the shape of a latent, components, rank, and number of attributes."""


def make_prior(
    name: str, shape: Sequence[int], *, components: int, rank: int, attributes: int = 0
) -> FittedPrior | None:
    """Makes the prior of a name; ``None`` for the standard normal.

    Args:
        name: One of `PRIORS`.
        shape: Shape of one latent.
        components: Most components, of a mixture or of pseudo-inputs.
        rank: Principal components, of those that have them.
        attributes: Number of attributes that it is told.

    Raises:
        SettingError: If there is none of that name, or what it needs is not installed.
    """
    if name not in PRIORS:
        raise SettingError(
            f"there is no prior {name!r}; allowed are {', '.join(PRIORS)}. Set `network_def#prior` "
            f"to one of these."
        )
    return PRIORS[name](shape, components, rank, attributes)
