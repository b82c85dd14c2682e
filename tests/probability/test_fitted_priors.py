"""VampPrior and flow: what they gain, what they refuse."""

from __future__ import annotations

import sys

import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.models.registry import PRIORS as DESCRIBED
from medvae3d.probability import FullGaussianPrior, StandardNormal
from medvae3d.probability.priors import PRIORS, Aggregate, FlowPrior, VampPrior, make_prior


def ring(count=600, seed=0):
    """A ring in two of four dimensions, an attribute that says where on it a case lies."""
    generator = torch.Generator().manual_seed(seed)
    angle = 6.2832 * torch.rand(count, generator=generator)
    noise = 0.1 * torch.randn(count, 4, generator=generator)
    z = torch.stack([2 * angle.cos(), 2 * angle.sin(), 0 * angle, 0 * angle], 1) + noise
    return z, angle.cos()[:, None]


def aggregate(start=None, told=False, scale=0.15):
    """The encoder is a fixed rotation; its inputs start in the middle of nowhere or at cases."""
    z, attributes = ring()
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(5)))[0]
    inputs = z @ turn.T if start is None else start
    encode = lambda x, a: (x @ turn, torch.full_like(x, scale))
    scales = torch.full_like(z, scale)
    return Aggregate(z, z, scales, attributes if told else None, inputs, encode)


def test_pseudo_inputs_move_to_where_the_latents_are():
    start = 0.1 * torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    held_out, _ = ring(200, 1)
    moved = VampPrior((4,), 12, steps=120, learning_rate=0.1)
    moved.fit_posterior(aggregate(start, scale=0.3), seed=0)
    still = VampPrior((4,), 12, steps=0).fit_posterior(aggregate(start, scale=0.3), seed=0)
    assert moved.log_prob(held_out).mean() > still.log_prob(held_out).mean() + 5
    radius = moved.means[:, :4].norm(dim=1)
    assert (radius > 1).float().mean() > 0.5, "most of them have reached the ring"


def test_a_vamp_prior_beats_one_gaussian_on_a_ring():
    held_out, _ = ring(300, 1)
    vamp = VampPrior((4,), 16, steps=200).fit_posterior(aggregate(), seed=0)
    z, _ = ring()
    gaussian = FullGaussianPrior((4,), rank=4).fit(z, seed=0)
    assert vamp.log_prob(held_out).mean() > gaussian.log_prob(held_out).mean() + 0.2
    assert gaussian.log_prob(held_out).mean() > StandardNormal((4,)).log_prob(held_out).mean()


def test_a_vamp_prior_draws_what_was_asked_for():
    prior = VampPrior((4,), 32, attributes=1, steps=100).fit_posterior(aggregate(told=True), seed=0)
    asked = torch.linspace(-1, 1, 60)[:, None]
    z = prior.sample(60, asked, torch.Generator().manual_seed(0))
    assert torch.corrcoef(torch.stack([z[:, 0], asked[:, 0]]))[0, 1] > 0.8


def test_the_encoder_learns_nothing_from_a_fit():
    layer = torch.nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    whole = aggregate()
    encode = lambda x, a: (layer(x), torch.ones_like(x))
    given = Aggregate(whole.latents, whole.means, whole.scales, None, whole.inputs, encode)
    VampPrior((4,), 4, steps=3).fit_posterior(given, seed=0)
    assert layer.weight.grad is None and torch.equal(before, layer.weight)


@pytest.fixture(scope="module")
def flow():
    z, attributes = ring()
    return FlowPrior((4,), rank=3, attributes=1, width=16, steps=80).fit(z, attributes, seed=0)


@pytest.mark.slow
def test_a_flow_beats_one_gaussian_on_a_ring_and_draws_the_ring():
    held_out, _ = ring(300, 1)
    z, _ = ring()
    gaussian = FullGaussianPrior((4,), rank=4).fit(z, seed=0)
    flow = FlowPrior((4,), rank=4, width=32, steps=300).fit(z, seed=0)
    assert flow.log_prob(held_out).mean() > gaussian.log_prob(held_out).mean() + 0.3
    drawn = flow.sample(150, generators=torch.Generator().manual_seed(0))
    on_it = lambda z: ((z[:, :2].norm(dim=1) - 2).abs() < 0.7).float().mean()
    others = gaussian.sample(150, generators=torch.Generator().manual_seed(0))
    assert on_it(drawn) > on_it(others) + 0.25


def test_a_flow_draws_what_was_asked_for(flow):
    held_out, attributes = ring(300, 1)
    assert flow.log_prob(held_out, attributes).mean() > flow.log_prob(held_out).mean() + 0.3
    asked = torch.linspace(-1, 1, 60)[:, None]
    z = flow.sample(60, asked, torch.Generator().manual_seed(0))
    assert torch.corrcoef(torch.stack([z[:, 0], asked[:, 0]]))[0, 1] > 0.8


def test_the_seed_decides_a_flow_and_it_loads_into_a_new_one(flow):
    z, attributes = ring(100)
    make = lambda seed: FlowPrior((4,), 2, 1, width=8, steps=3).fit(z, attributes, seed=seed)
    first, again, other = (make(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    new = FlowPrior((4,), rank=3, attributes=1, width=16)
    new.load_state_dict(flow.state_dict())
    assert torch.equal(new.log_prob(z, attributes), flow.log_prob(z, attributes))


@pytest.mark.slow
def test_validation_keeps_the_flow_that_fits_unseen_latents():
    z, _ = ring(24)
    unseen, _ = ring(300, 7)
    options = {"rank": 4, "width": 32, "steps": 200}
    kept = FlowPrior((4,), **options).fit(z, seed=0, validation=unseen)
    last = FlowPrior((4,), **options).fit(z, seed=0)
    assert kept.log_prob(unseen).mean() > last.log_prob(unseen).mean()


def test_too_few_latents_for_a_flow_are_refused():
    prior = FlowPrior((4,), rank=4, width=8)
    with pytest.raises(SettingError, match="prior_passes"):
        prior.fit(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), seed=0)
    assert prior.is_standard


def test_a_flow_without_zuko_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko.flows", None)
    with pytest.raises(SettingError, match=r"medvae3d\[flow\]"):
        make_prior("flow", (4,), components=2, rank=2)
    assert make_prior("mixture", (4,), components=2, rank=2) is not None


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: VampPrior((3,), 0), "components >= 1"),
        (lambda: FlowPrior((3,), 0), "rank >= 1"),
        (lambda: make_prior("gaussain", (3,), components=1, rank=1), "allowed are normal"),
    ],
)
def test_priors_without_meaning_are_refused(make, match):
    with pytest.raises(SettingError, match=match):
        make()


@pytest.mark.parametrize("name", ["vamp", "flow"])
def test_attributes_of_another_number_are_refused(name):
    z, attributes = ring(60)
    prior = make_prior(name, (4,), components=2, rank=2, attributes=1)
    prior.steps = 2
    prior.fit(z, attributes, seed=0)
    with pytest.raises(SettingError, match="2 attributes given"):
        prior.log_prob(z[:1], torch.zeros(1, 2))


def test_every_prior_that_can_be_chosen_is_described():
    assert set(PRIORS) <= set(DESCRIBED)
