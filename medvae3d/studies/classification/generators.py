r"""Generators of a study: latent models that are fitted on the real training images alone.

A generator is a function of `medvae3d.models.zoo`, trained by a recipe, such as its bound, with the
trainer of the bundles. After training, the prior that new latents are drawn from and the grain are
fitted on the same images. Nothing else is seen: no other splits and, where there is one model for
each class, no other class.

A model that is told the class, :math:`p(z)\, p(x \mid z, y)`, is one for both, and learns from the
images of both. Its latents are drawn without a class: image *i* of class 0 and of class 1 come from
the same one.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.models import zoo
from medvae3d.models.latent import Condition, LatentModel
from medvae3d.seeding import derive_generator, derive_seed
from medvae3d.studies.classification.recipes import (
    RECIPES,
    fit_prior,
    posteriors_of,
    split,
    strides_for,
)
from medvae3d.studies.classification.tasks import Images

NOISES = ("prior", "posterior")
# Models that are told the class of each image.
TOLD = ("cvae", "icvae")
# Fewest images of a class that a generator and its prior can be fitted on.
FEWEST = 3


@dataclass(frozen=True)
class GeneratorSettings:
    """Which model a generator is, and its training.

    Attributes:
        function: Name of a function of `medvae3d.models.zoo` that takes ``spatial_shape`` and
            sizes.
        sizes: What it is given besides; see `medvae3d.models.zoo.latent_model`.
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Rate of AdamW, falling along half a cosine.
        beta: Final weight of the KL, reached after a fifth of the steps.
        recipe: How it is trained; see `medvae3d.studies.classification.recipes`.
        noise: What new images start from: ``prior``, the fitted one or, without one, the standard
            normal; ``posterior``, that of a training image drawn at random.
        adversarial_weight: Of the scores of a discriminator, where the recipe has one beside the
            bound.
    """

    function: str = "vae"
    sizes: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 2e-3
    beta: float = 1.0
    recipe: str = "bound"
    noise: str = "prior"
    adversarial_weight: float = 0.01

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("recipe", self.recipe, tuple(RECIPES)),
            ("noise", self.noise, NOISES),
        ):
            if value not in allowed:
                raise SettingError(
                    f"generator has {name} {value!r}; allowed are {', '.join(allowed)}."
                )
        if self.recipe == "icvae" and not self.is_told:
            raise SettingError(
                f"generator {self.function!r} is told no class, which the recipe 'icvae' keeps out "
                f"of its latent; allowed are {', '.join(TOLD)}."
            )
        if self.function not in models():
            raise SettingError(
                f"generator {self.function!r} is no model of the zoo; allowed are "
                f"{', '.join(models())}."
            )

    @property
    def is_told(self) -> bool:
        """Whether it is one model for both classes, told that of each image."""
        return self.function in TOLD

    def build(self, images: Tensor) -> LatentModel:
        """An untrained model for images ``(N, C, I, J, K)``; draws from torch's own generator."""
        shape = [int(n) for n in images.shape[2:]]
        channels = tuple(self.sizes.get("channels", CHANNELS))
        sizes: dict[str, Any] = {
            "image_channels": images.shape[1],
            "heads": ("image",),
            "inputs": ("image",),
            "strides": strides_for(shape, len(channels)),
            "components": 4,
            "rank": 12,
            "grain_width": 5 if min(shape) > 1 else 0,
            **SIZES,
            **self.sizes,
        }
        if self.function == "dcgan":  # it has no encoder, and so no inputs to choose
            sizes.pop("inputs")
        if self.is_told:
            sizes["classes"] = ("0", "1")
        model: LatentModel = getattr(zoo, self.function)(shape, **sizes)
        return model

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "function": self.function,
            "sizes": {k: list(v) if isinstance(v, tuple) else v for k, v in self.sizes.items()},
            "steps": self.steps,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "beta": self.beta,
            "recipe": self.recipe,
            "noise": self.noise,
            "adversarial_weight": self.adversarial_weight,
        }


CHANNELS = (8, 16, 32)
SIZES: Mapping[str, Any] = {"channels": CHANNELS, "vector_latent": True, "latent_channels": 16}


def models() -> tuple[str, ...]:
    """Names of the models that a generator can be: all of the zoo that hold one latent."""
    return tuple(
        name
        for name, made in inspect.getmembers(zoo, inspect.isfunction)
        if made.__module__.startswith(f"{zoo.__name__}.")
        and inspect.get_annotations(made)["return"] == "LatentModel"
    )


