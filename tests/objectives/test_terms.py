from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from small_models import SHAPE, small_batch, small_flow, small_model
from torch import nn

from medvae3d.errors import NonFiniteTermError, SettingError
from medvae3d.flows import HamiltonianFlow
from medvae3d.objectives import (
    Objective,
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
    warm_up,
)
from medvae3d.probability import LabelMap, MixturePrior

VOXELS = math.prod(SHAPE)


def trace_of(flow=None, batch=None, seed=1):
    batch = batch or small_batch()
    return small_model(flow).trace(batch, torch.Generator().manual_seed(seed)), batch


def with_heads(trace, **heads):
    return dataclasses.replace(trace, heads={**trace.heads, **heads})


# 1, 2, 3: a flow that does not move trains a VAE
@pytest.mark.parametrize(
    "flow", [HamiltonianFlow(0), HamiltonianFlow(3, 0.0), HamiltonianFlow(3, 0.0, 1.0)]
)
def test_an_hvae_that_does_not_move_has_the_loss_of_the_vae_bit_for_bit(flow):
    plain, batch = trace_of()
    still, _ = trace_of(flow)
    assert torch.equal(elbo(plain, batch), elbo(still, batch))


# 12
def test_the_joint_likelihood_is_the_sum_of_image_and_mask():
    trace, batch = trace_of()
    parts = head_nll(trace, batch, "image") + head_nll(trace, batch, "mask")
    torch.testing.assert_close(nll(trace, batch), parts)


def test_the_logits_of_the_mask_change_the_term_of_the_mask_only():
    trace, batch = trace_of()
    mask = trace.heads["mask"]
    blank = with_heads(trace, mask=dataclasses.replace(mask, logits=torch.zeros_like(mask.logits)))
    assert torch.equal(head_nll(blank, batch, "image"), head_nll(trace, batch, "image"))
    expected = torch.full((3,), VOXELS * math.log(2))
    torch.testing.assert_close(head_nll(blank, batch, "mask"), expected)


def test_the_elbo_is_fit_less_kl():
    trace, batch = trace_of(small_flow())
    gap = trace.prior.log_prob(trace.flowed.z) - trace.posterior.log_prob(trace.first_z)
    expected = -nll(trace, batch) + gap + trace.flowed.log_weight
    torch.testing.assert_close(elbo(trace, batch), expected)
    torch.testing.assert_close(negative_elbo(trace, batch), -expected)
    torch.testing.assert_close(negative_elbo(trace, batch, beta=0.0), nll(trace, batch))


# 14
@pytest.mark.parametrize("flow", [None, small_flow()])
def test_the_elbo_of_a_sample_does_not_depend_on_its_batch(flow):
    batch = small_batch(4)
    make = lambda index: [torch.Generator().manual_seed(int(i)) for i in index]
    model = small_model(flow)
    whole = elbo(model.trace(batch, make(range(4))), batch)
    for i in range(4):
        one = {k: v[i : i + 1] for k, v in batch.items()}
        alone = elbo(model.trace(one, make([i])), one)
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-5, atol=1e-3)


def test_the_elbo_sums_over_voxels():
    """A volume of the same voxels twice has twice the log likelihood."""
    trace, batch = trace_of()
    heads = {
        "image": type(trace.heads["image"])(
            trace.heads["image"].mean.repeat(1, 1, 2, 1, 1), trace.heads["image"].scale
        ),
        "mask": type(trace.heads["mask"])(trace.heads["mask"].logits.repeat(1, 1, 2, 1, 1)),
    }
    twice = {k: v.repeat(1, 1, 2, 1, 1) if k != "case" else v for k, v in batch.items()}
    torch.testing.assert_close(nll(with_heads(trace, **heads), twice), 2 * nll(trace, batch))


def test_the_one_sample_kl_averages_to_the_analytic_one():
    batch = {k: v.repeat(20_000, 1, 1, 1, 1) for k, v in small_batch(1).items() if k != "case"}
    trace, _ = trace_of(batch=batch)
    exact = analytic_kl(trace, batch)[0].item()
    assert one_sample_kl(trace, batch).mean().item() == pytest.approx(exact, rel=0.03)


def test_the_analytic_kl_is_refused_where_it_does_not_hold():
    trace, batch = trace_of(small_flow())
    with pytest.raises(SettingError, match="a flow.*one_sample_kl"):
        analytic_kl(trace, batch)
    trace, batch = trace_of()
    prior = MixturePrior((5,), components=1, rank=2)
    unfitted = dataclasses.replace(trace, prior=prior)
    torch.testing.assert_close(analytic_kl(unfitted, batch), trace.posterior.kl())
    prior.fit(torch.randn(20, 5), seed=0)
    with pytest.raises(SettingError, match="a fitted prior"):
        analytic_kl(unfitted, batch)


