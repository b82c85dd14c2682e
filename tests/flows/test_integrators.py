from __future__ import annotations

import math

import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.flows.integrators import (
    MCLACHLAN,
    VELOCITY_VERLET,
    YOSHIDA,
    leapfrog,
    palindromic_step,
    slope,
)

INTEGRATORS = [VELOCITY_VERLET, MCLACHLAN, YOSHIDA]


def well(z):
    return 0.5 * z.square().flatten(1).sum(1)


def quartic(z):
    return (0.25 * z**4 + 0.5 * z**2).flatten(1).sum(1)


def run(z, momentum, potential, step_size, num_steps, coefficients=VELOCITY_VERLET):
    at = lambda z: slope(potential, z)
    here = at(z)
    for _ in range(num_steps):
        z, momentum, here = palindromic_step(
            z, momentum, here, at, step_size, step_size, coefficients
        )
    return z, momentum


def energy(z, momentum, potential):
    return potential(z) + 0.5 * momentum.square().flatten(1).sum(1)


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("potential", [well, quartic])
def test_leapfrog_keeps_volume(potential):
    def step(state):
        return torch.cat(leapfrog(*state.view(2, 1, 3), potential, 0.3)).flatten()

    jacobian = torch.autograd.functional.jacobian(step, noise(6))
    assert torch.linalg.det(jacobian).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("coefficients", INTEGRATORS)
def test_every_integrator_keeps_volume(coefficients):
    def step(state):
        return torch.cat(run(*state.view(2, 1, 3), quartic, 0.3, 2, coefficients)).flatten()

    jacobian = torch.autograd.functional.jacobian(step, noise(6))
    assert torch.linalg.det(jacobian).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("coefficients", INTEGRATORS)
def test_every_integrator_runs_backwards(coefficients, dtype, tolerance):
    start = z, momentum = noise(2, 4, 5).to(dtype).unbind()
    for _ in range(2):
        z, momentum = run(z, momentum, quartic, 0.05, 20, coefficients)
        momentum = -momentum
    off = (torch.stack([z, momentum]) - torch.stack(start)).abs().max().item()
    assert off < tolerance


def test_leapfrog_runs_backwards_step_by_step():
    z, momentum = start = noise(2, 4, 5)
    for _ in range(2):
        for _ in range(20):
            z, momentum = leapfrog(z, momentum, quartic, 0.05)
        momentum = -momentum
    torch.testing.assert_close(torch.stack([z, momentum]), start)


@pytest.mark.parametrize(
    ("coefficients", "order"), [(VELOCITY_VERLET, 2), (MCLACHLAN, 2), (YOSHIDA, 4)]
)
def test_energy_error_falls_with_the_order_of_the_integrator(coefficients, order):
    start = noise(2, 64, 3)
    errors = []
    for step_size in (0.1, 0.05, 0.025):
        end = run(*start, quartic, step_size, round(2 / step_size), coefficients)
        errors.append((energy(*end, quartic) - energy(*start, quartic)).abs().mean().item())
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine == pytest.approx(2**order, rel=0.3)


def test_the_energy_error_of_one_step_falls_by_eight():
    start = noise(2, 256, 3)
    errors = []
    for step_size in (0.2, 0.1, 0.05):
        end = run(*start, quartic, step_size, 1)
        errors.append((energy(*end, quartic) - energy(*start, quartic)).abs().mean().item())
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine > 7


def test_energy_does_not_drift_over_many_steps():
    start = noise(2, 8, 4)
    end = run(*start, well, 0.01, 500)
    drift = (energy(*end, well) / energy(*start, well) - 1).abs().max().item()
    assert drift < 1e-4


@pytest.mark.parametrize(
    ("coefficients", "precision"),
    [(VELOCITY_VERLET, 2e-3), (MCLACHLAN, 2e-4), (YOSHIDA, 1e-5)],
)
def test_a_harmonic_oscillator_follows_its_orbit(coefficients, precision):
    z, momentum = run(*noise(2, 4, 3), well, 0.05, 60, coefficients)
    first, push = noise(2, 4, 3)
    exact = first * math.cos(3.0) + push * math.sin(3.0)
    assert (z - exact).abs().max().item() < precision


def test_free_fall_is_exact():
    fall = lambda z: 9.81 * z.sum(1)
    first, push = noise(2, 1, 1)
    z, momentum = run(first, push, fall, 0.1, 10)
    torch.testing.assert_close(z, first + push - 0.5 * 9.81)
    torch.testing.assert_close(momentum, push - 9.81)


@pytest.mark.parametrize("coefficients", INTEGRATORS)
def test_coefficients_are_palindromes_that_cover_one_step(coefficients):
    assert coefficients == pytest.approx(coefficients[::-1])
    assert sum(coefficients[::2]) == pytest.approx(1)
    assert sum(coefficients[1::2]) == pytest.approx(1)


def test_the_force_is_part_of_the_graph_only_when_gradients_are_on():
    stiffness = torch.tensor(2.0, requires_grad=True)
    potential = lambda z: 0.5 * stiffness * z.square().sum(1)
    z = torch.ones(2, 3)
    assert slope(potential, z).force.requires_grad
    assert not slope(potential, z, first_order=True).force.requires_grad
    with torch.no_grad():
        quiet = slope(potential, z)
    assert not quiet.force.requires_grad
    torch.testing.assert_close(quiet.force, -2 * z)
    assert stiffness.grad is None
    assert not quiet.energy.requires_grad


def test_inference_mode_is_refused_with_the_way_out():
    with torch.inference_mode(), pytest.raises(SettingError, match=r"torch\.no_grad"):
        slope(well, torch.ones(1, 2))
