"""The players of a VAE-GAN: encoder, decoder with the rule of balance, and a discriminator."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medvae3d.objectives.adversarial import generator_score, pair
from medvae3d.objectives.samples import prior_volumes
from medvae3d.objectives.vae_gan import Equilibrium
from medvae3d.training.parts import PartPlayer
from medvae3d.training.players import ModelPlayer, Turn
from medvae3d.training.sample_discriminator import SampleDiscriminatorPlayer


class PartModelPlayer(ModelPlayer, PartPlayer):
    """Trains a part of a latent model on an objective; arguments as in `ModelPlayer`."""

    def play(self, turn: Turn, autocast: Any) -> None:
        with self.learning():
            super().play(turn, autocast)


class BalancedDecoderPlayer(PartModelPlayer):
    """The decoder of a VAE-GAN: it measures the discriminator's costs and decides who rests.

    The costs are those before either has learned in this step. What is decided goes into the log
    as 0 or 1, where the discriminator's player reads it, so that nothing has to be remembered from
    step to step.

    Args:
        *args: See `ModelPlayer`.
        discriminator: Whose costs are measured.
        equilibrium: The rule.
        adversarial_start: First step in which it holds; before, the decoder learns by itself.
        **options: See `ModelPlayer`.
    """

    def __init__(
        self,
        *args: Any,
        discriminator: nn.Module,
        equilibrium: Equilibrium | None = None,
        adversarial_start: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.discriminator = discriminator
        self.equilibrium = equilibrium or Equilibrium()
        self.adversarial_start = adversarial_start

    def play(self, turn: Turn, autocast: Any) -> None:
        if turn.step < self.adversarial_start:
            super().play(turn, autocast)
            return
        batch = self.select(turn.batch) if self.select else turn.batch
        if not len(batch["mask"]):
            self._update(None, turn)
            return
        with self.learning():
            with autocast():
                trace = self.model.trace(batch, turn.generator)
                loss, values = self.objective(trace, batch, turn.step)
                with torch.no_grad():
                    rebuilt = pair(batch, trace=trace, real=False)
                    fake = torch.cat([rebuilt, prior_volumes(self.model, trace, batch)])
                    real = self.discriminator(pair(batch, trace=trace, real=True))[-1]
                    judged = self.discriminator(fake)[-1]
            # The cost of a fake is the score of a real volume with the logits' sign turned.
            real_cost = float(generator_score(real, "logistic").mean())
            fake_cost = float(generator_score(-judged, "logistic").mean())
            decoder, discriminator = self.equilibrium(real_cost, fake_cost)
            self._update(loss if decoder else None, turn)
        turn.traces[self.name] = (trace, batch)
        values = {"loss": loss.detach(), **values}
        turn.log.update({f"{self.name}/{key}": float(value) for key, value in values.items()})
        turn.log[f"{self.name}/learns"] = float(decoder)
        turn.log[f"{self.name}/discriminator_learns"] = float(discriminator)
        turn.log[f"{self.name}/real_cost"] = real_cost
        turn.log[f"{self.name}/fake_cost"] = fake_cost


class BalancedDiscriminatorPlayer(SampleDiscriminatorPlayer):
    """Rests when the player that makes its fakes says so; arguments as its parent's."""

    def play(self, turn: Turn, autocast: Any) -> None:
        if turn.log.get(f"{self.source}/discriminator_learns", 1.0):
            super().play(turn, autocast)
        else:
            self._update(None, turn)
