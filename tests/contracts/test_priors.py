"""What every prior promises."""

from __future__ import annotations

import pytest
import torch
from small_models import generators, stray_tensors

from medvae3d.errors import SettingError
from medvae3d.models.volume_prior import VolumePrior
from medvae3d.probability import FullGaussianPrior, MixturePrior, Prior, StandardNormal
from medvae3d.probability.priors import Aggregate, FlowPrior, VampPrior

SHAPE = (2, 2, 1, 1)


def data(count=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, *SHAPE, generator=generator)
    z = z + 2 * z[:, :1]
    return z, z.flatten(1)[:, :2] + 0.3 * torch.randn(count, 2, generator=generator)


def fitted(prior, told=False):
    z, attributes = data()
    return prior.fit(z, attributes if told else None, seed=0)


def of_pseudo_inputs(told=False):
    """Inputs are latents, and the encoder doubles them."""
    z, attributes = data()
    scales = torch.full_like(z, 0.7)
    encode = lambda x, a: (2 * x, torch.full_like(x, 0.7))
    kept = attributes if told else None
    aggregate = Aggregate(z, z, scales, kept, inputs=0.5 * z[:40], encode=encode)
    prior = VampPrior(SHAPE, 8, 2 if told else 0, steps=40)
    return prior.fit_posterior(aggregate, seed=0)


def volume(**options):
    """Prior of the volume of a metric of thirty cases, with short chains."""
    prior = VolumePrior(SHAPE, **{"steps": 12, "leapfrog_steps": 6, "bandwidth": 1.5, **options})
    names = [str(i) for i in range(30)]
    return prior.fit_cases(data(30)[0], 1.2 * torch.eye(4).expand(30, 4, 4), names, seed=0)


PRIORS = {
    "standard normal": (lambda: StandardNormal(SHAPE), 0),
    "volume, within reach": (volume, 0),
    "volume, decaying": (lambda: volume(reach=None, decay=0.05), 0),
    "volume, of posteriors": (lambda: volume(geometry="posterior", bandwidth=2.0, decay=0.05), 0),
    "unfitted": (lambda: MixturePrior(SHAPE, 3, 2, 2), 2),
    "mixture": (lambda: fitted(MixturePrior(SHAPE, 3, 2)), 0),
    "mixture, told": (lambda: fitted(MixturePrior(SHAPE, 3, 2, 2), True), 2),
    "vamp": (of_pseudo_inputs, 0),
    "vamp, told": (lambda: of_pseudo_inputs(True), 2),
    "vamp of latents alone": (lambda: fitted(VampPrior(SHAPE, 3)), 0),
    "flow": (lambda: fitted(FlowPrior(SHAPE, 3, width=16, steps=60)), 0),
    "flow over all, told": (lambda: fitted(FlowPrior(SHAPE, 4, 2, width=16, steps=60), True), 2),
    "full gaussian": (lambda: fitted(FullGaussianPrior(SHAPE, rank=4)), 0),
    "full gaussian, told": (
        lambda: fitted(FullGaussianPrior(SHAPE, rank=3, attributes=2), True),
        2,
    ),
}


@pytest.fixture(params=PRIORS, scope="module")
def case(request):
    make, features = PRIORS[request.param]
    return make(), features


@pytest.fixture(scope="module")
def prior(case):
    return case[0]


def asked(features, count):
    if not features:
        return None
    return torch.randn(count, features, generator=torch.Generator().manual_seed(9))


def test_it_is_a_prior(prior):
    assert isinstance(prior, Prior)


def test_density_and_samples_have_their_shapes(case):
    prior, features = case
    attributes = asked(features, 3)
    z = prior.sample(3, attributes, generators(0, 1, 2))
    assert z.shape == (3, *SHAPE)
    assert z.dtype == torch.float32
    assert prior.log_prob(z, attributes).shape == (3,)
    assert prior.sample(0, None, []).shape == (0, *SHAPE)


def test_the_density_integrates_to_one(case):
    """Importance sampling from a wide normal, in the four dimensions of the latent."""
    prior, features = case
    count = 100_000
    wide = torch.distributions.Normal(0.0, 4.0)
    z = 4 * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    attributes = None if not features else asked(features, 1).expand(count, features)
    weights = (prior.log_prob(z, attributes) - wide.log_prob(z).flatten(1).sum(1)).exp()
    error = weights.std().item() / count**0.5
    assert error < 0.1
    assert abs(weights.mean().item() - 1) < 4 * error


def test_the_density_of_a_sample_does_not_depend_on_the_batch(case):
    prior, features = case
    z, attributes = prior.sample(4, None, generators(*range(4))), asked(features, 4)
    one = None if attributes is None else attributes[2:3]
    torch.testing.assert_close(
        prior.log_prob(z, attributes)[2:3], prior.log_prob(z[2:3], one), rtol=1e-6, atol=1e-6
    )


def test_a_sample_depends_on_its_own_generator_alone_bit_for_bit(case):
    prior, features = case
    attributes = asked(features, 5)
    whole = prior.sample(5, attributes, generators(*range(5)))
    some = None if attributes is None else attributes[3:]
    assert torch.equal(whole[3:], prior.sample(2, some, generators(3, 4)))
    assert not torch.equal(whole[0], whole[1])


def test_one_generator_draws_a_batch_again(prior):
    draws = [prior.sample(3, generators=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0][0], draws[0][1])


def test_a_wrong_number_of_generators_is_refused(prior):
    with pytest.raises(SettingError, match="3"):
        prior.sample(3, None, generators(0, 1))


def test_cold_samples_lie_at_modes(prior):
    cold = prior.sample(20, generators=torch.Generator().manual_seed(0), temperature=0.0)
    near = prior.sample(20, generators=torch.Generator().manual_seed(0), temperature=0.1)
    warm = prior.sample(20, generators=torch.Generator().manual_seed(0))
    scores = [prior.log_prob(z).mean().item() for z in (cold, near, warm)]
    # The middle of a flow's noise becomes something near the mode, not the mode itself.
    slack = 0.05 if isinstance(prior, FlowPrior) else 0.0
    assert scores[0] >= scores[1] - slack and scores[1] > scores[2]


def test_the_density_is_that_of_its_samples(case):
    """The mean log density over its own samples beats that over samples of another spread."""
    prior, _ = case
    count = 200 if isinstance(prior, FlowPrior) else 2000
    z = prior.sample(count, generators=torch.Generator().manual_seed(0))
    wide = prior.sample(count, generators=torch.Generator().manual_seed(1), temperature=1.5)
    assert prior.log_prob(z).mean() > prior.log_prob(wide).mean()


def test_every_tensor_is_in_the_state_dict(prior):
    assert not list(stray_tensors(prior))


def test_autocast_changes_no_bit(case):
    prior, features = case
    z, attributes = data(4)[0], asked(features, 4)
    plain = prior.log_prob(z, attributes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prior.log_prob(z, attributes), plain)
        cast = prior.sample(2, None, generators(0, 1))
    assert torch.equal(cast, prior.sample(2, None, generators(0, 1)))


def test_a_half_precision_latent_has_a_float32_density(case):
    prior, features = case
    found = prior.log_prob(data(3)[0].bfloat16(), asked(features, 3))
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def test_the_density_has_a_gradient(prior):
    z = data(2)[0].requires_grad_()
    prior.log_prob(z).sum().backward()
    assert z.grad.isfinite().all()
