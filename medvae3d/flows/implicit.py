r"""The generalised leapfrog, for Hamiltonians whose kinetic energy depends on the position.

.. math::
    \rho' &= \rho - \tfrac{\epsilon}{2} \nabla_z H(z, \rho'), \\
    z' &= z + \tfrac{\epsilon}{2} \big[\nabla_\rho H(z, \rho') + \nabla_\rho H(z', \rho')\big], \\
    \rho'' &= \rho' - \tfrac{\epsilon}{2} \nabla_z H(z', \rho').

The first two lines are implicit and are solved by iteration. The step keeps volume, and is its own
inverse once the momentum is negated, only as far as they are solved, so the solver says how far.

References:
    Girolami and Calderhead, "Riemann manifold Langevin and Hamiltonian Monte Carlo methods", 2011.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Solver:
    """How implicit equations are solved.

    Attributes:
        iterations: Most iterations.
        tolerance: Change of an iteration, relative to the size of the solution where that is above
            1, below which it counts as converged.
    """

    iterations: int = 20
    tolerance: float = 1e-10


@dataclass(frozen=True)
class Solved:
    """What a solver found.

    Attributes:
        value: The solution, :math:`(B, d)`.
        residual: Last change of each row, outside of the graph, :math:`(B,)`.
        iterations: Iterations that were taken.
        converged: Whether each row came below the tolerance, :math:`(B,)`.
    """

    value: Tensor
    residual: Tensor
    iterations: int
    converged: Tensor


def fixed_point(function: Callable[[Tensor], Tensor], start: Tensor, solver: Solver) -> Solved:
    """Solves ``x = function(x)`` by iteration, for a whole batch at a time.

    The iterations are part of the graph, so a loss teaches through the solution.
    """
    value = start
    residual = value.new_full((len(value),), torch.inf)
    count = 0
    while count < solver.iterations:
        new = function(value)
        change = (new - value).detach().abs().flatten(1).amax(1)
        residual = change / new.detach().abs().flatten(1).amax(1).clamp_min(1)
        value = new
        count += 1
        if bool((residual <= solver.tolerance).all()):
            break
    return Solved(value, residual, count, residual <= solver.tolerance)


class Place(Protocol):
    """A Hamiltonian at given positions."""

    def position_gradient(self, momentum: Tensor) -> Tensor:
        r""":math:`\nabla_z H`, ``(B, d)``."""

    def velocity(self, momentum: Tensor) -> Tensor:
        r""":math:`\nabla_\rho H`, ``(B, d)``."""


@dataclass(frozen=True)
class Stepped:
    """Where a step led, and how well its equations were solved.

    Attributes:
        z: Position.
        momentum: Momentum.
        place: The Hamiltonian there, for the next step to start from.
        residual: The larger one of both equations, :math:`(B,)`.
        iterations: The larger number of both equations.
    """

    z: Tensor
    momentum: Tensor
    place: Place
    residual: Tensor
    iterations: int


def generalised_leapfrog(
    z: Tensor,
    momentum: Tensor,
    here: Place,
    place_at: Callable[[Tensor], Place],
    velocity_at: Callable[[Tensor, Tensor], Tensor],
    step_size: Tensor | float,
    solver: Solver,
) -> Stepped:
    """Moves one step.

    Args:
        z: Position, :math:`(B, d)`.
        momentum: Momentum, of the same shape.
        here: The Hamiltonian at ``z``.
        place_at: Makes it elsewhere; called once, at the end of the step.
        velocity_at: The velocity at a position for a momentum; called in each iteration.
        step_size: Step size.
        solver: How the implicit equations are solved.
    """
    half = step_size / 2
    kicked = fixed_point(lambda p: momentum - half * here.position_gradient(p), momentum, solver)
    p = kicked.value
    first = z + half * here.velocity(p)
    moved = fixed_point(lambda x: first + half * velocity_at(x, p), first, solver)
    there = place_at(moved.value)
    return Stepped(
        moved.value,
        p - half * there.position_gradient(p),
        there,
        torch.maximum(kicked.residual, moved.residual),
        max(kicked.iterations, moved.iterations),
    )
