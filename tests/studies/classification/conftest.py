"""Bright and dark balls: a task that needs no file and is learned in seconds."""

from __future__ import annotations

import pytest
import torch

from medvae3d.studies.classification.tasks import Task, task_of


def ball_task(
    training: int = 8, unseen: int = 20, seed: int = 0, gap: float = 0.8, cases: int = 1
) -> Task:
    """Patients with balls of 8 voxels in noise; those of class 1 are brighter by ``gap``."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(8) - 3.5
    grid = torch.stack(torch.meshgrid(places, places, places, indexing="ij"))
    counts = {"training": training, "validation": 6, "testing": unseen}
    parts = []
    for split, count in counts.items():
        for index in range(count):
            for number in range(2 * cases):
                centre = (torch.rand(3, 1, 1, 1, generator=generator) - 0.5) * 3
                ball = ((grid - centre).square().sum(0).sqrt() < 2.5).float()
                noise = 0.1 * torch.randn(8, 8, 8, generator=generator)
                value = number % 2
                image = -0.5 + ball * (0.4 + gap * value) + noise
                parts.append((image[None].clamp(-0.99, 1), value, f"{split} {index}", split))
    return task_of("balls", parts, ("dark", "bright"))


@pytest.fixture(scope="session")
def make_balls():
    return ball_task


@pytest.fixture(scope="session")
def balls() -> Task:
    return ball_task()
