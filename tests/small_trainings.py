"""Short trainings on balls, for tests of what trained systems show; no tests in here."""

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


def balls(
    count: int, seed: int, *, grain: float = 0.1, classes: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Balls of some size at some place in grain; of a class in turn, which is how bright one is."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(float(SIDE))
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    cases = []
    for number in range(count):
        middle = SIDE / 2 - 0.5 + 4 * (torch.rand(3, generator=generator) - 0.5)
        radius = 2.0 + 1.5 * torch.rand((), generator=generator)
        label = ((grid - middle.reshape(3, 1, 1, 1)).norm(dim=0) < radius)[None]
        noise = grain * torch.randn(1, *SHAPE, generator=generator)
        case: dict[str, Any] = {"label": label.to(torch.uint8), "case": f"ball {number}"}
        level = 1.0
        if classes:
            case["class"] = classes[number % len(classes)]
            level = LEVELS[case["class"]]
        cases.append({**case, "image": -0.6 + level * label.float() + noise})
    return cases


def played(
    network: torch.nn.Module,
    players: Sequence[Player],
    cases: Sequence[dict[str, Any]],
    steps: int,
    batch_size: int = 8,
) -> dict[str, list[float]]:
    """Trains as a run does, and gives the log of each value; the network is left for evaluation."""
    preparation = BatchPreparation(network.statistics, SPACING)
    loader = StepLoader(cases, batch_size, seed=0)
    if network.statistics.names:
        whole = next(iter(CaseLoader(cases, len(cases))))
        network.statistics.fit_attributes(preparation.attributes(whole["mask"], whole))
    logs: dict[str, list[float]] = {}
    for step in range(steps):
        batch = preparation(loader.batch(step), "cpu")
        turn = Turn(batch, step, torch.Generator().manual_seed(step))
        for player in players:
            if player.is_active(step):
                player.network.train()
                player.play(turn, contextlib.nullcontext)
        for name, value in turn.log.items():
            logs.setdefault(name, []).append(value)
    network.eval()
    return logs


def unseen_of(network: torch.nn.Module, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All of some cases as one batch, as the network reads them."""
    whole = next(iter(CaseLoader(cases, len(cases))))
    return BatchPreparation(network.statistics, SPACING)(whole, "cpu")


def late(values: Sequence[float], share: float = 0.2) -> float:
    """Mean over the last part of a log."""
    last = values[-max(1, int(share * len(values))) :]
    return sum(last) / len(last)


@torch.no_grad()
def rebuilt_and_drawn(network: Any, batch: dict[str, Any], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images rebuilt from means, and images of as many draws from what it is sampled from."""
    condition = network.condition(batch)
    generator = torch.Generator().manual_seed(seed)
    z = network.sample_latent(len(batch["image"]), condition.attributes, generator)
    drawn = network.decode(z, condition)["image"].mode()
    if network.encoder is None:
        return drawn, drawn
    rebuilt = network.decode(network.encode(batch, condition).mean, condition)
    return rebuilt["image"].mode(), drawn


def psnr(found: Tensor, wanted: Tensor) -> float:
    """Of images from -1 to 1, in dB."""
    return 10 * math.log10(4 / float((found - wanted).square().mean()))


def roughness(x: Tensor) -> float:
    """Mean absolute difference of neighbours over three axes."""
    return float(sum(x.diff(dim=axis).abs().mean() for axis in (2, 3, 4)))


def spread(x: Tensor) -> float:
    """Mean distance of two of some volumes."""
    flat = x.flatten(1)
    return float(torch.cdist(flat, flat).sum() / (len(flat) * (len(flat) - 1)))


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Twice the mean distance between two sets less that within each; 0 for equal laws."""
    between = torch.cdist(x.flatten(1), y.flatten(1)).mean()
    return float(2 * between - spread(x) - spread(y))


def nearest(x: Tensor, known: Tensor) -> Tensor:
    """Distance of each volume to the nearest of some known ones."""
    return torch.cdist(x.flatten(1), known.flatten(1)).amin(1)


def recall(real: Tensor, made: Tensor, neighbour: int = 3) -> float:
    """Share of real volumes that lie within reach of a made one, by its third neighbour."""
    within = torch.cdist(made.flatten(1), made.flatten(1)).kthvalue(neighbour + 1, 1).values
    away = torch.cdist(real.flatten(1), made.flatten(1))
    return float((away <= within).any(1).float().mean())
