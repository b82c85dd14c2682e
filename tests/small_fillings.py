"""Regions of small volumes, and a model that fills them; no tests in here."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from medvae3d.geometry import Grid
from medvae3d.models.zoo import cvae_fill
from medvae3d.objectives.conditional import fill_objective
from medvae3d.synthesis.hosts import HostScan, host_in_memory
from medvae3d.synthesis.recipe import Recipe

SIDE = 16
RECIPE = Recipe.from_config(
    {
        "channels": [
            {
                "name": "CT",
                "unit": "HU",
                "intensity": {"kind": "window", "low": -100, "high": 100},
                "dtype": "float32",
            }
        ],
        "labels": {"background": 0, "lesion": 1},
        "spacing": [2.0, 2.0, 2.0],
        "spatial_shape": [SIDE] * 3,
        "synthesis": {"kind": "joint"},
    }
)


def cases(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A slope of tissue of some brightness, and a bright ball in half of the cases."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(float(SIDE)) - (SIDE - 1) / 2
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    images, masks = [], []
    for index in range(count):
        level = torch.randn(1, generator=generator) * 0.15
        slope = torch.randn(3, generator=generator) * 0.03
        middle = torch.randn(3, generator=generator) * 2
        ball = ((grid - middle.reshape(3, 1, 1, 1)).norm(dim=0) < 3.0)[None] & (index % 2 == 0)
        tissue = level + (slope.reshape(3, 1, 1, 1) * grid).sum(0)[None]
        images.append(tissue + 0.6 * ball)
        masks.append(ball.float())
    return torch.stack(images), torch.stack(masks)


def host_of(image: Tensor, mask: Tensor, turned: bool = False) -> HostScan:
    """A case as a scan, stored along the other direction of its first axis if wanted."""
    array = (image * 100).numpy().astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    if turned:
        affine[0] *= -1
        array, mask = array[:, ::-1].copy(), mask.flip(1)
    grid = Grid(array.shape[1:], affine)
    inside = np.ones(array.shape[1:], bool)
    label = mask[0].numpy().astype(np.uint8)
    return host_in_memory(array, grid, RECIPE, label=label, brain=inside)


def region() -> Any:
    """The middle half along each axis."""
    hole = np.zeros((SIDE,) * 3, bool)
    hole[4:12, 4:12, 4:12] = True
    return hole


def seeded(*seeds: int) -> list[torch.Generator]:
    """A generator for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def trained_filler(share: float | None = None, steps: int = 400) -> Any:
    """A model of regions after a short training; ``share`` is that of its objective."""
    torch.manual_seed(0)
    model = cvae_fill(
        (SIDE,) * 3, channels=(8, 16), latent_channels=2, components=0, whole=0.05, told=0.7
    )
    images, masks = cases(64, 1)
    objective = fill_objective(model) if share is None else fill_objective(model, share=share)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(3)
    for step in range(steps):
        rows = torch.randint(len(images), (8,), generator=generator)
        batch = {"image": images[rows], "mask": masks[rows]}
        loss, _ = objective(model.trace(batch, generator), batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def divergence(model: Any) -> Tensor:
    """Of the recognition network from the prior network, of 16 unseen cases, in nats."""
    images, masks = cases(16, 2)
    hole = torch.as_tensor(region()).float().expand(16, 1, SIDE, SIDE, SIDE)
    batch = {"image": images, "mask": masks, "region": hole}
    with torch.no_grad():
        trace = model.trace(batch, seeded(0)[0])
    pair = [torch.distributions.Normal(q.mean, q.scale) for q in (trace.posterior, trace.prior)]
    return torch.distributions.kl_divergence(*pair).flatten(1).sum(1)
