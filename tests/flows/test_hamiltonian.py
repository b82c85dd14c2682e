"""The numbered claims of a Hamiltonian VAE, on models whose evidence is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medvae3d.errors import DivergedFlowError, SettingError
from medvae3d.flows.hamiltonian import HamiltonianFlow, Identity
from medvae3d.flows.integrators import YOSHIDA, leapfrog, palindromic_step, slope


def quartic(z):
    return (0.25 * z**4 + 0.5 * z**2).flatten(1).sum(1)


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


class LinearGaussian:
    """x = W z + noise in float64, and a posterior that misses the true one."""

    def __init__(self, size=3, observed=5, sd=0.7):
        self.weight = draw(observed, size, seed=1)
        self.x = draw(observed, seed=2) * 2
        self.sd = sd
        self.size = size
        precision = torch.eye(size).double() + self.weight.T @ self.weight / sd**2
        mean = torch.linalg.solve(precision, self.weight.T @ self.x / sd**2)
        # Wider than the true one, so that no weight is so large that it spoils an average.
        spread = torch.linalg.inv(precision).diagonal().sqrt()
        self.posterior = torch.distributions.Normal(mean + 0.2, 1.3 * spread)

    def log_joint(self, z):
        noise = torch.distributions.Normal(z @ self.weight.T, self.sd)
        prior = torch.distributions.Normal(torch.zeros_like(z), 1.0)
        return noise.log_prob(self.x).sum(1) + prior.log_prob(z).sum(1)

    def evidence(self):
        covariance = self.weight @ self.weight.T + self.sd**2 * torch.eye(len(self.x)).double()
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(self.x), covariance)
        return normal.log_prob(self.x).item()

    @torch.no_grad()
    def log_weights(self, flow, count=100_000):
        torch.manual_seed(3)
        z = self.posterior.sample((count,))
        flowed = flow(z, lambda z: -self.log_joint(z), torch.Generator().manual_seed(4))
        start = self.posterior.log_prob(z).sum(1)
        return self.log_joint(flowed.z) - start + flowed.log_weight


# 1, 2, 3
@pytest.mark.parametrize("initial_beta", [1.0, 0.3, 0.09])
@pytest.mark.parametrize("num_steps", [0, 1, 3, 7])
def test_a_flow_that_does_not_move_changes_nothing_bit_for_bit(num_steps, initial_beta):
    flow = HamiltonianFlow(num_steps, step_size=0.0, initial_beta=initial_beta)
    z = draw(4, 6, dtype=torch.float32)
    flowed = flow(z, quartic)
    assert torch.equal(flowed.z, z)
    assert torch.equal(flowed.log_weight, torch.zeros(4))


def test_without_steps_no_noise_is_drawn_and_no_gradient_taken():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    flowed = HamiltonianFlow(0)(draw(2, 3), quartic, generator)
    assert torch.equal(generator.get_state(), before)
    assert flowed.num_gradients == 0
    assert torch.equal(HamiltonianFlow(0).beta, torch.ones(1))


@pytest.mark.parametrize("initial_beta", [0.3, 0.09])
def test_cooling_undoes_the_first_spread_exactly(initial_beta):
    noise = draw(4, 6, seed=1)
    flow = HamiltonianFlow(3, step_size=0.0, initial_beta=initial_beta).double()
    _, momentum = flow.move(draw(4, 6), noise, quartic)
    assert torch.equal(momentum, noise)


# 4
@pytest.mark.parametrize("initial_beta", [1.0, 0.3])
def test_the_map_shrinks_volume_by_the_temperature_alone(initial_beta):
    flow = HamiltonianFlow(3, step_size=0.2, initial_beta=initial_beta).double()

    def move(state):
        z, momentum = state.view(2, 1, 3)
        noise = momentum * flow.beta[0].sqrt()
        flowed, last = flow.move(z, noise, quartic)
        return torch.cat([flowed.z, last]).flatten()

    jacobian = torch.autograd.functional.jacobian(move, draw(6))
    expected = flow.beta[0].item() ** 1.5
    assert torch.linalg.det(jacobian).item() == pytest.approx(expected, rel=1e-10)
    if initial_beta == 0.3:
        assert expected == pytest.approx(0.16431677, rel=1e-6)


# 5
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_flow_runs_backwards(dtype, tolerance):
    flow = HamiltonianFlow(5, step_size=0.1, initial_beta=1.0).to(dtype)
    z, noise = draw(4, 6, dtype=dtype), draw(4, 6, seed=1, dtype=dtype)
    there, momentum = flow.move(z, noise, quartic)
    back, momentum = flow.move(there.z, -momentum, quartic)
    assert (back.z - z).abs().max().item() < tolerance
    assert (momentum + noise).abs().max().item() < tolerance


# 6
def test_the_energy_error_falls_by_four_when_the_step_is_halved():
    errors = []
    for num_steps in (10, 20, 40, 80):
        flow = HamiltonianFlow(num_steps, step_size=2 / num_steps, initial_beta=1.0).double()
        flowed, momentum = flow.move(draw(64, 3), draw(64, 3, seed=1), quartic)
        energy = quartic(flowed.z) + 0.5 * momentum.square().sum(1)
        torch.testing.assert_close(flowed.last_energy, energy.detach())
        errors.append(flowed.energy_error.abs().mean().item())
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine == pytest.approx(4, rel=0.25)


def test_cooling_is_no_part_of_the_energy_error():
    cooled = HamiltonianFlow(3, step_size=1e-4, initial_beta=0.1).double()
    flowed = cooled(draw(8, 5), quartic, torch.Generator().manual_seed(0))
    assert flowed.first_energy.min() > 1
    assert flowed.energy_error.abs().max().item() < 1e-5


# 7
@pytest.mark.parametrize(
    ("num_steps", "step_size", "initial_beta"),
    [(0, 0.1, 1.0), (1, 0.1, 1.0), (3, 0.1, 1.0), (3, 0.1, 0.3), (3, 0.3, 0.5), (6, 0.2, 0.8)],
)
def test_weights_average_to_the_evidence(num_steps, step_size, initial_beta):
    model = LinearGaussian()
    flow = HamiltonianFlow(num_steps, step_size, initial_beta).double()
    log_weights = model.log_weights(flow)
    count = len(log_weights)
    estimate = (log_weights.logsumexp(0) - math.log(count)).item()
    weights = (log_weights - log_weights.max()).exp()
    error = (weights.std() / weights.mean()).item() / math.sqrt(count)
    assert error < 0.05
    assert abs(estimate - model.evidence()) < 3 * error


def test_weights_average_to_the_evidence_with_steps_per_channel_and_another_integrator():
    model = LinearGaussian()
    flow = HamiltonianFlow(
        3, 0.1, 0.6, step_shape=(model.size,), max_step_size=0.4, coefficients=YOSHIDA
    ).double()
    with torch.no_grad():
        flow.log_step_size += torch.tensor([-0.5, 0.2, 0.7])
    log_weights = model.log_weights(flow)
    estimate = (log_weights.logsumexp(0) - math.log(len(log_weights))).item()
    weights = (log_weights - log_weights.max()).exp()
    error = (weights.std() / weights.mean()).item() / math.sqrt(len(weights))
    assert abs(estimate - model.evidence()) < 3 * error


# 8
def test_the_flow_raises_the_bound():
    model = LinearGaussian()
    # Narrow and off, as the posterior of an early encoder is.
    model.posterior = torch.distributions.Normal(model.posterior.mean + 0.8, 0.2)
    plain = model.log_weights(HamiltonianFlow(0).double(), 20_000).mean().item()
    flowed = model.log_weights(HamiltonianFlow(3, 0.1, 0.3).double(), 20_000).mean().item()
    assert flowed > plain + 1
    assert max(plain, flowed) < model.evidence()


# 9
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_the_schedule_is_quadratic_and_ends_at_one(num_steps):
    beta = HamiltonianFlow(num_steps, initial_beta=0.3).beta.double()
    assert beta[-1].item() == 1
    factors = (beta[:-1] / beta[1:]).sqrt()
    assert factors.prod().item() == pytest.approx(math.sqrt(0.3), rel=1e-6)
    for k, value in enumerate(beta.tolist()):
        progress = (k / num_steps) ** 2
        root = 1 / ((1 - 0.3**-0.5) * progress + 0.3**-0.5)
        assert math.sqrt(value) == pytest.approx(root, rel=1e-6)
    assert torch.equal(HamiltonianFlow(num_steps, initial_beta=1.0).beta, torch.ones(num_steps + 1))


# 10
def loss_of(weight, first_order=False):
    """Squared-error potential of a small decoder; the loss reads only where the flow ends."""
    decode = lambda z: torch.tanh(z @ weight)
    x = draw(4, 5, seed=5)
    flow = HamiltonianFlow(3, 0.2, 0.5, first_order=first_order).double()
    potential = lambda z: (x - decode(z)).square().sum(1) + 0.5 * z.square().sum(1)
    flowed = flow(draw(4, 3), potential, torch.Generator().manual_seed(0))
    return (potential(flowed.z) - flowed.log_weight).mean()


def finite_difference(row, column, size=1e-5):
    values = []
    for sign in (1, -1):
        weight = draw(3, 5, seed=4)
        weight[row, column] += sign * size
        values.append(loss_of(weight).item())
    return (values[0] - values[1]) / (2 * size)


def test_the_gradient_passes_through_the_force():
    weight = draw(3, 5, seed=4).requires_grad_()
    (exact,) = torch.autograd.grad(loss_of(weight), weight)
    (first_order,) = torch.autograd.grad(loss_of(weight, first_order=True), weight)
    for row, column in [(0, 0), (1, 3), (2, 4)]:
        expected = finite_difference(row, column)
        assert exact[row, column].item() == pytest.approx(expected, rel=1e-6)
        assert first_order[row, column].item() != pytest.approx(expected, rel=1e-3)


def test_first_order_changes_the_gradient_and_not_the_value():
    weight = draw(3, 5, seed=4)
    assert torch.equal(loss_of(weight), loss_of(weight, first_order=True))


def test_the_step_size_is_learned_through_an_exact_gradient():
    flow = HamiltonianFlow(2, 0.2, 0.5).double()

    def loss():
        flowed = flow(draw(4, 3), quartic, torch.Generator().manual_seed(0))
        return (quartic(flowed.z) - flowed.log_weight).mean()

    loss().backward()
    exact = flow.log_step_size.grad.item()
    values = []
    for shift in (1e-5, -2e-5):
        with torch.no_grad():
            flow.log_step_size += shift
        values.append(loss().item())
    assert exact == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


# 11
@pytest.mark.parametrize("num_steps", [1, 3, 6])
def test_reused_gradients_give_the_same_bits_as_fresh_ones(num_steps):
    calls = 0

    def potential(z):
        nonlocal calls
        calls += 1
        return quartic(z)

    flow = HamiltonianFlow(num_steps, 0.1, 0.4).double()
    first, noise = draw(4, 6), draw(4, 6, seed=1)
    flowed, momentum = flow.move(first, noise, potential)
    assert calls == flowed.num_gradients == num_steps + 1
    z, fresh = first, noise
    at = lambda z: slope(quartic, z)
    for root_beta in flow.beta.sqrt()[:-1]:
        kick, drift = flow.step_size * root_beta, flow.step_size / root_beta
        z, fresh, _ = palindromic_step(z, fresh, at(z), at, kick, drift)
    assert torch.equal(flowed.z, z)
    assert torch.equal(momentum, fresh)


# What the numbered claims leave open.


@pytest.mark.parametrize("initial_beta", [1.0, 0.3])
def test_the_flow_is_the_tempered_leapfrog_of_the_paper(initial_beta):
    flow = HamiltonianFlow(4, 0.1, initial_beta).double()
    first, noise = draw(4, 6), draw(4, 6, seed=1)
    flowed, last = flow.move(first, noise, quartic)
    beta = flow.beta
    z, momentum = first, noise / beta[0].sqrt()
    for before, after in zip(beta, beta[1:], strict=False):
        z, momentum = leapfrog(z, momentum, quartic, 0.1)
        momentum = momentum * (before / after).sqrt()
    torch.testing.assert_close(flowed.z, z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(last, momentum, rtol=1e-6, atol=1e-6)
    weight = 0.5 * (noise.square() - momentum.square()).sum(1)
    torch.testing.assert_close(flowed.log_weight, weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step_shape", [None, (3, 1, 1, 1)])
def test_maps_flow_like_vectors(step_shape):
    flow = HamiltonianFlow(2, 0.1, step_shape=step_shape)
    z = draw(2, 3, 4, 2, 2, dtype=torch.float32)
    flowed = flow(z, quartic, torch.Generator().manual_seed(0))
    plain = HamiltonianFlow(2, 0.1)(z.flatten(1), quartic, torch.Generator().manual_seed(0))
    torch.testing.assert_close(flowed.z.flatten(1), plain.z)
    torch.testing.assert_close(flowed.log_weight, plain.log_weight)


def test_each_channel_moves_by_its_own_step():
    flow = HamiltonianFlow(1, 0.1, step_shape=(2, 1, 1, 1))
    with torch.no_grad():
        flow.log_step_size[1] = -30
    z = draw(2, 2, 3, 3, 3, dtype=torch.float32)
    moved = (flow(z, quartic).z - z).abs().amax((0, 2, 3, 4))
    assert moved[0] > 1e-2
    assert moved[1] < 1e-6


def test_a_learned_step_stays_below_its_bound():
    flow = HamiltonianFlow(1, 0.01, max_step_size=0.5)
    assert flow.step_size.item() == pytest.approx(0.01, rel=1e-5)
    with torch.no_grad():
        flow.log_step_size.fill_(20)
    assert 0.49 < flow.step_size.item() <= 0.5


def test_autocast_changes_no_bit():
    torch.manual_seed(0)
    layer = nn.Linear(6, 40)
    potential = lambda z: layer(z).square().sum(1)
    flow = HamiltonianFlow(3, 0.01)
    z = draw(4, 6, dtype=torch.float32)
    plain = flow(z, potential, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = flow(z, potential, torch.Generator().manual_seed(0))
    assert cast.z.dtype == cast.log_weight.dtype == torch.float32
    assert torch.equal(cast.z, plain.z)
    assert torch.equal(cast.log_weight, plain.log_weight)


def test_a_half_precision_latent_is_lifted():
    flowed = HamiltonianFlow(1)(draw(2, 3, dtype=torch.bfloat16), quartic)
    assert flowed.z.dtype == flowed.log_weight.dtype == torch.float32


def test_no_grad_gives_the_same_numbers_and_no_graph():
    flow = HamiltonianFlow(2, 0.1).double()
    z = draw(3, 4)
    train = flow(z, quartic, torch.Generator().manual_seed(0))
    with torch.no_grad():
        quiet = flow(z, quartic, torch.Generator().manual_seed(0))
    assert torch.equal(train.z, quiet.z)
    assert train.z.requires_grad
    assert not quiet.z.requires_grad


def test_reports_stand_outside_of_the_graph():
    flowed = HamiltonianFlow(2, 0.1)(draw(3, 4, dtype=torch.float32), quartic)
    reported = [flowed.first_energy, flowed.last_energy, flowed.force_norm, flowed.momentum_norm]
    reported += [flowed.displacement, flowed.start_norm, flowed.moved]
    assert not any(value.requires_grad for value in reported)
    assert set(flowed.report()) == {"energy_error", "force_norm", "momentum_norm", "moved"}
    assert Identity()(draw(3, 4), quartic).report() == {}


def test_reports_are_norms_of_where_the_flow_ends():
    z, noise = draw(5, 6), draw(5, 6, seed=1)
    flowed, momentum = HamiltonianFlow(3, 0.1, 0.4).double().move(z, noise, quartic)
    force = flowed.z**3 + flowed.z
    found = flowed.report()
    for name, value in (("force_norm", force), ("momentum_norm", momentum)):
        assert found[name] == pytest.approx(value.norm(dim=1).median().item())
    moved = (flowed.z - z).norm(dim=1) / z.norm(dim=1)
    assert found["moved"] == pytest.approx(moved.median().item())
    still = HamiltonianFlow(3, 0.0).double().move(z, noise, quartic)[0]
    assert still.report()["moved"] == 0


def test_a_sample_depends_on_its_own_generator_alone():
    make = lambda seed: torch.Generator().manual_seed(seed)
    flow = HamiltonianFlow(2, 0.1)
    z = draw(1, 4, dtype=torch.float32).repeat(2, 1)
    both = flow(z, quartic, [make(7), make(8)])
    alone = flow(z[:1], quartic, [make(8)])
    torch.testing.assert_close(both.z[1:], alone.z)
    assert not torch.allclose(both.z[0], both.z[1])


def test_a_diverging_flow_says_so_with_its_numbers():
    flow = HamiltonianFlow(8, step_size=5.0)
    with pytest.raises(DivergedFlowError, match=r"3 of 3 .*step size 5 .*Lower step_size"):
        flow(draw(3, 4, dtype=torch.float32) * 10, quartic)


def test_a_limit_of_the_energy_error_is_kept():
    options = {"num_steps": 3, "step_size": 0.6, "initial_beta": 1.0}
    z, noise = draw(16, 4), draw(16, 4, seed=1)
    worst = HamiltonianFlow(**options).double().move(z, noise, quartic)[0].energy_error.abs().max()
    HamiltonianFlow(**options, max_energy_error=2 * worst.item()).double().move(z, noise, quartic)
    strict = HamiltonianFlow(**options, max_energy_error=worst.item() / 2).double()
    with pytest.raises(DivergedFlowError, match="energy error up to"):
        strict.move(z, noise, quartic)


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": -1},
        {"step_size": -0.1},
        {"initial_beta": 0.0},
        {"initial_beta": 1.1},
        {"step_size": 0.5, "max_step_size": 0.5},
    ],
)
def test_settings_without_meaning_are_refused(options):
    with pytest.raises(SettingError):
        HamiltonianFlow(**options)


def test_a_frozen_encoder_does_not_stop_the_gradient_to_the_decoder():
    weight = draw(3, 5, seed=4).requires_grad_()
    assert not draw(4, 3).requires_grad
    assert loss_of(weight).requires_grad
