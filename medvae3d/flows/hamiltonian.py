r"""Carries a latent towards :math:`p(z \mid x)` and says what that adds to the evidence.

With :math:`U(z) = -\log p(x, z)`, a momentum :math:`\rho_0 = \gamma / \sqrt{\beta_0}`,
:math:`\gamma \sim \mathcal N(0, I)`, and :math:`K` leapfrog steps, each followed by the cooling
:math:`\rho \leftarrow \sqrt{\beta_{k-1} / \beta_k}\, \rho`,

.. math::
    \log w = \log p(x, z_K) - \log q(z_0) + \log \mathcal N(\rho_K; 0, I)
             - \log \mathcal N(\gamma; 0, I)

is an unbiased log weight: leapfrog keeps volume, and the Jacobian :math:`\beta_0^{d/2}` of the
cooling cancels against the density of :math:`\rho_0`.

The module tracks :math:`\gamma_k = \sqrt{\beta_k}\, \rho_k` instead of the momentum itself. In
these units the cooling is the identity, and only the kicks (times :math:`\sqrt{\beta}`) and the
drifts (over it) see the temperature; a flow whose step size is zero therefore returns its noise
exactly, whatever the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medvae3d.errors import DivergedFlowError, SettingError
from medvae3d.flows.integrators import (
    VELOCITY_VERLET,
    Potential,
    Slope,
    palindromic_step,
    slope,
)
from medvae3d.numerics import (
    Generators,
    at_least_float32,
    float32_island,
    standard_normal,
    sum_per_sample,
)


@dataclass(frozen=True)
class Flowed:
    r"""Where a flow took the latent, and what that adds to the evidence in nats, ``(B,)``.

    Attributes:
        z: The latent after the flow.
        log_weight: What the flow adds to the one-sample ELBO, :math:`(B,)`.
        first_energy: :math:`H(z_0, \rho_0)` in nats, :math:`(B,)`; ``None`` without a flow, as are
            all that follow. They are reports and stand outside of the graph.
        last_energy: The energy at the end, with what the cooling took out added back; without
            tempering it is :math:`H(z_K, \rho_K)`.
        force_norm: Norm of the force at :math:`z_K`.
        momentum_norm: Norm of the last momentum :math:`\rho_K`, which has cooled to unit variance.
        displacement: Norm of :math:`z_K - z_0`.
        start_norm: Norm of :math:`z_0`.
        num_gradients: How often the gradient of the potential was taken.
        solver_residual: Of the implicit equations of a step, where there are any, :math:`(B,)`.
        solver_iterations: Most iterations that one of them took.
    """

    z: Tensor
    log_weight: Tensor
    first_energy: Tensor | None = None
    last_energy: Tensor | None = None
    force_norm: Tensor | None = None
    momentum_norm: Tensor | None = None
    displacement: Tensor | None = None
    start_norm: Tensor | None = None
    num_gradients: int = 0
    solver_residual: Tensor | None = None
    solver_iterations: int = 0

    @property
    def energy_error(self) -> Tensor | None:
        """What the integrator added to the energy, in nats; a median size of 0.1 to 1 is good."""
        if self.last_energy is None or self.first_energy is None:
            return None
        return self.last_energy - self.first_energy

    @property
    def moved(self) -> Tensor | None:
        """Displacement over the norm of the first latent; below a thousandth, nothing happens."""
        if self.displacement is None or self.start_norm is None:
            return None
        return self.displacement / self.start_norm.clamp_min(torch.finfo(self.z.dtype).tiny)

    def report(self) -> dict[str, float]:
        """Medians over the batch for the log, in nats or in units of the latent; of nothing, none.

        ``energy_error``, ``force_norm``, ``momentum_norm`` and ``moved``; of implicit steps the
        worst ``solver_residual`` and ``solver_iterations`` too.
        """
        error, moved = self.energy_error, self.moved
        if error is None or moved is None or self.force_norm is None or self.momentum_norm is None:
            return {}
        found = {
            "energy_error": error.abs().median().item(),
            "force_norm": self.force_norm.median().item(),
            "momentum_norm": self.momentum_norm.median().item(),
            "moved": moved.median().item(),
        }
        if self.solver_residual is not None:
            found["solver_residual"] = self.solver_residual.max().item()
            found["solver_iterations"] = float(self.solver_iterations)
        return found


def tempering(num_steps: int, initial_beta: float) -> Tensor:
    r"""Inverse temperatures :math:`\beta_0, \dots, \beta_K = 1`, float64; 1 without a step."""
    if not num_steps:
        return torch.ones(1, dtype=torch.float64)
    progress = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64).square()
    return (initial_beta**-0.5 * (1 - progress) + progress) ** -2


class Identity(nn.Module):
    """Leaves the latent where it is: the flow of a plain VAE."""

    num_steps = 0

    def forward(self, z: Tensor, potential: Potential, generator: Generators = None) -> Flowed:
        return Flowed(z, at_least_float32(z).new_zeros(len(z)))


class HamiltonianFlow(nn.Module):
    r"""Carries a latent towards :math:`p(z \mid x)` by tempered Hamiltonian steps.

    .. math::
        \sqrt{\beta_k} = \Big[\beta_0^{-1/2} \big(1 - k^2 / K^2\big) + k^2 / K^2\Big]^{-1}

    The flow runs in float32 (float64 if ``z`` is) outside of autocast, because on a million voxels
    the force is large, and takes exactly :math:`K + 1` gradients.

    Args:
        num_steps: Number of leapfrog steps :math:`K`; 0 draws no momentum and is the identity.
        step_size: First value of the step size, learned in log space. It scales as one over the
            square root of the curvature of the potential, hence of the number of voxels. 0 stays 0.
        initial_beta: Inverse temperature :math:`\beta_0` in :math:`(0, 1]`; 1 for no tempering.
        step_shape: Shape of the step sizes, which broadcasts against ``z`` without its batch axis:
            ``(L, 1, 1, 1)`` for one per channel of a map, ``(L,)`` of a vector. None for one in
            all.
        first_order: Whether to leave the force out of the graph: cheaper, but the flow then teaches
            the decoder only through where it ends, not through its force.
        max_step_size: A bound that the learned step size approaches but never reaches.
        max_energy_error: Energy error in nats above which the trajectory counts as diverged.
        coefficients: The integrator; see :mod:`medvae3d.flows.integrators`.

    Shape:
        - ``z``: :math:`(B, L, i, j, k)` or :math:`(B, L)`
        - the potential: ``z`` to nats, :math:`(B,)`, sample by sample

    Raises:
        DivergedFlowError: If a trajectory is not finite, or its energy error too large.
        SettingError: For settings without meaning, and under ``torch.inference_mode``.

    Example:
        >>> flow = HamiltonianFlow(num_steps=2, step_size=0.1)
        >>> flowed = flow(torch.randn(5, 4), lambda z: 0.5 * z.square().sum(1))
        >>> flowed.z.shape, flowed.log_weight.shape, flowed.num_gradients
        (torch.Size([5, 4]), torch.Size([5]), 3)

    References:
        Caterini, Doucet and Sejdinovic, "Hamiltonian variational auto-encoder", 2018.
    """

    beta: Tensor
    log_step_size: Tensor | None

    def __init__(
        self,
        num_steps: int = 3,
        step_size: float = 0.01,
        initial_beta: float = 0.3,
        step_shape: Sequence[int] | None = None,
        first_order: bool = False,
        max_step_size: float | None = None,
        max_energy_error: float | None = None,
        coefficients: Sequence[float] = VELOCITY_VERLET,
    ) -> None:
        super().__init__()
        if num_steps < 0 or step_size < 0 or not 0 < initial_beta <= 1:
            raise SettingError(
                f"HamiltonianFlow(num_steps={num_steps}, step_size={step_size}, "
                f"initial_beta={initial_beta}): allowed are num_steps >= 0, step_size >= 0 and "
                f"0 < initial_beta <= 1."
            )
        if max_step_size is not None and step_size >= max_step_size:
            raise SettingError(
                f"step_size {step_size} is not below max_step_size {max_step_size}; lower the one "
                f"or raise the other."
            )
        self.num_steps = num_steps
        self.first_order = first_order
        self.max_step_size = max_step_size
        self.max_energy_error = max_energy_error
        self.coefficients = tuple(coefficients)
        shape = tuple(step_shape or ())
        if step_size > 0 and num_steps > 0:
            free = step_size / (1 - step_size / max_step_size) if max_step_size else step_size
            self.log_step_size = nn.Parameter(torch.full(shape, math.log(free)))
        else:
            # No logarithm of zero: an average or a check of the weights would meet an infinity.
            self.register_parameter("log_step_size", None)
        self.register_buffer("beta", tempering(num_steps, initial_beta).float())

    @property
    def step_size(self) -> Tensor:
        """The step size, of shape ``step_shape``."""
        if self.log_step_size is None:
            return self.beta.new_zeros(())
        free = self.log_step_size.exp()
        return free if self.max_step_size is None else free / (1 + free / self.max_step_size)

    def forward(self, z: Tensor, potential: Potential, generator: Generators = None) -> Flowed:
        z = at_least_float32(z)
        if self.num_steps == 0:
            return Flowed(z, z.new_zeros(len(z)))
        noise = standard_normal(z.shape, generator, dtype=z.dtype, device=z.device)
        with float32_island(z.device.type):
            return self.move(z, noise, potential)[0]

    def move(self, z: Tensor, noise: Tensor, potential: Potential) -> tuple[Flowed, Tensor]:
        r"""Flows from a given start; returns the last momentum too.

        Args:
            z: The latent :math:`z_0`.
            noise: :math:`\gamma`, of its shape: the first momentum times :math:`\sqrt{\beta_0}`.
            potential: The potential.
        """
        taken = 0

        def slope_at(point: Tensor) -> Slope:
            nonlocal taken
            taken += 1
            return slope(potential, point, first_order=self.first_order)

        start, first_z, momentum = slope_at(z), z, noise
        temperature = self.beta.to(z.dtype).sqrt()
        step_size = self.step_size.to(z.dtype)
        first_energy = start.energy + _kinetic(noise / temperature[0])
        energy_error = torch.zeros_like(first_energy)
        for root_beta in temperature[:-1]:
            before = start.energy + _kinetic(momentum / root_beta)
            z, momentum, start = palindromic_step(
                z,
                momentum,
                start,
                slope_at,
                kick_size=step_size * root_beta,
                drift_size=step_size / root_beta,
                coefficients=self.coefficients,
            )
            energy_error = energy_error + start.energy + _kinetic(momentum / root_beta) - before
        flowed = Flowed(
            z,
            log_weight=0.5 * sum_per_sample(noise.square() - momentum.square()),
            first_energy=first_energy,
            last_energy=first_energy + energy_error,
            force_norm=start.force.detach().flatten(1).norm(dim=1),
            momentum_norm=momentum.detach().flatten(1).norm(dim=1),
            displacement=(z - first_z).detach().flatten(1).norm(dim=1),
            start_norm=first_z.detach().flatten(1).norm(dim=1),
            num_gradients=taken,
        )
        self._require_converged(flowed, energy_error, start.force.detach())
        return flowed, momentum

    def _require_converged(self, flowed: Flowed, energy_error: Tensor, force: Tensor) -> None:
        allowed = math.inf if self.max_energy_error is None else self.max_energy_error
        # NaN compares as false, so this holds only for finite errors within bounds.
        good = (energy_error.abs() <= allowed) & energy_error.isfinite()
        good &= flowed.log_weight.detach().isfinite()
        if bool(good.all()):
            return
        sizes = self.step_size.detach()
        worst = energy_error.abs().nan_to_num(nan=math.inf).max().item()
        strongest = force.abs().nan_to_num(nan=math.inf).max().item()
        raise DivergedFlowError(
            f"{int((~good).sum())} of {len(good)} trajectories diverged: energy error up to "
            f"{worst:.3g} nats (allowed: {allowed:.3g}), force up to {strongest:.3g}, step size "
            f"{sizes.min().item():.3g} to {sizes.max().item():.3g}. Lower step_size (it scales "
            f"with one over the square root of the number of voxels), its learning rate, or "
            f"max_step_size."
        )

    def extra_repr(self) -> str:
        return f"num_steps={self.num_steps}, initial_beta={self.beta[0].item():.3g}"


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * sum_per_sample(momentum.detach().square())
