"""The numbered claims of a Riemannian VAE about drawing latents by the volume of its metric."""

from __future__ import annotations

import math

import pytest
import torch

from medvae3d.errors import StuckSamplerError
from medvae3d.flows.metrics import KernelMetric
from medvae3d.flows.volume import (
    Noise,
    VolumeTarget,
    exact_force,
    median_bandwidth,
    require_moves,
    tuned_step_size,
    volume_chains,
)
from medvae3d.flows.volume_constant import log_normaliser


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def noise(steps, chains, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(steps, chains, dtype=torch.float64, generator=generator)
    return Noise(draw(steps, chains, size, seed=seed + 1), uniforms)


def some_metric(count=6, size=4, **options):
    """Six centres in four dimensions, with the bandwidth and floor of a published run."""
    factors = torch.tril(draw(count, size, size, seed=1)) * 0.3
    matrices = factors @ factors.mT + torch.eye(size, dtype=torch.float64)
    centres = draw(count, size, seed=2)
    return KernelMetric(centres, matrices, **{"bandwidth": 0.8, "floor": 0.01, **options})


def isotropic_force(local):
    """The gradient of public samplers: the matrix in the place of its trace."""
    metric, inverse = local.metric, torch.cholesky_inverse(local.factor)
    off = metric.centroids - local.z[:, None]
    pulled = (inverse[:, None] @ metric.matrices @ off[..., None])[..., 0]
    return (local.kernels[..., None] * pulled).sum(1) / metric.bandwidth**2


def starts(metric, chains, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return metric.centroids[torch.randint(len(metric), (chains,), generator=generator)]


# 9
@pytest.mark.parametrize(
    ("options", "reach"),
    [
        ({"floor": 0.3}, 2.0),
        ({"floor": 0.3, "decay": 0.5}, math.inf),
        ({"floor": 0.3, "shaped": True, "is_inverse": False}, 2.0),
    ],
    ids=["within reach", "with a decaying floor", "shaped kernels"],
)
def test_long_chains_are_spread_like_the_density(options, reach):
    """Total variation over a grid in two dimensions."""
    metric = some_metric(4, 2, **{"bandwidth": 1.0, **options})
    target = VolumeTarget(metric, reach)
    start = starts(metric, 1000)
    # Long enough for chains to forget where they began, and to cross the plain between centres.
    chains = volume_chains(target, start, noise(120, 1000, 2), 0.2, 8, keep_path=True)
    states = chains.path[40:].flatten(0, 1)
    edges, fine = torch.linspace(-5, 5, 21, dtype=torch.float64), 12
    counts = torch.histogramdd(states, bins=[edges, edges]).hist
    counts = counts / len(states)
    points = torch.linspace(-5, 5, 20 * fine + 1, dtype=torch.float64)
    middles = 0.5 * (points[1:] + points[:-1])
    plane = torch.cartesian_prod(middles, middles)
    density = target.log_density(plane).exp().reshape(20, fine, 20, fine).sum((1, 3))
    expected = density / density.sum()
    assert 0.5 * (counts - expected).abs().sum() < 0.05
    assert 0.5 * (expected - expected.mean()).abs().sum() > 0.3  # no flat density
    # The constant: the same integral by importance sampling.
    constant, error = log_normaliser(target, torch.Generator().manual_seed(0))
    side = float(middles[1] - middles[0])
    assert abs(constant - math.log(float(density.sum()) * side**2)) < 3 * error + 0.01
    assert error < 0.05


# 10
def test_acceptance_is_good_and_higher_than_with_the_public_gradient():
    metric = some_metric()
    target, first, random = VolumeTarget(metric, 2.5), starts(metric, 64), noise(12, 64, 4)
    step, rate = tuned_step_size(target, random, first)
    assert 0.6 < rate < 0.99
    fresh = noise(30, 64, 4, seed=9)
    exact = volume_chains(target, first, fresh, step).acceptance.mean()
    assert 0.6 < exact < 0.99
    public = volume_chains(target, first, fresh, step, force=isotropic_force).acceptance.mean()
    assert exact > public + 0.1


def test_the_public_gradient_is_exact_in_one_dimension_alone():
    for size in (1, 4):
        local = some_metric(3, size).at(draw(5, size, seed=4))
        same = torch.allclose(isotropic_force(local), exact_force(local))
        assert same == (size == 1)


# 11
def test_chains_drift_away_from_a_raw_target_and_not_from_a_bounded_one():
    metric = some_metric()
    random, first = noise(200, 32, 4), starts(metric, 32)
    far = {}
    for name, target in {
        "raw": VolumeTarget(metric),
        "within reach": VolumeTarget(metric, 2.5),
        "decaying": VolumeTarget(some_metric(decay=0.3)),
    }.items():
        path = volume_chains(target, first, random, 0.3, 8, keep_path=True).path
        distance = torch.cdist(path.flatten(0, 1), metric.centroids).amin(1).reshape(200, 32)
        far[name] = [float(distance[at].mean()) for at in (slice(20, 50), slice(170, 200))]
    assert far["raw"][1] > 1.5 * far["raw"][0]
    for name in ("within reach", "decaying"):
        assert abs(far[name][1] - far[name][0]) < 0.25 * far[name][0]
        assert far[name][1] < 0.5 * far["raw"][1]
    assert not VolumeTarget(metric).is_bounded
    assert VolumeTarget(metric, 2.5).is_bounded


def test_no_state_leaves_the_reach():
    metric = some_metric()
    path = volume_chains(
        VolumeTarget(metric, 1.5), starts(metric, 16), noise(60, 16, 4), 0.3, keep_path=True
    ).path
    assert metric.distances(path.flatten(0, 1)).amin(1).max() <= 1.5**2


# 12
def test_a_chain_without_a_step_stays_at_its_training_case():
    metric = some_metric()
    first = starts(metric, 8)
    chains = volume_chains(VolumeTarget(metric, 2.5), first, noise(0, 8, 4), 0.1)
    assert torch.equal(chains.z, first)
    moved = volume_chains(VolumeTarget(metric, 2.5), first, noise(50, 8, 4), 0.1)
    assert (moved.z - first).norm(dim=1).min() > 0.1


# What else.


def test_energies_of_any_size_do_not_overflow():
    """A ratio of exponentials of such energies is infinity over infinity."""
    huge = KernelMetric(
        1e-3 * draw(3, 30), 1e60 * torch.eye(30, dtype=torch.float64).expand(3, 30, 30), 1.0, 1e-60
    )
    target = VolumeTarget(huge, 3.0)
    assert target.log_density(huge.centroids).min() > 1000
    chains = volume_chains(target, huge.centroids, noise(20, 3, 30), 0.02)
    assert chains.acceptance.isfinite().all() and chains.divergent == 0
    assert (chains.moves > 0.5).all()


def test_chains_move_on_their_own_noise():
    metric = some_metric()
    target, first, random = VolumeTarget(metric, 2.5), starts(metric, 8), noise(20, 8, 4)
    whole = volume_chains(target, first, random, 0.1)
    part = volume_chains(target, first[5:6], random[5:6], 0.1)
    torch.testing.assert_close(whole.z[5:6], part.z)


def test_a_sampler_that_does_not_move_says_so():
    metric = some_metric()
    target, first = VolumeTarget(metric, 2.5), starts(metric, 16)
    wild = volume_chains(target, first, noise(10, 16, 4), 40.0)
    assert torch.equal(wild.z, first)
    with pytest.raises(StuckSamplerError, match=r"accepts 0\.0% of its moves at step size 40"):
        require_moves(float(wild.acceptance.mean()), 40.0)


def test_the_bandwidth_is_the_median_distance_to_the_nearest_centre():
    centres = torch.tensor([[0.0], [1.0], [3.0], [10.0]]).double()
    flat = KernelMetric(centres, torch.ones(4, 1, 1).double())
    assert median_bandwidth(flat) == pytest.approx(1.0)  # of 1, 1, 2 and 7, the lower middle
    shaped = KernelMetric(centres, 4 * torch.ones(4, 1, 1).double(), shaped=True)
    assert median_bandwidth(shaped) == pytest.approx(2.0)
    assert median_bandwidth(KernelMetric(centres[:1], torch.ones(1, 1, 1).double())) == 1.0
