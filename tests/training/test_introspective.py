"""Introspective players: who learns in which turn, and that a run can be taken up again."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch

from medvae3d.models.zoo import vae
from medvae3d.objectives.introspective import HingeIntrospection, SoftIntrospection
from medvae3d.training.checkpoints import TrainStateSaver
from medvae3d.training.introspective import IntrospectivePlayer
from medvae3d.training.loading import BatchPreparation, StepLoader
from medvae3d.training.parts import decoder_side
from medvae3d.training.players import Turn
from medvae3d.training.trainer import PlayerTrainer

SHAPE = (8, 8, 8)
OBJECTIVES = {"soft": SoftIntrospection(beta_neg=16), "hinge": HingeIntrospection(margin=60)}


def model():
    torch.manual_seed(0)
    return vae(SHAPE, channels=(4, 8), latent_channels=2, components=0)


def batch(count=4):
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(count, 1, *SHAPE)
    for index in range(count):
        mask[index, :, 2 : 4 + index % 3, 2:6, 2:6] = 1
    image = mask - 0.5 + 0.1 * torch.randn(count, 1, *SHAPE, generator=generator)
    return {"image": image, "mask": mask, "case": [str(i) for i in range(count)]}


def players(network, objective, rate=2e-3, **options):
    sides = {"encoder": network.encoder, "decoder": decoder_side(network)}
    return [
        IntrospectivePlayer(
            network, objective, torch.optim.Adam(side.parameters(), rate), role, **options
        )
        for role, side in sides.items()
    ]


def play(team, steps, start=0, data=None):
    log = {}
    for step in range(start, start + steps):
        turn = Turn(data or batch(), step, torch.Generator().manual_seed(step))
        for player in team:
            player.play(turn, contextlib.nullcontext)
        log = turn.log
    return log


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, again):
    return all(torch.equal(first[name], again[name]) for name in first)


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]


def test_two_players_own_all_parameters_once():
    network = model()
    owned = [p for player in players(network, OBJECTIVES["soft"]) for p in player.parameters()]
    assert len(owned) == len(set(map(id, owned)))
    assert set(map(id, owned)) == set(map(id, network.parameters()))


def test_each_turn_touches_its_own_side_alone(objective):
    network = model()
    encoder, decoder = players(network, objective)
    sides = {"encoder": network.encoder, "decoder": network.decoder}
    for player, other in ((encoder, "decoder"), (decoder, "encoder")):
        network.zero_grad(set_to_none=True)
        before = {name: weights(side) for name, side in sides.items()}
        play([player], 1)
        assert same(before[other], weights(sides[other]))
        assert not same(before[player.name], weights(sides[player.name]))
        assert all(p.grad is None for p in sides[other].parameters())
        assert all(p.requires_grad for p in network.parameters())


def test_before_its_start_it_trains_a_vae(objective):
    first, again = model(), model()
    log = play(players(first, objective, introspect_start=3), 3)
    assert "encoder/kl_sampled" not in log
    log = play(players(again, objective, introspect_start=0), 3)
    assert "encoder/kl_sampled" in log
    assert not same(weights(first), weights(again))


@pytest.mark.slow
def test_the_encoder_comes_to_tell_made_from_real(objective):
    """Only the encoder learns: the divergence of samples rises above that of real volumes."""
    network = model()
    team = players(network, objective, rate=5e-3)[:1]
    log = play(team, 60)
    assert log["encoder/kl_sampled"] > log["encoder/kl"] + 1


@pytest.mark.slow
def test_both_sides_together_learn_to_reconstruct(objective):
    network = model()
    team = players(network, objective, rate=5e-3)
    before = play(team, 1)["encoder/error"]
    log = play(team, 80, start=1)
    assert log["encoder/error"] < 0.5 * before
    assert all(math.isfinite(value) for value in log.values())


def trained(folder, objective, epochs, resume=False):
    network = model()
    items = [
        {"image": image, "label": mask.byte(), "case": case}
        for image, mask, case in zip(*batch().values(), strict=True)
    ]
    team = players(network, objective, clip_ratio=1.0)  # so low that it cuts in most steps
    PlayerTrainer(
        "cpu",
        epochs,
        StepLoader(items, 2, seed=3, epoch_length=2),
        team,
        BatchPreparation(network.statistics, (1.0, 1.0, 1.0)),
        epoch_length=2,
        seed=5,
        precision="float32",
        train_handlers=[TrainStateSaver(folder / "state.pt", team, resume=resume)],
    ).run()
    return weights(network)


def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path, objective):
    whole = trained(tmp_path / "whole", objective, 2)
    first = trained(tmp_path / "cut", objective, 1)
    assert not same(whole, first)
    assert same(whole, trained(tmp_path / "cut", objective, 2, resume=True))


def test_a_batch_without_cases_changes_nothing(objective):
    network = model()
    before = weights(network)
    empty = {k: v[:0] for k, v in batch().items()}
    assert play(players(network, objective), 1, data=empty) == {}
    assert same(before, weights(network))
