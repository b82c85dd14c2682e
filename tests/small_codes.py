"""Balls and a VQ-VAE trained on them, for tests and benchmarks; no tests in here."""

from __future__ import annotations

import contextlib

import torch

from medvae3d.models.zoo import vqvae
from medvae3d.objectives.codes import code_objective
from medvae3d.training.fitting import PriorFitter
from medvae3d.training.generators import CodebookPlayer
from medvae3d.training.loading import BatchPreparation, CaseLoader, StepLoader
from medvae3d.training.optimizers import adamw, cosine
from medvae3d.training.players import Turn

SHAPE = (16, 16, 16)
CODES = 16


def balls(count, seed):
    """Bright balls of some size at some place, before a slope."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(16.0)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    cases = []
    for index in range(count):
        middle = 5 + 6 * torch.rand(3, generator=generator)
        radius = 2.5 + 2 * torch.rand((), generator=generator)
        label = ((grid - middle.reshape(3, 1, 1, 1)).norm(dim=0) < radius)[None]
        slope = 0.05 * torch.randn((), generator=generator) * (grid[:1] - 8)
        noise = 0.05 * torch.randn(1, *SHAPE, generator=generator)
        image = -0.6 + label.float() + slope + noise
        cases.append({"image": image, "label": label.to(torch.uint8), "case": f"b{index}"})
    return cases


class Trained:
    def __init__(self, levels=1, steps=900, prior_steps=800, seed=0, settle=None, **returning):
        torch.manual_seed(seed)
        self.network = vqvae(
            SHAPE,
            channels=(8, 16),
            codes=CODES,
            latent_channels=4,
            levels=levels,
            attributes=("log_volume",),
            prior_width=32,
            prior_depth=2,
            prior_steps=prior_steps,
        )
        self.cases = balls(128, 0)
        self.unseen = next(iter(CaseLoader(balls(24, 1), 24)))
        self.preparation = BatchPreparation(self.network.statistics, (1.0, 1.0, 1.0))
        loader = StepLoader(self.cases, 8, seed=0)
        masks = torch.stack([case["label"] for case in self.cases])
        volumes = self.preparation.attributes(masks, {})
        self.network.statistics.fit_attributes(volumes)
        player = CodebookPlayer(
            self.network,
            code_objective(self.network, **(returning or {"return_weight": 0.2})),
            adamw(self.network, 3e-3),
            dataset=self.cases,
            settle_start=settle,
            clip_norm=5.0,
            rate=cosine(steps),
        )
        for step in range(steps):
            batch = self.preparation(loader.batch(step), "cpu")
            turn = Turn(batch, step, torch.Generator().manual_seed(step))
            self.network.train()
            player.play(turn, contextlib.nullcontext)
        self.log = turn.log
        self.network.eval()
        if prior_steps:
            PriorFitter({"model": self.network}, loader, self.preparation, passes=1).fit()
        self.unseen = self.preparation(self.unseen, "cpu")

    def encode(self, batch):
        return self.network.encode(batch, self.network.condition(batch))
