"""Claims about what a model has to beat."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from medvae3d.errors import DataListError, SettingError
from medvae3d.evaluation.baselines import (
    CasePCA,
    constant_fill,
    lesion_mean,
    paste_nearest,
    threshold,
)
from medvae3d.evaluation.cases import Cases, joined, lesion_cases, spread, whole_cases
from medvae3d.evaluation.voxelwise import image_scores


def ball(radius, shape=(12, 12, 12), at=(5.5, 5.5, 5.5)):
    axes = [torch.arange(n) - a for n, a in zip(shape, at, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return (grid.square().sum(0).sqrt() < radius).float()[None]


def cases(count, seed=0, labels=1):
    generator = torch.Generator().manual_seed(seed)
    radii = 2 + 2.5 * torch.rand(count, generator=generator)
    masks = torch.stack([ball(float(radius)) for radius in radii])
    if labels == 2:
        masks[..., :6] *= 2
    image = torch.rand(count, 2, 12, 12, 12, generator=generator) * 2 - 1
    ones = torch.ones_like(masks)
    names = tuple(f"case_{i}" for i in range(count))
    return Cases(image, masks, ones, (masks > 0).float(), names)


@pytest.mark.parametrize("labels", [1, 2])
def test_all_components_rebuild_the_training_cases_exactly(labels):
    train = cases(6, labels=labels)
    pca = CasePCA(5, range(labels + 1)).fit(train)
    image, mask = pca.reconstruct(train)
    assert pca.components == 5
    torch.testing.assert_close(image, train.image, atol=1e-4, rtol=0)
    assert torch.equal(mask, train.mask)


def test_components_are_as_many_as_the_latent_or_as_the_cases_allow():
    train = cases(6)
    assert [CasePCA(n).fit(train).components for n in (1, 3, 1000)] == [1, 3, 5]


def test_more_components_rebuild_training_cases_better():
    train = cases(8)
    errors = []
    for n in (1, 3, 6):
        image, _ = CasePCA(n).fit(train).reconstruct(train)
        errors.append(float((image - train.image).square().sum()))
    assert errors[0] > errors[1] > errors[2]


def test_one_training_case_is_its_own_mean():
    train = cases(1)
    image, mask = CasePCA(4).fit(train).reconstruct(cases(2, seed=1))
    torch.testing.assert_close(image[1], train.image[0], atol=1e-6, rtol=0)
    assert torch.equal(mask[0], train.mask[0])


def test_masks_alone_have_components_too():
    train = cases(6)
    pca = CasePCA(5, with_image=False).fit(train)
    image, mask = pca.reconstruct(train)
    assert torch.equal(mask, train.mask) and torch.equal(image, train.image)


def test_components_must_be_fitted_first():
    with pytest.raises(SettingError, match="fit"):
        CasePCA(3).mean_case(cases(1))


def test_background_wins_where_no_label_has_its_share():
    maps = torch.tensor([0.4, 0.1, 0.45, 0.45]).reshape(2, 2, 1, 1, 1)
    assert threshold(maps, (0, 1, 2)).flatten().tolist() == [0, 1]


def test_the_error_of_a_constant_is_that_of_its_definition():
    """Lesions of 0.8 or 0.2 everywhere, filled with their mean of 0.5."""
    mask = ball(4).expand(2, 1, 12, 12, 12).clone()
    image = torch.zeros(2, 1, 12, 12, 12)
    image[0], image[1] = 0.6, -0.6  # as shares of the range: 0.8 and 0.2
    both = Cases(image, mask, torch.ones_like(mask), mask, ("a", "b"))
    assert lesion_mean(both).item() == pytest.approx(0, abs=1e-6)
    scores = image_scores(constant_fill(both, both), image, both.region)
    assert scores["nmse"].tolist() == pytest.approx([(0.3 / 0.8) ** 2, (0.3 / 0.2) ** 2])
    assert scores["psnr"].tolist() == pytest.approx([-20 * math.log10(0.3)] * 2, rel=1e-5)


def test_filling_leaves_what_is_outside_of_the_lesion():
    train, unseen = cases(4), cases(2, seed=1)
    for made in (constant_fill(train, unseen), paste_nearest(train, unseen)):
        outside = (unseen.region == 0).expand_as(made)
        assert torch.equal(made[outside], unseen.image[outside])
        assert not torch.equal(made, unseen.image)


def test_pasting_a_lesion_into_itself_gives_it_back():
    train = cases(3)
    masks = torch.stack([ball(radius) for radius in (2, 3, 4)])
    train = replace(train, mask=masks, region=masks)
    assert torch.equal(paste_nearest(train, train), train.image)


def test_pasting_finds_the_shape_wherever_it_lies():
    """A lesion off the middle gets the intensities of its like, moved along; others its mean."""
    mask = ball(3)
    ramp = torch.linspace(-1, 1, 12).reshape(1, 12, 1, 1).expand(1, 12, 12, 12)
    other = ball(5)
    train = Cases(
        torch.stack([ramp, torch.full_like(ramp, 0.9)]),
        torch.stack([mask, other]),
        torch.ones(2, 1, 12, 12, 12),
        torch.stack([mask, other]),
        ("ramp", "flat"),
    )
    moved = torch.roll(mask, (2, -1, 0), (1, 2, 3))
    unseen = Cases(torch.zeros(1, 1, 12, 12, 12), moved[None], moved[None] + 1, moved[None], ("x",))
    made = paste_nearest(train, unseen)[0]
    expected = torch.where(moved > 0, torch.roll(ramp, 2, 1), 0.0)
    torch.testing.assert_close(made, expected)


# -- patches round lesions ------------------------------------------------------------------------


def volume():
    mask = torch.zeros(1, 30, 30, 30)
    mask[0, 4:7, 4:7, 4:7] = 1
    mask[0, 20:24, 20:24, 20:24] = 1
    mask[0, 28, 28, 28] = 1  # a speck
    mask[0, 0:29, 12, 12] = 1  # longer than a patch
    image = torch.rand(2, 30, 30, 30, generator=torch.Generator().manual_seed(0))
    return {"image": image, "label": mask, "case": "head"}


def test_every_lesion_that_fits_gets_a_patch_of_its_own():
    item = volume()
    found = lesion_cases(item, (10, 10, 10))
    assert found is not None
    assert [float(region.sum()) for region in found.region] == [27, 64]
    assert all(
        float((m * r).sum()) == float(r.sum())
        for m, r in zip(found.mask, found.region, strict=True)
    )
    assert torch.equal(found.image[1], item["image"][:, 17:27, 17:27, 17:27])


def test_a_patch_at_the_border_says_what_was_not_observed():
    found = lesion_cases(volume(), (16, 16, 16))
    assert found is not None
    assert float(found.valid[0].sum()) == 13**3
    assert bool((found.image[0][:, :3] == -1).all())


def test_shifts_keep_the_lesion_whole_and_come_from_the_seed():
    first, again = (lesion_cases(volume(), (10, 10, 10), jitter=9, repeats=4, seed=3) for _ in "ab")
    assert first is not None and again is not None and len(first) == 8
    assert torch.equal(first.mask, again.mask)
    assert [float(region.sum()) for region in first.region] == [27] * 4 + [64] * 4
    assert not torch.equal(first.region[0], first.region[1])


def test_lesions_of_the_host_are_neither_cut_nor_observed():
    item = volume()
    host = torch.zeros_like(item["label"])
    host[0, 20:24, 20:24, 20:24] = 1
    found = lesion_cases(item, (10, 10, 10), ignore=host)
    assert found is not None
    assert [float(region.sum()) for region in found.region] == [27]
    with pytest.raises(DataListError, match="no lesion"):
        joined([lesion_cases(item, (10, 10, 10), ignore=item["label"])])


def test_cases_without_image_and_label_are_refused():
    with pytest.raises(DataListError, match="image and a label"):
        whole_cases([{"label": torch.zeros(1, 4, 4, 4)}])


def test_a_choice_of_cases_is_spread_over_all_of_them():
    assert spread(3, 8) == [0, 1, 2]
    assert spread(100, 4) == [0, 25, 50, 75]
