"""Adversarial and introspective systems, and VAEs of equal size, trained for seconds on balls.

Each is a function of the seed of its first weights; no tests in here.
"""

from __future__ import annotations

import copy
from typing import Any

from small_trainings import RATE, SHAPE, SIZES, adam, balls, judge, played, seeded, whole

from medvae3d.models.zoo import autoencoder_of, vae, vae_noise_gan
from medvae3d.objectives.compositions import generator_objective, joint_objective
from medvae3d.objectives.introspective import HingeIntrospection, SoftIntrospection
from medvae3d.objectives.vae_gan import vae_gan_objectives
from medvae3d.training.fitting import PriorFitter
from medvae3d.training.generators import GeneratorPlayer
from medvae3d.training.introspective import IntrospectivePlayer
from medvae3d.training.loading import BatchPreparation, StepLoader
from medvae3d.training.optimizers import adamw, cosine
from medvae3d.training.parts import decoder_side
from medvae3d.training.players import DiscriminatorPlayer, ModelPlayer
from medvae3d.training.vae_gan import (
    BalancedDecoderPlayer,
    BalancedDiscriminatorPlayer,
    PartModelPlayer,
)

STEPS, START = 250, 100
PACE = {"rate": cosine(STEPS, 20), "clip_norm": 5.0}
TRAINING, UNSEEN = balls(64, 0), whole(balls(48, 1))
SOFT = SoftIntrospection(beta_rec=5.0, beta_neg=8.0, alpha=None)
HINGE = HingeIntrospection()
# Where gradients of introspective systems are cut, as `medvae3d train` does.
CLIP_RATIOS = {"SoftIntrospection": 3.0, "HingeIntrospection": 1.5}
Logs = dict[str, list[float]]


def model(seed: int = 0) -> Any:
    """A VAE that has learned nothing."""
    return seeded(vae, SHAPE, components=0, seed=seed, **SIZES)


def trained_vae(seed: int = 0, *, peak: float = RATE, **pace: Any) -> Any:
    """The VAE that others are held against; ``PACE`` for those whose learning slows down."""
    network = model(seed)
    objective = joint_objective(warm_up_steps=40)
    player = ModelPlayer(network, objective, adamw(network, peak), **pace)
    played(network, [player], TRAINING, STEPS)
    return network


def trained_vae_gan(
    seed: int = 0, *, features: float = 1.0, scores: float = 0.1, start: int = 0
) -> tuple[Any, Logs]:
    """With features and scores at more than the weights of a real training, from the first step."""
    network, discriminator = model(seed), judge()
    encoder, decoder = vae_gan_objectives(
        network,
        discriminator,
        feature_weight=features,
        adversarial_weight=scores,
        adversarial_start=start,
    )
    players = [
        PartModelPlayer(network, encoder, adamw(network.encoder, RATE), name="encoder"),
        BalancedDecoderPlayer(
            network,
            decoder,
            adamw(decoder_side(network), RATE),
            name="decoder",
            discriminator=discriminator,
            adversarial_start=start,
        ),
        BalancedDiscriminatorPlayer(
            discriminator, adam(discriminator), network, source="decoder", start=start
        ),
    ]
    return network, played(network, players, TRAINING, STEPS)


def trained_introspective(objective: Any, seed: int = 0) -> tuple[Any, Logs]:
    """By `SOFT` or `HINGE`."""
    network = model(seed)
    sides = {"encoder": network.encoder, "decoder": decoder_side(network)}
    players = [
        IntrospectivePlayer(
            network,
            objective,
            adamw(side, 2 * RATE),
            role=role,
            introspect_start=START,
            rate=PACE["rate"],
            clip_ratio=CLIP_RATIOS[type(objective).__name__],
        )
        for role, side in sides.items()
    ]
    return network, played(network, players, TRAINING, STEPS)


def trained_by_noise(seed: int = 0) -> tuple[Any, dict[str, Any]]:
    """An autoencoder, and a GAN by each source of noise over its encoder."""
    source = seeded(vae_noise_gan, SHAPE, components=4, rank=8, seed=seed, **SIZES)
    twin = autoencoder_of(source)
    player = ModelPlayer(twin, joint_objective(warm_up_steps=40), adamw(twin, RATE))
    played(twin, [player], TRAINING, 150)
    found = {}
    for noise in ("normal", "posterior", "prior"):
        network, discriminator = copy.deepcopy(source), judge((16, 32, 32))
        preparation = BatchPreparation(network.statistics, (1.0, 1.0, 1.0))
        loader = StepLoader(TRAINING, 8, seed=0)
        fitter = PriorFitter({"model": network}, loader, preparation, passes=8)
        generator = GeneratorPlayer(
            network,
            generator_objective(discriminator, kind="hinge"),
            adam(decoder_side(network), 1e-4),
            noise=noise,
            fitter=fitter,
            begins_as=twin,
        )
        judged = DiscriminatorPlayer(discriminator, adam(discriminator, 1e-3), kind="hinge")
        played(network, [generator, judged], TRAINING, 60)
        if noise == "normal":
            network.sampling_prior = None
        elif noise == "posterior":
            fitter.fit()
        found[noise] = network
    return twin, found
