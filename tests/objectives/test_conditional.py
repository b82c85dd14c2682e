"""Terms of conditional models: a region counts, what was seen counts less, resolutions agree."""

from __future__ import annotations

import pytest
import torch

from medvae3d.models.latent import Condition
from medvae3d.models.zoo import cvae_fill, cvae_multiscale
from medvae3d.objectives.conditional import (
    coarser,
    fill_objective,
    multiscale_objective,
    region_nll,
)
from medvae3d.objectives.terms import nll

SHAPE = (8, 8, 8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=3):
    image = torch.randn(count, 1, *SHAPE, generator=seeded()) * 0.3
    mask = (torch.rand(count, 1, *SHAPE, generator=seeded(1)) > 0.7).float()
    return {"image": image, "mask": mask}


def filler():
    torch.manual_seed(0)
    return cvae_fill(SHAPE, channels=(4, 8), latent_channels=2, components=0)


def test_a_region_that_is_everything_is_the_whole_likelihood():
    model = filler().eval()
    data = batch() | {"region": torch.ones(3, 1, *SHAPE)}
    trace = model.trace(data, seeded())
    everything = region_nll(trace.heads, data, trace.condition.region, 0.0)
    torch.testing.assert_close(everything, nll(trace, data))
    torch.testing.assert_close(region_nll(trace.heads, data, None, 0.0), nll(trace, data))


def test_seen_voxels_count_by_their_weight_alone():
    model = filler().eval()
    region = torch.zeros(3, 1, *SHAPE)
    region[..., :4] = 1
    data = batch() | {"region": region}
    heads = model.trace(data, seeded()).heads
    inside, both = (region_nll(heads, data, region, weight) for weight in (0.0, 1.0))
    tenth = region_nll(heads, data, region, 0.1)
    torch.testing.assert_close(tenth, inside + 0.1 * (both - inside))
    moved = {**data, "image": torch.where(region > 0, data["image"], 9.0)}
    torch.testing.assert_close(region_nll(heads, moved, region, 0.0), inside)


def test_share_one_is_the_conditional_bound_and_share_zero_trains_the_prior_network():
    model = filler().train()
    names = [term.name for term in fill_objective(model, share=1.0).terms]
    assert "prior_nll" not in names
    objective = fill_objective(model, share=0.0)
    loss, _ = objective(model.trace(batch(), seeded()), batch(), 10)
    loss.backward()
    grads = [p.grad for p in model.conditional_prior.parameters() if p.grad is not None]
    assert sum(float(grad.abs().sum()) for grad in grads) > 0
    assert all(p.grad is None or not p.grad.any() for p in model.encoder.parameters())


def test_the_divergence_from_the_prior_network_is_neither_zero_nor_infinite():
    model = filler().train()
    trace = model.trace(batch(), seeded())
    pair = [torch.distributions.Normal(q.mean, q.scale) for q in (trace.posterior, trace.prior)]
    exact = torch.distributions.kl_divergence(*pair).flatten(1).sum(1)
    assert ((exact > 1e-3) & (exact < 1e4)).all()


def test_nothing_known_is_the_condition_of_whole_volumes():
    model = filler().eval()
    blank = model.blank(3, SHAPE)
    drawn = model.condition(batch())  # without a generator the region is everything
    assert torch.equal(blank.maps[:, :2], drawn.maps[:, :2])
    z = model.sample_latent(3, None, [seeded(i) for i in range(3)], 1.0, blank)
    alone = model.sample_latent(1, None, [seeded(2)], 1.0, model.blank(1, SHAPE))
    torch.testing.assert_close(z[2:], alone)


# -- several resolutions --------------------------------------------------------------------------


def test_targets_at_lower_resolution_keep_means_and_labels():
    image = torch.full((1, 1, 4, 4, 4), 0.3)
    mask = torch.zeros(1, 1, 4, 4, 4)
    mask[..., :2, :2, :2] = 2
    small = coarser({"image": image, "mask": mask}, (2, 2, 2), (0, 1, 2))
    torch.testing.assert_close(small["image"], torch.full((1, 1, 2, 2, 2), 0.3))
    assert small["mask"].unique().tolist() == [0, 2]
    assert float(small["mask"][0, 0, 0, 0, 0]) == 2
    # Half of the voxels: background wins.
    mask[..., :2, :2, :2] = torch.tensor([0.0, 2.0])
    assert not coarser({"mask": mask}, (2, 2, 2), (0, 1, 2))["mask"].any()


def test_a_channel_that_was_not_observed_has_no_coarse_target():
    image = torch.full((1, 2, 4, 4, 4), 0.3)
    valid = torch.ones(1, 2, 4, 4, 4)
    valid[:, 0, :2] = 0
    image[:, 0, :2] = float("nan")
    small = coarser({"image": image, "valid": valid}, (2, 2, 2), (0, 1))
    assert small["image"].isfinite().all()
    assert not small["valid"][:, 0, 0].any()
    assert small["valid"][:, 1].all()


def test_outputs_at_lower_resolution_are_fitted_and_fed_on():
    torch.manual_seed(0)
    model = cvae_multiscale(SHAPE, channels=(4, 8), latent_channels=2, components=0)
    data = batch()
    trace = model.trace(data, seeded())
    assert [stride for stride in trace.coarse] == [(4, 4, 4), (2, 2, 2)]
    assert trace.coarse[4, 4, 4]["image"].mode().shape[2:] == (2, 2, 2)
    loss, values = multiscale_objective()(trace, data, 0)
    loss.backward()
    assert float(values["coarse"]) != 0
    for conv in (*model.decoder.coarse_out, *model.decoder.coarse_in):
        assert float(conv.weight.grad.abs().sum()) > 0
    weighted = [
        multiscale_objective(weights=w)(trace, data, 0)[1]["coarse"]
        for w in ((0.25, 0.5), (0.5, 1.0))
    ]
    assert float(weighted[1]) == pytest.approx(2 * float(weighted[0]), rel=1e-5)


def test_without_coarse_outputs_a_decoder_is_what_it_was():
    torch.manual_seed(0)
    plain = cvae_multiscale(SHAPE, channels=(4, 8), latent_channels=2, components=0, coarse=0)
    z = torch.randn(1, 2, 2, 2, 2, generator=seeded())
    heads, coarse = plain.decode_scales(z, Condition())
    assert coarse == {}
    torch.testing.assert_close(heads["image"].mode(), plain.decode(z, Condition())["image"].mode())