def test_free_bits_hold_each_element_at_its_floor():
    trace, batch = trace_of()
    per_element = trace.posterior.kl_per_element()
    expected = per_element.clamp_min(0.2).sum(1)
    torch.testing.assert_close(free_bits_kl(0.2)(trace, batch), expected)
    torch.testing.assert_close(free_bits(0.2)(trace, batch) + trace.posterior.kl(), expected)
    assert torch.equal(free_bits(0.0)(trace, batch), torch.zeros(3))


def test_free_bits_take_away_the_gain_of_switching_an_element_off():
    trace, batch = trace_of()
    mean = torch.tensor([[0.05, 2.0]], requires_grad=True)
    posterior = dataclasses.replace(trace.posterior, mean=mean, scale=torch.ones(1, 2))
    trace = dataclasses.replace(trace, posterior=posterior)
    (gradient,) = torch.autograd.grad(free_bits_kl(0.1)(trace, batch).sum(), mean)
    assert gradient.tolist() == [[0.0, 2.0]]


# distances


def test_the_absolute_error_is_a_sum_over_voxels_and_channels():
    trace, batch = trace_of()
    off = (batch["image"] - trace.heads["image"].mode()).abs()
    torch.testing.assert_close(absolute_error(trace, batch), off.flatten(1).sum(1))
    off = (batch["mask"] - trace.heads["mask"].foreground()).abs()
    torch.testing.assert_close(absolute_error(trace, batch, "mask"), off.flatten(1).sum(1))


def test_the_error_in_the_mask_sees_the_mask_only():
    trace, batch = trace_of()
    image = trace.heads["image"]
    outside = (batch["mask"] == 0).expand_as(image.mean)
    moved = with_heads(trace, image=dataclasses.replace(image, mean=image.mean + 5.0 * outside))
    assert torch.equal(in_mask_error(moved, batch), in_mask_error(trace, batch))
    shifted = dataclasses.replace(image, mean=batch["image"] + 1.0)
    inside = 2 * batch["mask"].flatten(1).sum(1)
    expected = inside / (inside + 1)
    torch.testing.assert_close(in_mask_error(with_heads(trace, image=shifted), batch), expected)


@pytest.mark.parametrize("labels", [(0, 1), (0, 1, 4)])
def test_overlap_runs_from_perfect_to_none(labels):
    trace, batch = trace_of()
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(labels), (3, 1, *SHAPE), generator=generator)
    mask = torch.tensor(labels)[index].float()
    logits = 60.0 * torch.cat([index == n for n in range(len(labels))], 1).float()
    batch = {**batch, "mask": mask}
    perfect = with_heads(trace, mask=LabelMap(logits, labels))
    torch.testing.assert_close(overlap(perfect, batch), torch.zeros(3), atol=1e-4, rtol=0)
    wrong = with_heads(trace, mask=LabelMap(logits.roll(1, 1), labels))
    torch.testing.assert_close(overlap(wrong, batch), torch.ones(3), atol=1e-3, rtol=0)


def test_an_empty_mask_that_is_met_overlaps_perfectly():
    trace, batch = trace_of()
    head = dataclasses.replace(trace.heads["mask"], logits=torch.full((3, 1, *SHAPE), -60.0))
    batch = {**batch, "mask": torch.zeros(3, 1, *SHAPE)}
    torch.testing.assert_close(
        overlap(with_heads(trace, mask=head), batch), torch.zeros(3), atol=1e-4, rtol=0
    )


# the objective


def test_the_objective_is_the_weighted_sum_of_batch_means():
    trace, batch = trace_of()
    objective = Objective(Term("fit", nll), Term("kl", analytic_kl, warm_up(10)))
    loss, values = objective(trace, batch, 5)
    expected = nll(trace, batch).mean() + 0.5 * analytic_kl(trace, batch).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(values["kl"], analytic_kl(trace, batch).mean().detach())
    assert loss.requires_grad
    assert not any(value.requires_grad for value in values.values())


def test_terms_come_one_by_one_or_as_a_list():
    trace, batch = trace_of()
    terms = [Term("fit", nll), Term("kl", analytic_kl)]
    assert torch.equal(Objective(*terms)(trace, batch, 0)[0], Objective(terms)(trace, batch, 0)[0])


def test_duplicating_every_sample_leaves_the_loss():
    trace, batch = trace_of()
    names = ("mean", "scale")
    double = lambda item, fields: dataclasses.replace(
        item, **{f: torch.cat([getattr(item, f)] * 2) for f in fields}
    )
    twice = dataclasses.replace(
        trace,
        posterior=double(trace.posterior, names),
        first_z=torch.cat([trace.first_z] * 2),
        flowed=double(trace.flowed, ("z", "log_weight")),
        heads={
            "image": double(trace.heads["image"], ("mean",)),
            "mask": double(trace.heads["mask"], ("logits",)),
        },
    )
    both = {k: torch.cat([v] * 2) for k, v in batch.items() if k != "case"}
    objective = Objective(Term("elbo", negative_elbo), Term("l1", absolute_error), per_voxel=True)
    torch.testing.assert_close(objective(trace, batch, 0)[0], objective(twice, both, 0)[0])