@dataclass(frozen=True, eq=False)
class Generator:
    """A fitted model.

    Attributes:
        model: The model, in evaluation mode.
        seconds: What fitting took.
        start_from: Means and deviations of the posteriors that new images start from, ``(N, ...)``
            each; ``None`` for the prior.
        told: What it is told of the class of its images, standardised, ``(F,)``; ``None`` for a
            model that is told nothing.
    """

    model: LatentModel = field(repr=False)
    seconds: float
    start_from: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    told: Tensor | None = field(default=None, repr=False)

    def _told(self, count: int) -> Tensor | None:
        return None if self.told is None else self.told.expand(count, -1)

    def _batches(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        told = self._told(len(x))
        return split({"image": x} if told is None else {"image": x, "attributes": told})

    @torch.no_grad()
    def sample(self, count: int, seed: int) -> Tensor:
        """New images ``(count, C, I, J, K)``; image *i* depends on the seed and on *i* alone."""
        generators = [derive_generator(seed, "image", index) for index in range(count)]
        made = []
        for first in range(0, count, 32):
            some = generators[first : first + 32]
            z = self._latents(some)
            image = self.model.decode(z, Condition(self._told(len(z))))["image"].mode()
            if self.model.grain is not None:
                grain = [self.model.grain.draw(x, g) for x, g in zip(image, some, strict=True)]
                image = image + torch.stack(grain)
            made.append(image.clamp_min(-1).contiguous())
        return torch.cat(made)

    def _latents(self, generators: list[torch.Generator]) -> Tensor:
        if self.start_from is None:
            return self.model.sample_latent(len(generators), generators=generators)
        mean, scale = self.start_from
        rows = [int(torch.randint(len(mean), (), generator=g)) for g in generators]
        noise = [torch.randn(mean.shape[1:], generator=g) for g in generators]
        return mean[rows] + scale[rows] * torch.stack(noise)

    @torch.no_grad()
    def twice(self, seed: int) -> float:
        """How far two images from one posterior lie apart, over how far those of two do.

        0 where the noise of a posterior changes nothing, about 1 where it is all that counts.

        Raises:
            SettingError: If images do not start from posteriors.
        """
        if self.start_from is None:
            raise SettingError("images start from a prior. Take the noise 'posterior'.")
        mean, scale = self.start_from
        generator = derive_generator(seed, "twice")
        condition = Condition(self._told(len(mean)))
        one, two = (
            self.model.decode(
                mean + scale * torch.randn(mean.shape, generator=generator), condition
            )["image"]
            .mode()
            .flatten(1)
            for _ in range(2)
        )
        within = (one - two).square().mean(1).sqrt().mean()
        between = (one - two.roll(1, 0)).square().mean(1).sqrt().mean()
        return float(within / between)

    @torch.no_grad()
    def rebuild(self, x: Tensor) -> Tensor:
        """Images from the means of their posteriors, of the shape of ``x``."""
        parts = []
        for batch in self._batches(x):
            condition = self.model.condition(batch)
            mean = self.model.encode(batch, condition).mean
            parts.append(self.model.decode(mean, condition)["image"].mode())
        return torch.cat(parts)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Means of the posteriors of images, ``(N, L)``."""
        found = []
        for batch in self._batches(x):
            found.append(self.model.encode(batch, self.model.condition(batch)).mean.flatten(1))
        return torch.cat(found)


def fit_generator(
    x: Tensor, settings: GeneratorSettings, seed: int, y: Tensor | None = None
) -> Generator:
    """Trains a model on images and fits its prior and grain on them.

    Args:
        x: Images, :math:`(N, C, I, J, K)`.
        settings: Model and training.
        seed: Seed of the first weights, of the batches and of all noise.
        y: Class of each image, 0 or 1, for a model that is told it.

    Raises:
        SettingError: If there are too few images, the model does not take them, or it is to be told
            classes that are not given.
    """
    if settings.is_told and y is None:
        raise SettingError(
            f"generator {settings.function!r} is told the class of each image, and is to be fitted "
            f"without; take one that is told none, such as vae, or other arms."
        )
    fewest = len(x) if y is None else min(int((y == v).sum()) for v in (0, 1))
    if fewest < FEWEST:
        raise SettingError(
            f"{fewest} images to fit a generator on; it needs at least {FEWEST} of each class. Ask "
            f"for more with --n, or leave out the arms that need a generator."
        )
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "generator"))
        model = settings.build(x)
    cases = {"image": x}
    if y is not None:
        told = torch.eye(2)[y]
        model.statistics.fit_attributes(told)
        cases["attributes"] = model.statistics.standardise(told)
    RECIPES[settings.recipe](model, cases, settings, seed)
    model.eval()
    if model.encoder is not None:
        fit_prior(model, cases, seed)
    start_from = posteriors_of(model, cases) if settings.noise == "posterior" else None
    return Generator(model, time.perf_counter() - start, start_from)


@dataclass(frozen=True, eq=False)
class ClassGenerators:
    """One generator for each class.

    Attributes:
        each: That of class 0 and of class 1.
        is_paired: Whether image *i* of both classes is made from the same noise: the same latent,
            drawn as one and as the other.
    """

    each: tuple[Generator, Generator]
    is_paired: bool = False

    @property
    def seconds(self) -> float:
        """What fitting took."""
        return sum(one.seconds for one in self.each)

    def sample(self, count: int, seed: int) -> Images:
        """As many new images of either class.

        Args:
            count: Of each class.
            seed: Seed of the images.
        """
        x = [
            one.sample(count, derive_seed(seed, "class", 0 if self.is_paired else v))
            for v, one in enumerate(self.each)
        ]
        return Images(torch.cat(x), torch.arange(2).repeat_interleave(count))


def fit_generators(images: Images, settings: GeneratorSettings, seed: int) -> ClassGenerators:
    """Fits a generator on the images of each class, or one that is told the class on all.

    Args:
        images: Real training images.
        settings: Model and training of both.
        seed: Seed of all.

    Raises:
        SettingError: See `fit_generator`.
    """
    if settings.is_told:
        both = fit_generator(images.x, settings, seed, images.y)
        rows = both.model.statistics.standardise(torch.eye(2))
        first, second = (replace(both, told=row, seconds=both.seconds / 2) for row in rows)
        return ClassGenerators((first, second), is_paired=True)
    first, second = (
        fit_generator(images.of_class(v), settings, derive_seed(seed, "class", v)) for v in (0, 1)
    )
    return ClassGenerators((first, second))
