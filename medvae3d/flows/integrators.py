r"""Steps along a Hamiltonian :math:`H(z, \rho) = U(z) + \tfrac12 \|\rho\|^2`.

A step is a palindrome of kicks and drifts,

.. math::
    \rho \mathrel{+}= -a_i\, \epsilon\, \nabla U(z), \qquad z \mathrel{+}= b_i\, \epsilon\, \rho .

Each kick and each drift is a shear, so volume is kept exactly; the palindrome makes the step its
own inverse once the momentum is negated. The force at the end of one step is the force at the start
of the next, so :math:`K` steps of :math:`s` drifts need :math:`K s + 1` gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.flows.twice import TwiceDifferentiable

Potential: TypeAlias = Callable[[Tensor], Tensor]
"""Maps z to its energy in nats, ``(B,)``."""

VELOCITY_VERLET = (0.5, 1.0, 0.5)
"""Kick, drift, kick: second order, one gradient a step (the leapfrog)."""

MCLACHLAN = (0.1931833275037836, 0.5, 0.6136333449924328, 0.5, 0.1931833275037836)
"""Second order with a smaller error constant, two gradients a step (McLachlan, 1995)."""

_YOSHIDA_OUTER = 1 / (2 - 2 ** (1 / 3))
_YOSHIDA_INNER = 1 - 2 * _YOSHIDA_OUTER
YOSHIDA = (
    _YOSHIDA_OUTER / 2,
    _YOSHIDA_OUTER,
    (_YOSHIDA_OUTER + _YOSHIDA_INNER) / 2,
    _YOSHIDA_INNER,
    (_YOSHIDA_OUTER + _YOSHIDA_INNER) / 2,
    _YOSHIDA_OUTER,
    _YOSHIDA_OUTER / 2,
)
"""Fourth order, three gradients a step (Yoshida, 1990)."""


@dataclass(frozen=True)
class Slope:
    """The energy at a point and the force there, minus its gradient.

    Attributes:
        energy: Potential energy in nats, :math:`(B,)`, outside of the graph.
        force: Of the shape of the point; in the graph unless asked otherwise.
    """

    energy: Tensor
    force: Tensor


def slope(potential: Potential, z: Tensor, *, first_order: bool = False) -> Slope:
    """Evaluates the potential and its gradient once.

    When gradients are on, the force stays part of the graph, so that a loss teaches the potential
    through its force as well. ``first_order`` cuts that path: cheaper, and an approximation.

    Raises:
        SettingError: Under ``torch.inference_mode``, which no gradient can leave.
    """
    if torch.is_inference_mode_enabled():
        raise SettingError(
            "a Hamiltonian flow takes gradients, which torch.inference_mode forbids. "
            "Use torch.no_grad instead, or a model without flow."
        )
    create_graph = torch.is_grad_enabled() and not first_order
    with torch.enable_grad():
        point = z if create_graph and z.requires_grad else z.detach().requires_grad_()
        with TwiceDifferentiable() if create_graph else contextlib.nullcontext():
            energy = potential(point)
        (gradient,) = torch.autograd.grad(energy.sum(), point, create_graph=create_graph)
    return Slope(energy.detach(), -gradient)


def palindromic_step(
    z: Tensor,
    momentum: Tensor,
    start: Slope,
    slope_at: Callable[[Tensor], Slope],
    kick_size: Tensor | float,
    drift_size: Tensor | float,
    coefficients: Sequence[float] = VELOCITY_VERLET,
) -> tuple[Tensor, Tensor, Slope]:
    """Moves one step; hands back the slope at its end for the next step to start from.

    Args:
        z: Position.
        momentum: Momentum, of the same shape.
        start: The slope at ``z``.
        slope_at: Evaluates the slope elsewhere.
        kick_size: Step size of the kicks; a tensor broadcasts against ``z``.
        drift_size: Step size of the drifts, equal to that of the kicks but for tempering.
        coefficients: Kick, drift, kick, ..., kick; a palindrome.
    """
    momentum = momentum + coefficients[0] * kick_size * start.force
    for drift, kick in zip(coefficients[1::2], coefficients[2::2], strict=True):
        z = z + drift * drift_size * momentum
        start = slope_at(z)
        momentum = momentum + kick * kick_size * start.force
    return z, momentum, start


def leapfrog(
    z: Tensor, momentum: Tensor, potential: Potential, step_size: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Moves one kick, drift, kick on its own, at two gradients."""

    def slope_at(point: Tensor) -> Slope:
        return slope(potential, point)

    z, momentum, _ = palindromic_step(
        z, momentum, slope_at(z), slope_at, kick_size=step_size, drift_size=step_size
    )
    return z, momentum
