"""New pairs out of two, and by hand: where they come from, and what they leave alone."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from medvae3d.errors import LabelError
from medvae3d.studies.handmade import handmade_cases, lesion_style, with_handmade_lesion
from medvae3d.studies.mixing import (
    Pair,
    body,
    carve_mix,
    carved,
    copied_cases,
    copy_paste,
    mixed_cases,
    signed_distance,
)

SPACING = (1.0, 1.0, 2.0)


@pytest.fixture(scope="module")
def cases(balls):
    return balls(6)


def pairs(cases):
    return Pair.of(cases, 0), Pair.of(cases, 1)


def lesion_of(pair):
    return pair.mask[0].numpy() > 0


@pytest.mark.parametrize("seed", range(3))
def test_carvemix_at_zero_carves_exactly_the_lesion(cases, seed):
    lesion = lesion_of(Pair.of(cases, seed))
    assert np.array_equal(carved(lesion, 0.0, SPACING), lesion)


def test_carvemix_carves_less_above_zero_and_a_margin_below():
    lesion = np.square(np.indices((16, 16, 16)) - 7.5).sum(0) < 20
    less, more = carved(lesion, 0.9, SPACING), carved(lesion, -0.9, SPACING)
    assert less.any() and (less <= lesion).all() and less.sum() < lesion.sum()
    assert (more >= lesion).all() and more.sum() > lesion.sum()
    depth = -signed_distance(lesion, SPACING).min()
    reach = ndimage.distance_transform_edt(~lesion, sampling=SPACING)[more].max()
    assert reach < 0.9 * depth


def test_the_signed_distance_is_in_mm_and_negative_inside():
    lesion = np.zeros((5, 5, 5), dtype=bool)
    lesion[2, 2, 2] = True
    distance = signed_distance(lesion, SPACING)
    assert (distance[2, 2, 2], distance[2, 2, 3], distance[3, 2, 2]) == (-1.0, 2.0, 1.0)


@pytest.mark.parametrize("c", [-0.7, 0.0, 0.6])
def test_carvemix_leaves_the_host_alone_and_takes_the_label_from_its_source(cases, c):
    host, donor = pairs(cases)
    made = carve_mix(SPACING, c)(host, donor, np.random.default_rng(0))
    region = torch.from_numpy(carved(lesion_of(donor), c, SPACING))[None]
    for part in ("image", "mask", "valid"):
        new, a, b = (getattr(pair, part) for pair in (made, host, donor))
        where = region.expand_as(new)
        assert torch.equal(new[~where], a[~where])
        assert torch.equal(new[where], b[where])


def test_a_pasted_lesion_is_whole_and_lies_in_the_body_beside_the_hosts_own(cases):
    host, donor = pairs(cases)
    before = host.mask.clone()
    for seed in range(5):
        made = copy_paste(in_place=False)(host, donor, np.random.default_rng(seed))
        changed = (made.image != host.image).any(0).numpy()
        added = (made.mask - host.mask)[0].numpy() > 0
        assert made.mask.sum() == host.mask.sum() + donor.mask.sum()
        assert not (changed & ~added).any()
        assert body(host.image)[added].mean() > 0.9
        values, known = made.image[0].numpy()[added], donor.image[0][donor.mask[0] > 0].numpy()
        assert np.array_equal(np.sort(values), np.sort(known))
    assert torch.equal(host.mask, before)


def test_an_organ_is_pasted_where_it_was(cases):
    host, donor = pairs(cases)
    made = copy_paste(in_place=True)(host, donor, np.random.default_rng(0))
    where = donor.mask > 0
    assert torch.equal(made.image[where], donor.image[where])


def test_host_and_donor_are_two_cases_and_empty_masks_are_no_donors(cases):
    seen = []

    def mix(host, donor, rng):
        seen.append((host, donor))
        return host

    with_empty = cases[[0, 1, 2]]
    with_empty.mask[1] = 0
    mixed_cases(with_empty, 20, mix, 0, "mixed")
    assert all(bool(donor.mask.any()) for _, donor in seen)
    assert not any(torch.equal(host.image, donor.image) for host, donor in seen)


@pytest.mark.parametrize("kind", ["carvemix", "handmade", "copies"])
def test_extra_cases_depend_on_seed_and_number_alone(cases, kind):
    make = {
        "carvemix": lambda n, seed: mixed_cases(cases, n, carve_mix(SPACING), seed, "m"),
        "handmade": lambda n, seed: handmade_cases(cases, n, SPACING, seed),
        "copies": lambda n, seed: copied_cases(cases, n, seed),
    }[kind]
    few, many, other = make(2, 0), make(5, 0), make(5, 1)
    assert torch.equal(few.image, many.image[:2])
    assert not torch.equal(many.image, other.image)


def test_masks_without_a_lesion_are_refused(cases):
    empty = cases[[0, 1]]
    empty.mask[:] = 0
    with pytest.raises(LabelError, match="empty"):
        mixed_cases(empty, 1, carve_mix(SPACING), 0, "m")
    with pytest.raises(LabelError, match="empty"):
        handmade_cases(empty, 1, SPACING, 0)


def test_lesions_made_by_hand_lie_in_the_body_beside_those_that_are_there(cases):
    style = lesion_style(cases, SPACING)
    for seed in range(6):
        host = Pair.of(cases, seed)
        before = host.image.clone(), host.mask.clone()
        made = with_handmade_lesion(host, style, SPACING, np.random.default_rng(seed))
        added = (made.mask[0].numpy() > 0) & (host.mask[0].numpy() == 0)
        _, count = ndimage.label(made.mask[0].numpy() > 0, np.ones((3, 3, 3)))
        assert added.sum() >= 3 and count <= 2
        assert body(host.image)[made.mask[0].numpy() > 0].all()
        assert torch.equal(host.image, before[0]) and torch.equal(host.mask, before[1])


def test_lesions_made_by_hand_are_as_bright_and_large_as_real_ones(cases):
    style = lesion_style(cases, SPACING)
    voxels = (cases.mask > 0).flatten(1).sum(1).numpy() * np.prod(SPACING)
    assert style.radius_mm == pytest.approx((3 * voxels / (4 * np.pi)) ** (1 / 3))
    assert style.contrast.mean() == pytest.approx(0.8, abs=0.1)
    made = handmade_cases(cases[:1], 12, (1, 1, 1), 0)
    gains = []
    for image, mask in zip(made.image, made.mask, strict=True):
        added = (mask > 0) & (cases.mask[:1][0] == 0)
        if bool(added.any()):
            gains.append(float(image[added].mean() + 0.3))
    assert np.mean(gains) == pytest.approx(0.8, abs=0.2)
