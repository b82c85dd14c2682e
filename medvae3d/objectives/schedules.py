"""Weights that change with the step: a schedule maps the number of the step to a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from medvae3d.errors import SettingError

Schedule: TypeAlias = Callable[[int], float]


def constant(value: float = 1.0) -> Schedule:
    """Returns one weight for all steps."""
    return lambda step: value


def warm_up(steps: int, top: float = 1.0, start: float = 0.0) -> Schedule:
    """Rises linearly from ``start`` to ``top`` in a number of steps, and stays there."""
    if steps <= 0:
        return constant(top)
    return lambda step: start + (top - start) * min(1.0, max(0, step) / steps)


def cyclic(period: int, rise: float = 0.5, top: float = 1.0) -> Schedule:
    """Rises from 0 to ``top`` in the first part of each period, and starts again after it.

    Args:
        period: Steps of one cycle.
        rise: Share of the period that the rise takes, in (0, 1].
        top: Weight at the end of each cycle.

    References:
        Fu et al., "Cyclical annealing schedule", 2019.
    """
    if period < 1 or not 0 < rise <= 1:
        raise SettingError(
            f"cyclic(period={period}, rise={rise}): allowed are period >= 1 and 0 < rise <= 1."
        )
    return lambda step: top * min(1.0, (step % period) / (rise * period))


def delayed(start: int, schedule: Schedule | float = 1.0) -> Schedule:
    """Is 0 before step ``start``, and from there another schedule, or a number, begun anew."""
    later = schedule if callable(schedule) else constant(schedule)
    return lambda step: 0.0 if step < start else later(step - start)


def as_schedule(weight: Schedule | float) -> Schedule:
    """Takes a number for the schedule that never changes."""
    return weight if callable(weight) else constant(float(weight))
