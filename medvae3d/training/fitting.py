"""What is fitted on the training set besides the networks: statistics before, priors after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events

from medvae3d.data.location import fit_location_map
from medvae3d.data.transforms import PARAMS_KEY, missing_channels
from medvae3d.models.latent import Condition, LatentModel
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.probability.priors import Aggregate
from medvae3d.seeding import derive_seed
from medvae3d.training.loading import BatchPreparation, CaseLoader, StepLoader


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
        # Every process sees all cases, and so comes to the same statistics.
        loader = self.loader.alone()
        per_pass = -(-len(loader.dataset) // loader.batch_size)
        values, whole = [], []
        for step in range(self.passes * per_pass):
            # Steps far beyond any training, so that the fit shares no noise with it.
            batch = loader.batch(10**9 + step)
            mask = batch["mask"]
            # Where classes are told, a case without a lesion says something too.
            filled = mask.flatten(1).any(1) | bool(self.statistics.classes)
            values.append(self.preparation.attributes(mask, batch)[filled])
            whole.append(~touches_border(mask[filled]))
        self.statistics.fit_attributes(torch.cat(values), torch.cat(whole))
        params = [_intensities_of(case) for case in loader.dataset]
        known = [each for each in params if each is not None]
        if known:
            self.statistics.fit_references(torch.stack(known))


def touches_border(mask: torch.Tensor) -> torch.Tensor:
    """Which masks ``(B, 1, I, J, K)`` reach the border of their volume, ``(B,)``."""
    edges = [mask.movedim(axis, 2)[:, :, [0, -1]].flatten(1).any(1) for axis in (2, 3, 4)]
    return torch.stack(edges).any(0)


def _intensities_of(case: Mapping[str, Any]) -> torch.Tensor | None:
    """The native values that normalisation took to -1 and 1, ``(C, 2)``, where it kept them."""
    params = getattr(case.get("image"), "meta", {}).get(PARAMS_KEY)
    return None if params is None else torch.as_tensor(params)


class LocationFitter:
    """Fits the map of where lesions lie when a run starts from nothing.

    Args:
        statistics: What to fit.
        dataset: Prepared whole cases with a ``label``, repeated ones counted once.
            Brain-extracted images tell the brain; cases with a mask alone, registered to the same
            space, share it.
    """

    def __init__(
        self,
        statistics: TrainingStatistics,
        dataset: Sequence[Mapping[str, Any]],
    ) -> None:
        self.statistics = statistics
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Registers the fit with a trainer."""
        engine.add_event_handler(Events.STARTED, self.fit)

    def fit(self, engine: Engine | None = None) -> None:
        """Counts where lesions lie, unless that has been done."""
        size = len(self.statistics.location_map)
        if not size or bool(self.statistics.location_map.any()):
            return
        masks, brains = {}, {}
        for index in range(len(self.dataset)):
            case = self.dataset[index]
            name = str(case.get("case", index))
            masks[name] = torch.as_tensor(case["label"])
            if "image" in case:  # brain-extracted images are above their darkest value inside
                image = torch.as_tensor(case["image"])[_first_observed(case)]
                brains[name] = image > image.min() + 1e-3
        shared = next(iter(brains.values()), None)
        pairs = []
        for name, mask in masks.items():
            brain = brains.get(name, shared)
            if brain is not None and brain.shape == mask.shape[1:]:
                pairs.append((mask, brain))
        if pairs:
            self.statistics.location_map.copy_(fit_location_map(pairs, size))


def _first_observed(case: Mapping[str, Any]) -> int:
    """The first channel that a prepared case has."""
    if "valid" not in case:
        missing = missing_channels(case["image"])
        return next(i for i in range(len(case["image"])) if i not in missing)
    there = torch.as_tensor(case["valid"]).flatten(1).amax(1) > 0
    return int(there.to(torch.uint8).argmax())


