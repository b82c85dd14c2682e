from __future__ import annotations

import pytest
import torch

from medvae3d.probability import DiagonalGaussian, PointMass


def gaussian(seed=0, shape=(2, 4, 3, 3, 3)):
    generator = torch.Generator().manual_seed(seed)
    return DiagonalGaussian.from_features(torch.randn(shape, generator=generator))


def test_features_split_into_mean_and_a_scale_above_its_floor():
    features = torch.cat([torch.full((1, 2, 2), 3.0), torch.full((1, 2, 2), -1e4)], dim=1)
    posterior = DiagonalGaussian.from_features(features)
    assert torch.equal(posterior.mean, torch.full((1, 2, 2), 3.0))
    torch.testing.assert_close(posterior.scale, torch.full((1, 2, 2), 1e-3))


def test_density_and_kl_agree_with_torch():
    posterior = gaussian()
    normal = torch.distributions.Normal(posterior.mean, posterior.scale)
    z = posterior.rsample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(posterior.log_prob(z), normal.log_prob(z).flatten(1).sum(1))
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl(), kl.flatten(1).sum(1))
    torch.testing.assert_close(posterior.kl_per_element(), kl)


def test_the_kl_is_the_mean_of_its_one_sample():
    posterior = gaussian(shape=(1, 8))
    wide = DiagonalGaussian(posterior.mean.repeat(100_000, 1), posterior.scale.repeat(100_000, 1))
    z = wide.rsample(torch.Generator().manual_seed(0))
    one_sample = wide.log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    assert one_sample.mean().item() == pytest.approx(posterior.kl().item(), rel=0.02)


def test_the_prior_itself_costs_nothing():
    prior = DiagonalGaussian(torch.zeros(2, 3, 4), torch.ones(2, 3, 4))
    assert torch.equal(prior.kl(), torch.zeros(2))
    assert float(DiagonalGaussian(prior.mean + 0.1, prior.scale).kl().min()) > 0


def test_the_scale_that_draws_is_the_scale_that_scores():
    posterior = gaussian(shape=(1, 2))
    wide = DiagonalGaussian(posterior.mean.repeat(50_000, 1), posterior.scale.repeat(50_000, 1))
    spread = wide.rsample(torch.Generator().manual_seed(0)).std(0)
    torch.testing.assert_close(spread, posterior.scale[0], rtol=0.02, atol=0)


def test_an_autoencoder_without_noise_has_no_cost_of_its_latent():
    posterior = PointMass(torch.randn(3, 4))
    assert torch.equal(posterior.rsample(), posterior.mean)
    assert torch.equal(posterior.kl(), torch.zeros(3))
    assert torch.equal(posterior.log_prob(posterior.mean), torch.zeros(3))
    assert torch.equal(posterior.scale, torch.zeros(3, 4))
