"""How fast this machine is, and how much of that a piece of work takes.

Two things are compared on a machine that may be busy by turns, not one after the other: what else
runs then slows both alike, and the ratio of the medians holds. Floating-point operations are
counted while they are dispatched, so a backward pass, or a second one, is counted as it is taken.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], Any]


def by_turns(
    works: Mapping[str, Work],
    rounds: int = 7,
    warm_up: int = 1,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each piece of work, taken by turns: A B A B.

    Args:
        works: What to run, by name.
        rounds: Timed runs of each.
        warm_up: Runs of each before, which are not timed.
        device: Where it runs; a GPU is waited for.
        clock: Tells the time; ``time.process_time`` on a machine that others use too, with one
            thread, as threads that wait for each other count as busy.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    for _ in range(warm_up):
        for work in works.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            wait()
            began = clock()
            work()
            wait()
            seconds[name].append(clock() - began)
    return seconds


def median_seconds(
    work: Work,
    rounds: int = 5,
    warm_up: int = 1,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The median time of one piece of work."""
    return statistics.median(by_turns({"work": work}, rounds, warm_up, device, clock)["work"])


def operations(work: Work) -> int:
    """Floating-point operations of matrix products and convolutions in one run of the work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def product(dtype: torch.dtype, size: int = 2048, device: str = "cpu") -> tuple[Work, int]:
    """One product of two square matrices, and its operations."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))

    def work() -> Tensor:
        return a @ b

    return work, 2 * size**3


def matrix_rate(
    dtype: torch.dtype,
    seconds: float = 1.0,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Operations a second in products of large matrices, the best of what fits in the time.

    It is what the machine gives to the one operation that it does best; convolutions come near it,
    everything else that training does counts as nothing.
    """
    work, count = product(dtype, device=device)
    until = time.perf_counter() + seconds
    best = median_seconds(work, 1, device=device, clock=clock)
    while time.perf_counter() < until:
        best = min(best, median_seconds(work, 3, 0, device, clock))
    return count / best
