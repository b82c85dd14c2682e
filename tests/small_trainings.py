"""Short trainings on grainy balls, for tests of what trained systems show; no tests in here."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medvae3d.networks.discriminators import PatchDiscriminator
from medvae3d.training.loading import BatchPreparation, CaseLoader, StepLoader
from medvae3d.training.players import Player, Turn

SIDE = 12
SHAPE = (SIDE,) * 3
SPACING = (1.0, 1.0, 1.0)
SIZES = {"channels": (8, 16), "latent_channels": 4, "likelihood": "gaussian"}
RATE = 1e-3


def balls(count: int, seed: int, grain: float = 0.1) -> list[dict[str, Any]]:
    """Balls of some size at some place, in grain."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(float(SIDE))
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    cases = []
    for number in range(count):
        middle = SIDE / 2 - 0.5 + 4 * (torch.rand(3, generator=generator) - 0.5)
        radius = 2.0 + 1.5 * torch.rand((), generator=generator)
        label = ((grid - middle.reshape(3, 1, 1, 1)).norm(dim=0) < radius)[None]
        noise = grain * torch.randn(1, *SHAPE, generator=generator)
        image = -0.6 + label.float() + noise
        cases.append({"image": image, "label": label.to(torch.uint8), "case": f"ball {number}"})
    return cases


def seeded(make: Any, *args: Any, seed: int = 0, **options: Any) -> Any:
    """A network whose first weights are of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(*args, **options)


def judge(channels: Sequence[int] = (8, 16)) -> PatchDiscriminator:
    """A discriminator of image and mask."""
    return seeded(PatchDiscriminator, 2, channels=channels, seed=1)


def adam(module: torch.nn.Module, rate: float = 3e-4) -> torch.optim.Adam:
    """The optimiser of discriminators and generators."""
    return torch.optim.Adam(module.parameters(), rate, betas=(0.5, 0.9))


def played(
    network: Any,
    players: Sequence[Player],
    cases: Sequence[dict[str, Any]],
    steps: int,
    first: int = 0,
) -> dict[str, list[float]]:
    """Trains on batches of 8 as a run does, and gives the log of each value."""
    preparation = BatchPreparation(network.statistics, SPACING)
    loader = StepLoader(cases, 8, seed=0)
    logs: dict[str, list[float]] = {}
    for step in range(first, first + steps):
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


def whole(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All of some cases as one batch."""
    return next(iter(CaseLoader(cases, len(cases))))


def late(values: Sequence[float], share: float = 0.2) -> float:
    """Mean over the last part of a log."""
    last = values[-max(1, int(share * len(values))) :]
    return sum(last) / len(last)


@torch.no_grad()
def rebuilt(network: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Images and masks rebuilt from the means of posteriors."""
    condition = network.condition(batch)
    return modes(network.decode(network.encode(batch, condition).mean, condition))


@torch.no_grad()
def drawn(network: Any, count: int = 48, seed: int = 0) -> dict[str, Tensor]:
    """Images and masks of draws from what the model is sampled from."""
    z = network.sample_latent(count, None, torch.Generator().manual_seed(seed))
    return modes(network.decode(z, network.blank(count, SHAPE)))


def modes(heads: dict[str, Any]) -> dict[str, Tensor]:
    """What is shown of the distributions of a decoder."""
    return {"image": heads["image"].mode(), "mask": heads["mask"].mode().float()}


def psnr(found: Tensor, wanted: Tensor) -> float:
    """Of images from -1 to 1, in dB."""
    return 10 * math.log10(4 / float((found - wanted).square().mean()))


def dice(found: Tensor, wanted: Tensor) -> float:
    """Of two sets of masks, voxels of all taken together."""
    return float(2 * (found * wanted).sum() / (found.sum() + wanted.sum()))


def gradients(x: Tensor) -> Tensor:
    """Log amplitudes of the gradient magnitude by frequency along the first axis, mean over all."""
    inner = [x.diff(dim=axis)[..., : SIDE - 1, : SIDE - 1, : SIDE - 1] for axis in (2, 3, 4)]
    magnitude = torch.stack(inner).square().sum(0).sqrt()
    return torch.fft.rfft(magnitude, dim=2).abs().mean((0, 1, 3, 4)).log()


def unsharpness(found: Tensor, real: Tensor) -> float:
    """Distance of two spectra of gradient magnitudes; 0 for images as sharp as real ones."""
    return float((gradients(found) - gradients(real)).abs().mean())


def spread(x: Tensor) -> float:
    """Mean distance of two of some volumes."""
    flat = x.flatten(1)
    return float(torch.cdist(flat, flat).sum() / (len(flat) * (len(flat) - 1)))


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Twice the mean distance between two sets less that within each; 0 for equal laws."""
    between = torch.cdist(x.flatten(1), y.flatten(1)).mean()
    return float(2 * between - spread(x) - spread(y))


def plain(x: Tensor) -> Tensor:
    """Means of blocks of 3 voxels a side: shapes without their grain."""
    return F.avg_pool3d(x, 3)


def copied(made: Tensor, known: Tensor) -> float:
    """Share of shapes nearer to a training case than all but 1 % of these are to each other."""
    made, known = plain(made).flatten(1), plain(known).flatten(1)
    among = torch.cdist(known, known).fill_diagonal_(math.inf).amin(1)
    return float((torch.cdist(made, known).amin(1) < among.quantile(0.01)).float().mean())
