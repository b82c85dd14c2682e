"""The numbered claims of a Riemannian VAE about its flow."""

from __future__ import annotations

import math

import pytest
import torch

from medvae3d.errors import DivergedFlowError, MetricError, SettingError
from medvae3d.flows.hamiltonian import HamiltonianFlow
from medvae3d.flows.implicit import Solver, fixed_point
from medvae3d.flows.metrics import KernelMetric
from medvae3d.flows.riemannian import RiemannianFlow
from medvae3d.networks.metrics import MetricNetwork


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def quartic(z):
    return (0.25 * z**4 + 0.5 * z**2).flatten(1).sum(1)


def fitted(size=4, cases=6, scale=0.7, **options):
    flow = RiemannianFlow(size, **{"step_size": 0.05, "queue": 0, "bandwidth": 1.2, **options})
    factors = scale * (torch.eye(size) + 0.3 * torch.tril(draw(cases, size, size, seed=8), -1))
    names = [f"case_{i}" for i in range(cases)]
    flow = flow.double()
    flow.pairs.fit(draw(cases, size, seed=7), factors, names)
    return flow


class LinearGaussian:
    """x = W z + noise in float64, and a posterior that misses the true one."""

    def __init__(self, size=2, observed=5, sd=0.7):
        self.weight = draw(observed, size, seed=1)
        self.x = draw(observed, seed=2) * 2
        self.sd = sd
        precision = torch.eye(size).double() + self.weight.T @ self.weight / sd**2
        mean = torch.linalg.solve(precision, self.weight.T @ self.x / sd**2)
        spread = torch.linalg.inv(precision).diagonal().sqrt()
        self.posterior = torch.distributions.Normal(mean + 0.1, 1.3 * spread)

    def log_joint(self, z):
        noise = torch.distributions.Normal(z @ self.weight.T, self.sd)
        prior = torch.distributions.Normal(torch.zeros_like(z), 1.0)
        return noise.log_prob(self.x).sum(1) + prior.log_prob(z).sum(1)

    def evidence(self):
        covariance = self.weight @ self.weight.T + self.sd**2 * torch.eye(len(self.x)).double()
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(self.x), covariance)
        return normal.log_prob(self.x).item()

    @torch.no_grad()
    def estimate(self, flow, count=20_000, own=None):
        """Log of the mean weight, and its standard error."""
        torch.manual_seed(3)
        z = self.posterior.sample((count,))
        noise = draw(*z.shape, seed=4)
        own = None if own is None else own.expand(count, -1, -1)
        flowed, _ = flow.move(z, noise, lambda z: -self.log_joint(z), own=own)
        log_weights = self.log_joint(flowed.z) - self.posterior.log_prob(z).sum(1)
        log_weights = log_weights + flowed.log_weight
        estimate = (log_weights.logsumexp(0) - math.log(count)).item()
        weights = (log_weights - estimate).exp()
        return estimate, weights.std().item() / math.sqrt(count)


# 1
@pytest.mark.parametrize(("floor", "mass"), [(1.0, 1.0), (0.25, 4.0)])
def test_without_matrices_it_is_a_hamiltonian_flow_with_masses_of_one_over_the_floor(floor, mass):
    flow = fitted(scale=0.0, floor=floor, initial_beta=0.3)
    z, noise = draw(5, 4), draw(5, 4, seed=1)
    torch.testing.assert_close(flow.metric.matrix(z)[0], floor * torch.eye(4).double())
    flowed, momentum = flow.move(z, noise, quartic)
    # A mass is a change of units of the step: z moves by e / sqrt(mass) in units of momentum one.
    plain = HamiltonianFlow(3, 0.05 / math.sqrt(mass), 0.3).double()
    expected, last = plain.move(z, noise, quartic)
    torch.testing.assert_close(flowed.z, expected.z, rtol=0, atol=1e-6)
    torch.testing.assert_close(momentum / math.sqrt(mass), last, rtol=0, atol=1e-6)
    torch.testing.assert_close(flowed.log_weight, expected.log_weight, rtol=0, atol=1e-6)


# 2
@pytest.mark.parametrize("initial_beta", [1.0, 0.3])
def test_a_flow_that_does_not_move_has_the_bound_of_a_plain_model(initial_beta):
    flow = fitted(step_size=0.0, initial_beta=initial_beta)
    z = draw(5, 4)
    flowed = flow(z, quartic)
    assert torch.equal(flowed.z, z)
    torch.testing.assert_close(flowed.log_weight, torch.zeros(5).double(), rtol=0, atol=1e-12)
    own = flow.pairs.factors[:1].expand(5, 4, 4)
    coloured, _ = flow.move(z, draw(5, 4, seed=1), quartic, own=own)
    assert coloured.log_weight.abs().min() > 1e-3  # two momentum densities that do not cancel


