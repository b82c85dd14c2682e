"""Claims about bounds on the evidence, on a model whose evidence is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medvae3d.evaluation.evidence import bounds, difference, evidence, log_weights
from medvae3d.flows import HamiltonianFlow, Identity
from medvae3d.models import zoo
from medvae3d.models.latent import Condition, Trace
from medvae3d.probability import DiagonalGaussian, StandardNormal
from medvae3d.probability.likelihoods import GaussianImage

SIZE, VOXELS, NOISE = 3, 5, 0.7


class LinearGaussian(nn.Module):
    """x = W z + noise, with a posterior that is off and too wide."""

    def __init__(self, flow=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(VOXELS, SIZE, generator=generator, dtype=torch.float64)
        self.weight = torch.linalg.qr(drawn)[0]  # so that the posterior is diagonal too
        self.flow = flow or Identity()
        self.prior = StandardNormal((SIZE,))

    def decode(self, z):
        mean = (z.double() @ self.weight.T).reshape(len(z), 1, 1, 1, VOXELS)
        return {"image": GaussianImage(mean, torch.tensor(NOISE, dtype=torch.float64))}

    def trace(self, batch, generator=None, *, with_flow=True):
        flat = batch["image"].flatten(1).double()
        covariance = torch.linalg.inv(
            self.weight.T @ self.weight / NOISE**2 + torch.eye(SIZE, dtype=torch.float64)
        )
        mean = flat @ self.weight @ covariance / NOISE**2
        scale = covariance.diagonal().sqrt().expand_as(mean)
        posterior = DiagonalGaussian(mean + 0.3, 1.2 * scale)
        z = posterior.rsample(generator)

        def potential(z):
            fit = self.decode(z)["image"].log_prob(batch["image"])
            return -fit - self.prior.log_prob(z)

        flowed = (self.flow if with_flow else Identity())(z, potential, generator)
        heads = self.decode(flowed.z)
        return Trace(posterior, self.prior, z, flowed, heads, Condition())

    def exact(self, batch):
        covariance = self.weight @ self.weight.T + NOISE**2 * torch.eye(VOXELS).double()
        normal = torch.distributions.MultivariateNormal(
            torch.zeros(VOXELS, dtype=torch.float64), covariance
        )
        return normal.log_prob(batch["image"].flatten(1).double())


def batch(count=3):
    generator = torch.Generator().manual_seed(1)
    shape = (count, 1, 1, 1, VOXELS)
    return {"image": torch.randn(shape, generator=generator, dtype=torch.float64)}


def model(steps=3):
    flow = HamiltonianFlow(num_steps=steps, step_size=0.15, initial_beta=0.8)
    return LinearGaussian(flow.double())


@pytest.mark.parametrize("with_flow", [False, True])
def test_many_draws_reach_the_exact_evidence(with_flow):
    """Within three standard errors of the mean weight, case by case."""
    copies = {"image": batch()["image"].repeat_interleave(1000, 0)}
    drawn = log_weights(model(), [copies], 4, with_flow=with_flow).values
    logs = drawn.reshape(4, 3, 1000).transpose(0, 1).flatten(1)  # by case
    weights = (logs - logs.amax(1, keepdim=True)).exp()
    error = weights.std(1) / weights.mean(1) / weights.shape[1] ** 0.5
    estimate = logs.logsumexp(1) - math.log(logs.shape[1])
    assert ((estimate - model().exact(batch())).abs() < 3 * error).all()
    assert (error < 0.1).all()


def test_bounds_lie_in_their_order():
    few = log_weights(model(), [batch(20)], 16, with_flow=False)
    exact = model().exact(batch(20))
    assert few.elbo.mean() < few.importance_weighted.mean() < exact.mean()


def test_the_flow_raises_the_bound_and_one_of_no_size_changes_nothing():
    without = log_weights(model(), [batch(20)], 16, with_flow=False)
    moved = log_weights(model(), [batch(20)], 16)
    gain = difference(moved, without)["elbo"]
    assert gain["mean"] > 3 * gain["standard_error"] > 0
    still = LinearGaussian(HamiltonianFlow(num_steps=3, step_size=0.0).double())
    same = log_weights(still, [batch(20)], 4)
    torch.testing.assert_close(
        same.values, log_weights(still, [batch(20)], 4, with_flow=False).values
    )


def test_numbers_are_per_case_and_per_voxel():
    drawn = log_weights(model(), [batch(2), batch(3)], 4)
    assert drawn.values.shape == (4, 5)
    found = bounds(drawn)
    assert found["elbo"]["n"] == 5
    assert found["elbo per voxel"]["mean"] == pytest.approx(found["elbo"]["mean"] / VOXELS)


def test_a_model_without_a_flow_has_one_row():
    assert list(evidence(LinearGaussian(), [batch()], 2)["rows"]) == ["K = 0"]


def test_a_bundle_network_has_both_and_the_same_seed_gives_the_same_numbers():
    torch.manual_seed(0)
    sizes = {"channels": (4, 8), "latent_channels": 2, "image_channels": 2, "components": 0}
    network = zoo.hvae((8, 8, 8), num_steps=2, step_size=0.01, **sizes).eval()
    generator = torch.Generator().manual_seed(0)
    seen = {
        "image": torch.rand(2, 2, 8, 8, 8, generator=generator) - 1,
        "mask": (torch.rand(2, 1, 8, 8, 8, generator=generator) > 0.8).float(),
    }
    first, again = (evidence(network, [seen], 3, seed=5) for _ in "ab")
    assert first == again
    assert list(first["rows"]) == ["K = 0", "K = 2", "difference"]
    gain = first["rows"]["K = 2"]["elbo"]["mean"] - first["rows"]["K = 0"]["elbo"]["mean"]
    assert first["rows"]["difference"]["elbo"]["mean"] == pytest.approx(gain, abs=1e-3)
    assert first["voxels"] == 3 * 8**3
    assert first["flow"]["relative_displacement"] > 0
