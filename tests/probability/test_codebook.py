"""A latent of codes: straight-through gradients, running means, revival, levels."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import generators, stray_tensors

from medvae3d.errors import SettingError
from medvae3d.probability.codebook import Codebook, Codebooks
from medvae3d.seeding import derive_generator


def clouds(count=400, centres=4, seed=0):
    """Vectors around well-parted centres, and which is whose."""
    generator = torch.Generator().manual_seed(seed)
    middle = 5 * torch.randn(centres, 3, generator=torch.Generator().manual_seed(1))
    whose = torch.randint(centres, (count,), generator=generator)
    return middle[whose] + 0.1 * torch.randn(count, 3, generator=generator), middle


def features(count=2, channels=3, grid=(4, 4, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, *grid, generator=generator)


def test_the_gradient_is_handed_straight_through_and_none_reaches_codes():
    books = Codebooks((4, 4, 4), 8, 3).train()
    z_e = features().requires_grad_()
    z = books(z_e).rsample()
    weights = features(seed=1)
    (slope,) = torch.autograd.grad((weights * z).sum(), z_e)
    assert torch.equal(slope, weights)
    assert not any(buffer.requires_grad for buffer in books.buffers())
    assert not list(books.parameters())


def test_a_code_is_the_running_mean_of_what_falls_to_it():
    book = Codebook(4, 3, decay=0.9, dead_share=0.0)
    vectors, _ = clouds()
    book.learn(vectors)
    counts, sums = book.counts.clone(), book.sums.clone()
    index = book.nearest(vectors)
    book.learn(vectors)
    for k in range(4):
        mine = vectors[index == k]
        torch.testing.assert_close(book.counts[k], 0.9 * counts[k] + 0.1 * len(mine))
        torch.testing.assert_close(book.sums[k], 0.9 * sums[k] + 0.1 * mine.sum(0))
    torch.testing.assert_close(book.codes, book.sums / book.counts[:, None], rtol=1e-4, atol=1e-4)


def test_an_unused_code_stays_where_it_is_until_it_is_dead():
    book = Codebook(2, 3, decay=0.9, dead_share=0.1)
    vectors, _ = clouds()
    book.learn(vectors)
    book.codes[1] = 100.0
    book.sums[1] = 100.0 * book.counts[1]
    far = []
    while len(far) < 40 and (not far or far[-1] > 90):
        book.learn(vectors)
        far.append(float(book.codes[1].mean()))
    assert all(x == pytest.approx(100, rel=1e-3) for x in far[:-1]) and len(far) > 5
    assert far[-1] < 20, "a dead code is put among the vectors"


def test_dead_codes_are_revived_until_most_of_the_codebook_is_in_use():
    vectors, _ = clouds(centres=16)
    alive, left = Codebook(16, 3, 0.9), Codebook(16, 3, 0.9)
    left.revives = False
    for book in (alive, left):
        book.codes.copy_(0.01 * torch.randn(16, 3, generator=derive_generator(0)) + 30)
        book.sums.copy_(book.codes)
        book.updates.fill_(1)
        for _ in range(150):
            book.learn(vectors)
    assert alive.perplexity > 0.7 * 16
    assert left.perplexity < 0.3 * 16
    alive, left = ((vectors - b.codes[b.nearest(vectors)]).square().mean() for b in (alive, left))
    assert alive < 0.2 * left


def test_the_perplexity_counts_the_codes_in_use():
    book = Codebook(8, 2)
    book.counts.copy_(torch.tensor([3.0, 3, 3, 3, 0, 0, 0, 0]))
    assert book.perplexity.item() == pytest.approx(4)


def test_learning_goes_on_alike_after_a_reload():
    vectors, _ = clouds(centres=12)
    whole, cut = Codebook(32, 3), Codebook(32, 3)
    for _ in range(4):
        whole.learn(vectors)
    for _ in range(2):
        cut.learn(vectors)
    again = Codebook(32, 3)
    again.load_state_dict(cut.state_dict())
    for _ in range(2):
        again.learn(vectors)
    assert all(torch.equal(a, b) for a, b in zip(whole.buffers(), again.buffers(), strict=True))


@pytest.mark.parametrize(("levels", "grid"), [(1, (3, 4, 2)), (2, (4, 2, 6))])
def test_codes_become_a_latent_and_back(levels, grid):
    books = Codebooks(grid, 8, 3, levels).eval()
    posterior = books(features(3, 3 * levels, grid))
    assert torch.equal(books.embed(posterior.indices), posterior.mean)
    found = books.indices(posterior.mean)
    assert all(torch.equal(a, b) for a, b in zip(found, posterior.indices, strict=True))
    assert [tuple(i.shape[1:]) for i in posterior.indices] == list(books.grids)
    assert books.tokens == math.prod(grid) * (1 if levels == 1 else 9) // (1 if levels == 1 else 8)


def test_evaluation_learns_nothing():
    books = Codebooks((4, 4, 4), 8, 3).eval()
    before = books.books[0].codes.clone()
    books(features())
    assert torch.equal(before, books.books[0].codes)
    books.train()(features())
    assert not torch.equal(before, books.books[0].codes)


def test_the_divergence_is_what_naming_the_codes_costs():
    books = Codebooks((4, 2, 2), 8, 3, 2).eval()
    posterior = books(features(2, 6, (4, 2, 2)))
    assert posterior.kl().tolist() == pytest.approx([18 * math.log(8)] * 2)
    assert books.log_prob(posterior.mean).tolist() == pytest.approx([-18 * math.log(8)] * 2)


def test_a_uniform_sample_depends_on_its_own_generator_alone():
    books = Codebooks((2, 2, 2), 8, 3)
    whole = books.sample(3, generators=generators(0, 1, 2))
    assert torch.equal(whole[2:], books.sample(1, generators=generators(2)))
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(books.embed(books.indices(whole)), whole)


def test_half_precision_features_give_float32_codes():
    books = Codebooks((4, 4, 4), 8, 3).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = books(features().bfloat16())
    assert posterior.mean.dtype == torch.float32
    assert not list(stray_tensors(books))


def test_a_codebook_larger_than_the_data_can_fill_is_refused_with_what_would_do():
    books = Codebooks((2, 2, 2), 512, 3)
    with pytest.raises(
        SettingError, match=r"512 codes, and 10 training cases of 8 places.*codes` "
    ):
        books.require_data_for(10)
    books.require_data_for(64)


@pytest.mark.parametrize("options", [{"levels": 3}, {"levels": 2, "grid": (3, 2, 2)}, {"codes": 1}])
def test_codebooks_without_meaning_are_refused(options):
    with pytest.raises(SettingError, match="allowed"):
        Codebooks(**({"grid": (2, 2, 2)} | options))


@pytest.mark.parametrize("levels", [1, 2])
def test_misnaming_is_the_cross_entropy_of_distances_and_teaches_features_alone(levels):
    books = Codebooks((4, 4, 4), 8, 3, levels).eval()
    z = features(channels=3 * levels).requires_grad_()
    names = books.indices(features(channels=3 * levels, seed=1))
    found = books.misnaming(z, names)
    wanted = []
    for part, book, index in zip(z.chunk(levels, 1), books.books, names, strict=True):
        if part.shape[2:] != index.shape[1:]:
            part = torch.nn.functional.avg_pool3d(part, 2)
        far = torch.cdist(part.movedim(1, -1).reshape(2, -1, 3), book.codes.expand(2, -1, -1))
        near = torch.cdist(book.codes, book.codes) + 1e9 * torch.eye(8)
        chance = (-4 * far.square() / near.amin(1).square().mean()).log_softmax(-1)
        wanted.append(-chance.gather(-1, index.reshape(2, -1, 1)).mean((1, 2)))
    assert found.tolist() == pytest.approx(torch.stack(wanted).mean(0).tolist(), rel=1e-4)
    (slope,) = torch.autograd.grad(found.sum(), z)
    assert slope.abs().max() > 0
    exact = books.embed(books.indices(z.detach()))
    own = books.misnaming(exact, books.indices(exact))
    assert (own < books.misnaming(exact + 0.5, books.indices(exact))).all()
