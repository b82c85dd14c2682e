"""What a latent model is told, and what one pass through it produced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from medvae3d.flows.hamiltonian import Flowed
from medvae3d.probability.posteriors import Posterior

Batch = Mapping[str, Any]
"""What one step sees: ``image``, ``mask``, and what else the model is told; see `LatentModel`."""


@dataclass(frozen=True)
class Condition:
    """All that a model is told.

    Attributes:
        attributes: Standardised scalars, :math:`(B, F)`.
        maps: Condition maps at full resolution, :math:`(B, M, I, J, K)`.
        region: Which voxels are asked for, :math:`(B, 1, I, J, K)`, 1 or 0; ``None`` for all.
    """

    attributes: Tensor | None = None
    maps: Tensor | None = None
    region: Tensor | None = None


class BoundPrior(Protocol):
    """A prior under the condition of one batch: the standard normal or a `DiagonalGaussian`."""

    @property
    def is_standard(self) -> bool:
        """Whether it is the standard normal."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats, ``(B,)``."""


@dataclass(frozen=True)
class Trace:
    """All that one pass through a latent model produced; terms read it, nothing writes it."""

    posterior: Posterior
    prior: BoundPrior
    first_z: Tensor
    flowed: Flowed
    heads: Mapping[str, Any]
    condition: Condition
    coarse: Mapping[tuple[int, int, int], Mapping[str, Any]] = field(default_factory=dict)
    """Heads at lower resolution by voxels of the volume per voxel, coarsest first."""
