from __future__ import annotations

import math

import pytest
import torch
from small_models import generators

from medvae3d.errors import SettingError
from medvae3d.probability import FullGaussianPrior, MixturePrior, StandardNormal

SIZE = 6


def training_latents(count=600, seed=0, spread=0.25):
    """Two clouds in a plane, an attribute that says where on its long axis a case lies, noise."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    side = (torch.rand(count, generator=generator) > 0.4).float() * 4 - 2
    along = draw(count)
    plane = torch.randn(SIZE, 2, generator=torch.Generator().manual_seed(99))
    basis = torch.linalg.qr(plane)[0].T
    scores = torch.stack([side + 0.3 * draw(count), along], 1)
    z = 0.5 + scores @ basis + spread * draw(count, SIZE) * torch.linspace(0.3, 1, SIZE)
    attributes = torch.stack([along + 0.2 * draw(count)], 1)
    return z, attributes


def dense(prior):
    """The same density as torch's own mixture over the whole latent and attributes."""
    loadings = prior.loadings.double()
    r, f = prior.rank, prior.attributes
    lift = torch.block_diag(loadings, torch.eye(f).double())
    noise = torch.cat([prior.residual_scale.double().square(), torch.zeros(f).double()])
    covariance = lift.T @ prior.covariance.double() @ lift + noise.diag()
    base = torch.cat([prior.mean.double(), torch.zeros(f).double()])
    used = prior.weights > 0
    means = base + prior.centres[used].double() @ lift
    assert means.shape[1] == len(prior.mean) + f
    assert prior.centres.shape[1] == r + f
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(prior.weights[used].double()),
        torch.distributions.MultivariateNormal(means, covariance),
    )


@pytest.fixture(scope="module")
def fitted():
    z, attributes = training_latents()
    return MixturePrior((SIZE,), components=4, rank=3, attributes=1).fit(z, attributes, seed=0)


def test_the_density_of_latent_and_attributes_factorises(fitted):
    """log p(z | a) + log p(a) is the dense log p(z, a), so the condition and Woodbury are right."""
    z, a = training_latents(50, seed=1)
    joint = dense(fitted).log_prob(torch.cat([z, a], 1).double())
    r = fitted.rank
    used = fitted.weights > 0
    of_a = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(fitted.weights[used].double()),
        torch.distributions.MultivariateNormal(
            fitted.centres[used, r:].double(), fitted.covariance[r:, r:].double()
        ),
    )
    found = fitted.log_prob(z, a).double() + of_a.log_prob(a.double())
    torch.testing.assert_close(found, joint, rtol=1e-5, atol=1e-4)


def test_the_density_agrees_with_the_dense_mixture():
    z, _ = training_latents()
    prior = MixturePrior((SIZE,), components=3, rank=2).fit(z, seed=0)
    held_out, _ = training_latents(50, seed=1)
    expected = dense(prior).log_prob(held_out.double())
    torch.testing.assert_close(prior.log_prob(held_out).double(), expected, rtol=1e-5, atol=1e-4)


def test_samples_follow_their_density(fitted):
    """Monte Carlo of E[log p] and of the moments against the dense mixture's own."""
    z = fitted.sample(4000, generators=torch.Generator().manual_seed(0))
    reference = dense(fitted)
    assert (z.mean(0) - reference.mean[:SIZE]).abs().max() < 0.15
    assert (z.std(0) / reference.variance[:SIZE].sqrt() - 1).abs().max() < 0.06
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = reference.sample((4000,))[:, :SIZE]
    gap = fitted.log_prob(z).mean() - fitted.log_prob(drawn.float()).mean()
    assert abs(gap.item()) < 0.15


def test_total_variance_is_that_of_the_training_set():
    """Residual noise is not counted twice, once in the scores and once on its own."""
    z, _ = training_latents(4000, spread=1.0)
    prior = MixturePrior((SIZE,), components=3, rank=2).fit(z, seed=0)
    variance = dense(prior).variance
    torch.testing.assert_close(variance, z.double().var(0), rtol=0.15, atol=0)


def test_a_fit_beats_the_standard_normal_on_unseen_latents(fitted):
    z, a = training_latents(200, seed=2)
    plain = StandardNormal((SIZE,)).log_prob(z).mean()
    blind = fitted.log_prob(z).mean()
    told = fitted.log_prob(z, a).mean()
    assert plain + 1 < blind
    assert blind + 0.3 < told


def test_samples_have_the_attribute_that_was_asked_for():
    z, attributes = training_latents(1000)
    prior = MixturePrior((SIZE,), components=4, rank=3, attributes=1).fit(z, attributes, seed=0)
    slope = torch.linalg.lstsq(torch.cat([z, torch.ones(1000, 1)], 1), attributes).solution
    asked = torch.linspace(-1.5, 1.5, 300)[:, None]
    made = prior.sample(300, asked, torch.Generator().manual_seed(0))
    found = torch.cat([made, torch.ones(300, 1)], 1) @ slope
    assert torch.corrcoef(torch.cat([asked, found], 1).T)[0, 1] > 0.9
    assert (found - asked).mean().abs() < 0.1


