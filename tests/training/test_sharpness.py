"""What a score of samples does to a VAE that trains on grainy balls."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch

from medvae3d.models.zoo import vae
from medvae3d.networks.discriminators import PatchDiscriminator
from medvae3d.objectives.compositions import disc_vae_objective, joint_objective
from medvae3d.training.loading import CaseLoader, StepLoader
from medvae3d.training.optimizers import adamw
from medvae3d.training.players import ModelPlayer, Turn
from medvae3d.training.sample_discriminator import SampleDiscriminatorPlayer

STEPS, START = 150, 30


def balls(count, seed):
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(16.0)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    cases = []
    for _ in range(count):
        middle = 5 + 6 * torch.rand(3, generator=generator)
        radius = 2.5 + 2 * torch.rand((), generator=generator)
        label = ((grid - middle.reshape(3, 1, 1, 1)).norm(dim=0) < radius)[None]
        image = -0.6 + label.float() + 0.15 * torch.randn(1, 16, 16, 16, generator=generator)
        cases.append({"image": image, "label": label.to(torch.uint8)})
    return cases


def roughness(x):
    return sum(x.diff(dim=axis).abs().mean() for axis in (2, 3, 4)).item()


def trained(judged):
    torch.manual_seed(0)
    sizes = {"channels": (8, 16), "latent_channels": 4, "components": 0, "likelihood": "laplace"}
    network = vae((16, 16, 16), **sizes)
    torch.manual_seed(1)
    discriminator = PatchDiscriminator(2, channels=(8, 16))
    objective = joint_objective(warm_up_steps=40)
    players = []
    if judged:
        objective = disc_vae_objective(
            network, discriminator, warm_up_steps=40, adversarial_start=START
        )
        optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)
        players = [SampleDiscriminatorPlayer(discriminator, optimizer, network, start=START)]
    players.insert(0, ModelPlayer(network, objective, adamw(network, 3e-3)))
    loader = StepLoader(balls(64, 0), 8, seed=0)
    for step in range(STEPS):
        turn = Turn(loader.batch(step), step, torch.Generator().manual_seed(step))
        for player in players:
            if player.is_active(step):
                player.network.train()
                player.play(turn, contextlib.nullcontext)
    unseen = next(iter(CaseLoader(balls(32, 1), 32)))
    network.eval()
    with torch.no_grad():
        trace = network.trace(unseen, torch.Generator().manual_seed(0))
        error = (trace.heads["image"].mode() - unseen["image"]).square().mean()
        z = network.prior.sample(32, generators=torch.Generator().manual_seed(1))
        samples = network.decode(z, trace.condition)["image"].mode()
    psnr = 10 * math.log10(4 / error)
    return psnr, roughness(samples), roughness(unseen["image"])


@pytest.mark.slow
def test_disc_vae_makes_rougher_samples_at_no_more_than_one_decibel():
    """Found: gradients of 0.03 without and 0.50 with the score, 0.56 in real cases."""
    plain, plain_samples, real = trained(judged=False)
    judged, judged_samples, _ = trained(judged=True)
    assert judged > plain - 1
    assert abs(judged_samples - real) < 0.5 * abs(plain_samples - real)
