"""Claims about masks of a wanted volume."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medvae3d.errors import SettingError
from medvae3d.synthesis.levels import (
    allowed_error,
    fault,
    fill_holes,
    labels_at_volumes,
    layer_voxels,
    mask_at_level,
    mask_at_volume,
    missed,
    tidy,
    touches_border,
)

SHAPE = (24, 20, 22)


def hill(centre=(12, 10, 11), noise=0.0, seed=0):
    """A field that falls with the distance from its top."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    distance = np.linalg.norm(grid - np.array(centre), axis=-1)
    rough = np.random.default_rng(seed).standard_normal(SHAPE)
    return (8 - distance + noise * ndimage.gaussian_filter(rough, 2) * 8).astype(np.float32)


def ball(radius, centre=(12, 10, 11)):
    return hill(centre) > 8 - radius


@pytest.mark.parametrize("wanted", [1, 7, 60, 333, 1500])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_wanted_volume_is_met(wanted, noise):
    made = mask_at_volume(hill(noise=noise), wanted)
    assert abs(made.tidied.voxels - wanted) <= allowed_error(made.tidied.mask, wanted)
    assert not missed(made, wanted)


def test_without_ties_the_volume_is_met_to_the_aim():
    made = mask_at_volume(hill(noise=0.5), 900)
    assert abs(made.tidied.voxels - 900) <= 0.0025 * 900


def test_millilitres_and_voxels_are_the_same_request():
    field = hill(noise=0.5)
    by_ml = mask_at_volume(field, volume_ml=4.0, voxel_ml=0.01)
    assert by_ml.tidied.voxels == mask_at_volume(field, 400).tidied.voxels


def test_the_final_mask_is_counted_not_the_raw_one():
    """A second hill and a hole: the level that has 600 voxels above it does not give 600."""
    field = np.maximum(hill(noise=0.3), hill((4, 4, 4)) - 6)
    field[12, 10, 11] = -5
    made = mask_at_volume(field, 600)
    assert abs(made.tidied.voxels - 600) <= 12
    assert made.tidied.mask[12, 10, 11]
    assert ndimage.label(made.tidied.mask, np.ones((3, 3, 3)))[1] == 1


def test_the_level_gives_the_mask_again():
    field = hill(noise=0.5)
    made = mask_at_volume(field, 500)
    assert (mask_at_level(field, made.level).label == made.label).all()


def test_volumes_between_apart_and_joined_are_missed():
    """Two equal hills: as one component, there is nothing between one and both."""
    field = np.maximum(hill((6, 10, 11)), hill((18, 10, 11)))
    single = mask_at_volume(field, 500).tidied.voxels
    made = mask_at_volume(field, 1.4 * 900)
    assert abs(single - 500) <= 60
    assert missed(made, 1.4 * 900) or made.tidied.components == 1


def test_plateaus_are_missed_not_invented():
    field = np.where(ball(3), 1.0, np.where(ball(7), 0.0, -1.0)).astype(np.float32)
    made = mask_at_volume(field, 700)
    assert made.tidied.voxels in {int(ball(3).sum()), int(ball(7).sum())}
    assert missed(made, 700)


@pytest.mark.parametrize("keep", [1, 2])
def test_as_many_components_stay_as_are_asked_for(keep):
    mask = ball(4, (6, 6, 6)) | ball(3, (17, 14, 15)) | ball(1, (4, 16, 4))
    tidied = tidy(mask, keep)
    assert tidied.components == 3
    assert ndimage.label(tidied.mask, np.ones((3, 3, 3)))[1] == keep
    assert tidied.dropped == ball([3, 1][keep - 1]).sum()


def test_corners_join_components():
    mask = np.zeros((4, 4, 4), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert tidy(mask).voxels == 2


def test_holes_are_filled_as_scipy_fills_them():
    mask = np.random.default_rng(0).random(SHAPE) < 0.7
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_a_layer_is_what_erosion_takes():
    mask = ball(6)
    assert layer_voxels(mask) == mask.sum() - ndimage.binary_erosion(mask).sum()


def logits(share=0.5):
    """Three labels: a ball, whose left is 1 and whose right is 2."""
    field = hill(noise=0.4)
    i, j, k = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    side = i + 0.31 * j + 0.173 * k - 24 * share - 5  # oblique, so that no two voxels tie
    return np.stack([-field, field - 0.2 * side, field + 0.2 * side]).astype(np.float32)


@pytest.mark.parametrize("wanted", [{1: 300, 2: 500}, {1: 700, 2: 100}, {1: 200, 2: 210}])
def test_each_label_meets_its_volume(wanted):
    made = labels_at_volumes(logits(), (0, 1, 2), wanted)
    assert not missed(made, wanted)
    for value, count in wanted.items():
        assert abs(int((made.label == value).sum()) - count) <= 0.02 * count + 2
        assert ndimage.label(made.label == value, np.ones((3, 3, 3)))[1] == 1


def test_one_volume_for_all_labels_keeps_the_likeliest_label_inside():
    scores = logits()
    made = labels_at_volumes(scores, (0, 1, 2), 600)
    assert abs(int((made.label > 0).sum()) - 600) <= 12
    inside = made.label > 0
    assert (made.label[inside] == 1 + (scores[2] > scores[1])[inside]).all()


def test_four_labels_are_parted_one_after_the_other():
    rng = np.random.default_rng(0)
    rough = [ndimage.gaussian_filter(rng.standard_normal(SHAPE), 4) * 20 for _ in range(3)]
    field = hill()
    wanted = {3: 200, 5: 300, 7: 250}
    made = labels_at_volumes(
        np.stack([-field, *(field + each for each in rough)]), (0, 3, 5, 7), wanted
    )
    assert set(np.unique(made.label)) == {0, 3, 5, 7}
    assert abs(int((made.label > 0).sum()) - 750) <= 15


def test_a_good_mask_has_no_fault():
    assert fault(mask_at_volume(hill(), 500), asked=500) is None


@pytest.mark.parametrize(
    ("field", "level", "reason"),
    [
        (hill(), 9.0, "empty"),
        (hill((1, 10, 11)), 4.0, "touches the border"),
        (np.maximum(hill((6, 10, 11)), hill((18, 10, 11))), 5.0, "more components than allowed"),
    ],
)
def test_implausible_masks_are_named(field, level, reason):
    assert fault(mask_at_level(field, level)) == reason


def test_a_speck_beside_the_lesion_is_no_second_lesion():
    field = np.maximum(hill(), hill((3, 3, 3)) - 4.5)
    made = mask_at_level(field, 3.0)
    assert made.tidied.components == 2
    assert fault(made) is None


def test_volumes_beyond_training_are_faults_only_where_none_was_asked():
    made = mask_at_volume(hill(), 500)
    assert fault(made, allowed=(600, 900)) == "volume outside of the training range"
    assert fault(made, asked=500, allowed=(600, 900)) is None


def test_a_label_without_voxels_is_a_fault():
    made = labels_at_volumes(logits(share=-9), (0, 1, 2), None)
    assert fault(made, values=(0, 1, 2)) == "a label is empty"


def test_only_outermost_voxels_touch_the_border():
    mask = np.zeros(SHAPE, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    assert not touches_border(mask)
    mask[5, 5, -1] = True
    assert touches_border(mask)


@pytest.mark.parametrize("asked", [{"voxels": 0}, {"voxels": -3}, {"volume_ml": 3.0}, {}])
def test_a_request_for_nothing_is_refused(asked):
    with pytest.raises(SettingError, match="volume"):
        mask_at_volume(hill(), **asked)
