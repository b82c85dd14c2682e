"""Players that make volumes from noise: the generator of a GAN, and a model of codes."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.models.latent import Batch, Condition, LatentModel, Trace
from medvae3d.objectives.samples import generated_trace
from medvae3d.probability.codebook import Codebooks
from medvae3d.training.fitting import PriorFitter
from medvae3d.training.players import ModelPlayer, Turn
from medvae3d.training.vae_gan import PartModelPlayer

NOISES = ("normal", "posterior", "prior")


class GeneratorPlayer(PartModelPlayer):
    """Trains a decoder as the generator of a GAN, under the conditions of the batch.

    Args:
        *args: See `ModelPlayer`; the optimiser holds all but the encoder, if there is one
            (`medvae3d.training.parts.decoder_side`).
        noise: What is decoded: ``normal``, draws from the standard normal; ``posterior``, draws
            from the encoder's posteriors of the batch; ``prior``, draws from the fitted prior. The
            encoder is left as it is.
        fitter: Fits the prior when the player begins, for ``prior``.
        begins_as: Model whose decoder the generator is a copy of when the player begins; without
            one, it begins from its own first weights.
        **options: See `ModelPlayer`.

    Raises:
        SettingError: If the noise is of no kind that there is, or needs what is not there.
    """

    def __init__(
        self,
        *args: Any,
        noise: str = "normal",
        fitter: PriorFitter | None = None,
        begins_as: LatentModel | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if noise not in NOISES:
            raise SettingError(f"noise {noise!r}; allowed are {', '.join(NOISES)}.")
        if noise != "normal" and self.model.encoder is None:
            raise SettingError(
                f"noise {noise!r} comes from an encoder, and this model has none. Set noise to "
                f"'normal', or train `vae_noise_gan`."
            )
        if noise == "prior" and self.model.sampling_prior is None:
            raise SettingError(
                "noise 'prior' is drawn from a fitted prior, and this model has none. Set "
                "`network_def#prior` to mixture, gaussian, vamp or flow."
            )
        self.noise = noise
        self.fitter = fitter
        self.begins_as = begins_as

    def play(self, turn: Turn, autocast: Any) -> None:
        if self.begins_as is not None and turn.step == self.start:
            for part in ("decoder", "heads"):
                state = getattr(self.begins_as, part).state_dict()
                getattr(self.model, part).load_state_dict(state)
        super().play(turn, autocast)

    def _pass(self, batch: Batch, turn: Turn) -> Trace:
        condition = self.model.condition(batch, turn.generator)
        with torch.no_grad():
            z = self._draw(batch, condition, turn)
        return generated_trace(self.model, z, condition)

    def _draw(self, batch: Batch, condition: Condition, turn: Turn) -> Tensor:
        model, count = self.model, len(batch["mask"])
        if self.noise == "posterior":
            return model.encode(batch, condition, turn.generator).rsample(turn.generator)
        if self.noise == "normal":
            return model.prior.sample(count, generators=turn.generator)
        prior = model.sampling_prior
        if self.fitter is not None and not bool(getattr(prior, "fitted", True)):
            self.fitter.fit()
            model.train()
        told = condition.attributes if prior is not None and prior.attributes else None
        return model.sample_latent(count, told, turn.generator)


class CodebookPlayer(ModelPlayer):
    """Trains a model of codes, once its data can fill its codebook.

    Args:
        *args: See `ModelPlayer`.
        dataset: The training cases.
        settle_start: First step from which dead codes are left as they are; never by default.
        **options: See `ModelPlayer`.

    Raises:
        SettingError: If there are more codes than places in all cases, or the latent is not one of
            codes.
    """

    def __init__(
        self, *args: Any, dataset: Sized, settle_start: int | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.settle_start = settle_start
        posterior = self.model.posterior
        if not isinstance(posterior, Codebooks):
            raise SettingError(
                "the latent of this model is not one of codes. Train `medvae3d.models.zoo.vqvae`, "
                "or use ModelPlayer."
            )
        posterior.require_data_for(len(dataset))
        self.codebooks = posterior

    def play(self, turn: Turn, autocast: Any) -> None:
        is_late = self.settle_start is not None and turn.step >= self.settle_start
        self.codebooks.settle(is_late)
        super().play(turn, autocast)
