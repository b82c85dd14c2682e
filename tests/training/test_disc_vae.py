"""A VAE judged on reconstructions and samples: what each score teaches, and what 0 leaves alone."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch

from medvae3d.models.zoo import vae
from medvae3d.networks.discriminators import PatchDiscriminator
from medvae3d.objectives.adversarial import (
    AdversarialScore,
    discriminator_score,
    generator_score,
    pair,
)
from medvae3d.objectives.compositions import disc_vae_objective, joint_objective
from medvae3d.objectives.samples import SampleScore, prior_draw, prior_volumes
from medvae3d.training.players import ModelPlayer, Turn
from medvae3d.training.sample_discriminator import SampleDiscriminatorPlayer

SHAPE = (8, 8, 8)


def model(**sizes):
    torch.manual_seed(0)
    return vae(SHAPE, channels=(4, 8), latent_channels=2, components=0, dropout=0.2, **sizes)


def judge():
    torch.manual_seed(1)
    return PatchDiscriminator(2, channels=(4, 8))


def batch(count=3):
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(count, 1, *SHAPE, generator=generator) > 0.6).float()
    return {"image": torch.randn(count, 1, *SHAPE, generator=generator), "mask": mask}


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def train(network, objective, others=(), steps=4):
    team = [ModelPlayer(network, objective, torch.optim.Adam(network.parameters(), 1e-3)), *others]
    for step in range(steps):
        turn = Turn(batch(), step, seeded(step))
        torch.manual_seed(step)  # of the dropout
        for player in team:
            player.network.train()
            player.play(turn, contextlib.nullcontext)
    return turn.log


def discriminator_player(network, discriminator):
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)
    return SampleDiscriminatorPlayer(discriminator, optimizer, network)


def test_without_adversarial_weight_it_trains_the_vae_bit_for_bit():
    plain, judged, discriminator = model(), model(), judge()
    train(plain, joint_objective())
    objective = disc_vae_objective(judged, discriminator, adversarial_weight=0.0)
    train(judged, objective, [discriminator_player(judged, discriminator)])
    for one, other in zip(plain.parameters(), judged.parameters(), strict=True):
        assert torch.equal(one, other)


def reaches(value, module):
    found = torch.autograd.grad(
        value, list(module.parameters()), retain_graph=True, allow_unused=True
    )
    return any(g is not None and bool(g.abs().sum() > 0) for g in found)


def test_the_encoder_is_taught_by_reconstructions_and_not_by_samples():
    network, discriminator, data = model(), judge(), batch()
    trace = network.trace(data, seeded())
    sampled = SampleScore(network, discriminator, kind="logistic")(trace, data).sum()
    rebuilt = AdversarialScore(discriminator, kind="logistic")(trace, data).sum()
    assert reaches(rebuilt, network.encoder) and reaches(rebuilt, network.decoder)
    assert reaches(sampled, network.decoder) and not reaches(sampled, network.encoder)
    assert not reaches(sampled + rebuilt, discriminator)


def test_a_score_without_weight_differs_from_one_with_it():
    plain, judged, discriminator = model(), model(), judge()
    train(plain, joint_objective())
    log = train(judged, disc_vae_objective(judged, discriminator, adversarial_weight=0.1))
    assert log["model/adversarial_samples"] > 0
    assert any(
        not torch.equal(one, other)
        for one, other in zip(plain.parameters(), judged.parameters(), strict=True)
    )


def test_the_noise_of_a_trace_is_that_of_its_generator():
    network, data = model(), batch()
    trace = network.eval().trace(data, seeded(5))
    noise = torch.randn(trace.first_z.shape, generator=seeded(5))
    torch.testing.assert_close(prior_draw(trace), noise, atol=1e-5, rtol=1e-4)
    assert not prior_draw(trace).requires_grad


def test_a_sample_is_the_decoded_noise_and_not_the_reconstruction():
    network, data = model().eval(), batch()
    trace = network.trace(data, seeded())
    heads = network.decode(prior_draw(trace), trace.condition)
    made = prior_volumes(network, trace, data)
    assert torch.equal(made[:, :1], heads["image"].mode())
    assert torch.equal(made[:, 1:], heads["mask"].foreground())
    assert not torch.allclose(made, pair(data, trace=trace, real=False))


def test_the_discriminator_sees_as_many_samples_as_reconstructions():
    network, discriminator, data = model().eval(), judge().eval(), batch()
    player = discriminator_player(network, discriminator)
    trace = network.trace(data, seeded())
    turn = Turn(data, 0, seeded(), traces={"model": (trace, data)})
    real, rebuilt = (pair(data, trace=trace, real=each) for each in (True, False))
    volumes = (real, rebuilt, prior_volumes(network, trace, data))
    x, x_r, x_p = (torch.sigmoid(discriminator(each)[-1]) for each in volumes)
    wanted = x.log().mean() + 0.5 * (1 - x_r).log().mean() + 0.5 * (1 - x_p).log().mean()
    player.play(turn, contextlib.nullcontext)
    assert turn.log["discriminator/loss"] == pytest.approx(-0.5 * wanted.item(), rel=1e-5)
    assert all(p.grad is None for p in network.parameters())
    assert not any(p.requires_grad for p in discriminator.parameters())


def test_without_a_trace_the_discriminator_rests():
    network, discriminator = model(), judge()
    before = [p.clone() for p in discriminator.parameters()]
    turn = Turn(batch(), 0, seeded())
    discriminator_player(network, discriminator).play(turn, contextlib.nullcontext)
    assert turn.log == {}
    assert all(map(torch.equal, before, discriminator.parameters()))


def test_a_discriminator_learns_to_tell_samples_too():
    network, discriminator = model(), judge()
    player = discriminator_player(network, discriminator)
    frozen = torch.optim.SGD(network.parameters(), 0.0)
    objective = disc_vae_objective(network, discriminator)
    team = [ModelPlayer(network, objective, frozen), player]
    for step in range(40):
        turn = Turn(batch(), step, seeded(step))
        for each in team:
            each.play(turn, contextlib.nullcontext)
    assert turn.log["discriminator/accuracy"] > 0.8


def test_logistic_losses_are_cross_entropies_of_probabilities():
    real, fake = torch.tensor([0.3, -1.2]), torch.tensor([2.0, -0.4])
    probability = lambda x: 1 / (1 + math.exp(-x))
    wanted = -0.25 * (
        sum(math.log(probability(x)) for x in real.tolist())
        + sum(math.log(1 - probability(x)) for x in fake.tolist())
    )
    assert discriminator_score(real, fake, "logistic").item() == pytest.approx(wanted)
    score = generator_score(fake[:, None], "logistic")
    assert score.tolist() == pytest.approx([-math.log(probability(x)) for x in fake.tolist()])
    far = discriminator_score(torch.tensor([-500.0]), torch.tensor([500.0]), "logistic")
    assert far.isfinite()
