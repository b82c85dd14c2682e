"""Models small enough to check by hand, shared by tests; no tests in here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medvae3d.flows import HamiltonianFlow, Identity
from medvae3d.models.latent import Condition, Trace
from medvae3d.probability import BernoulliHead, DiagonalGaussian, GaussianHead, StandardNormal

SHAPE = (4, 4, 6)


class SmallModel(nn.Module):
    """Image of two channels and mask from a vector, through one hidden layer each way."""

    def __init__(self, flow: nn.Module | None = None, size: int = 5) -> None:
        super().__init__()
        voxels = 4 * 4 * 6
        self.encoder = nn.Sequential(nn.Linear(3 * voxels, 16), nn.SiLU(), nn.Linear(16, 2 * size))
        self.decoder = nn.Sequential(nn.Linear(size, 16), nn.SiLU(), nn.Linear(16, 3 * voxels))
        self.heads = nn.ModuleDict({"image": GaussianHead(2, 0.5), "mask": BernoulliHead()})
        self.flow = flow or Identity()
        self.prior = StandardNormal((size,))

    def decode(self, z: Tensor) -> dict[str, Any]:
        features = self.decoder(z).reshape(-1, 3, *SHAPE)
        return {
            "image": self.heads["image"](features[:, :2]),
            "mask": self.heads["mask"](features[:, 2:]),
        }

    def log_joint(self, z: Tensor, batch: dict[str, Any]) -> Tensor:
        valid = {"image": batch.get("valid"), "mask": batch.get("mask_valid")}
        fit = [head.log_prob(batch[n], valid[n]) for n, head in self.decode(z).items()]
        return fit[0] + fit[1] + self.prior.log_prob(z)

    def trace(
        self,
        batch: dict[str, Any],
        generators: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Trace:
        both = torch.cat([batch["image"].nan_to_num(), batch["mask"].nan_to_num()], 1).flatten(1)
        posterior = DiagonalGaussian.from_features(self.encoder(both))
        z = posterior.rsample(generators)
        flowed = self.flow(z, lambda z: -self.log_joint(z, batch), generators)
        return Trace(posterior, self.prior, z, flowed, self.decode(flowed.z), Condition())


def small_model(flow: nn.Module | None = None, seed: int = 0) -> SmallModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallModel(flow)


def small_flow(**options: Any) -> HamiltonianFlow:
    return HamiltonianFlow(**{"num_steps": 2, "step_size": 0.02, **options})


def small_batch(count: int = 3, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(count, 2, *SHAPE, generator=generator),
        "mask": (torch.rand(count, 1, *SHAPE, generator=generator) > 0.7).float(),
        "case": [f"case_{i}" for i in range(count)],
    }


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class SmallDiscriminator(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv3d(channels, 4, 3, padding=1), nn.Conv3d(4, 1, 3, padding=1)]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = nn.functional.leaky_relu(self.layers[0](x), 0.2)
        return [features, self.layers[1](features)]


def stray_tensors(module: nn.Module) -> Iterator[str]:
    """Names of tensors that a state dict would miss."""
    kept = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    stored = module.state_dict()
    for name, each in module.named_modules():
        for key, value in vars(each).items():
            if isinstance(value, Tensor) and id(value) not in kept:
                yield f"{name}.{key}"
    yield from (name for name, _ in module.named_buffers() if name not in stored)
