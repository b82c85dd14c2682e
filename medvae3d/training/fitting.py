"""What is fitted on the training set besides the networks: statistics before, priors after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events

from medvae3d.models.latent import LatentModel
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.seeding import derive_seed
from medvae3d.training.loading import BatchPreparation, StepLoader
from medvae3d.training.players import Select


class StatisticsFitter:
    """Fits attribute statistics on the training cases when a run starts from nothing.

    Args:
        statistics: What to fit; also that of the slow copy, which copies buffers.
        loader: Loader of the training cases.
        preparation: Measures attributes.
        passes: Passes over the cases, each with its own augmentation.
    """

    def __init__(
        self,
        statistics: TrainingStatistics,
        loader: StepLoader,
        preparation: BatchPreparation,
        passes: int = 4,
    ) -> None:
        self.statistics = statistics
        self.loader = loader
        self.preparation = preparation
        self.passes = passes

    def attach(self, engine: Engine) -> None:
        """Registers the fit with a trainer."""
        engine.add_event_handler(Events.STARTED, self.fit)

    def fit(self, engine: Engine | None = None) -> None:
        """Measures the cases, unless that has been done."""
        if self.statistics.is_fitted or not self.statistics.names:
            return
        per_pass = -(-len(self.loader.dataset) // self.loader.batch_size)
        values = []
        for step in range(self.passes * per_pass):
            # Steps far beyond any training, so that the fit shares no noise with it.
            mask = self.loader.batch(10**9 + step)["mask"]
            filled = mask.flatten(1).any(1)
            values.append(self.preparation.attributes(mask[filled]))
        self.statistics.fit_attributes(torch.cat(values))


class PriorFitter:
    """Fits the prior that new latents are drawn from, on the aggregated posterior.

    The standard normal has holes where no case lies, above all with few cases. After training, a
    mixture is fitted on latents of augmented training cases, together with their attributes.

    Args:
        models: Models whose ``sampling_prior`` is fitted, by the name of their player.
        loader: Loader of the training cases.
        preparation: As in training.
        passes: Passes over the cases, each with its own augmentation.
        seed: Seed of noise and of the fit.
        selects: What of a batch each model sees, by name.
    """

    def __init__(
        self,
        models: Mapping[str, LatentModel],
        loader: StepLoader,
        preparation: BatchPreparation,
        passes: int = 32,
        seed: int = 0,
        selects: Mapping[str, Select] | None = None,
    ) -> None:
        self.models = dict(models)
        self.loader = loader
        self.preparation = preparation
        self.passes = passes
        self.seed = seed
        self.selects = dict(selects or {})

    def attach(self, engine: Engine) -> None:
        """Registers the fit with a trainer, at the end of the run."""
        engine.add_event_handler(Events.COMPLETED, self.fit)

    @torch.no_grad()
    def fit(self, engine: Engine | None = None) -> None:
        """Encodes the cases and fits the priors."""
        per_pass = -(-len(self.loader.dataset) // self.loader.batch_size)
        latents: dict[str, list[torch.Tensor]] = {name: [] for name in self.models}
        attributes: dict[str, list[torch.Tensor]] = {name: [] for name in self.models}
        device = next(next(iter(self.models.values())).parameters()).device
        for model in self.models.values():
            model.eval()
        for step in range(self.passes * per_pass):
            batch = self.preparation(self.loader.batch(2 * 10**9 + step), device)
            for name, model in self.models.items():
                seen: Any = self.selects[name](batch) if name in self.selects else batch
                if not len(seen["mask"]):
                    continue
                seed = derive_seed(self.seed, "prior", name, step)
                generator = torch.Generator(device).manual_seed(seed)
                condition = model.condition(seen)
                posterior = model.encode(seen, condition)
                latents[name].append(posterior.rsample(generator).flatten(1).cpu())
                if model.sampling_prior is not None and model.sampling_prior.attributes:
                    attributes[name].append(seen["attributes"].cpu())
        for name, model in self.models.items():
            z = torch.cat(latents[name])
            model.latent_scale.fill_(float(1 / z.std()))
            if model.sampling_prior is not None:
                told = torch.cat(attributes[name]) if attributes[name] else None
                model.sampling_prior.fit(z * model.latent_scale.cpu(), told, seed=self.seed)
