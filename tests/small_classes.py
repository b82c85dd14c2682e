"""Short trainings on balls of two classes, for tests of conditional systems; no tests in here."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medvae3d.training.loading import BatchPreparation, CaseLoader, StepLoader
from medvae3d.training.players import Player, Turn

SIDE = 12
SHAPE = (SIDE,) * 3
SPACING = (1.0, 1.0, 1.0)
CLASSES = ("dark", "bright")
LEVELS = {"dark": 0.4, "bright": 1.2}


def balls(count: int, seed: int) -> list[dict[str, Any]]:
    """Balls of some size at some place in grain; of a class in turn, which is how bright one is."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(float(SIDE))
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    cases = []
    for number in range(count):
        middle = SIDE / 2 - 0.5 + 4 * (torch.rand(3, generator=generator) - 0.5)
        radius = 2.0 + 1.5 * torch.rand((), generator=generator)
        label = ((grid - middle.reshape(3, 1, 1, 1)).norm(dim=0) < radius)[None]
        noise = 0.1 * torch.randn(1, *SHAPE, generator=generator)
        kind = CLASSES[number % len(CLASSES)]
        image = -0.6 + LEVELS[kind] * label.float() + noise
        case = {"image": image, "label": label.to(torch.uint8), "class": kind}
        cases.append({**case, "case": f"ball {number}"})
    return cases


def played(
    network: torch.nn.Module,
    players: Sequence[Player],
    cases: Sequence[dict[str, Any]],
    steps: int,
) -> None:
    """Trains on batches of 8 as a run does; the network is left for evaluation."""
    preparation = BatchPreparation(network.statistics, SPACING)
    loader = StepLoader(cases, 8, seed=0)
    whole = next(iter(CaseLoader(cases, len(cases))))
    network.statistics.fit_attributes(preparation.attributes(whole["mask"], whole))
    for step in range(steps):
        batch = preparation(loader.batch(step), "cpu")
        turn = Turn(batch, step, torch.Generator().manual_seed(step))
        for player in players:
            if player.is_active(step):
                player.network.train()
                player.play(turn, contextlib.nullcontext)
    network.eval()


def unseen_of(network: torch.nn.Module, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All of some cases as one batch, as the network reads them."""
    whole = next(iter(CaseLoader(cases, len(cases))))
    return BatchPreparation(network.statistics, SPACING)(whole, "cpu")


def psnr(found: Tensor, wanted: Tensor) -> float:
    """Of images from -1 to 1, in dB."""
    return 10 * math.log10(4 / float((found - wanted).square().mean()))
