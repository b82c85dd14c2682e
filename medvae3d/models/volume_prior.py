r"""A prior that draws latents by the volume element of a metric made of the training cases.

.. math:: p(z) = \frac1Z \sqrt{\det K(z)} \quad \text{where} \quad \min_i q_i(z) \le r^2

with :math:`K` and :math:`q_i` as in `medvae3d.flows.metrics`. It is for any model whose latent is a
vector. The matrices are those of a Riemannian VAE, or, for a model without a learned metric, the
inverse covariances of its posteriors.

References:
    Chadebec et al., "Data augmentation in high dimensional low sample size setting using a
    geometry-based variational autoencoder", IEEE TPAMI 2022.
    Chadebec and Allassonniere, "A geometric perspective on variational autoencoders", 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medvae3d.errors import MetricError, SettingError, StuckSamplerError
from medvae3d.flows.metrics import KernelMetric
from medvae3d.flows.pairs import CasePairs
from medvae3d.flows.volume import (
    Noise,
    VolumeTarget,
    median_bandwidth,
    tuned_step_size,
    volume_chains,
)
from medvae3d.flows.volume_constant import log_normaliser
from medvae3d.numerics import (
    Generators,
    at_least_float32,
    float32_island,
    standard_normal,
    uniform,
)
from medvae3d.seeding import derive_generator

GEOMETRIES = ("metric", "posterior")
MOST_ELEMENTS = 64
"""Elements of a latent; the metric takes their square times the number of cases a step."""
HALVINGS = 8
"""How often a chain that stands still is begun anew with half of the step. The step is tuned to the
mean over cases, and a leapfrog is stable below twice the width of a kernel alone: from a case whose
posterior is much narrower than the rest, no trajectory is accepted. Half of the step was enough in
each of five sets of 20 or 24 cases with such a one."""


class VolumePrior(nn.Module):
    r"""Hamiltonian Monte Carlo on a bounded volume element, one chain a sample.

    Args:
        shape: Shape of one latent, :math:`(d,)` or a small map.
        geometry: ``metric`` for the pairs of a `RiemannianFlow`, ``posterior`` for posteriors.
        bandwidth: :math:`T` of the kernels; by default the median distance of a mean to its nearest
            one. Measured by posteriors it is :math:`\sqrt d` at least, as far as their own draws
            lie from their means: samples closer than that would be training cases again.
        floor: :math:`\lambda`.
        decay: :math:`\tau`.
        reach: :math:`r`, in bandwidths; ``None`` for none, which needs a decay.
        steps: Metropolis steps of a chain.
        leapfrog_steps: Steps of a trajectory.
        step_size: Of the leapfrog; tuned to an acceptance of 0.85 by default, when it is fitted.

    Shape:
        - ``z``: :math:`(B, d)`, or maps of :math:`d` elements

    Raises:
        MetricError: If it was not fitted, or its metric is not positive definite.
        StuckSamplerError: If chains do not move at any step size.
        SettingError: For settings without meaning.
    """

    attributes = 0
    keeps_scale = True
    is_standard: bool = False

    bandwidth: Tensor
    step_size: Tensor
    acceptance: Tensor
    log_constant: Tensor
    constant_error: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        geometry: str = "metric",
        bandwidth: float | None = None,
        floor: float = 0.01,
        decay: float = 0.0,
        reach: float | None = 2.5,
        steps: int = 100,
        leapfrog_steps: int = 15,
        step_size: float | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.size = math.prod(self.shape)
        fits = self.size <= MOST_ELEMENTS and geometry in GEOMETRIES
        if not fits or steps < 1 or leapfrog_steps < 1:
            raise SettingError(
                f"VolumePrior(shape={self.shape}, geometry={geometry!r}, steps={steps}, "
                f"leapfrog_steps={leapfrog_steps}): allowed are latents of {MOST_ELEMENTS} "
                f"elements at most (a vector: `vector_latent`), the geometries "
                f"{' and '.join(GEOMETRIES)}, and 1 or more steps; chains without a step would "
                f"be the latents of training cases."
            )
        if not floor > 0 or decay < 0 or (reach is None and not decay) or (reach or 1) <= 0:
            raise SettingError(
                f"VolumePrior(floor={floor}, decay={decay}, reach={reach}): the volume element is "
                f"a density only within a `reach` above 0 or with a `decay` above 0, and positive "
                f"definite only with a `floor` above 0."
            )
        self.geometry = geometry
        self.given_bandwidth = bandwidth
        self.given_step_size = step_size
        self.floor = floor
        self.decay = decay
        self.reach = math.inf if reach is None else reach
        self.steps = steps
        self.leapfrog_steps = leapfrog_steps
        self.pairs = CasePairs(self.size)
        for name in ("bandwidth", "step_size", "acceptance", "log_constant", "constant_error"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @property
    def metric(self) -> KernelMetric:
        """The metric of the training cases.

        Raises:
            MetricError: If it was not fitted.
        """
        if not self.pairs.is_fitted:
            raise MetricError(
                "the prior has no metric yet: it is made of all training cases at the end of a "
                "run. Add `medvae3d.training.metrics.MetricFitter` to the handlers of train.json "
                "before WeightsSaver, or call `medvae3d.training.metrics.fit_metric`."
            )
        centroids, factors = self.pairs.all()
        return KernelMetric(
            centroids,
            factors @ factors.mT,
            float(self.bandwidth),
            self.floor,
            self.decay,
            shaped=self.geometry == "posterior",
            is_inverse=self.geometry == "metric",
        )

    @property
    def target(self) -> VolumeTarget:
        """What is drawn from."""
        return VolumeTarget(self.metric, self.reach)

    def fit(
        self,
        latents: Tensor,
        attributes: Tensor | None = None,
        *,
        seed: int,
        validation: Tensor | tuple[Tensor, Tensor | None] | None = None,
    ) -> VolumePrior:
        """Does nothing: draws say nothing of single cases, and it is `fit_cases` that is needed."""
        return self

    @torch.no_grad()
    def fit_cases(
        self, centroids: Tensor, factors: Tensor, cases: Sequence[str], *, seed: int
    ) -> VolumePrior:
        """Fits the prior on one pair for each training case, and tunes its sampler.

        Args:
            centroids: Means of the posteriors, :math:`(N, ...)`.
            factors: Lower factors of the matrices :math:`M_i`, :math:`(N, d, d)`.
            cases: Names of the cases.
            seed: Seeds the tuning and the estimate of the normalising constant.
        """
        self.pairs.fit(centroids, factors, cases)
        size = self.size
        self.bandwidth.fill_(1.0 if self.given_bandwidth is None else self.given_bandwidth)
        if self.given_bandwidth is None:
            least = math.sqrt(size) if self.geometry == "posterior" else 0.0
            self.bandwidth.fill_(max(least, median_bandwidth(self.metric)))
        target = self.target
        generator = derive_generator(seed, "volume prior")
        picked = torch.randint(len(self.pairs), (64,), generator=generator)
        start = target.metric.centroids[picked.to(self.bandwidth.device)]
        noise = Noise(
            self._normal((12, 64, size), generator),
            uniform((12, 64), generator, torch.float64, start.device),
        )
        if self.given_step_size is None:
            step, rate = tuned_step_size(target, noise, start, self.leapfrog_steps)
        else:
            step = self.given_step_size
            chains = volume_chains(target, start, noise, step, self.leapfrog_steps)
            rate = float(chains.acceptance.mean())
        self.step_size.fill_(step)
        self.acceptance.fill_(rate)
        constant, error = log_normaliser(target, generator)
        self.log_constant.fill_(constant)
        self.constant_error.fill_(error)
        return self

    def log_prob(self, z: Tensor, attributes: Tensor | None = None) -> Tensor:
        """Log density in nats, ``(B,)``; its constant is known to ``constant_error``."""
        with float32_island(z.device.type):
            density = self.target.log_density(z.flatten(1).double()) - self.log_constant
        return density.to(at_least_float32(z).dtype)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        attributes: Tensor | None = None,
        generators: Generators = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws latents, float32: the ends of chains that start at a random training case each.

        With a generator for each, chains run one after the other, as the last bit of a product of
        matrices depends on the size of a batch and a Metropolis step on that bit. A chain that does
        not move at all starts anew from the same case, on noise of its own and with half of the
        step: every step size draws from the same density, and those that move are as they were.

        Args:
            count: How many.
            attributes: Not told to this prior.
            generators: One for all, or one for each.
            temperature: Scales how far the chain went from its start; at 0 it is a training case.
        """
        if isinstance(generators, torch.Generator) or generators is None:
            return self._chains([generators] * count, temperature)
        if len(generators) != count:
            raise SettingError(
                f"{count} samples asked for with {len(generators)} generators; pass one each."
            )
        drawn = [self._chains([each], temperature) for each in generators]
        return torch.cat(drawn) if drawn else self._chains([], temperature)

    def _chains(self, generators: Sequence[torch.Generator | None], temperature: float) -> Tensor:
        """Runs chains side by side."""
        device = self.bandwidth.device
        if not generators:
            return torch.zeros(0, *self.shape, device=device)
        shares, noise = self._noise(generators)
        with float32_island(device.type):
            target = self.target
            start = target.metric.centroids[(shares * len(self.pairs)).long()]
            step = float(self.step_size)
            chains = volume_chains(target, start, noise, step, self.leapfrog_steps)
            z, moves = chains.z, chains.moves
            for _ in range(HALVINGS):
                stuck = (moves == 0).nonzero()[:, 0]
                if not len(stuck):
                    break
                step /= 2
                _, noise = self._noise([generators[int(row)] for row in stuck])
                again = volume_chains(target, start[stuck], noise, step, self.leapfrog_steps)
                z, moves = z.index_copy(0, stuck, again.z), moves.index_copy(0, stuck, again.moves)
        self._require_moved(moves, step)
        z = start + temperature * (z - start)
        return z.float().reshape(-1, *self.shape)

    def _noise(self, generators: Sequence[torch.Generator | None]) -> tuple[Tensor, Noise]:
        """All random numbers of chains: where each begins, ``(B,)`` in (0, 1), and its noise."""
        rows = [self._noise_of(each) for each in generators]
        shares, momenta, uniforms = (torch.stack(part, 1) for part in zip(*rows, strict=True))
        return shares[0], Noise(momenta, uniforms)

    def _noise_of(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """All random numbers of one chain."""
        device = self.bandwidth.device
        share = uniform((1,), generator, torch.float64, device)
        momenta = self._normal((self.steps, self.size), generator)
        return share, momenta, uniform((self.steps,), generator, torch.float64, device)

    def _normal(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        return standard_normal(shape, generator, torch.float64, self.bandwidth.device)

    def _require_moved(self, moves: Tensor, shortest: float) -> None:
        stuck = int((moves == 0).sum())
        if stuck:
            raise StuckSamplerError(
                f"{stuck} of {len(moves)} chains did not move in {self.steps} steps of size "
                f"{float(self.step_size):.3g}, nor of half of it and so on down to {shortest:.3g}, "
                f"so they would give latents of training cases (mean acceptance when fitted: "
                f"{float(self.acceptance):.2f}). Set a lower `step_size` for the prior or leave it "
                f"out, so that it is tuned, or raise `floor`, so that the metric changes less, and "
                f"fit it again."
            )

    def extra_repr(self) -> str:
        return (
            f"shape={self.shape}, geometry={self.geometry}, floor={self.floor:.3g}, "
            f"decay={self.decay:.3g}, reach={self.reach:.3g}, steps={self.steps}"
        )
