"""Claims about the diversity of samples: collapse is found, and so are values never reached."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ms_ssim
from small_evaluations import smooth_cases

from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.coverage import bins_of, bins_reached, lesion_count, mask_measures
from medvae3d.evaluation.diversity import (
    Pairs,
    diversity_section,
    pairwise_distance,
    pairwise_ms_ssim,
)
from medvae3d.evaluation.features import FixedNetwork
from medvae3d.evaluation.sections import Light
from medvae3d.evaluation.voxelwise import MS_SSIM_WEIGHTS, unit

SPACING = (1.0, 1.0, 2.0)


def section_of(real, synthetic, features=True):
    return diversity_section(
        real,
        synthetic,
        spacing_mm=SPACING,
        features=[FixedNetwork()] if features else [],
        seed=0,
    )


def lights(section):
    return {verdict.claim: verdict.light for verdict in section.verdicts}


def collapsed(count, seed=1):
    """One case over and over, with a little noise."""
    one = smooth_cases(1, seed=seed)
    image = one.image.expand(count, -1, -1, -1, -1)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    masks = [each.expand(count, -1, -1, -1, -1) for each in (one.mask, one.valid, one.region)]
    return Cases(image + 0.01 * noise, *masks, tuple(f"copy {i}" for i in range(count)))


def test_samples_as_varied_as_real_cases_are_green():
    section = section_of(smooth_cases(40), smooth_cases(40, seed=1))
    assert set(lights(section).values()) == {Light.GREEN}
    for row in section.tables["variety within each set"].values():
        assert row["ratio"].value == pytest.approx(1, abs=0.15)
    json.dumps(section.to_dict(), allow_nan=False)


def test_mode_collapse_is_red_by_image_by_features_and_by_masks():
    section = section_of(smooth_cases(30), collapsed(30))
    assert set(lights(section).values()) == {Light.RED}
    rows = section.tables["variety within each set"]
    assert rows["1 - MS-SSIM"]["ratio"].value < 0.2
    assert rows["distance, fixed network"]["ratio"].high < 0.5
    volume = section.tables["attributes of masks"]["volume"]
    assert volume["coverage"].value <= 0.1 < volume["coverage"].floor_low


def test_samples_of_half_of_the_real_volumes_do_not_cover_them():
    real = smooth_cases(60)
    order = real.mask.flatten(1).sum(1).argsort()
    section = section_of(real, real[order[:30].repeat(2)], features=False)
    volume = section.tables["attributes of masks"]["volume"]["coverage"]
    assert volume.value == pytest.approx(0.5, abs=0.1)
    assert lights(section)["synthetic masks cover the volume of real ones"] is not Light.GREEN


def test_ms_ssim_of_a_pair_is_monais():
    cases = smooth_cases(2, side=32)
    found = pairwise_ms_ssim(cases, seed=0)
    weights = [w / sum(MS_SSIM_WEIGHTS[:3]) for w in MS_SSIM_WEIGHTS[:3]]
    # 32 voxels allow a window of 7 at 32, 16 and 8.
    expected = compute_ms_ssim(
        unit(cases.image[:1]), unit(cases.image[1:]), 3, kernel_size=7, weights=weights
    )
    assert found.apart.tolist() == [pytest.approx(1 - expected.item(), abs=1e-6)]


def test_pairs_are_different_ones_and_as_many_as_asked():
    pairs = pairwise_ms_ssim(smooth_cases(12, side=8), seed=0, most=20)
    both = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert len(both) == 20 and all(a < b for a, b in both)


def test_the_mean_distance_of_pairs_does_not_grow_with_the_number_of_features():
    rng = np.random.default_rng(0)
    for dims in (10, 1000):
        mean = pairwise_distance(rng.normal(size=(40, dims))).mean()
        assert mean == pytest.approx(2**0.5, rel=0.1)


def test_resampled_cases_are_no_pair_with_their_copies():
    """Three points on a line: no resample has a mean below the smallest distance."""
    pairs = pairwise_distance(np.array([[0.0], [1.0], [3.0]]))
    means = pairs.resampled(np.random.default_rng(0))
    assert np.nanmin(means) == 1 and np.nanmax(means) == 3
    assert np.isnan(means).any()  # the same case three times


def test_halves_share_no_case():
    """Cases of two far groups: a half's mean is over its own pairs alone."""
    first, second = np.triu_indices(4, 1)
    apart = np.where((first < 2) == (second < 2), 1.0, 9.0)
    ratios = {
        Pairs(first, second, apart, 4).half_ratio(np.random.default_rng(s)) for s in range(20)
    }
    assert ratios <= {1.0}


def test_bins_hold_equal_shares_of_many_values_and_single_values_of_few():
    many = np.arange(100.0)
    edges = bins_of(many)
    assert len(edges) == 11 and bins_reached(many, edges).all()
    assert bins_reached(many[:50], edges).tolist() == [True] * 5 + [False] * 5
    few = np.array([1.0, 1, 1, 2, 4])
    assert bins_reached(np.array([1.0, 4.0]), bins_of(few)).tolist() == [True, False, True]
    assert not bins_reached(np.array([-1.0, 100.0]), edges).any()


def test_lesions_are_counted_and_empty_masks_have_no_volume():
    cases = smooth_cases(2)
    cases.mask.zero_()
    cases.mask[0, 0, 1:3, 1:3, 1:3] = 1
    cases.mask[0, 0, 8, 8, 8] = 2
    assert lesion_count(cases).tolist() == [2, 0]
    found = mask_measures(cases, SPACING)
    assert found["volume"][0] == pytest.approx(9 * 2 / 1000) and np.isnan(found["volume"][1])


def test_empty_masks_and_constant_images_leave_a_section_that_says_why():
    cases = smooth_cases(6, side=8)
    empty = replace(cases, mask=cases.mask * 0, image=cases.image * 0)
    section = section_of(empty, empty)
    assert section.not_computed
    section = section_of(replace(cases, mask=cases.mask * 0), cases)
    assert section.tables["attributes of masks"]["volume"]["coverage"].note == (
        "not computed: masks are empty"
    )
    assert section.tables["variety within each set"]["1 - MS-SSIM"]["ratio"].value is not None


def test_one_case_has_no_diversity():
    assert "1 real and 3 synthetic" in section_of(smooth_cases(1), smooth_cases(3)).not_computed


def test_volumes_smaller_than_the_window_have_no_ms_ssim_but_features():
    section = section_of(smooth_cases(6, side=6), smooth_cases(6, side=6, seed=1))
    rows = section.tables["variety within each set"]
    assert rows["1 - MS-SSIM"]["ratio"].note.startswith("not computed: no pair")
    assert rows["distance, fixed network"]["ratio"].value is not None
    assert section.warnings
