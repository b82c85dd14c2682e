"""A classifier that learns to tell the class of a case from its latent."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from medvae3d.models.latent import LatentModel
from medvae3d.objectives.independence import class_numbers
from medvae3d.training.players import Player, Turn


class LabelPlayer(Player):
    """Trains a classifier on the latents that a model player made in this step.

    Its parameters take gradients in its own turn only.

    Args:
        network: Latents to one logit a class.
        optimizer: Updates it.
        model: Says which attributes are classes.
        source: Name of the model player.
        name: See `Player`.
        **options: See `Player`.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        model: LatentModel,
        source: str = "model",
        name: str = "classifier",
        **options: Any,
    ) -> None:
        super().__init__(name, network, optimizer, **options)
        self.model = model
        self.source = source
        network.requires_grad_(False)

    def play(self, turn: Turn, autocast: Any) -> None:
        if self.source not in turn.traces:
            self._update(None, turn)
            return
        trace, _ = turn.traces[self.source]
        numbers = class_numbers(self.model, trace)
        self.network.requires_grad_(True)
        with autocast():
            logits = self.network(trace.first_z.detach())
            loss = F.cross_entropy(logits.float(), numbers)
        self._update(loss, turn)
        self.network.requires_grad_(False)
        turn.log[f"{self.name}/loss"] = float(loss.detach())
        accuracy = (logits.argmax(1) == numbers).float().mean()
        turn.log[f"{self.name}/accuracy"] = float(accuracy)
