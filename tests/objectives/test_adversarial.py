"""The numbered claims of the discriminative HVAE, and what they leave open."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from small_models import (
    SHAPE,
    SmallDiscriminator,
    small_batch,
    small_flow,
    small_model,
)

from medvae3d.errors import SettingError
from medvae3d.objectives import (
    AdaptiveWeight,
    AdversarialScore,
    FeatureMatching,
    Objective,
    Perceptual,
    RandomFeatureDistance,
    Term,
    absolute_error,
    discriminator_loss,
    negative_elbo,
    pair,
)
from medvae3d.objectives.adversarial import discriminator_score, generator_score, judging


def discriminator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallDiscriminator()


def discriminative(model, alpha, start=0, judge=None):
    """(1 - alpha) L_HVAE + alpha [sum |x - x'| + C H W LPIPS + lambda L_G]."""
    balance = AdaptiveWeight(model.decoder[-1].weight, against=("l1", "perceptual"))
    score = AdversarialScore(judge or discriminator(), start)
    return Objective(
        Term("elbo", negative_elbo, 1 - alpha),
        Term("l1", absolute_error, alpha),
        Term("perceptual", Perceptual(RandomFeatureDistance()), alpha),
        Term("adversary", score, alpha, balance=balance),
    )


def loss_and_gradients(model, objective, batch, step=0):
    model.zero_grad()
    trace = model.trace(batch, torch.Generator().manual_seed(1))
    loss, values = objective(trace, batch, step)
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return loss.detach(), values, gradients


# 1
def test_without_alpha_this_is_the_joint_hvae():
    batch = small_batch()
    model = small_model(small_flow())
    plain = Objective(Term("elbo", negative_elbo))
    loss, _, gradients = loss_and_gradients(model, plain, batch)
    same, _, found = loss_and_gradients(model, discriminative(model, 0.0), batch)
    torch.testing.assert_close(same, loss)
    torch.testing.assert_close(found, gradients)


# 2
def test_with_alpha_one_the_scale_learns_through_samples_only():
    batch = small_batch()
    model = small_model()
    for alpha, through_samples_only in ((1.0, True), (0.5, False)):
        trace = model.trace(batch, torch.Generator().manual_seed(1))
        loss, _ = discriminative(model, alpha)(trace, batch, 0)
        of_z, of_scale = torch.autograd.grad(loss, [trace.first_z, trace.posterior.scale])
        noise = ((trace.first_z - trace.posterior.mean) / trace.posterior.scale).detach()
        if alpha == 1.0:
            torch.testing.assert_close(of_scale, of_z * noise, rtol=1e-4, atol=1e-4)
        assert torch.allclose(of_scale, of_z * noise, 1e-3, 1e-3) is through_samples_only


def test_with_alpha_one_nothing_holds_the_kl():
    batch = small_batch()
    ends = {}
    for alpha in (0.01, 1.0):
        model = small_model()
        objective = discriminative(model, alpha, start=10**6)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(0)
        kls = []
        for step in range(150):
            optimizer.zero_grad()
            trace = model.trace(batch, generator)
            objective(trace, batch, step)[0].backward()
            optimizer.step()
            kls.append(trace.posterior.kl().mean().item())
        ends[alpha] = kls[75], kls[-1]
    assert ends[1.0][1] > 1.2 * ends[1.0][0]
    assert ends[1.0][1] > 1.5 * ends[0.01][1]


# 3
def test_before_its_start_the_adversary_is_not_asked():
    batch = small_batch()
    model = small_model()

    def judge(x):
        raise AssertionError("asked too early")

    objective = discriminative(model, 0.5, start=10, judge=judge)
    _, values, _ = loss_and_gradients(model, objective, batch, step=9)
    assert values["adversary"].item() == 0
    with pytest.raises(AssertionError, match="too early"):
        loss_and_gradients(model, objective, batch, step=10)


# 4
@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_the_adaptive_weight_falls_as_the_adversary_grows(factor):
    layer = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    reconstruction = 1000 * layer.square().sum()
    balance = AdaptiveWeight(layer, ("l1",))
    weight = balance(reconstruction, factor * reconstruction)
    assert weight.item() == pytest.approx(1 / factor, rel=1e-4)
    assert not weight.requires_grad


def test_the_adaptive_weight_stays_within_its_limits():
    layer = torch.nn.Parameter(torch.ones(3))
    balance = AdaptiveWeight(layer, ("l1",))
    loss = layer.sum()
    assert balance(1e6 * loss, 1e-9 * loss).item() == 1e4
    assert balance(0.0 * loss, loss).item() == 0
    other = torch.nn.Parameter(torch.ones(3)).sum()
    assert balance(loss, other).item() == 1e4  # no gradient at all reaches the layer


def test_a_balanced_term_has_the_gradient_of_the_reconstruction():
    batch = small_batch()
    model = small_model()
    trace = model.trace(batch, torch.Generator().manual_seed(1))
    layer = model.decoder[-1].weight
    balance = AdaptiveWeight(layer, ("l1",))
    score = AdversarialScore(discriminator())
    both = Objective(Term("l1", absolute_error), Term("adversary", score, balance=balance))
    loss, _ = both(trace, batch, 0)
    of_l1 = torch.autograd.grad(absolute_error(trace, batch).mean(), layer, retain_graph=True)[0]
    of_all = torch.autograd.grad(loss, layer)[0]
    assert (of_all - of_l1).norm().item() == pytest.approx(of_l1.norm().item(), rel=1e-2)


@pytest.mark.parametrize(("weight", "is_mean"), [(0.3, False), (5.0, True)])
def test_a_term_is_balanced_against_others_as_they_are_weighted(weight, is_mean):
    batch = small_batch()
    model = small_model()
    trace = model.trace(batch, torch.Generator().manual_seed(1))
    layer = model.decoder[-1].weight
    balance = AdaptiveWeight(layer, ("l1",), 1e12)
    l1 = Term("l1", absolute_error, weight, is_mean=is_mean)
    both = Objective(l1, Term("adversary", AdversarialScore(discriminator()), balance=balance))
    of_l1 = torch.autograd.grad(Objective(l1)(trace, batch, 0)[0], layer, retain_graph=True)[0]
    of_all = torch.autograd.grad(both(trace, batch, 0)[0], layer)[0]
    assert (of_all - of_l1).norm().item() == pytest.approx(of_l1.norm().item(), rel=1e-2)


def test_without_gradients_the_balanced_term_is_logged_and_does_not_count():
    batch = small_batch()
    model = small_model()
    with torch.no_grad():
        trace = model.trace(batch, torch.Generator().manual_seed(1))
        loss, values = discriminative(model, 0.5)(trace, batch, 0)
        plain = Objective(
            Term("elbo", negative_elbo, 0.5),
            Term("l1", absolute_error, 0.5),
            Term("perceptual", Perceptual(RandomFeatureDistance()), 0.5),
        )
        torch.testing.assert_close(loss, plain(trace, batch, 0)[0])
    assert values["adversary"].item() != 0


def test_all_processes_find_the_same_adaptive_weight(monkeypatch):
    """Two processes with half of the batch each find what one with all of it finds."""
    layer = torch.nn.Parameter(torch.randn(4, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    losses = lambda x: ((x * layer).square().sum(1).mean(), (x @ layer).tanh().mean())
    balance = AdaptiveWeight(layer, ("l1",))
    expected = balance(*losses(x))
    others = [torch.autograd.grad(loss, layer)[0] for loss in losses(x[3:])]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda mine: mine.add_(others.pop(0)))
    torch.testing.assert_close(balance(*losses(x[:3])), expected)


def test_a_balance_against_nothing_is_refused():
    balance = AdaptiveWeight(torch.nn.Parameter(torch.ones(1)), ("l2",))
    with pytest.raises(SettingError, match="l2"):
        Objective(Term("adversary", absolute_error, balance=balance))


# 6
def test_perceptual_and_pixel_terms_are_sums_of_the_same_kind():
    batch = small_batch()
    trace = small_model().trace(batch, torch.Generator().manual_seed(1))
    distance = RandomFeatureDistance()
    found = Perceptual(distance)(trace, batch) / absolute_error(trace, batch)
    made = trace.heads["image"].mode()
    count = made[0].numel()
    expected = count * distance(batch["image"], made)
    expected = expected / (batch["image"] - made).abs().flatten(1).sum(1)
    torch.testing.assert_close(found, expected)


# 7
@pytest.mark.parametrize("kind", ["hinge", "least_squares"])
def test_the_discriminators_step_does_not_reach_the_model(kind):
    batch = small_batch()
    model, judge = small_model(), discriminator()
    trace = model.trace(batch, torch.Generator().manual_seed(1))
    real = pair(batch, trace=trace, real=True)
    fake = pair(batch, trace=trace, real=False)
    assert fake.requires_grad
    loss, accuracy = discriminator_loss(judge, real, fake, kind)
    loss.backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in judge.parameters())
    assert 0 <= accuracy <= 1


# 8
def test_the_models_step_does_not_reach_the_discriminator():
    batch = small_batch()
    model, judge = small_model(), discriminator()
    before = copy.deepcopy(judge.state_dict())
    objective = Objective(
        Term("score", AdversarialScore(judge)),
        Term("features", FeatureMatching(judge)),
        Term("perceptual", Perceptual(RandomFeatureDistance())),
    )
    loss_and_gradients(model, objective, batch)
    assert all(p.grad is None for p in judge.parameters())
    assert all(p.requires_grad for p in judge.parameters())
    assert all(torch.equal(before[key], value) for key, value in judge.state_dict().items())
    assert not set(model.parameters()) & set(judge.parameters())
    assert not list(RandomFeatureDistance().parameters())


def test_a_discriminator_that_was_frozen_stays_so():
    judge = discriminator().requires_grad_(False)
    with judging(judge):
        pass
    assert not any(p.requires_grad for p in judge.parameters())


# the losses themselves


def test_the_hinge_pair_is_plain():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])
    assert discriminator_score(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.75))
    # Not squashed by a tanh: a patch that is far off keeps its pull.
    logits = torch.tensor([[5.0, 7.0]], requires_grad=True)
    score = generator_score(logits)
    assert score.item() == -6
    score.sum().backward()
    assert logits.grad.tolist() == [[-0.5, -0.5]]


