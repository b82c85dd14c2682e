"""The prior over codes: exact sums, caching, learning, attributes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from small_models import generators, stray_tensors

from medvae3d.errors import SettingError
from medvae3d.probability.codebook import Codebooks
from medvae3d.probability.priors import FittedPrior
from medvae3d.probability.priors.codes import CodePrior
from medvae3d.probability.priors.walk import CachedWalk

GRID = (2, 2, 2)


def books(levels=1, codes=4):
    return Codebooks(GRID, codes, 2, levels).eval()


def patterns(codebooks, count=200, seed=0):
    """All codes are equal but for one in ten; an attribute says which one it is."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(4, (count,), generator=generator)
    grid = kind[:, None, None, None].expand(count, *GRID).clone()
    odd = torch.rand(grid.shape, generator=generator) < 0.1
    grid[odd] = torch.randint(4, (int(odd.sum()),), generator=generator)
    return codebooks.embed([grid]), (kind.float()[:, None] - 1.5) / 1.2, grid


def small(codebooks, attributes=0, steps=120):
    torch.manual_seed(0)
    return CodePrior(
        codebooks, attributes, 16, 2, 2, steps=steps, batch_size=64, learning_rate=1e-2
    )


@pytest.fixture(scope="module")
def fitted():
    codebooks = books()
    z, attributes, _ = patterns(codebooks)
    return small(codebooks, 1).fit(z, attributes, seed=0)


def test_it_is_a_prior_that_is_fitted():
    assert isinstance(small(books()), FittedPrior)


@pytest.mark.parametrize("levels", [1, 2])
def test_probabilities_over_all_grids_sum_to_one(levels):
    codebooks = Codebooks((2, 2, 2) if levels == 2 else (2, 2, 1), 2, 2, levels).eval()
    prior = CodePrior(codebooks, 0, 8, 1, 2).eval()
    prior.fitted.fill_(True)
    total = codebooks.tokens
    every = torch.tensor(list(itertools.product(range(2), repeat=total)))
    cuts = [math.prod(grid) for grid in codebooks.grids]
    parts = every.split(cuts, 1)
    grids = [p.reshape(-1, *g) for p, g in zip(parts, codebooks.grids, strict=True)]
    density = prior.log_prob(codebooks.embed(grids)).double().exp()
    assert len(density) == 2**total
    assert density.sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("levels", [1, 2])
def test_sequences_are_raster_order_and_lead_back(levels):
    codebooks = books(levels)
    z = codebooks.sample(3, generators=generators(0, 1, 2))
    prior = small(codebooks)
    sequences = prior.sequences(z)
    coarse = codebooks.indices(z)[0].flatten(1)
    assert torch.equal(sequences[:, : coarse.shape[1]], coarse)
    assert torch.equal(prior.latents(sequences), z)


def test_drawing_token_by_token_agrees_with_the_whole_pass(fitted):
    """The cached walk gives the logits of MONAI's own forward."""
    z, attributes, _ = patterns(fitted.codebooks, 1, seed=4)
    sequence = fitted.sequences(z)
    context = fitted._context(attributes, None, 1)
    before = torch.nn.functional.pad(sequence[:, :-1], (1, 0), value=fitted.start)
    with torch.no_grad():
        whole = fitted.transformer(before, context)
        walk = CachedWalk(fitted.transformer, context)
        steps = [walk.step(before[:, t : t + 1], t) for t in range(before.shape[1])]
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=1e-4)


def entropy(grid):
    share = torch.bincount(grid.flatten(), minlength=4).double()
    return torch.special.entr(share / share.sum()).sum().item()


def test_the_cross_entropy_is_below_the_unigram_entropy(fitted):
    z, attributes, grid = patterns(fitted.codebooks, 100, seed=9)
    blind = -fitted.log_prob(z).mean().item() / 8
    told = -fitted.log_prob(z, attributes).mean().item() / 8
    assert blind < 0.7 * entropy(grid)
    assert told < blind - 0.02


def test_samples_are_likelier_than_with_their_codes_shuffled(fitted):
    """Shuffling places across samples keeps the use of each code and breaks what goes together."""
    z = fitted.sample(60, generators=torch.Generator().manual_seed(0))
    sequences = fitted.sequences(z)
    generator = torch.Generator().manual_seed(1)
    columns = [sequences[torch.randperm(60, generator=generator), t] for t in range(8)]
    shuffled = fitted.latents(torch.stack(columns, 1))
    assert fitted.log_prob(z).mean() > fitted.log_prob(shuffled).mean() + 2
    same = lambda s: (s == s.mode(1, keepdim=True).values).float().mean()
    assert same(sequences) > 0.8 > same(fitted.sequences(shuffled))


def test_samples_have_the_attribute_that_was_asked_for(fitted):
    kinds = torch.arange(4).repeat(10)
    asked = (kinds.float()[:, None] - 1.5) / 1.2
    z = fitted.sample(40, asked, torch.Generator().manual_seed(0))
    assert (fitted.sequences(z).mode(1).values == kinds).float().mean() > 0.8