def test_without_steps_no_metric_is_needed():
    flowed = RiemannianFlow(4, num_steps=0)(draw(2, 4), quartic)
    assert flowed.num_gradients == 0
    assert torch.equal(flowed.log_weight, torch.zeros(2).double())


# 5
@pytest.mark.parametrize(("step_size", "initial_beta"), [(1e-3, 0.3), (0.1, 0.5), (0.1, 1.0)])
def test_weights_average_to_the_evidence_with_the_full_bound(step_size, initial_beta):
    model = LinearGaussian()
    flow = fitted(2, step_size=step_size, initial_beta=initial_beta)
    estimate, error = model.estimate(flow)
    assert error < 0.1
    assert abs(estimate - model.evidence()) < 3 * error


def test_weights_average_to_the_evidence_with_another_colouring():
    # Close to the root of the metric, so that no weight spoils the average.
    model = LinearGaussian()
    flow = fitted(2, step_size=0.05, initial_beta=0.8)
    local = flow.metric.at(model.posterior.mean[None])
    own = torch.linalg.cholesky(torch.linalg.inv(local.matrix)) * 1.1
    estimate, error = model.estimate(flow, own=own)
    assert error < 0.1
    assert abs(estimate - model.evidence()) < 3 * error


def test_weights_of_the_public_form_do_not_average_to_the_evidence():
    model = LinearGaussian()
    full, error = model.estimate(fitted(2, initial_beta=0.5, scale=0.3))
    public, _ = model.estimate(fitted(2, initial_beta=0.5, scale=0.3, full_bound=False))
    assert abs(full - model.evidence()) < 3 * error
    assert abs(public - model.evidence()) > 30 * error


# What trains the metric.


def slope_in_the_scale(scale, by_own=False, **options):
    """Derivative of the bound with respect to log m, all matrices being m times the identity."""
    model = LinearGaussian()
    flow = fitted(2, **{"step_size": 1e-3, "initial_beta": 0.3, **options})
    torch.manual_seed(3)
    z = model.posterior.sample((4000,))
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    m = scale * log_scale.exp()
    eye = torch.eye(2, dtype=torch.float64)
    metric = KernelMetric(flow.metric.centroids, (m * eye).expand(6, 2, 2), 1.2, 0.01)
    own = (m.sqrt() * eye).expand(len(z), 2, 2) if by_own else None
    flowed, _ = flow.move(z, draw(*z.shape, seed=4), lambda x: -model.log_joint(x), metric, own)
    bound = (model.log_joint(flowed.z) + flowed.log_weight).mean()
    return torch.autograd.grad(bound, log_scale)[0].item()


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_only_the_public_form_makes_the_metric_grow_without_end(scale):
    assert slope_in_the_scale(scale, full_bound=False) > 0.5
    assert abs(slope_in_the_scale(scale)) < 0.02


def test_with_a_momentum_of_its_own_colour_the_scale_of_the_metric_has_an_optimum():
    assert slope_in_the_scale(0.3, by_own=True) > 0.5
    assert slope_in_the_scale(1.0, by_own=True) < -0.5


# 6
def determinant(iterations, step_size):
    flow = fitted(
        2, num_steps=1, step_size=step_size, initial_beta=1.0, iterations=iterations, tolerance=0.0,
        max_residual=math.inf, bandwidth=0.8, scale=1.5,
    )  # fmt: skip

    def step(state):
        z, momentum = state.view(2, 1, 2)
        local = flow.metric.at(z)
        noise = (local.factor.mT @ momentum[:, :, None])[:, :, 0]
        flowed, last = flow.move(z, noise, quartic)
        return torch.cat([flowed.z, last]).flatten()

    state = torch.cat([draw(2, seed=3), 1.5 * draw(2, seed=5)])
    return torch.linalg.det(torch.autograd.functional.jacobian(step, state)).item()


def test_a_step_keeps_volume_at_the_default_step_and_three_iterations():
    assert abs(determinant(3, 1e-3) - 1) < 1e-5