def test_per_voxel_divides_by_what_was_observed():
    trace, batch = trace_of()
    total, values = Objective(Term("fit", nll))(trace, batch, 0)
    each, same = Objective(Term("fit", nll), per_voxel=True)(trace, batch, 0)
    torch.testing.assert_close(each, total / (3 * VOXELS))
    assert torch.equal(values["fit"], same["fit"])
    half = {**batch, "valid": torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1, 1).expand(3, 2, 1, 1, 1)}
    total, _ = Objective(Term("fit", nll))(trace, half, 0)
    each, _ = Objective(Term("fit", nll), per_voxel=True)(trace, half, 0)
    torch.testing.assert_close(each, total / (2 * VOXELS))


def test_a_mean_weighs_the_same_whatever_the_objective_is_divided_by():
    trace, batch = trace_of()
    plain, _ = Objective(Term("dice", overlap, 2.0, is_mean=True), per_voxel=True)(trace, batch, 0)
    torch.testing.assert_close(plain, 2 * overlap(trace, batch).mean())
    summed, _ = Objective(Term("dice", overlap, 2.0, is_mean=True))(trace, batch, 0)
    torch.testing.assert_close(summed, 3 * VOXELS * plain)


def test_a_broken_term_is_named_with_its_step_cases_and_scale():
    trace, batch = trace_of()
    broken = lambda trace, batch: torch.tensor([1.0, math.nan, math.inf])
    with pytest.raises(NonFiniteTermError) as caught:
        Objective(Term("fit", nll), Term("odd", broken))(trace, batch, 17)
    message = str(caught.value)
    assert "step 17: odd not finite for case_1, case_2" in message
    low, high = trace.posterior.scale.aminmax()
    assert f"[{low:.2g}, {high:.2g}]" in message
    assert "Lower the learning rate" in message


def test_a_broken_batch_without_names_is_reported_too():
    trace, batch = trace_of()
    del batch["case"]
    broken = lambda trace, batch: torch.tensor([1.0, math.nan, 0.0])
    with pytest.raises(NonFiniteTermError, match="1 unnamed cases"):
        Objective(Term("odd", broken))(trace, batch, 0)


@pytest.mark.parametrize("terms", [[], [Term("a", nll), Term("a", elbo)]])
def test_names_of_terms_are_there_and_different(terms):
    with pytest.raises(SettingError, match="each name once"):
        Objective(terms)


# 15
def train(steps):
    torch.manual_seed(0)
    model = small_model(small_flow(num_steps=3, step_size=0.05))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    objective = Objective(
        Term("fit", nll), Term("kl", one_sample_kl, warm_up(steps // 5)), per_voxel=True
    )
    generator = torch.Generator().manual_seed(0)
    batch = small_batch(8)
    losses, reports = [], []
    for step in range(steps):
        optimizer.zero_grad()
        trace = model.trace(batch, generator)
        loss, _ = objective(trace, batch, step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        reports.append((trace.flowed, trace.first_z))
    return losses, reports


@pytest.mark.parametrize("steps", [80, pytest.param(1000, marks=pytest.mark.slow)])
def test_training_with_a_flow_stays_finite_and_the_flow_stays_active(steps):
    losses, reports = train(steps)
    assert all(map(math.isfinite, losses))
    assert sum(losses[-10:]) < 0.98 * sum(losses[:10])
    for flowed, first_z in reports:
        assert flowed.force_norm.isfinite().all()
        assert (flowed.displacement > 1e-3 * first_z.detach().norm(dim=1)).all()


def test_without_its_divergence_a_model_learns_two_cases_by_heart():
    """Squared errors fall below 1 % of what the mean of both leaves, and the divergence grows."""
    torch.manual_seed(0)
    model, batch = small_model(), small_batch(2)
    objective = Objective(Term("fit", nll), Term("kl", one_sample_kl, 0.0), per_voxel=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    begun = model.trace(batch, generator).posterior.kl()
    for step in range(120):
        optimizer.zero_grad()
        loss, _ = objective(model.trace(batch, generator), batch, step)
        loss.backward()
        optimizer.step()
    trace = model.trace(batch, generator)
    made = model.decode(trace.posterior.mean)
    error = (made["image"].mean - batch["image"]).square().mean()
    assert error < 0.01 * (batch["image"] - batch["image"].mean(0)).square().mean()
    assert torch.equal(made["mask"].mode(), batch["mask"].to(made["mask"].mode()))
    assert (trace.posterior.kl() > begun + 1).all()
