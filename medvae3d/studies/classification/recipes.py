r"""How the generators of a study are trained, on images, and on classes where they are told.

=======================  ===========================================================================
``bound``                the evidence bound
``riemannian``           the same, whose flow and metric learn from half of the steps on
``disc_vae``             the bound in the place of a GAN's generator, its scores from a fifth on
``gan``                  a generator without an encoder, and a discriminator
``noise_gan``            half of the steps a VAE, then a GAN from its fitted prior or a normal one
``noise_gan_posterior``  the same, from the posteriors of the training images
``icvae``                the bound, and a classifier that is not to tell the class from a latent
=======================  ===========================================================================

The objectives and players are those of the systems of the same names
(`medvae3d.models.systems`); images have no mask here, so discriminators see a blank one on both
sides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from medvae3d.models.latent import LatentModel
from medvae3d.models.zoo.adversarial import autoencoder_of
from medvae3d.networks.discriminators import PatchDiscriminator
from medvae3d.networks.latent_classifier import LatentClassifier
from medvae3d.objectives.compositions import (
    disc_vae_objective,
    generator_objective,
    joint_objective,
)
from medvae3d.objectives.independence import icvae_objective
from medvae3d.seeding import derive_generator, derive_seed
from medvae3d.training.generators import GeneratorPlayer
from medvae3d.training.label_player import LabelPlayer
from medvae3d.training.metrics import fit_metric, has_metric
from medvae3d.training.optimizers import adamw, cosine
from medvae3d.training.parts import decoder_side
from medvae3d.training.players import DiscriminatorPlayer, ModelPlayer, Player
from medvae3d.training.sample_discriminator import SampleDiscriminatorPlayer
from medvae3d.training.trainer import PlayerTrainer

if TYPE_CHECKING:
    from medvae3d.studies.classification.generators import GeneratorSettings

# Posterior draws a case that the prior is fitted on.
DRAWS = 16
DISCRIMINATOR = (16, 32, 64)
# As the systems have them.
RATE, BETAS = 2e-4, (0.5, 0.9)
INDEPENDENCE, LABEL_RATE = 0.5, 1e-3
CLIP = 100.0

Cases = Mapping[str, Tensor]
"""What a model is fitted on: ``image``, :math:`(N, C, I, J, K)`, and for one that is told something
``attributes``, standardised, :math:`(N, F)`."""


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


def _bound(model: LatentModel, cases: Cases, settings: GeneratorSettings, seed: int) -> None:
    _run([_bound_player(model, settings, settings.steps)], cases, settings, settings.steps, seed)


def _riemannian(model: LatentModel, cases: Cases, settings: GeneratorSettings, seed: int) -> None:
    player = _bound_player(model, settings, settings.steps, flow_start=settings.steps // 2)
    _run([player], cases, settings, settings.steps, seed)


def _bound_player(
    model: LatentModel, settings: GeneratorSettings, steps: int, **options: Any
) -> Player:
    objective = joint_objective(beta=settings.beta, warm_up_steps=steps // 5)
    rate = cosine(steps, warm_up=min(20, steps))
    optimizer = adamw(model, settings.learning_rate)
    return ModelPlayer(model, objective, optimizer, clip_norm=CLIP, rate=rate, **options)


def _disc_vae(model: LatentModel, cases: Cases, settings: GeneratorSettings, seed: int) -> None:
    steps = settings.steps
    judge, optimizer = _discriminator(cases, seed)
    objective = disc_vae_objective(
        model,
        judge,
        beta=settings.beta,
        warm_up_steps=steps // 5,
        adversarial_weight=settings.adversarial_weight,
        adversarial_start=steps // 5,
    )
    player = ModelPlayer(
        model,
        objective,
        adamw(model, settings.learning_rate),
        clip_norm=CLIP,
        rate=cosine(steps, warm_up=min(20, steps)),
    )
    other = SampleDiscriminatorPlayer(judge, optimizer, model, source=player.name, start=steps // 5)
    _run([player, other], cases, settings, steps, seed)


def _gan(model: LatentModel, cases: Cases, settings: GeneratorSettings, seed: int) -> None:
    optimizer = Adam(model.parameters(), RATE, BETAS)
    players = _adversaries(model, optimizer, cases, seed, "logistic", "normal")
    _run(players, cases, settings, settings.steps, seed)


def _noise_gan(
    model: LatentModel, cases: Cases, settings: GeneratorSettings, seed: int, noise: str = ""
) -> None:
    first = settings.steps // 2
    twin = autoencoder_of(model)
    _run([_bound_player(twin, settings, first)], cases, settings, first, seed)
    fit_prior(model.eval(), cases, seed)
    model.train()
    optimizer = Adam(decoder_side(model).parameters(), RATE, BETAS)
    noise = noise or ("normal" if model.sampling_prior is None else "prior")
    players = _adversaries(model, optimizer, cases, seed, "hinge", noise)
    _run(players, cases, settings, settings.steps - first, derive_seed(seed, "second stage"))


def _noise_gan_posterior(
    model: LatentModel, cases: Cases, settings: GeneratorSettings, seed: int
) -> None:
    _noise_gan(model, cases, settings, seed, "posterior")


def _icvae(model: LatentModel, cases: Cases, settings: GeneratorSettings, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "latent classifier") % 2**63)
        network = LatentClassifier(model.latent_shape, len(model.statistics.classes))
    objective = icvae_objective(
        model,
        network,
        independence=INDEPENDENCE,
        beta=settings.beta,
        warm_up_steps=settings.steps // 5,
    )
    player = ModelPlayer(
        model,
        objective,
        adamw(model, settings.learning_rate),
        clip_norm=CLIP,
        rate=cosine(settings.steps, warm_up=min(20, settings.steps)),
    )
    optimizer = Adam(network.parameters(), LABEL_RATE)
    other = LabelPlayer(network, optimizer, model, source=player.name)
    _run([player, other], cases, settings, settings.steps, seed)


def _adversaries(
    model: LatentModel, optimizer: Adam, cases: Cases, seed: int, kind: str, noise: str
) -> list[Player]:
    judge, own = _discriminator(cases, seed)
    player = GeneratorPlayer(
        model,
        generator_objective(judge, kind=kind),
        optimizer,
        noise=noise,
        clip_norm=CLIP,
    )
    return [player, DiscriminatorPlayer(judge, own, source=player.name, kind=kind)]


def _discriminator(cases: Cases, seed: int) -> tuple[nn.Module, Adam]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "discriminator") % 2**63)
        x = cases["image"]
        # One channel more: the mask, which is blank.
        network = PatchDiscriminator(
            x.shape[1] + 1, DISCRIMINATOR, strides_for(list(x.shape[2:]), len(DISCRIMINATOR))
        )
    return network, Adam(network.parameters(), RATE, BETAS)


Recipe = Callable[[LatentModel, Cases, "GeneratorSettings", int], None]
"""Trains a model on cases, with a seed."""

RECIPES: Mapping[str, Recipe] = {
    "bound": _bound,
    "riemannian": _riemannian,
    "disc_vae": _disc_vae,
    "gan": _gan,
    "noise_gan": _noise_gan,
    "noise_gan_posterior": _noise_gan_posterior,
    "icvae": _icvae,
}


def _run(
    players: Sequence[Player], cases: Cases, settings: GeneratorSettings, steps: int, seed: int
) -> None:
    trainer = PlayerTrainer(
        "cpu",
        1,
        _Batches(cases, settings.batch_size, steps, seed),
        list(players),
        prepare_batch=lambda batch, device, non_blocking: batch,
        epoch_length=steps,
        seed=derive_seed(seed, "generator noise"),
        precision="float32",
    )
    # Which step a run of seconds has come to is of no use to anybody.
    trainer.logger.setLevel(logging.WARNING)
    if steps:
        trainer.run()


def _as_it_is(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    return batch


@torch.no_grad()
def posteriors_of(model: LatentModel, cases: Cases) -> tuple[Tensor, Tensor]:
    """Means and deviations of the posteriors of cases, ``(N, ...)`` each."""
    found = []
    for batch in split(cases):
        posterior = model.encode(batch, model.condition(batch))
        found.append((posterior.mean, posterior.scale))
    means, scales = zip(*found, strict=True)
    return torch.cat(means), torch.cat(scales)


def split(cases: Cases, size: int = 32) -> Iterator[dict[str, Tensor]]:
    """Cases in parts of at most as many."""
    for first in range(0, len(cases["image"]), size):
        yield {key: values[first : first + size] for key, values in cases.items()}


class _Batches:
    """Batches of cases as a function of seed and step."""

    def __init__(self, cases: Cases, size: int, steps: int, seed: int) -> None:
        self.cases, self.size, self.steps, self.seed = cases, size, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step in range(self.steps):
            generator = derive_generator(self.seed, "generator batch", step)
            count = len(self.cases["image"])
            rows = torch.randperm(count, generator=generator)[: min(self.size, count)]
            batch = {key: values[rows] for key, values in self.cases.items()}
            # The player counts the cases of a batch by their masks, which these models have not.
            yield {**batch, "mask": torch.zeros_like(batch["image"][:, :1])}


@torch.no_grad()
def fit_prior(model: LatentModel, cases: Cases, seed: int) -> None:
    """Fits what new latents are drawn from, and the grain, on training cases.

    Args:
        model: A model with an encoder.
        cases: Training cases.
        seed: Seed of the noise and of the fit.
    """
    x, told = cases["image"], cases.get("attributes")
    if has_metric(model):
        items = [
            {key: values[row] for key, values in cases.items()}
            | {"label": torch.zeros_like(image[:1]), "case": str(row)}
            for row, image in enumerate(x)
        ]
        fit_metric(model, items, _as_it_is, seed % 2**31)  # type: ignore[arg-type]
    generator = derive_generator(seed, "generator prior")
    latents, known, made = [], [], []
    for batch in split(cases):
        condition = model.condition(batch)
        posterior = model.encode(batch, condition)
        latents += [posterior.rsample(generator).flatten(1) for _ in range(DRAWS)]
        known += [batch["attributes"]] * DRAWS if told is not None else []
        if model.grain is not None:
            made.append(model.decode(posterior.mean, condition)["image"].mode())
    z = torch.cat(latents)
    if model.sampling_prior is not None and not has_metric(model):
        model.latent_scale.fill_(float(1 / z.std()))
        rows = torch.cat(known) if known and model.sampling_prior.attributes else None
        number = derive_seed(seed, "prior") % 2**31
        model.sampling_prior.fit(z * model.latent_scale, rows, seed=number)
    if model.grain is not None:
        model.grain.fit(torch.cat(made), x)