def test_volume_is_kept_the_better_the_further_the_equations_are_solved():
    off = {
        (step, count): abs(determinant(count, step) - 1)
        for step in (0.1, 0.01)
        for count in (1, 3, 12)
    }
    assert off[0.1, 1] > 1e-3
    assert off[0.1, 1] > 3 * off[0.1, 3] > 3e3 * off[0.1, 12]
    assert off[0.01, 1] < 0.1 * off[0.1, 1]
    assert off[0.01, 3] < 1e-4 and off[0.1, 12] < 1e-6


def test_cooling_changes_volume_by_the_temperature_alone():
    flow = fitted(2, initial_beta=0.3)

    def move(state):
        z, momentum = state.view(2, 1, 2)
        local = flow.metric.at(z)
        noise = (local.factor.mT @ momentum[:, :, None])[:, :, 0] * math.sqrt(0.3)
        flowed, last = flow.move(z, noise, quartic)
        return torch.cat([flowed.z, last]).flatten()

    jacobian = torch.autograd.functional.jacobian(move, draw(4))
    assert torch.linalg.det(jacobian).item() == pytest.approx(0.3, rel=1e-6)


# 7
def test_the_flow_runs_backwards_where_its_equations_are_solved():
    flow = fitted(num_steps=5, initial_beta=1.0, iterations=50)
    z, noise = draw(6, 4), draw(6, 4, seed=1)
    there, momentum = flow.move(z, noise, quartic)
    back_noise = (flow.metric.at(there.z).factor.mT @ -momentum[:, :, None])[:, :, 0]
    back, last = flow.move(there.z, back_noise, quartic)
    assert (back.z - z).abs().max() < 1e-5
    first = flow.metric.at(z).colour(noise)
    assert (last + first).abs().max() < 1e-5
    assert (there.z - z).abs().max() > 0.1


# 8
def test_the_energy_error_falls_by_four_when_the_step_is_halved():
    errors = []
    for num_steps in (8, 16, 32):
        flow = fitted(3, num_steps=num_steps, step_size=0.8 / num_steps, initial_beta=1.0)
        flowed, momentum = flow.move(draw(64, 3), draw(64, 3, seed=1), quartic)
        local = flow.metric.at(flowed.z)
        energy = quartic(flowed.z) + local.kinetic(momentum) - local.half_log_det
        torch.testing.assert_close(flowed.last_energy, energy)
        errors.append(flowed.energy_error.abs().mean().item())
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine == pytest.approx(4, rel=0.3)


# The solver.


def test_the_solver_says_how_far_it_came():
    halve = lambda x: 0.5 * x + torch.tensor([[1.0, 1.0]]).double()
    start = torch.zeros(1, 2).double()
    good = fixed_point(halve, start, Solver(100, 1e-10))
    torch.testing.assert_close(good.value, torch.full((1, 2), 2.0).double())
    assert bool(good.converged.all()) and 30 < good.iterations < 40
    early = fixed_point(halve, start, Solver(3, 1e-10))
    assert not bool(early.converged.any()) and early.iterations == 3
    assert early.residual.item() == pytest.approx(0.25 / 1.75)


def test_a_flow_reports_its_solver_and_refuses_what_is_not_solved():
    flowed = fitted()(draw(3, 4), quartic)
    found = flowed.report()
    assert found["solver_iterations"] == flowed.solver_iterations > 1
    assert found["momentum_norm"] > 0 and found["moved"] > 1e-3
    assert flowed.solver_residual.max() < 1e-10
    with pytest.raises(DivergedFlowError, match=r"residual.*after 2 iterations.*Lower step_size"):
        fitted(step_size=0.8, iterations=2)(3 * draw(3, 4), quartic)


# Training.


def told(count=3, seed=0, names="abc"):
    return {
        "features": draw(count, 6, 2, 2, 2, seed=seed).float(),
        "mean": draw(count, 4, seed=seed + 1).float().requires_grad_(),
        "cases": list(names),
    }


def learner(**options):
    torch.manual_seed(0)
    network = MetricNetwork(6, 4, hidden=8)
    with torch.no_grad():
        network.output.bias += 0.1
    return RiemannianFlow(4, network, **{"step_size": 0.05, "queue": 5, **options})


