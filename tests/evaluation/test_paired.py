"""Claims about volumes against those that they should be."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ms_ssim
from scipy import ndimage
from skimage.metrics import hausdorff_distance, peak_signal_noise_ratio, structural_similarity
from small_evaluations import smooth_cases

from medvae3d.errors import DataListError
from medvae3d.evaluation.paired import INSIDE, WHOLE, image_comparison, paired_section
from medvae3d.evaluation.voxelwise import (
    MS_SSIM_WEIGHTS,
    overlap_scores,
    scales_for,
    similarities,
    unit,
)

SPACING = (1.0, 2.0, 3.0)


def pair(count=4, side=16, channels=2, noise=0.1):
    real = smooth_cases(count, side=side, channels=channels)
    generator = torch.Generator().manual_seed(5)
    image = real.image + noise * torch.randn(real.image.shape, generator=generator)
    return replace(real, image=image), real


def section_of(made, real, labels=("lesion",), **settings):
    channels = [f"c{i}" for i in range(real.image.shape[1])]
    return paired_section(
        made, real, channels=channels, labels=labels, spacing_mm=SPACING, seed=0, **settings
    )


def test_psnr_and_ssim_agree_with_scikit_image():
    """Its window is 11 voxels wide, as ours is from 48 voxels a side on."""
    made, real = pair(1, side=48)
    scores = image_comparison(made, real, ("a", "b"))[WHOLE]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for channel, name in enumerate("ab"):
        a, b = (unit(x.image)[0, channel].double().numpy() for x in (made, real))
        psnr = peak_signal_noise_ratio(b, a, data_range=1)
        similarity = structural_similarity(b, a, data_range=1, **options)
        assert scores[f"psnr {name}"].item() == pytest.approx(psnr, rel=1e-5)
        assert scores[f"ssim {name}"].item() == pytest.approx(similarity, abs=1e-4)


def test_the_hausdorff_distance_agrees_with_scikit_image():
    mask = smooth_cases(2, side=12).mask
    found = overlap_scores(mask[:1], mask[1:], (1.0, 1.0, 1.0))
    surface = [(m := each[0] > 0) & ~ndimage.binary_erosion(m) for each in mask.numpy()]
    assert found["hd"].item() == pytest.approx(hausdorff_distance(*surface))


def test_ms_ssim_is_monais_by_channel():
    made, real = pair(2, side=32)
    found = image_comparison(made, real, ("a", "b"))[WHOLE]
    weights = [w / sum(MS_SSIM_WEIGHTS[:3]) for w in MS_SSIM_WEIGHTS[:3]]
    for channel, name in enumerate("ab"):
        expected = compute_ms_ssim(
            unit(made.image[:, channel, None]),
            unit(real.image[:, channel, None]),
            3,
            kernel_size=7,
            weights=weights,
        )
        torch.testing.assert_close(
            found[f"ms-ssim {name}"].float(), expected[:, 0], atol=1e-5, rtol=1e-4
        )


def test_scales_are_as_many_as_the_window_fits_into():
    assert [scales_for((side,) * 3, 7) for side in (6, 7, 14, 32, 200)] == [0, 1, 2, 3, 5]
    assert scales_for((32, 32, 32), 7, share=0.5) == 2


def test_a_perfect_reconstruction_has_perfect_scores():
    _, real = pair(3)
    tables = section_of(real, real).tables
    for row, expected in {"SSIM": 1, "MS-SSIM": 1, "NMSE": 0}.items():
        for where in (WHOLE, INSIDE):
            assert tables["images"][row][where].value == pytest.approx(expected, abs=1e-5)
    values = {row: columns["foreground"].value for row, columns in tables["masks"].items()}
    assert list(values.values()) == [1, 1, 0, 0, 0]


def test_an_error_inside_of_the_mask_weighs_more_there_and_one_outside_not_at_all():
    _, real = pair(3, channels=1)
    inside = real.mask > 0
    wrong_inside = replace(real, image=torch.where(inside, real.image + 0.2, real.image))
    scores = image_comparison(wrong_inside, real)
    torch.testing.assert_close(
        scores[INSIDE]["psnr"], torch.full((3,), 20.0).double(), atol=1e-3, rtol=0
    )
    assert (scores[INSIDE]["ssim"] < scores[WHOLE]["ssim"]).all()
    wrong_outside = replace(real, image=torch.where(inside, real.image, real.image + 0.2))
    scores = image_comparison(wrong_outside, real)
    assert (scores[INSIDE]["nmse"] == 0).all() and (scores[WHOLE]["nmse"] > 0).all()


def test_snr_is_the_inverse_of_nmse_in_decibel():
    scores = image_comparison(*pair())[WHOLE]
    torch.testing.assert_close(10 ** (-scores["snr"] / 10), scores["nmse"])


def test_what_was_not_observed_in_either_counts_nowhere():
    made, real = pair(2)
    valid = real.valid.clone()
    valid[..., 10:] = 0
    before = image_comparison(made, replace(real, valid=valid))[WHOLE]
    spoilt = torch.where(valid > 0, made.image, 9.0)
    after = image_comparison(replace(made, image=spoilt), replace(real, valid=valid))[WHOLE]
    assert torch.equal(before["psnr"], after["psnr"])


def test_surface_distances_are_in_millimetres():
    """A box moved by two voxels along J, 2 mm each: surfaces are 4 mm apart at most."""
    real = torch.zeros(1, 1, 12, 12, 12)
    real[..., 3:7, 3:7, 3:7] = 1
    made = real.roll(2, dims=3)
    found = overlap_scores(made, real, SPACING)
    assert found["hd"].item() == pytest.approx(4)
    assert 0 < found["asd"].item() < found["hd95"].item() <= 4
    assert found["dice"].item() == pytest.approx(0.5)
    assert found["jaccard"].item() == pytest.approx(1 / 3)


def test_an_empty_mask_has_no_surface_distance_and_the_others_keep_theirs():
    made, real = pair(3)
    masks = made.mask.clone()
    masks[1] = 0
    section = section_of(replace(made, mask=masks), real)
    distance = section.tables["masks"]["Hausdorff distance (mm)"]["foreground"]
    assert distance.n == 2 and distance.note == "undefined for 1 of 3 cases"
    assert section.tables["masks"]["Dice"]["foreground"].value == pytest.approx(2 / 3)
    assert section.warnings[0].startswith("1 of 3 pairs have a mask on one side only")


def test_empty_masks_on_both_sides_agree_and_leave_the_rest_of_the_section():
    made, real = pair(2)
    section = section_of(replace(made, mask=made.mask * 0), replace(real, mask=real.mask * 0))
    assert section.tables["masks"]["Dice"]["foreground"].value == 1
    inside = section.tables["images"]["SSIM"][INSIDE]
    assert inside.value is None and inside.note == "not computed: undefined for every case"
    assert section.tables["images"]["SSIM"][WHOLE].value is not None
    json.dumps(section.to_dict(), allow_nan=False)


def test_labels_and_channels_have_rows_of_their_own():
    made, real = pair(2)
    masks = real.mask.clone()
    masks[..., :8] *= 2
    wrong = masks.clone()
    wrong[masks == 2] = 0
    section = section_of(
        replace(made, mask=wrong), replace(real, mask=masks), labels=("left", "right")
    )
    dice = section.tables["masks"]["Dice"]
    assert dice["left"].value == 1 and dice["right"].value == 0
    assert {"SSIM", "SSIM, c0", "SSIM, c1"} <= set(section.tables["images"])
    assert set(section.cases["pairs"]) == set(real.names)


def test_constant_images_have_finite_scores():
    _, real = pair(2)
    flat = replace(real, image=real.image * 0)
    section = section_of(flat, flat)
    assert section.tables["images"]["SSIM"][WHOLE].value == pytest.approx(1)
    assert np.isfinite(section.tables["images"]["PSNR (dB)"][WHOLE].value)


def test_small_volumes_have_fewer_scales_and_a_note_and_tiny_ones_no_ssim():
    images = section_of(*pair(2, side=16)).tables["images"]
    assert images["MS-SSIM"][WHOLE].note.startswith("2 of 5 scales")
    images = section_of(*pair(2, side=6)).tables["images"]
    assert images["SSIM"][WHOLE].value is None
    assert images["SSIM"][WHOLE].note == "not computed: the volume is smaller than the window"
    assert images["NMSE"][WHOLE].value is not None


def test_without_weights_lpips_says_why_and_with_them_it_has_both_columns():
    made, real = pair(2)
    row = section_of(made, real).tables["images"]["LPIPS"]
    assert row[WHOLE].value is None and "needs trained weights" in row[WHOLE].note

    class Absolute(torch.nn.Module):
        licence = "CC0"

        def forward(self, x, other):
            return (x - other).abs().mean((2, 3, 4)).double()

    section = section_of(made, real, lpips=Absolute())
    row = section.tables["images"]["LPIPS"]
    expected = (made.image - real.image).abs().mean().item()
    assert row[WHOLE].value == pytest.approx(expected, rel=1e-4)
    assert 0 < row[INSIDE].value < row[WHOLE].value
    assert section.facts["licence of LPIPS weights"] == "CC0"


def test_cases_that_are_not_the_same_are_refused():
    made, real = pair(3)
    with pytest.raises(DataListError, match="'case 1' was made where 'case 0' is real"):
        section_of(made[[1, 0, 2]], real)
    with pytest.raises(DataListError, match="they must be equal"):
        section_of(replace(made, image=made.image[:, :1]), real)


def test_similarities_of_several_places_come_from_one_pass():
    made, real = (unit(x.image) for x in pair(2))
    left = torch.zeros(2, 1, 16, 16, 16)
    left[..., :8] = 1
    both = similarities(made, real, {"left": left, "all": torch.ones_like(left)})
    alone = similarities(made, real, {"left": left})
    torch.testing.assert_close(both["left"], alone["left"])
    assert not torch.equal(both["left"][0], both["all"][0])
