"""Generators of a study: one latent model for each class, fitted on the real training images alone.

A generator is a function of `medvae3d.models.zoo`, trained with its bound by the trainer of the
bundles. After training, the prior that new latents are drawn from and the grain are fitted on the
same images. Nothing else is seen: neither other classes, nor other splits.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.models import zoo
from medvae3d.models.latent import Condition, LatentModel
from medvae3d.objectives.compositions import joint_objective
from medvae3d.seeding import derive_generator, derive_seed
from medvae3d.studies.classification.tasks import Images
from medvae3d.training.optimizers import adamw, cosine
from medvae3d.training.players import ModelPlayer
from medvae3d.training.trainer import PlayerTrainer

# Posterior draws a case that the prior is fitted on.
DRAWS = 16
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
    """

    function: str = "vae"
    sizes: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 2e-3
    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.function not in models():
            raise SettingError(
                f"generator {self.function!r} is no model of the zoo; allowed are "
                f"{', '.join(models())}."
            )

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


def strides_for(shape: list[int], levels: int) -> list[list[int]]:
    """Stride of each level along each axis: 2 as long as a side is even and above 4.

    Args:
        shape: Voxels.
        levels: How many strides.
    """
    left, strides = list(shape), []
    for _ in range(levels):
        step = [2 if n % 2 == 0 and n > 4 else 1 for n in left]
        left = [n // s for n, s in zip(left, step, strict=True)]
        strides.append(step)
    return strides


@dataclass(frozen=True, eq=False)
class Generator:
    """A fitted model.

    Attributes:
        model: The model, in evaluation mode.
        seconds: What fitting took.
    """

    model: LatentModel = field(repr=False)
    seconds: float

    @torch.no_grad()
    def sample(self, count: int, seed: int) -> Tensor:
        """New images ``(count, C, I, J, K)``; image *i* depends on the seed and on *i* alone."""
        generators = [derive_generator(seed, "image", index) for index in range(count)]
        made = []
        for first in range(0, count, 32):
            some = generators[first : first + 32]
            z = self.model.sample_latent(len(some), generators=some)
            image = self.model.decode(z, Condition())["image"].mode()
            if self.model.grain is not None:
                grain = [self.model.grain.draw(x, g) for x, g in zip(image, some, strict=True)]
                image = image + torch.stack(grain)
            made.append(image.clamp_min(-1).contiguous())
        return torch.cat(made)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Means of the posteriors of images, ``(N, L)``."""
        found = []
        for part in x.split(32):
            batch = {"image": part}
            found.append(self.model.encode(batch, self.model.condition(batch)).mean.flatten(1))
        return torch.cat(found)


def fit_generator(x: Tensor, settings: GeneratorSettings, seed: int) -> Generator:
    """Trains a model on images and fits its prior and grain on them.

    Args:
        x: Images, :math:`(N, C, I, J, K)`.
        settings: Model and training.
        seed: Seed of the first weights, of the batches and of all noise.

    Raises:
        SettingError: If there are too few images, or the model does not take them.
    """
    if len(x) < FEWEST:
        raise SettingError(
            f"{len(x)} images to fit a generator on; it needs at least {FEWEST} of each class. Ask "
            f"for more with --n, or leave out the arms that need a generator."
        )
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "generator"))
        model = settings.build(x)
    objective = joint_objective(beta=settings.beta, warm_up_steps=settings.steps // 5)
    optimizer = adamw(model, settings.learning_rate)
    rate = cosine(settings.steps, warm_up=min(20, settings.steps))
    player = ModelPlayer(model, objective, optimizer, clip_norm=100.0, rate=rate)
    trainer = PlayerTrainer(
        "cpu",
        1,
        _Batches(x, settings.batch_size, settings.steps, seed),
        [player],
        prepare_batch=lambda batch, device, non_blocking: batch,
        epoch_length=settings.steps,
        seed=derive_seed(seed, "generator noise"),
        precision="float32",
    )
    # Which step a run of seconds has come to is of no use to anybody.
    trainer.logger.setLevel(logging.WARNING)
    if settings.steps:
        trainer.run()
    _fit_prior(model.eval(), x, seed)
    return Generator(model, time.perf_counter() - start)


class _Batches:
    """Batches of images as a function of seed and step."""

    def __init__(self, x: Tensor, size: int, steps: int, seed: int) -> None:
        self.x, self.size, self.steps, self.seed = x, size, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step in range(self.steps):
            generator = derive_generator(self.seed, "generator batch", step)
            size = min(self.size, len(self.x))
            rows = torch.randperm(len(self.x), generator=generator)[:size]
            image = self.x[rows]
            # The player counts the cases of a batch by their masks, which these models have not.
            yield {"image": image, "mask": torch.zeros_like(image[:, :1])}


@torch.no_grad()
def _fit_prior(model: LatentModel, x: Tensor, seed: int) -> None:
    generator = derive_generator(seed, "generator prior")
    latents, made = [], []
    for part in x.split(32):
        batch = {"image": part}
        condition = model.condition(batch)
        posterior = model.encode(batch, condition)
        latents += [posterior.rsample(generator).flatten(1) for _ in range(DRAWS)]
        if model.grain is not None:
            made.append(model.decode(posterior.mean, condition)["image"].mode())
    z = torch.cat(latents)
    if model.sampling_prior is not None:
        model.latent_scale.fill_(float(1 / z.std()))
        model.sampling_prior.fit(z * model.latent_scale, seed=derive_seed(seed, "prior") % 2**31)
    if model.grain is not None:
        model.grain.fit(torch.cat(made), x)


@dataclass(frozen=True, eq=False)
class ClassGenerators:
    """One generator for each class.

    Attributes:
        each: That of class 0 and of class 1.
    """

    each: tuple[Generator, Generator]

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
        x = [one.sample(count, derive_seed(seed, "class", v)) for v, one in enumerate(self.each)]
        return Images(torch.cat(x), torch.arange(2).repeat_interleave(count))


def fit_generators(images: Images, settings: GeneratorSettings, seed: int) -> ClassGenerators:
    """Fits a generator on the images of each class.

    Args:
        images: Real training images.
        settings: Model and training of both.
        seed: Seed of all.

    Raises:
        SettingError: See `fit_generator`.
    """
    first, second = (
        fit_generator(images.of_class(v), settings, derive_seed(seed, "class", v)) for v in (0, 1)
    )
    return ClassGenerators((first, second))
