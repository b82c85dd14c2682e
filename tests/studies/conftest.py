"""Balls in a body: cases of a study that take no file and no time."""

from __future__ import annotations

import pytest
import torch

from medvae3d.evaluation.cases import Cases

SIDE = 16


def ball_cases(count: int, seed: int = 0, gain: float = 0.8) -> Cases:
    """Bright balls, each in a body of noise with air round it."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(SIDE) - (SIDE - 1) / 2
    grid = torch.stack(torch.meshgrid(places, places, places, indexing="ij"))[None]
    centre = (torch.rand(count, 3, 1, 1, 1, generator=generator) - 0.5) * 5
    radius = 1.8 + 1.2 * torch.rand(count, 1, 1, 1, 1, generator=generator)
    distance = (grid - centre).square().sum(1, keepdim=True).sqrt()
    mask = (distance < radius).float()
    noise = 0.15 * torch.randn(mask.shape, generator=generator)
    tissue = grid.square().sum(1, keepdim=True).sqrt() < 7.4
    image = torch.where(tissue, (-0.3 + gain * mask + noise).clamp(-0.85, 1), torch.tensor(-1.0))
    ones = torch.ones_like(mask)
    return Cases(image, mask, ones, mask, tuple(f"ball {i}" for i in range(count)))


@pytest.fixture(scope="session")
def balls():
    return ball_cases
