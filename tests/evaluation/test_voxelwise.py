"""Claims about scores of one volume against another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from medvae3d.evaluation.intervals import mean_error, mean_interval
from medvae3d.evaluation.voxelwise import image_scores, mask_scores, unit, window_for

SHAPE = (2, 2, 12, 14, 13)


def pair():
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(SHAPE, generator=generator) * 2 - 1
    return real + 0.2 * torch.randn(SHAPE, generator=generator), real


def everywhere():
    return torch.ones(2, 1, *SHAPE[2:])


def test_a_perfect_volume_has_no_error_and_full_similarity():
    _, real = pair()
    scores = image_scores(real, real, everywhere())
    assert scores["nmse"].tolist() == [0, 0]
    assert scores["ssim"].numpy() == pytest.approx(1, abs=1e-6)


def test_psnr_and_nmse_are_those_of_their_definitions():
    made, real = pair()
    scores = image_scores(made, real, everywhere())
    a, b = unit(made)[0].numpy(), unit(real)[0].numpy()
    psnr = peak_signal_noise_ratio(b, a, data_range=1)
    assert scores["psnr"][0].item() == pytest.approx(psnr, rel=1e-5)
    nmse = ((a - b) ** 2).sum() / (b**2).sum()
    assert scores["nmse"][0].item() == pytest.approx(nmse, rel=1e-5)


def test_ssim_agrees_with_scikit_image():
    """Both average the windows of 11 voxels that lie within the volume."""
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(1, 2, 48, 48, 48, generator=generator) * 2 - 1
    made = real + 0.3 * torch.randn(real.shape, generator=generator)
    scores = image_scores(made, real, torch.ones(1, 1, 48, 48, 48), ("a", "b"))
    for channel, name in enumerate("ab"):
        a, b = (unit(x)[0, channel].double().numpy() for x in (made, real))
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        expected = structural_similarity(b, a, data_range=1, **options)
        assert scores[f"ssim {name}"][0].item() == pytest.approx(expected, abs=1e-5)


def test_what_was_not_observed_does_not_count():
    made, real = pair()
    where = everywhere()
    where[..., 9:] = 0
    before = image_scores(made, real, where)
    made[..., 9:] = 5
    after = image_scores(made, real, where)
    assert torch.equal(before["nmse"], after["nmse"])
    assert torch.equal(before["psnr"], after["psnr"])


def test_a_case_without_a_voxel_that_counts_is_left_out_of_the_mean():
    made, real = pair()
    where = everywhere()
    where[1] = 0
    scores = image_scores(made, real, where)
    assert scores["nmse"][1].isnan() and scores["ssim"][1].isnan()
    assert mean_interval(scores["nmse"])["n"] == 1


def test_small_volumes_get_the_small_window():
    assert [window_for((32, 48, 48)), window_for((48, 48, 48))] == [7, 11]


def test_dice_is_by_label_and_counts_two_empty_masks_as_equal():
    real = torch.zeros(2, 1, 4, 4, 4)
    real[0, 0, 0], real[0, 0, 1] = 1, 2
    made = real.clone()
    made[0, 0, 1, :2] = 1
    scores = mask_scores(made, real, ("front", "back"))
    assert scores["dice"].tolist() == [1, 1]
    assert scores["dice front"].tolist() == [pytest.approx(2 * 16 / (16 + 24)), 1]
    assert scores["dice back"].tolist() == [pytest.approx(2 * 8 / (16 + 8)), 1]


def test_intervals_hold_the_mean_and_narrow_with_more_cases():
    values = np.random.default_rng(0).normal(3, 1, 400)
    few, many = mean_interval(values[:20]), mean_interval(values)
    assert many["low"] < values.mean() < many["high"]
    assert many["high"] - many["low"] < few["high"] - few["low"]
    assert many["high"] - many["low"] == pytest.approx(
        4 * mean_error(values)["standard_error"], rel=0.1
    )


def test_one_case_has_no_interval():
    assert mean_interval([2.0]) == {"mean": 2.0, "low": None, "high": None, "n": 1}
    assert mean_error([2.0])["standard_error"] is None
