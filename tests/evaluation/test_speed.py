"""Claims about how time and operations are measured."""

from __future__ import annotations

import torch
from torch import nn

from medvae3d.evaluation.speed import by_turns, matrix_rate, operations, product


def test_works_take_turns_after_their_warm_up():
    seen, ticks = [], iter(range(100))
    works = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    seconds = by_turns(works, rounds=3, warm_up=1, clock=lambda: float(next(ticks)))
    assert "".join(seen) == "ab" * 4
    assert seconds == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_operations_of_a_training_step_are_those_of_its_products():
    layer, x = nn.Linear(5, 7, bias=False), torch.ones(3, 5)

    def step():
        layer(x).sum().backward()

    # Forward, and the gradient of the weight; nobody wants that of the input.
    assert operations(step) == 2 * (2 * 3 * 5 * 7)
    work, count = product(torch.float32, size=16)
    assert operations(work) == count


def test_the_rate_of_a_machine_is_that_of_its_clock():
    ticks = iter(range(1000))
    rate = matrix_rate(torch.float32, seconds=0.0, clock=lambda: float(next(ticks)))
    assert rate == 2 * 2048**3
