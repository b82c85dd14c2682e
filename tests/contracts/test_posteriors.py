"""What every posterior promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import generators

from medvae3d.probability import DiagonalGaussian, PointMass, Posterior
from medvae3d.probability.codebook import Codebooks

POSTERIORS = {
    "codes": lambda n: Codebooks((2, 2, 2), 8, 3).eval()(rows(n, 3, 2, 2, 2)),
    "codes of two levels": lambda n: Codebooks((4, 2, 2), 8, 3, 2).eval()(rows(n, 6, 4, 2, 2)),
    "gaussian map": lambda n: DiagonalGaussian.from_features(rows(n, 4, 3, 2, 2)),
    "gaussian vector": lambda n: DiagonalGaussian.from_features(rows(n, 6)),
    "point mass": lambda n: PointMass(rows(n, 2, 3, 2, 2)),
}


def rows(count, *shape):
    """Row i is the same whatever the count."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators(*range(count))])


@pytest.fixture(params=POSTERIORS)
def make(request):
    return POSTERIORS[request.param]


def test_it_is_a_posterior(make):
    assert isinstance(make(2), Posterior)


def test_draws_and_densities_have_their_shapes(make):
    posterior = make(3)
    z = posterior.rsample(torch.Generator().manual_seed(0))
    assert z.shape == posterior.mean.shape == posterior.mode().shape == posterior.scale.shape
    assert posterior.log_prob(z).shape == posterior.kl().shape == (3,)
    assert posterior.kl_per_element().shape == z.shape


def test_the_mode_is_the_mean_and_does_not_change(make):
    posterior = make(2)
    assert torch.equal(posterior.mode(), posterior.mean)
    assert torch.equal(posterior.mode(), posterior.mode())


def test_the_mode_is_the_likeliest(make):
    posterior = make(2)
    z = posterior.rsample(torch.Generator().manual_seed(0))
    assert (posterior.log_prob(posterior.mode()) >= posterior.log_prob(z)).all()


def test_a_draw_is_differentiable_in_its_features(make):
    posterior = make(2)
    key = "features" if hasattr(posterior, "features") else "mean"
    mean = getattr(posterior, key).clone().requires_grad_()
    z = replace(posterior, **{key: mean}).rsample()
    (gradient,) = torch.autograd.grad(z.sum(), mean)
    assert torch.equal(gradient, torch.ones_like(mean))


def test_the_same_generator_draws_the_same(make):
    posterior = make(2)
    draws = [posterior.rsample(torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*draws)


def test_a_sample_depends_on_its_own_generator_alone(make):
    whole = make(3).rsample(generators(7, 8, 9))
    assert torch.equal(whole[:1], make(1).rsample(generators(7)))


def test_the_kl_is_not_negative_and_the_sum_of_its_elements(make):
    posterior = make(3)
    assert (posterior.kl_per_element() >= 0).all()
    torch.testing.assert_close(posterior.kl(), posterior.kl_per_element().flatten(1).sum(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_half_precision_features_stay_finite(dtype, size):
    posterior = DiagonalGaussian.from_features((size * rows(2, 4, 3, 2, 2)).to(dtype))
    z = posterior.rsample(torch.Generator().manual_seed(0))
    for value in (z, posterior.log_prob(z), posterior.kl()):
        assert value.dtype == torch.float32
        assert value.isfinite().all()
