"""A player without anything to learn from in a step: alone, and beside processes that learn."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medvae3d.models.zoo import vae
from medvae3d.objectives.terms import Objective, Term, nll
from medvae3d.training.optimizers import running_norm
from medvae3d.training.players import DiscriminatorPlayer, ModelPlayer, Player, Turn, with_image

ROOT = Path(__file__).parents[2]


class Squares(Player):
    """Pulls its weights towards the mean of the batch; an empty batch says nothing."""

    def play(self, turn: Turn, autocast: Any) -> None:
        x = turn.batch["x"]
        self._update((self.network.weight - x.mean()).square().sum() if len(x) else None, turn)


class Slopes(Player):
    """Its gradient is the batch, in units of its own."""

    def play(self, turn: Turn, autocast: Any) -> None:
        self._update((self.network.weight * turn.batch["x"]).sum(), turn)


def slopes(**options: Any) -> Slopes:
    network = nn.Linear(2, 2, bias=False)
    nn.init.ones_(network.weight)
    adam = torch.optim.Adam(network.parameters(), lr=0.1, betas=(0.9, 0.99), eps=1e-12)
    return Slopes("slopes", network, adam, **options)


def squares() -> Squares:
    network = nn.Linear(2, 2, bias=False)
    nn.init.ones_(network.weight)
    return Squares("squares", network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9))


def play(player: Player, batches: list[Tensor], accumulate: int = 1) -> Tensor:
    for step, x in enumerate(batches):
        turn = Turn({"x": x}, step, torch.Generator(), accumulate)
        player.play(turn, contextlib.nullcontext)
    return player.network.weight.detach().clone()


NOTHING, TWO, THREE = torch.zeros(0), torch.full((2,), 2.0), torch.full((2,), 3.0)


def test_a_step_with_nothing_to_learn_changes_nothing() -> None:
    with_gap = play(squares(), [TWO, NOTHING, THREE])
    assert torch.equal(with_gap, play(squares(), [TWO, THREE]))


def test_gradients_of_an_earlier_update_are_not_added_to_a_later_one() -> None:
    """The first of two batches is empty, so that it is the one that starts from nothing."""
    player = squares()
    play(player, [TWO, TWO, NOTHING, THREE], accumulate=2)
    expected = (player.network.weight.grad, 2 * (play(squares(), [TWO, TWO], 2) - 3) / 2)
    torch.testing.assert_close(*expected)


def gradients_like(*norms: float) -> list[Tensor]:
    return [norm * torch.tensor([[0.5, -0.5], [0.1, 0.7]]) for norm in norms]


def test_the_running_norm_is_the_root_of_the_running_mean_of_squared_norms() -> None:
    player = slopes()
    assert running_norm(player.optimizer) == float("inf"), "nothing is known before a step"
    play(player, gradients_like(3.0))
    assert running_norm(player.optimizer) == pytest.approx(3.0)
    play(player, gradients_like(1.0))
    mean = (0.99 * 0.01 * 3.0**2 + 0.01 * 1.0**2) / (1 - 0.99**2)
    assert running_norm(player.optimizer) == pytest.approx(mean**0.5)
    assert running_norm(squares().optimizer) == float("inf"), "of an optimiser that keeps none"


def test_a_ratio_cuts_outliers_and_nothing_else() -> None:
    usual = gradients_like(1.0, 1.5, 0.8)
    cut = slopes(clip_ratio=3.0)
    assert torch.equal(play(cut, usual), play(slopes(), usual))
    limit = 3.0 * running_norm(cut.optimizer)
    play(cut, gradients_like(50.0))
    expected = gradients_like(limit)[0]
    torch.testing.assert_close(cut.network.weight.grad, expected)


def test_a_ratio_acts_alike_whatever_the_units_of_the_loss() -> None:
    """As a fixed norm does not."""
    course = (1.0, 1.5, 20.0, 0.8)
    small = gradients_like(*(1e-4 * norm for norm in course))
    large = gradients_like(*(1e4 * norm for norm in course))
    for options, alike in (({"clip_ratio": 2.0}, True), ({"clip_norm": 5.0}, False)):
        first, again = play(slopes(**options), small), play(slopes(**options), large)
        assert torch.allclose(first, again, rtol=1e-4) is alike


def test_models_and_discriminators_take_part_in_an_update_without_cases() -> None:
    network = vae((8, 8, 8), channels=(4, 8), latent_channels=2, components=0)
    judge = nn.Conv3d(2, 1, 1)
    parameters = [*network.parameters(), *judge.parameters()]
    before = [p.clone() for p in parameters]
    for p in parameters:  # of an earlier update; whoever takes part in this one drops them
        p.grad = torch.ones_like(p)
    batch = {
        "image": torch.zeros(2, 1, 8, 8, 8),
        "mask": torch.zeros(2, 1, 8, 8, 8),
        "valid": torch.zeros(2, 1, 8, 8, 8),
        "case": ["a", "b"],
    }
    turn = Turn(batch, 0, torch.Generator())
    objective = Objective([Term("nll", nll)])
    for player in (
        ModelPlayer(network, objective, torch.optim.Adam(network.parameters()), select=with_image),
        DiscriminatorPlayer(judge, torch.optim.Adam(judge.parameters())),
    ):
        player.play(turn, contextlib.nullcontext)
    assert not turn.traces and not turn.log
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert all(p.grad is None for p in parameters)


@pytest.mark.integration
@pytest.mark.timeout(180)
def test_a_process_without_cases_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """Both end with the weights that the one which saw cases would have reached alone."""
    code = """
import importlib.util, sys, torch, torch.distributed as dist
spec = importlib.util.spec_from_file_location("players_of_a_process", sys.argv[1])
here = importlib.util.module_from_spec(spec)
spec.loader.exec_module(here)
rank, folder = int(sys.argv[2]), sys.argv[3]
store = dist.FileStore(folder + "/store", 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
batches = [here.TWO if rank == 0 else here.NOTHING, here.NOTHING, here.THREE]
torch.save(here.play(here.squares(), batches), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, __file__]
    running = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in range(2)
    ]
    try:
        assert [process.wait(150) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
            process.wait()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, play(squares(), [TWO, THREE]))
