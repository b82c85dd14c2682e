"""What every system with a Gaussian posterior promises of the evidence.

The networks of each are exchanged for linear ones, so that the evidence is known exactly. All else
is the system's own: what the encoder is handed, flow, prior, heads, trace, bound and estimate.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medvae3d.apps.systems import system_settings
from medvae3d.errors import SettingError
from medvae3d.evaluation.evidence import LogWeights, log_likelihood, log_weights
from medvae3d.models import zoo
from medvae3d.models.registry import SYSTEMS
from medvae3d.numerics import inverse_softplus
from medvae3d.probability import PointMass
from medvae3d.probability.posteriors import MIN_SCALE

SIZE, VOXELS, NOISE, DRAWS = 3, 5, 0.7, 10_000
WEIGHT = torch.linalg.qr(
    torch.randn(VOXELS, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
)[0]  # orthonormal columns, so that the exact posterior is diagonal
PRECISION = 1 + 1 / NOISE**2


class LinearEncoder(nn.Module):
    """A posterior that is off and too wide."""

    class Head(nn.Module):
        def forward(self, features):
            mean = features.double() @ WEIGHT / NOISE**2 / PRECISION + 0.2
            raw = inverse_softplus(1.2 * PRECISION**-0.5 - MIN_SCALE)
            return torch.cat([mean, torch.full_like(mean, raw)], 1)

    def __init__(self):
        super().__init__()
        self.head = self.Head()

    def features(self, x, vector=None):
        return x[:, :1].flatten(1)  # the first channel is the image, the second what was observed


class LinearDecoder(nn.Module):
    coarse_strides = ((2, 2, 2),)

    def forward(self, z, vector=None, maps=None):
        return (z.double() @ WEIGHT.T).reshape(-1, 1, 1, 1, VOXELS)

    def pyramid(self, z, vector=None, maps=None):
        return [self(-z), self(z)]  # what is coarse has no part in the evidence


def linear(make, **options):
    torch.manual_seed(0)
    model = make(
        (8, 8, 8), heads=("image",), inputs=("image",), likelihood="gaussian", image_scale=NOISE,
        channels=(4, 8), latent_channels=SIZE, components=0,
        **{"vector_latent": True, **options},
    ).eval()  # fmt: skip
    model.encoder, model.decoder = LinearEncoder(), LinearDecoder()
    model = model.double()
    if model.embedding is not None:  # conditions are float32 whatever the rest is
        model.embedding.float()
    if make is zoo.rhvae:
        centres = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(3))
        lower = 0.1 * torch.ones(SIZE, SIZE).tril(-1)
        factors = (0.4 * torch.eye(SIZE) + lower).expand(6, SIZE, SIZE)
        model.flow.pairs.fit(centres, factors, list("abcdef"))
    return model


MEMBERS = {
    "vae": lambda: linear(zoo.vae),
    "cvae": lambda: linear(zoo.cvae, classes=("a", "b")),
    "cvae_multiscale": lambda: linear(zoo.cvae_multiscale, coarse=1),
    "icvae": lambda: linear(zoo.icvae, classes=("a", "b")),
    "hvae": lambda: linear(zoo.hvae, num_steps=3, step_size=0.15, initial_beta=0.8),
    "hvae, no steps": lambda: linear(zoo.hvae, num_steps=0),
    "hvae, default": lambda: linear(zoo.hvae),
    "rhvae": lambda: linear(zoo.rhvae, step_size=0.05, initial_beta=0.8),
    "rhvae, default": lambda: linear(zoo.rhvae),
}


def images(count=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 1, 1, VOXELS, generator=generator, dtype=torch.float64)


def exact(x):
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(VOXELS, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(VOXELS).double(), covariance)
    return normal.log_prob(x.flatten(1))


def estimate(model):
    """Estimates of three cases, each with its standard error, at ten thousand draws a case."""
    copies = 2500
    batch = {"image": images().repeat_interleave(copies, 0)}
    passes = DRAWS // copies
    drawn = log_weights(model, [batch], passes).values
    by_case = drawn.reshape(passes, 3, copies).transpose(1, 2).flatten(0, 1)
    shares = by_case.softmax(0) * len(by_case)
    found = by_case.logsumexp(0) - math.log(len(by_case))
    return found, shares.std(0) / math.sqrt(len(by_case))


@pytest.mark.parametrize("name", MEMBERS)
def test_the_estimate_agrees_with_the_exact_evidence(name):
    found, error = estimate(MEMBERS[name]())
    assert (error < 0.05).all()
    assert ((found - exact(images())).abs() < 3 * error).all()


def test_every_system_with_a_likelihood_has_its_model_among_them():
    made = {name for name, each in SYSTEMS.items() if each.tractable}
    models = {name: system_settings(name)["network_def"]["_target_"] for name in made}
    assert {path.rpartition(".")[2] for path in models.values()} <= {
        name.partition(",")[0] for name in MEMBERS
    }
    assert len(made) == 9


def test_the_public_form_of_a_riemannian_bound_is_no_estimate():
    model = linear(zoo.rhvae, step_size=0.05, initial_beta=0.8, full_bound=False)
    found, error = estimate(model)
    assert ((found - exact(images())).abs() > 30 * error).all()


@pytest.mark.parametrize("name", ["vae", "hvae", "rhvae"])
def test_the_log_likelihood_of_held_out_cases_says_how_far_it_may_be_trusted(name):
    found = log_likelihood(MEMBERS[name](), [{"image": images(2)}, {"image": images(3)}], 60)
    mean, error = found["log likelihood"]["mean"], found["error of draws"]
    expected = torch.cat([exact(images(2)), exact(images(3))]).mean()
    assert abs(mean - expected) < 4 * error
    assert 0 < error < 0.1
    assert found["log likelihood"]["n"] == len(found["by case"]["standard error"]) == 5
    smallest, median = (found["effective samples"][key] for key in ("smallest", "median"))
    assert 6 < smallest <= median < 60
    per_voxel = found["log likelihood per voxel"]["mean"]
    assert per_voxel == pytest.approx(mean / VOXELS)


def test_the_standard_error_is_the_spread_of_estimates():
    model, runs = MEMBERS["vae"](), 60
    batch = {"image": images(1).expand(runs, 1, 1, 1, VOXELS)}
    drawn = log_weights(model, [batch], 200)
    spread, claimed = drawn.importance_weighted.std(), drawn.standard_error.mean()
    assert float(spread / claimed) == pytest.approx(1, abs=0.3)


def test_one_draw_that_outweighs_the_rest_is_one_effective_sample():
    values = torch.zeros(10, 2, dtype=torch.float64)
    values[0, 1] = 50
    found = LogWeights(values, torch.ones(2)).effective_samples
    torch.testing.assert_close(found, torch.tensor([10.0, 1.0]).double())


def test_a_posterior_without_a_density_has_no_log_likelihood():
    model = linear(zoo.vae)
    model.posterior = lambda features: PointMass(features[:, :SIZE])
    with pytest.raises(SettingError, match="PointMass, which has no density"):
        log_likelihood(model, [{"image": images()}], 2)
