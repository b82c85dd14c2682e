r"""Drawing latents by the volume element of a metric, :math:`p(z) \propto \sqrt{\det K(z)}`.

Far from all centres :math:`K \to \lambda I`, so this is no density on the whole space: a correct
sampler drifts away, the faster the better it is. Here it is bounded: latents lie within a ``reach``
of some centre,

.. math:: \min_i q_i(z) \le r^2,

or the floor of the metric decays, :math:`\lambda e^{-\tau \|z\|^2}`, or both. Chains of Hamiltonian
Monte Carlo start at a random centre each, with the exact gradient and a Metropolis step that works
with log densities. All chains of a batch move together, each on noise of its own.

References:
    Chadebec and Allassonniere, "A geometric perspective on variational autoencoders", 2022.
    Chadebec et al., "Data augmentation in high dimensional low sample size setting using a
    geometry-based variational autoencoder", IEEE TPAMI 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medvae3d.errors import StuckSamplerError
from medvae3d.flows.integrators import Slope, palindromic_step
from medvae3d.flows.metrics import KernelMetric, LocalMetric

Force = Callable[[LocalMetric], Tensor]


@dataclass(frozen=True, eq=False)
class VolumeTarget:
    """The volume element of a metric as an unnormalised density.

    Attributes:
        metric: The metric.
        reach: Farthest distance to the nearest centre, in bandwidths; infinite for none, which is a
            density only with a floor that decays.
    """

    metric: KernelMetric
    reach: float = math.inf

    @property
    def is_bounded(self) -> bool:
        """Whether the density can be normalised."""
        return math.isfinite(self.reach) or self.metric.decay > 0

    def log_density(self, z: Tensor) -> Tensor:
        """Log density up to a constant, ``(B,)``; minus infinity out of reach."""
        return self.bounded(z, self.metric.half_log_det(z))

    def bounded(self, z: Tensor, log_density: Tensor) -> Tensor:
        """Puts minus infinity where points are out of reach."""
        if math.isinf(self.reach):
            return log_density
        inside = self.metric.distances(z.detach()).amin(1) <= self.reach**2
        return torch.where(inside, log_density, -torch.inf)


@dataclass(frozen=True)
class Noise:
    """All random numbers of a batch of chains.

    Attributes:
        momenta: Standard normal, :math:`(S, B, d)`.
        uniforms: In (0, 1), :math:`(S, B)`.
    """

    momenta: Tensor
    uniforms: Tensor

    def __getitem__(self, rows: slice) -> Noise:
        return Noise(self.momenta[:, rows], self.uniforms[:, rows])


@dataclass(frozen=True)
class Chains:
    """Where chains ended, and how they moved.

    Attributes:
        z: Last states, :math:`(B, d)`.
        acceptance: Mean probability of acceptance of each chain, :math:`(B,)`.
        moves: Share of steps in which each chain moved, :math:`(B,)`.
        divergent: Steps whose energy was not finite.
        path: States after each step, :math:`(S, B, d)`, if they were asked for.
    """

    z: Tensor
    acceptance: Tensor
    moves: Tensor
    divergent: int
    path: Tensor | None = None


def exact_force(local: LocalMetric) -> Tensor:
    """The gradient of the log density."""
    return local.half_log_det_gradient()


@torch.no_grad()
def volume_chains(
    target: VolumeTarget,
    start: Tensor,
    noise: Noise,
    step_size: float,
    leapfrog_steps: int = 15,
    force: Force = exact_force,
    keep_path: bool = False,
) -> Chains:
    """Runs Hamiltonian Monte Carlo with unit masses.

    Args:
        target: What is drawn from.
        start: First states, :math:`(B, d)`, float64.
        noise: One momentum and one uniform number a step and chain.
        step_size: Of the leapfrog.
        leapfrog_steps: Steps of a trajectory.
        force: What pushes. Another force than the exact one leaves the density that is drawn from
            as it is, and only lowers the acceptance.
        keep_path: Whether to keep all states.
    """

    def slope_at(point: Tensor) -> Slope:
        local = target.metric.at(point)
        return Slope(-local.half_log_det, force(local))

    z, here = start, slope_at(start)
    energy = -target.bounded(z, -here.energy)
    accepted, moved, divergent = torch.zeros_like(energy), torch.zeros_like(energy), 0
    path = []
    for momentum, uniform in zip(noise.momenta, noise.uniforms, strict=True):
        point, p, there = z, momentum, here
        for _ in range(leapfrog_steps):
            point, p, there = palindromic_step(point, p, there, slope_at, step_size, step_size)
        new = -target.bounded(point, -there.energy)
        log_ratio = energy + 0.5 * momentum.square().sum(1) - new - 0.5 * p.square().sum(1)
        divergent += int(log_ratio.isnan().sum())
        log_ratio = log_ratio.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        accepted = accepted + log_ratio.clamp_max(0).exp()
        # A draw from (0, 1) rounds to 1 only within a hair, so its logarithm is finite.
        taken = uniform.log() < log_ratio
        z = torch.where(taken[:, None], point, z)
        energy = torch.where(taken, new, energy)
        here = Slope(
            torch.where(taken, there.energy, here.energy),
            torch.where(taken[:, None], there.force, here.force),
        )
        moved = moved + taken
        if keep_path:
            path.append(z)
    steps = max(1, len(noise.momenta))
    kept = torch.stack(path) if path else None
    return Chains(z, accepted / steps, moved / steps, divergent, kept)


@torch.no_grad()
def tuned_step_size(
    target: VolumeTarget,
    noise: Noise,
    first: Tensor,
    leapfrog_steps: int = 15,
    wanted: float = 0.85,
    rounds: int = 12,
) -> tuple[float, float]:
    """Finds a step size with a wanted acceptance; returns both.

    Twice the spread of a single kernel over the length of a trajectory is where the search begins:
    a trajectory should cross what it explores. The step is then halved until acceptance is high
    enough, or doubled while it is, and settled in between by bisection.

    Raises:
        StuckSamplerError: If no step size moves.
    """
    spread = target.metric.bandwidth / math.sqrt(first.shape[1])
    if target.metric.shaped:
        spread = spread / float(target.metric.matrices.diagonal(dim1=1, dim2=2).mean().sqrt())
    step = 2 * spread / leapfrog_steps
    longest = 4 * step  # beyond, trajectories only turn around more often
    low, high = 0.0, math.inf
    found = (step, 0.0)
    for _ in range(rounds):
        rate = float(volume_chains(target, first, noise, step, leapfrog_steps).acceptance.mean())
        if found[1] < wanted or rate >= wanted:
            found = (step, rate)
        if abs(rate - wanted) < 0.03:
            break
        if rate >= wanted:
            low = step
        else:
            high = step
        if rate >= wanted and step >= longest:
            break
        step = min(2 * step, longest) if math.isinf(high) else 0.5 * (low + high)
    require_moves(found[1], found[0])
    return found


def require_moves(acceptance: float, step_size: float, least: float = 0.1) -> None:
    """Checks that chains moved.

    Raises:
        StuckSamplerError: If they did not.
    """
    if acceptance < least:
        raise StuckSamplerError(
            f"the sampler accepts {acceptance:.1%} of its moves at step size {step_size:.3g} "
            f"(allowed: {least:.0%} or more), so its samples would stay at latents of training "
            f"cases. Lower `step_size`, raise `reach` or `bandwidth`, or raise `floor` if the "
            f"metric changes by many orders of magnitude."
        )


def median_bandwidth(metric: KernelMetric) -> float:
    """The median distance of a centre to its nearest one; 1 where there is no other."""
    squares = replace(metric, bandwidth=1.0).distances(metric.centroids)
    same = torch.eye(len(metric), dtype=torch.bool, device=squares.device)
    nearest = squares.masked_fill(same, torch.inf).amin(1).clamp_min(0).sqrt()
    nearest = nearest[nearest.isfinite() & (nearest > 0)]
    return float(nearest.median()) if len(nearest) else 1.0
