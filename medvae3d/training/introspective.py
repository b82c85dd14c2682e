"""Introspective training: encoder and decoder of one model as two players, no discriminator."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from medvae3d.models.latent import LatentModel
from medvae3d.objectives.introspective import (
    IntrospectiveObjective,
    introspect,
    require_introspective,
)
from medvae3d.training.parts import PartPlayer
from medvae3d.training.players import Select, Turn


class IntrospectivePlayer(PartPlayer):
    """One side of a latent model: the encoder, which judges, or the decoder, which makes.

    Both players are given the same model and the same objective, the encoder first. The decoder
    encodes the batch anew, after the encoder's update.

    Args:
        network: The model; its encoder reads image and mask as its decoder makes them.
        objective: What both sides minimise.
        optimizer: Updates the encoder, ``network.encoder``, or the rest of the model,
            `medvae3d.training.parts.decoder_side`.
        role: ``encoder`` or ``decoder``; also the player's name.
        introspect_start: First step with made volumes; before, both train a VAE.
        select: See `medvae3d.training.players.ModelPlayer`.
        **options: See `Player`.
    """

    def __init__(
        self,
        network: LatentModel,
        objective: IntrospectiveObjective,
        optimizer: Optimizer,
        role: str,
        introspect_start: int = 0,
        select: Select | None = None,
        **options: Any,
    ) -> None:
        super().__init__(options.pop("name", role), network, optimizer, **options)
        require_introspective(network)
        self.model = network
        self.objective = objective
        self.role = role
        self.introspect_start = introspect_start
        self.select = select

    def play(self, turn: Turn, autocast: Any) -> None:
        batch = self.select(turn.batch) if self.select else turn.batch
        if not len(batch["mask"]):
            self._update(None, turn)
            return
        with self.learning():
            with autocast():
                seen = introspect(
                    self.model,
                    batch,
                    turn.generator,
                    self.role,
                    with_made=turn.step >= self.introspect_start,
                    rebuild_made=self.objective.rebuilds_made,
                )
            objective = self.objective
            loss = (
                objective.encoder_loss(seen)
                if self.role == "encoder"
                else objective.decoder_loss(seen)
            )
            self._update(loss, turn)
        turn.traces[self.name] = (seen.trace, batch)
        values = {"loss": loss.detach(), **objective.report(seen)}
        turn.log.update({f"{self.name}/{key}": float(value) for key, value in values.items()})