def test_the_number_of_components_follows_held_out_density():
    options = {"components": 8, "rank": 2}
    clouds, _ = training_latents(400)
    held_out, _ = training_latents(400, seed=5)
    two = MixturePrior((SIZE,), **options).fit(clouds, seed=0, validation=held_out)
    assert 2 <= two.used_components <= 4
    one = torch.randn(400, SIZE, generator=torch.Generator().manual_seed(0))
    other = torch.randn(400, SIZE, generator=torch.Generator().manual_seed(1))
    single = MixturePrior((SIZE,), **options).fit(one, seed=0, validation=other)
    assert single.used_components == 1
    everything = MixturePrior((SIZE,), **options).fit(clouds, seed=0)
    assert everything.used_components == 8


def test_a_full_gaussian_is_the_mixture_of_one():
    z, _ = training_latents()
    prior = FullGaussianPrior((SIZE,), rank=SIZE).fit(z, seed=0)
    assert prior.used_components == 1
    normal = torch.distributions.MultivariateNormal(z.mean(0), torch.cov(z.T))
    expected = normal.log_prob(z)
    torch.testing.assert_close(prior.log_prob(z), expected, rtol=1e-3, atol=1e-2)


def test_the_seed_decides_the_fit():
    z, a = training_latents()
    make = lambda seed: MixturePrior((SIZE,), 4, 3, 1).fit(z, a, seed=seed).state_dict()
    first, again = make(3), make(3)
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_fitted_prior_loads_into_a_new_one(fitted):
    new = MixturePrior((SIZE,), components=4, rank=3, attributes=1)
    assert new.is_standard
    new.load_state_dict(fitted.state_dict())
    assert not new.is_standard
    z, a = training_latents(5, seed=1)
    assert torch.equal(new.log_prob(z, a), fitted.log_prob(z, a))
    assert torch.equal(
        new.sample(2, a[:2], generators(0, 1)), fitted.sample(2, a[:2], generators(0, 1))
    )


@pytest.mark.parametrize("count", [3, 5, 12])
def test_few_cases_use_few_components_and_stay_finite(count):
    z, a = training_latents(count)
    prior = MixturePrior((SIZE,), components=8, rank=SIZE, attributes=1).fit(z, a, seed=0)
    assert prior.used_components <= max(1, count // 4)
    drawn = prior.sample(50, a[:1].expand(50, 1), torch.Generator().manual_seed(0))
    assert drawn.isfinite().all()
    assert prior.log_prob(drawn, a[:1].expand(50, 1)).isfinite().all()


def test_constant_latents_do_not_break_the_fit():
    prior = MixturePrior((SIZE,), components=4, rank=3).fit(torch.ones(20, SIZE), seed=0)
    drawn = prior.sample(4, generators=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, torch.ones(4, SIZE), atol=0.05, rtol=0)


def test_the_temperature_shrinks_within_components_only():
    z, _ = training_latents()
    prior = MixturePrior((SIZE,), components=2, rank=2).fit(z, seed=0)
    cold = prior.sample(200, generators=torch.Generator().manual_seed(0), temperature=0.0)
    assert len(torch.unique(cold, dim=0)) == 2
    warm = prior.sample(200, generators=torch.Generator().manual_seed(0), temperature=0.5)
    full = prior.sample(200, generators=torch.Generator().manual_seed(0))
    torch.testing.assert_close(warm - cold, 0.5 * (full - cold), atol=1e-5, rtol=1e-4)


def test_the_density_has_a_gradient(fitted):
    z, a = training_latents(2, seed=1)
    z.requires_grad_()
    fitted.log_prob(z, a).sum().backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("latents", "attributes", "match"),
    [
        (torch.zeros(9, 5), torch.zeros(9, 1), "5 elements"),
        (torch.zeros(9, 6), None, "0 attributes"),
        (torch.zeros(9, 6), torch.zeros(9, 2), "2 attributes"),
        (torch.zeros(2, 6), torch.zeros(2, 1), "at least 3"),
        (torch.full((9, 6), math.nan), torch.zeros(9, 1), "NaN"),
    ],
)
def test_latents_that_do_not_fit_are_refused(latents, attributes, match):
    prior = MixturePrior((6,), attributes=1)
    with pytest.raises(SettingError, match=match):
        prior.fit(latents, attributes, seed=0)
    assert prior.is_standard


def test_attributes_of_another_number_are_refused(fitted):
    with pytest.raises(SettingError, match="2 attributes given"):
        fitted.log_prob(torch.zeros(1, SIZE), torch.zeros(1, 2))
    with pytest.raises(SettingError, match="pass one each"):
        fitted.sample(2, torch.zeros(1, 1), generators(0, 1))


@pytest.mark.parametrize("options", [{"components": 0}, {"rank": 0}, {"attributes": -1}])
def test_settings_without_meaning_are_refused(options):
    with pytest.raises(SettingError, match="allowed"):
        MixturePrior((3,), **options)
