"""A discriminator whose fakes are samples of the prior beside reconstructions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from medvae3d.models.latent import LatentModel
from medvae3d.objectives.adversarial import discriminator_loss, pair
from medvae3d.objectives.samples import prior_volumes
from medvae3d.training.players import DiscriminatorPlayer, Turn


class SampleDiscriminatorPlayer(DiscriminatorPlayer):
    r"""Trains a discriminator to tell real volumes from reconstructions and from samples.

    .. math::
        L_D = -\tfrac12 \Big[\log D(x) + \tfrac12 \log(1 - D(\hat x))
            + \tfrac12 \log(1 - D(x_p))\Big]

    with the logistic loss; with the others, half of the fakes are of each sort as well.

    Args:
        network: The discriminator.
        optimizer: Updates it.
        model: Whose decoder makes the samples, the model of the player called ``source``.
        kind: ``logistic``, ``hinge`` or ``least_squares``.
        **options: See `DiscriminatorPlayer`.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        model: LatentModel,
        kind: str = "logistic",
        **options: Any,
    ) -> None:
        super().__init__(network, optimizer, kind=kind, **options)
        self.model = model

    def play(self, turn: Turn, autocast: Any) -> None:
        if self.source not in turn.traces:
            self._update(None, turn)
            return
        trace, batch = turn.traces[self.source]
        smoothing = self.mask_smoothing
        with autocast(), torch.no_grad():
            real = pair(batch, trace=trace, real=True, mask_smoothing=smoothing)
            rebuilt = pair(batch, trace=trace, real=False, mask_smoothing=smoothing)
            sampled = prior_volumes(self.model, trace, batch, smoothing)
        self.network.requires_grad_(True)
        with autocast():
            fake = torch.cat([rebuilt, sampled])
            loss, accuracy = discriminator_loss(self.network, real, fake, self.kind)
        self._update(loss, turn)
        self.network.requires_grad_(False)
        turn.log[f"{self.name}/loss"] = float(loss.detach())
        turn.log[f"{self.name}/accuracy"] = float(accuracy)