def test_the_least_squares_pair_is_plain():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.0, -2.0])
    assert discriminator_score(real, fake, "least_squares").item() == pytest.approx(2.0)
    assert generator_score(torch.tensor([[1.0, -1.0]]), "least_squares").item() == 2


@pytest.mark.parametrize("kind", ["hinge", "least_squares"])
def test_accuracy_counts_both_sides(kind):
    middle = {"hinge": 0.0, "least_squares": 0.5}[kind]
    judge = lambda x: [x - 0.0]
    real, fake = torch.full((2, 1), middle + 0.1), torch.full((2, 1), middle - 0.1)
    assert discriminator_loss(judge, real, fake, kind)[1].item() == 1
    assert discriminator_loss(judge, fake, real, kind)[1].item() == 0
    assert discriminator_loss(judge, real, real, kind)[1].item() == 0.5


def test_an_unknown_kind_is_refused():
    with pytest.raises(SettingError, match=r"wasserstein.*hinge, least_squares"):
        AdversarialScore(discriminator(), kind="wasserstein")


def test_a_discriminator_learns_to_tell_and_the_model_to_fool():
    batch = small_batch(8)
    model, judge = small_model(), discriminator()
    optimizers = [torch.optim.Adam(m.parameters(), lr=5e-3) for m in (judge, model)]
    score = Objective(Term("score", AdversarialScore(judge)))
    for _ in range(60):
        trace = model.trace(batch, torch.Generator().manual_seed(1))
        parts = [pair(batch, trace=trace, real=real) for real in (True, False)]
        loss, accuracy = discriminator_loss(judge, *parts)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
    assert accuracy > 0.7
    first = None
    for _ in range(30):
        trace = model.trace(batch, torch.Generator().manual_seed(1))
        loss, _ = score(trace, batch, 0)
        first = loss.item() if first is None else first
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
    assert loss.item() < first


