r"""The flow of a Riemannian VAE: Hamiltonian steps in a space whose metric is learned.

.. math::
    H(z, \rho) = U(z) + \tfrac12 \rho^\top G^{-1}(z)\, \rho + \tfrac12 \log\det G(z),
    \qquad \rho_0 = S(z_0)\, \gamma / \sqrt{\beta_0}, \quad \gamma \sim \mathcal N(0, I)

with :math:`G^{-1}` a sum of kernels around cases (`medvae3d.flows.metrics`). Each of :math:`K`
generalised leapfrog steps is followed by the cooling of the Hamiltonian flow. The steps keep
volume and the cooling changes it by :math:`\beta_0^{d/2}`, which cancels against the density of
:math:`\rho_0`, so that

.. math::
    \log w = \log p(x, z_K) - \log q(z_0) + \log \mathcal N(\rho_K; 0, G(z_K))
             - \log \mathcal N(\gamma; 0, I) + \log |\det S(z_0)|

is an unbiased log weight. With :math:`S S^\top = G(z_0)` the last term is
:math:`\tfrac12 \log\det G(z_0)`; public implementations leave it out, and what they then maximise
is no bound.

References:
    Chadebec, Mantoux and Allassonniere, "Geometry-aware Hamiltonian variational auto-encoder",
    2020. Chadebec et al., "Data augmentation in high dimensional low sample size setting using a
    geometry-based variational autoencoder", IEEE TPAMI 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medvae3d.errors import DivergedFlowError, MetricError, SettingError
from medvae3d.flows.hamiltonian import Flowed, tempering
from medvae3d.flows.implicit import Solver, generalised_leapfrog
from medvae3d.flows.integrators import Potential, Slope, slope
from medvae3d.flows.metrics import KernelMetric, LocalMetric
from medvae3d.flows.pairs import CasePairs, case_numbers
from medvae3d.numerics import Generators, at_least_float32, float32_island, standard_normal

COLOURINGS = ("metric", "network")


@dataclass(frozen=True, eq=False)
class _Place:
    """The Hamiltonian at positions; a `medvae3d.flows.implicit.Place`."""

    local: LocalMetric
    slope: Slope

    def position_gradient(self, momentum: Tensor) -> Tensor:
        local = self.local
        # 1/2 log det G is minus 1/2 log det of its inverse, which is what the metric holds.
        geometric = local.kinetic_gradient(momentum) - local.half_log_det_gradient()
        return geometric - self.slope.force

    def velocity(self, momentum: Tensor) -> Tensor:
        return self.local.velocity(momentum)

    def energy(self, momentum: Tensor) -> Tensor:
        kinetic = self.local.kinetic(momentum) - self.local.half_log_det
        return self.slope.energy + kinetic.detach()


class RiemannianFlow(nn.Module):
    r"""Carries a latent towards :math:`p(z \mid x)` along a metric made of the training cases.

    While training, the metric is made of the batch and of the latest pairs of other cases, which
    are kept in ``pairs`` without their gradients: batches of two to eight volumes alone would be a
    noisy metric. In the end one pass over all training cases fixes it (``pairs.fit``).

    Args:
        size: Elements :math:`d` of a latent. Costs grow with :math:`N d^2`.
        network: Makes the lower Cholesky factor :math:`L_i` of :math:`M_i` from the encoder's
            features; without it all :math:`M_i` are those that ``pairs.fit`` was given.
        num_steps: Steps :math:`K`; 0 is the identity.
        step_size: Step size :math:`\epsilon`, not learned.
        initial_beta: Inverse temperature :math:`\beta_0` in :math:`(0, 1]`.
        bandwidth: :math:`T`, of the order of the distance between centres.
        floor: :math:`\lambda`, far below the eigenvalues of the :math:`M_i`.
        queue: Cases whose latest pair is kept while training.
        colouring: What colours the first momentum while training: ``network`` for the case's own
            :math:`L_i`, which keeps the scale of :math:`M_i` finite, ``metric`` for
            :math:`G(z_0)`. Outside of training it is always the latter.
        full_bound: Whether :math:`\log|\det S(z_0)|` counts. Without it the result is that of
            public implementations, for comparison.
        detach_features: Whether the metric teaches its own network only, not the encoder's trunk.
        iterations: Most iterations of the implicit equations.
        tolerance: When they count as solved.
        max_residual: Largest residual that is let pass.
        first_order: See `HamiltonianFlow`.

    Shape:
        - ``z``: :math:`(B, d)`, or a map with :math:`d` elements
        - ``features``: :math:`(B, W, i, j, k)`; ``mean``: of the shape of ``z``

    Raises:
        DivergedFlowError: If a trajectory is not finite, or its equations were not solved.
        MetricError: If the metric is not positive definite.
        SettingError: For settings without meaning.

    Example:
        >>> flow = RiemannianFlow(4, step_size=0.05)
        >>> flow.pairs.fit(torch.randn(6, 4), torch.eye(4).expand(6, 4, 4), list("abcdef"))
        >>> flowed = flow(torch.randn(5, 4), lambda z: 0.5 * z.square().sum(1))
        >>> flowed.z.shape, flowed.num_gradients
        (torch.Size([5, 4]), 4)
    """

    reads_encoder = True
    step_size: Tensor
    beta: Tensor

    def __init__(
        self,
        size: int,
        network: nn.Module | None = None,
        num_steps: int = 3,
        step_size: float = 1e-3,
        initial_beta: float = 0.3,
        bandwidth: float = 1.5,
        floor: float = 0.01,
        queue: int = 256,
        colouring: str = "network",
        full_bound: bool = True,
        detach_features: bool = False,
        iterations: int = 20,
        tolerance: float = 1e-10,
        max_residual: float = 1e-4,
        first_order: bool = False,
    ) -> None:
        super().__init__()
        if num_steps < 0 or step_size < 0 or not 0 < initial_beta <= 1 or queue < 0:
            raise SettingError(
                f"RiemannianFlow(num_steps={num_steps}, step_size={step_size}, "
                f"initial_beta={initial_beta}, queue={queue}): allowed are num_steps >= 0, "
                f"step_size >= 0, 0 < initial_beta <= 1 and queue >= 0."
            )
        if not floor > 0 or not bandwidth > 0 or colouring not in COLOURINGS:
            raise SettingError(
                f"RiemannianFlow(floor={floor}, bandwidth={bandwidth}, colouring={colouring!r}): "
                f"allowed are floor > 0, as the metric is not positive definite without, "
                f"bandwidth > 0, and colouring {' or '.join(COLOURINGS)}."
            )
        self.size = size
        self.network = network
        self.num_steps = num_steps
        self.bandwidth = bandwidth
        self.floor = floor
        self.colouring = colouring
        self.full_bound = full_bound
        self.detach_features = detach_features
        self.solver = Solver(iterations, tolerance)
        self.max_residual = max_residual
        self.first_order = first_order
        self.register_buffer("step_size", torch.tensor(step_size, dtype=torch.float64))
        self.register_buffer("beta", tempering(num_steps, initial_beta))
        self.pairs = CasePairs(size, queue)

    # -- the metric -----------------------------------------------------------------------------

    @property
    def metric(self) -> KernelMetric:
        """The metric of the stored cases, outside of the graph."""
        return self._metric_of(*self.pairs.all())

    def _metric_of(self, centroids: Tensor, factors: Tensor) -> KernelMetric:
        return KernelMetric(centroids, factors @ factors.mT, self.bandwidth, self.floor)

    def factor_of(self, features: Tensor) -> Tensor:
        """:math:`L_i` of cases from the encoder's features, ``(B, d, d)``, float64."""
        if self.network is None:
            raise MetricError(
                "this flow has no metric network, so it cannot make the metric of new cases; give "
                "it a `network`, or pairs with `pairs.fit`."
            )
        given = features.detach() if self.detach_features else features
        return self.network(at_least_float32(given)).double()

    # -- the flow -------------------------------------------------------------------------------

    def forward(
        self,
        z: Tensor,
        potential: Potential,
        generator: Generators = None,
        *,
        features: Tensor | None = None,
        mean: Tensor | None = None,
        cases: Sequence[str] | None = None,
    ) -> Flowed:
        """Flows; told what the encoder saw, it makes the metric of the batch while training."""
        z = at_least_float32(z)
        if self.num_steps == 0:
            return Flowed(z, z.new_zeros(len(z)))
        noise = standard_normal(z.shape, generator, dtype=z.dtype, device=z.device)
        with float32_island(z.device.type):
            if not self.training or self.network is None or features is None or mean is None:
                return self.move(z, noise, potential)[0]
            centroids, factors = mean.flatten(1).double(), self.factor_of(features)
            numbers = [-1] * len(z) if cases is None else case_numbers(cases)
            others, other_factors = self.pairs.others(numbers)
            learned = factors @ factors.mT
            metric = KernelMetric(
                torch.cat([others, centroids]),
                torch.cat([other_factors @ other_factors.mT, learned.detach()]),
                self.bandwidth,
                self.floor,
                learned=learned,
            )
            own = factors if self.colouring == "network" else None
            flowed, _ = self.move(z, noise, potential, metric, own)
            self.pairs.remember(centroids, factors, numbers)
        return flowed

    def move(
        self,
        z: Tensor,
        noise: Tensor,
        potential: Potential,
        metric: KernelMetric | None = None,
        own: Tensor | None = None,
    ) -> tuple[Flowed, Tensor]:
        r"""Flows from a given start, in float64; returns the last momentum too.

        Args:
            z: The latent :math:`z_0`.
            noise: :math:`\gamma`, of its shape.
            potential: The potential, which sees latents of the shape and type of ``z``.
            metric: The metric; that of the stored cases by default.
            own: Factors :math:`S` that colour the momentum; those of the metric by default.
        """
        metric = self.metric if metric is None else metric
        shape, dtype, taken = z.shape, z.dtype, 0

        def place_at(point: Tensor) -> _Place:
            nonlocal taken
            taken += 1
            at = slope(
                lambda p: potential(p.reshape(shape).to(dtype)).double(),
                point,
                first_order=self.first_order,
            )
            return _Place(metric.at(point), at)

        point = z.flatten(1).double()
        gamma = noise.flatten(1).double()
        here: _Place = place_at(point)
        if own is None:
            momentum, log_det = here.local.colour(gamma), -here.local.half_log_det
        else:
            momentum = (own @ gamma[:, :, None])[:, :, 0]
            log_det = own.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        temperature = self.beta.double().sqrt()
        momentum = momentum / temperature[0]
        first_energy = here.energy(momentum)
        energy_error = torch.zeros_like(first_energy)
        residual, iterations = torch.zeros_like(first_energy), 0
        for before, after in zip(temperature[:-1], temperature[1:], strict=True):
            energy = here.energy(momentum)
            stepped = generalised_leapfrog(
                point,
                momentum,
                here,
                place_at,
                lambda x, p: (metric.matrix(x) @ p[:, :, None])[:, :, 0],
                self.step_size.double(),
                self.solver,
            )
            point, momentum, here = stepped.z, stepped.momentum, stepped.place  # type: ignore[assignment]
            energy_error = energy_error + here.energy(momentum) - energy
            residual = torch.maximum(residual, stepped.residual)
            iterations = max(iterations, stepped.iterations)
            momentum = momentum * (before / after)
        log_weight = 0.5 * gamma.square().sum(1) - here.local.kinetic(momentum)
        log_weight = log_weight + here.local.half_log_det
        if self.full_bound:
            log_weight = log_weight + log_det
        flowed = Flowed(
            point.reshape(shape).to(dtype),
            log_weight=log_weight.to(dtype),
            first_energy=first_energy.to(dtype),
            last_energy=(first_energy + energy_error).to(dtype),
            force_norm=here.slope.force.detach().norm(dim=1).to(dtype),
            momentum_norm=momentum.detach().norm(dim=1).to(dtype),
            displacement=(point - z.flatten(1)).detach().norm(dim=1).to(dtype),
            start_norm=z.detach().flatten(1).norm(dim=1).to(dtype),
            num_gradients=taken,
            solver_residual=residual.to(dtype),
            solver_iterations=iterations,
        )
        self._require_solved(flowed, residual)
        return flowed, momentum.reshape(shape)

    def _require_solved(self, flowed: Flowed, residual: Tensor) -> None:
        good = flowed.log_weight.detach().isfinite() & (residual <= self.max_residual)
        if bool(good.all()):
            return
        worst = residual.nan_to_num(nan=math.inf).max().item()
        raise DivergedFlowError(
            f"{int((~good).sum())} of {len(good)} trajectories diverged: residual of the implicit "
            f"steps up to {worst:.3g} after {flowed.solver_iterations} iterations (allowed: "
            f"{self.max_residual:.3g}), step size {self.step_size.item():.3g}. Lower step_size or "
            f"the learning rate of the metric network; only then raise iterations."
        )

    def extra_repr(self) -> str:
        return (
            f"size={self.size}, num_steps={self.num_steps}, step_size={self.step_size.item():.3g}, "
            f"bandwidth={self.bandwidth:.3g}, floor={self.floor:.3g}"
        )
