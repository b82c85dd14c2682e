"""The model that made synthetic cases, where its bundle is at hand: what it says of any case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medvae3d.apps.bundle import Bundle, load_bundle
from medvae3d.errors import SettingError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.evidence import log_weights
from medvae3d.models.latent import LatentModel

# Draws of the bound; the noise between two cases is far above that of the draws.
DRAWS = 4
BATCH = 4


@dataclass(frozen=True)
class BundleModel:
    """A latent model as a judge of cases.

    Attributes:
        bundle: The bundle.
        network: Its network.
        seed: Seed of the draws of the bound.
    """

    bundle: Bundle
    network: LatentModel
    seed: int = 0

    @classmethod
    def load(cls, name_or_path: str | Path, seed: int = 0) -> BundleModel:
        """Loads a bundle.

        Raises:
            BundleError: If it is unknown or incomplete.
            SettingError: If it does not model image and mask at once.
        """
        bundle = load_bundle(name_or_path)
        network, values = bundle.network, bundle.recipe.values
        if not isinstance(network, LatentModel) or bundle.recipe.synthesis.kind != "joint":
            raise SettingError(
                f"{bundle.name} models the image around a given mask, not whole cases, so that it "
                f"gives no likelihood of one. Leave --bundle away."
            )
        if values != tuple(range(len(values))):
            raise SettingError(
                f"{bundle.name} has the label values {values}; allowed are 0, 1, 2 and so on. "
                f"Leave --bundle away."
            )
        return cls(bundle, network, seed)

    @property
    def name(self) -> str:
        """Name and version."""
        return f"{self.bundle.name} {self.bundle.version}"

    @property
    def weights_sha256(self) -> str:
        """Of its weights."""
        return self.bundle.weights_sha256

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel of its volumes."""
        return self.bundle.recipe.spacing

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of its volumes."""
        return self.bundle.recipe.spatial_shape

    @property
    def schemes(self) -> list[dict[str, Any]]:
        """How it scales each channel."""
        return self.bundle.recipe.intensities.to_config()

    @property
    def labels(self) -> dict[str, int]:
        """Names and values of its labels."""
        return dict(self.bundle.recipe.labels)

    @torch.no_grad()
    def encode(self, cases: Cases) -> Tensor:
        """Means of the posteriors, ``(N, D)``."""
        rows = []
        for part in cases.batches(BATCH):
            batch = self._batch(part)
            posterior = self.network.encode(batch, self.network.condition(batch))
            rows.append(posterior.mean.flatten(1))
        return torch.cat(rows)

    def log_likelihood(self, cases: Cases) -> Tensor:
        """The importance-weighted bound on the log likelihood in nats, ``(N,)``."""
        batches = [self._batch(part) for part in cases.batches(BATCH)]
        return log_weights(self.network, batches, DRAWS, self.seed).importance_weighted

    def _batch(self, cases: Cases) -> dict[str, Any]:
        return cases.batch(self.bundle.statistics, self.spacing_mm)