def test_feature_matching_is_zero_for_a_perfect_copy():
    batch = small_batch()
    trace = small_model().trace(batch, torch.Generator().manual_seed(1))
    image = dataclasses.replace(trace.heads["image"], mean=batch["image"])
    mask = dataclasses.replace(trace.heads["mask"], logits=200 * (batch["mask"] - 0.5))
    perfect = dataclasses.replace(trace, heads={"image": image, "mask": mask})
    term = FeatureMatching(discriminator())
    assert torch.equal(term(perfect, batch), torch.zeros(3))
    assert (term(trace, batch) > 0).all()


# what the discriminator sees


def test_image_and_mask_are_seen_together():
    batch = small_batch()
    trace = small_model().trace(batch, torch.Generator().manual_seed(1))
    real = pair(batch, trace=trace, real=True)
    fake = pair(batch, trace=trace, real=False)
    assert real.shape == fake.shape == (3, 3, *SHAPE)
    assert torch.equal(real, torch.cat([batch["image"], batch["mask"]], 1))
    assert torch.equal(fake[:, 2:], trace.heads["mask"].foreground())


def test_a_given_mask_is_shown_on_both_sides():
    batch = small_batch()
    trace = small_model().trace(batch, torch.Generator().manual_seed(1))
    image_only = dataclasses.replace(trace, heads={"image": trace.heads["image"]})
    for real in (True, False):
        assert torch.equal(pair(batch, trace=image_only, real=real)[:, 2:], batch["mask"])


def test_what_was_not_observed_gives_nothing_away():
    batch = small_batch()
    valid = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1, 1).expand(3, 2, 1, 1, 1)
    batch = {**batch, "valid": valid}
    trace = small_model().trace(batch, torch.Generator().manual_seed(1))
    for real in (True, False):
        seen = pair(batch, trace=trace, real=real)
        assert not seen[:, 1].any()
        assert seen[:, 0].any()


def test_smoothing_is_over_masks_of_both_sides_and_keeps_their_volume():
    batch = small_batch(1)
    mask = torch.zeros(1, 1, 9, 9, 9)
    mask[:, :, 4, 4, 4] = 1
    trace = small_model().trace(batch, torch.Generator().manual_seed(1))
    head = dataclasses.replace(trace.heads["mask"], logits=200 * (mask - 0.5))
    masks = dataclasses.replace(trace, heads={"mask": head})
    real = pair({"mask": mask}, trace=masks, real=True, mask_smoothing=0.7)
    fake = pair({"mask": mask}, trace=masks, real=False, mask_smoothing=0.7)
    torch.testing.assert_close(real, fake)
    assert real.max() < 0.5
    assert real.sum().item() == pytest.approx(1, rel=1e-3)