def test_while_training_the_metric_is_of_the_batch_and_of_other_cases_before_it():
    flow = learner()
    flow(draw(3, 4).float(), quartic, **told())
    assert len(flow.pairs) == 3
    seen = told(2, 5, "cd")
    z, noise = draw(2, 4).float(), torch.Generator().manual_seed(1)
    others = flow.pairs.others([])[0][:2]
    found = flow(z, quartic, noise, **seen)
    assert len(flow.pairs) == 4 and flow.pairs.holds("abcde") == [True] * 4 + [False]
    own = flow.factor_of(seen["features"])
    first = learner()
    first(draw(3, 4).float(), quartic, **told())
    factors = torch.cat([first.pairs.all()[1][:2], own])
    metric = KernelMetric(
        torch.cat([others, seen["mean"].double()]), factors @ factors.mT, 1.5, 0.01
    )
    again = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    expected, _ = flow.move(z, again, quartic, metric, own)
    torch.testing.assert_close(found.z, expected.z)
    torch.testing.assert_close(found.log_weight, expected.log_weight)


@pytest.mark.parametrize("colouring", ["network", "metric"])
def test_the_bound_teaches_the_metric_and_the_encoder(colouring):
    flow, seen = learner(colouring=colouring), told()
    flowed = flow(draw(3, 4).float(), quartic, **seen)
    loss = (quartic(flowed.z) - flowed.log_weight).mean()
    gradients = torch.autograd.grad(loss, [*flow.network.parameters(), seen["mean"]])
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)


def test_the_gradient_of_a_matrix_is_exact():
    """Finite differences through three implicit steps, in float64."""

    def loss(shift):
        flow = fitted(3, num_steps=3, step_size=0.1, initial_beta=0.5)
        metric = flow.metric
        matrices = metric.matrices + shift * metric.matrices[0]
        metric = type(metric)(metric.centroids, matrices, metric.bandwidth, metric.floor)
        flowed, _ = flow.move(draw(4, 3), draw(4, 3, seed=1), quartic, metric)
        return (quartic(flowed.z) - flowed.log_weight).mean()

    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(loss(shift), shift)
    slope = (loss(torch.tensor(1e-5)) - loss(torch.tensor(-1e-5))).item() / 2e-5
    assert exact.item() == pytest.approx(slope, rel=1e-5)
    assert abs(slope) > 1e-3


def test_evaluation_reads_the_stored_metric_and_changes_nothing():
    flow = learner()
    flow.pairs.fit(draw(2, 4), 0.5 * torch.eye(4).expand(2, 4, 4), ["x", "y"])
    flow.eval()
    seen = told()
    one = flow(draw(3, 4).float(), quartic, torch.Generator().manual_seed(1), **seen)
    other = flow(draw(3, 4).float(), quartic, torch.Generator().manual_seed(1))
    assert torch.equal(one.z, other.z)
    assert flow.pairs.is_fitted and len(flow.pairs) == 2


def test_a_metric_loads_into_a_flow_that_has_none():
    flow, bare = fitted(), RiemannianFlow(4, step_size=0.05, queue=3, bandwidth=1.2).double()
    bare.load_state_dict(flow.state_dict())
    seeded = lambda: torch.Generator().manual_seed(1)
    one, other = (each(draw(3, 4), quartic, seeded()) for each in (flow, bare))
    assert torch.equal(one.z, other.z)
    assert torch.equal(one.log_weight, other.log_weight)


def test_detached_features_teach_the_network_alone():
    for detached in (False, True):
        flow, seen = learner(detach_features=detached), told()
        seen["features"].requires_grad_()
        flowed = flow(draw(3, 4).float(), quartic, **seen)
        (flowed.log_weight.sum() + quartic(flowed.z).sum()).backward()
        assert (seen["features"].grad is None) == detached


def test_a_metric_network_starts_near_the_identity_and_stays_bounded():
    network = MetricNetwork(6, 4)
    factor = network(draw(3, 6, 2, 2, 2).float())
    assert torch.equal(factor, factor.tril())
    assert (factor - torch.eye(4)).abs().max() < 0.3
    with torch.no_grad():
        network.output.bias.fill_(1e4)
    assert network(draw(3, 6, 2, 2, 2).float()).diagonal(dim1=1, dim2=2).max() <= math.exp(5) + 1


@pytest.mark.parametrize(
    "options",
    [{"num_steps": -1}, {"floor": 0.0}, {"bandwidth": 0.0}, {"colouring": "blue"}, {"queue": -1}],
)
def test_settings_without_meaning_are_refused(options):
    with pytest.raises(SettingError):
        RiemannianFlow(4, **options)


def test_a_flow_without_a_network_makes_no_metric_of_new_cases():
    with pytest.raises(MetricError, match=r"pairs\.fit"):
        fitted().factor_of(draw(1, 2))