class IntensityFitter:
    """Remembers the native units of the training images when a run starts from nothing.

    Images that are normalised by their own percentiles have no common unit. Volumes that are made
    without a host come back at the median of the percentiles of the training images.

    Args:
        statistics: What to fit.
        dataset: Prepared cases, whose images say which native values became -1 and 1.
    """

    def __init__(
        self, statistics: TrainingStatistics, dataset: Sequence[Mapping[str, Any]]
    ) -> None:
        self.statistics = statistics
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Registers the fit with a trainer."""
        engine.add_event_handler(Events.STARTED, self.fit)

    def fit(self, engine: Engine | None = None) -> None:
        """Collects the native ranges, unless that has been done."""
        low, high = self.statistics.image_low, self.statistics.image_high
        if bool(low.any()) or bool((high != 1).any()):
            return
        cases = (self.dataset[index] for index in range(len(self.dataset)))
        images = [case["image"] for case in cases if "image" in case]
        ranges = [getattr(image, "meta", {}).get(PARAMS_KEY) for image in images]
        known = [torch.as_tensor(pairs).float() for pairs in ranges if pairs is not None]
        if known:
            self.statistics.fit_references(torch.stack(known))


class PriorFitter:
    """Fits the prior that new latents are drawn from, on the aggregated posterior.

    The standard normal has holes where no case lies, above all with few cases. After training,
    whatever prior a model has is fitted on latents of augmented training cases, together with their
    attributes.

    Args:
        models: Models whose ``sampling_prior`` is fitted, by the name of their player.
        loader: Loader of the training cases.
        preparation: As in training.
        passes: Passes over the cases, each with its own augmentation.
        seed: Seed of noise and of the fit.
        with_context: Whether models that are told surroundings see them; without, the prior is
            that of whole volumes made from a mask alone.
        most_inputs: Most volumes that are kept for priors that start from what the encoder reads.
    """

    def __init__(
        self,
        models: Mapping[str, LatentModel],
        loader: StepLoader,
        preparation: BatchPreparation,
        passes: int = 32,
        seed: int = 0,
        with_context: bool = True,
        most_inputs: int = 64,
    ) -> None:
        self.models = dict(models)
        self.loader = loader
        self.preparation = preparation
        self.passes = passes
        self.seed = seed
        self.with_context = with_context
        self.most_inputs = most_inputs

    def attach(self, engine: Engine) -> None:
        """Registers the fit with a trainer, at the end of the run."""
        engine.add_event_handler(Events.COMPLETED, self.fit)

    @torch.no_grad()
    def fit(self, engine: Engine | None = None) -> None:
        """Encodes the cases and fits the priors."""
        loader = self.loader.alone()
        per_pass = -(-len(loader.dataset) // loader.batch_size)
        found = {name: _Posteriors(model) for name, model in self.models.items()}
        for model in self.models.values():
            model.eval()
        for step in range(self.passes * per_pass if found else 0):
            device = next(next(iter(self.models.values())).parameters()).device
            batch = self.preparation(loader.batch(2 * 10**9 + step), device)
            seen = batch if self.with_context else {**batch, "context": None}
            with_inputs = step < per_pass and step * loader.batch_size < self.most_inputs
            for name, each in found.items():
                seed = derive_seed(self.seed, "prior", name, step)
                each.add(seen, torch.Generator(device).manual_seed(seed), with_inputs)
        for each in found.values():
            each.fit(self.seed)


class _Posteriors:
    """What a model makes of the training set, as far as its prior wants to know."""

    def __init__(self, model: LatentModel) -> None:
        self.model = model
        self.prior = model.sampling_prior
        self.wants_more = hasattr(self.prior, "fit_posterior")
        self.parts: dict[str, list[torch.Tensor]] = {}

    def add(self, batch: Mapping[str, Any], generator: torch.Generator, with_inputs: bool) -> None:
        """Encodes a batch."""
        condition = self.model.condition(batch)
        x = self.model.encoder_input(batch, condition)
        posterior = self.model.read_input(x, condition)[1]
        found = {"latents": posterior.rsample(generator)}
        if self.prior is not None and self.prior.attributes:
            found["attributes"] = batch["attributes"]
        if self.model.is_told_mask:
            shares = self.prior.mask_shares(batch["mask"])  # type: ignore[union-attr]
            seen = batch.get("mask_valid")
            found["shares"] = shares if seen is None else shares * seen.flatten(1)[:, :1, None]
        if self.wants_more:
            found |= {"means": posterior.mean, "scales": posterior.scale}
            if with_inputs:
                found["inputs"] = x
        for key, value in found.items():
            self.parts.setdefault(key, []).append(value.cpu())

    def fit(self, seed: int) -> None:
        """Sets the scale of the latent and fits the prior in it."""
        model, prior = self.model, self.prior
        found = {key: torch.cat(each) for key, each in self.parts.items()}
        keeps = prior is not None and prior.keeps_scale
        model.latent_scale.fill_(1.0 if keeps else float(1 / found["latents"].std()))
        scale = model.latent_scale.cpu()
        found |= {key: found[key] * scale for key in found.keys() & {"latents", "means", "scales"}}
        if self.wants_more:
            aggregate = Aggregate(
                attributes=found.pop("attributes", None), **found, encode=self._encode
            )
            prior.fit_posterior(aggregate, seed=seed)  # type: ignore[union-attr]
        elif prior is not None:
            more = {key: found[key] for key in found.keys() & {"shares"}}
            prior.fit(found["latents"], found.get("attributes"), seed=seed, **more)

    def _encode(
        self, x: torch.Tensor, told: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.model.read_input(x, Condition(told))[1]
        return posterior.mean * self.model.latent_scale, posterior.scale * self.model.latent_scale


class GrainFitter:
    """Fits the grain of models: what rebuilding leaves of the training images, not augmented.

    Args:
        models: Models with a ``grain``; others are left as they are.
        dataset: Prepared training cases.
        preparation: As in training.
    """

    def __init__(
        self,
        models: Mapping[str, LatentModel],
        dataset: Sequence[Mapping[str, Any]],
        preparation: BatchPreparation,
    ) -> None:
        self.models = dict(models)
        self.dataset = dataset
        self.preparation = preparation

    def attach(self, engine: Engine) -> None:
        """Registers the fit with a trainer, at the end of the run."""
        engine.add_event_handler(Events.COMPLETED, self.fit)

    @torch.no_grad()
    def fit(self, engine: Engine | None = None) -> None:
        """Rebuilds the cases from the means of their posteriors, and fits what is left."""
        for model in self.models.values():
            if model.grain is None:
                continue
            model.eval()
            device = next(model.parameters()).device
            parts: list[tuple[torch.Tensor, ...]] = []
            for each in CaseLoader(self.dataset, 2):
                batch = self.preparation(each, device)
                condition = model.condition(batch)
                heads = model.decode(model.encode(batch, condition).mean, condition)
                image = batch["image"]
                valid = batch.get("valid")
                seen = torch.ones_like(image) if valid is None else valid.expand_as(image)
                seen = seen > 0
                parts.append((heads["image"].mode().float().cpu(), image.cpu(), seen.cpu()))
            made, real, seen = (torch.cat(each) for each in zip(*parts, strict=True))
            model.grain.fit(made, real, seen)