def test_a_sample_depends_on_its_own_generator_alone_bit_for_bit(fitted):
    whole = fitted.sample(3, generators=generators(0, 1, 2))
    assert torch.equal(whole[1:], fitted.sample(2, generators=generators(1, 2)))
    assert not torch.equal(whole[0], whole[1])
    with pytest.raises(SettingError, match="pass one each"):
        fitted.sample(3, None, generators(0))
    assert fitted.sample(0, None, []).shape == (0, 2, *GRID)


def test_the_coldest_sample_is_the_likeliest_walk_and_noise_does_not_matter(fitted):
    cold = fitted.sample(2, generators=generators(0, 1), temperature=0.0)
    assert torch.equal(cold[0], cold[1])


def test_the_seed_decides_the_fit_and_it_loads_into_a_new_one(fitted):
    z, attributes, _ = patterns(fitted.codebooks)
    make = lambda seed: small(books(), 1, steps=3).fit(z, attributes, seed=seed)
    first, again, other = make(1), make(1), make(2)
    states = [each.state_dict() for each in (first, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
    new = small(books(), 1)
    new.load_state_dict(fitted.state_dict())
    assert torch.equal(new.eval().log_prob(z[:3]), fitted.log_prob(z[:3]))
    # What MONAI's attention keeps beside its state are empty placeholders.
    assert all(name.endswith((".att_mat", ".causal_mask")) for name in stray_tensors(new))


def test_a_frozen_copy_is_fitted_too_and_stays_frozen():
    codebooks = books()
    prior = small(codebooks, steps=5).requires_grad_(False).eval()
    before = prior.transformer.to_logits.weight.clone()
    with torch.no_grad():
        prior.fit(patterns(codebooks)[0], seed=0)
    assert not torch.equal(before, prior.transformer.to_logits.weight)
    assert not any(p.requires_grad for p in prior.parameters())
    assert not prior.training


def test_before_a_fit_it_is_uniform():
    codebooks = books()
    prior = small(codebooks)
    z = prior.sample(2, generators=generators(0, 1))
    assert prior.log_prob(z).tolist() == pytest.approx([-8 * math.log(4)] * 2)


def test_validation_keeps_the_best_weights():
    codebooks = books()
    z = patterns(codebooks, 8)[0]
    unseen = patterns(codebooks, 100, seed=3)[0]
    kept = small(codebooks, steps=200).fit(z, seed=0, validation=unseen)
    last = small(codebooks, steps=200).fit(z, seed=0)
    assert kept.log_prob(unseen).mean() >= last.log_prob(unseen).mean()


@pytest.mark.parametrize(
    ("grid", "options", "match"),
    [((32, 32, 8), {}, "at most 4096 codes"), (GRID, {"width": 10, "heads": 4}, "prior_width")],
)
def test_what_attention_cannot_take_is_refused(grid, options, match):
    with pytest.raises(SettingError, match=match):
        CodePrior(Codebooks(grid, 4, 2), **options)


# -- told a mask ----------------------------------------------------------------------------------


def masked(codebooks, count=200, seed=0):
    """Code 1 where a mask has label 1, 2 where it has 2, and 0 or 3 elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count, *GRID), generator=generator)
    other = 3 * torch.randint(2, (count, *GRID), generator=generator)
    grid = torch.where(label > 0, label, other)
    mask = label[:, None].float()
    for axis in (2, 3, 4):
        mask = mask.repeat_interleave(4, axis)
    return codebooks.embed([grid]), mask, label


@pytest.fixture(scope="module")
def shown():
    codebooks = books()
    z, mask, _ = masked(codebooks)
    torch.manual_seed(0)
    prior = CodePrior(
        codebooks, 0, 16, 2, 2, steps=150, batch_size=64, learning_rate=1e-2, values=(0, 1, 2)
    )
    return prior.fit(z, seed=0, shares=prior.mask_shares(mask))


def test_a_mask_tells_what_the_sequence_before_does_not(shown):
    z, mask, _ = masked(shown.codebooks, 100, seed=9)
    told, blind = (-shown.log_prob(z, mask=m).mean().item() / 8 for m in (mask, None))
    assert blind > 1.2  # that of chance is log 3 and a third of log 2, 1.33
    assert told < 0.4
    turned = -shown.log_prob(z, mask=mask.flip(2)).mean().item() / 8
    assert turned > blind, "a mask of other places misleads"


def test_samples_have_the_mask_that_was_asked_for(shown):
    _, mask, label = masked(shown.codebooks, 20, seed=5)
    z = shown.sample(20, generators=torch.Generator().manual_seed(0), mask=mask)
    (index,) = shown.codebooks.indices(z)
    assert (index == label)[label > 0].float().mean() > 0.9
    assert ((index == 0) | (index == 3))[label == 0].float().mean() > 0.9
    one = shown.sample(1, generators=generators(3), mask=mask[4:5])
    both = shown.sample(2, generators=generators(1, 3), mask=mask[3:5])
    assert torch.equal(one[0], both[1])


def test_masks_that_do_not_fit_are_refused(shown):
    z, mask, _ = masked(shown.codebooks, 3)
    with pytest.raises(SettingError, match="2 samples asked for with 3 masks"):
        shown.sample(2, mask=mask)
    with pytest.raises(SettingError, match="3 latents with no masks"):
        shown.fit(z, seed=0)
    with pytest.raises(SettingError, match="told_mask=true"):
        small(books()).mask_shares(mask)
