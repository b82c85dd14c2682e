"""What every term of an objective promises."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from small_models import SHAPE, SmallDiscriminator, generators, small_batch, small_flow, small_model

from medvae3d.objectives import (
    AdversarialScore,
    FeatureMatching,
    Objective,
    Perceptual,
    RandomFeatureDistance,
    Term,
    absolute_error,
    analytic_kl,
    elbo,
    free_bits,
    free_bits_kl,
    head_nll,
    in_mask_error,
    negative_elbo,
    nll,
    one_sample_kl,
    overlap,
)

torch.manual_seed(0)
JUDGE = SmallDiscriminator()
WITHOUT_FLOW = {"analytic_kl": analytic_kl, "free_bits_kl": free_bits_kl(0.1)}
TERMS = {
    "nll": nll,
    "head_nll, image": head_nll,
    "head_nll, mask": partial(head_nll, head="mask"),
    "elbo": elbo,
    "negative_elbo": partial(negative_elbo, beta=0.5),
    "one_sample_kl": one_sample_kl,
    "free_bits": free_bits(1.0),
    "absolute_error": absolute_error,
    "absolute_error, mask": partial(absolute_error, head="mask"),
    "in_mask_error": in_mask_error,
    "overlap": overlap,
    "hinge": AdversarialScore(JUDGE),
    "least squares": AdversarialScore(JUDGE, kind="least_squares", mask_smoothing=0.5),
    "logistic": AdversarialScore(JUDGE, kind="logistic"),
    "feature matching": FeatureMatching(JUDGE),
    "perceptual, 3-D": Perceptual(RandomFeatureDistance()),
    "perceptual, 2.5-D": Perceptual(RandomFeatureDistance(dims=2)),
    **WITHOUT_FLOW,
}
OF_THE_LATENT = {"one_sample_kl", "free_bits", *WITHOUT_FLOW}


@pytest.fixture(params=TERMS)
def name(request):
    return request.param


@pytest.fixture
def term(name):
    return TERMS[name]


@pytest.fixture
def model(name):
    return small_model(None if name in WITHOUT_FLOW else small_flow())


def test_a_term_is_one_finite_number_a_sample(term, model):
    batch = small_batch()
    value = term(model.trace(batch), batch)
    assert value.shape == (3,)
    assert value.dtype == torch.float32
    assert value.isfinite().all()


def test_a_sample_does_not_depend_on_its_batch(term, model):
    batch = small_batch(4)
    whole = term(model.trace(batch, generators(*range(4))), batch)
    one = {key: value[2:3] for key, value in batch.items()}
    alone = term(model.trace(one, generators(2)), one)
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-4, atol=1e-4)


def test_a_term_teaches_what_it_reads(name, term, model):
    batch = small_batch()
    term(model.trace(batch, generators(0, 1, 2)), batch).sum().backward()
    taught = model.encoder if name in OF_THE_LATENT else model.decoder
    gradients = [p.grad for p in taught.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_a_term_writes_nothing(term, model):
    batch = small_batch()
    trace = model.trace(batch, generators(0, 1, 2))
    before = [trace.first_z.clone(), trace.flowed.z.clone(), batch["image"].clone()]
    value = term(trace, batch)
    after = [trace.first_z, trace.flowed.z, batch["image"]]
    assert all(map(torch.equal, before, after))
    assert torch.equal(term(trace, batch), value)


def test_what_was_not_observed_does_not_matter(name, term, model):
    """NaN where an image or a mask was not observed changes neither the term nor its gradient."""
    batch = small_batch()
    valid, mask_valid = torch.ones(3, 2, *SHAPE), torch.ones(3, 1, *SHAPE)
    valid[0, 1], mask_valid[1, 0, 0] = 0, 0
    image, mask = (torch.where(v > 0, batch[k], 0.0) for k, v in
                   (("image", valid), ("mask", mask_valid)))  # fmt: skip
    zeros = {**batch, "image": image, "mask": mask, "valid": valid, "mask_valid": mask_valid}
    nothing = {
        **zeros,
        "image": torch.where(valid > 0, image, torch.nan),
        "mask": torch.where(mask_valid > 0, mask, torch.nan),
    }
    values, gradients = [], []
    for case in (zeros, nothing):
        trace = model.trace(case, generators(0, 1, 2))
        values.append(term(trace, case))
        (gradient,) = torch.autograd.grad(values[-1].sum(), trace.posterior.mean)
        gradients.append(gradient)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_autocast_keeps_a_term_finite_and_close(term, model):
    batch = small_batch()
    plain = term(model.trace(batch, generators(0, 1, 2)), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = term(model.trace(batch, generators(0, 1, 2)), batch)
    assert cast.dtype == torch.float32
    assert cast.isfinite().all()
    torch.testing.assert_close(cast, plain, rtol=0.1, atol=0.1)


def test_a_term_is_part_of_an_objective(term, model):
    batch = small_batch()
    loss, values = Objective(Term("it", term, 0.5))(model.trace(batch), batch, 3)
    assert loss.shape == ()
    torch.testing.assert_close(loss.detach(), 0.5 * values["it"])


def test_a_term_runs_without_gradients(term, model):
    batch = small_batch()
    with torch.no_grad():
        assert term(model.trace(batch), batch).isfinite().all()


def test_a_trace_is_frozen(model):
    trace = model.trace(small_batch())
    with pytest.raises(dataclasses.FrozenInstanceError):
        trace.first_z = None
