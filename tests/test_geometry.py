import nibabel as nib
import numpy as np
import pytest

from medvae3d.errors import GridError, GridMismatchError, MedvaeError
from medvae3d.geometry import Grid


def rotated(degrees, shape=(20, 30, 10)):
    angle = np.deg2rad(degrees)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ affine
    affine[:3, 3] = (-5, 7, 11)
    return Grid(shape, affine)


def test_spacing_survives_rotation():
    assert rotated(30).spacing == pytest.approx((1, 2, 3))


def test_voxel_volume_is_right_for_skewed_axes():
    affine = np.eye(4)
    affine[0, 1] = 0.5
    assert Grid((2, 2, 2), affine).voxel_volume_ml == pytest.approx(1e-3)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_axcodes_agree_with_nibabel(codes):
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(codes)), (4, 5, 6))
    assert Grid((4, 5, 6), affine).axcodes == "".join(nib.aff2axcodes(affine))


def test_centred_grid_has_its_centre_at_the_origin():
    grid = Grid.centred((4, 5, 6), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(grid.to_world([1.5, 2.0, 2.5]), 0)
    assert grid.axcodes == "RAS"
    assert grid.extent == (4.0, 10.0, 18.0)


def test_world_and_index_are_inverses():
    index = np.random.default_rng(0).normal(size=(7, 3))
    grid = rotated(17)
    np.testing.assert_allclose(grid.to_index(grid.to_world(index)), index, atol=1e-12)


def test_crop_keeps_each_voxel_in_its_place():
    grid = rotated(17)
    crop = grid.crop((3, -2, 1), (4, 40, 5))
    np.testing.assert_allclose(crop.to_world((0, 0, 0)), grid.to_world((3, -2, 1)))
    assert crop.shape == (4, 40, 5)


def test_equal_grids_are_equal_and_hash_alike():
    assert rotated(3) == rotated(3)
    assert hash(rotated(3)) == hash(rotated(3))
    assert rotated(3) != rotated(4)
    assert rotated(3) != "grid"


def test_a_grid_cannot_be_changed_from_outside():
    affine = np.eye(4)
    grid = Grid((2, 2, 2), affine)
    affine[0, 0] = 9
    assert grid.spacing[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 9


def test_from_image_drops_the_channel_axis():
    image = nib.Nifti1Image(np.zeros((3, 4, 5, 2), np.float32), np.diag([1, 2, 3, 1.0]))
    assert Grid.from_image(image) == Grid((3, 4, 5), np.diag([1, 2, 3, 1.0]))


def test_a_small_rotation_is_seen_at_the_far_corner():
    """1e-3 rad moves no matrix entry by more than 0.002, but the far corner by 0.06 mm."""
    still, turned = rotated(0), rotated(np.rad2deg(1e-3))
    assert still.worst_corner_mm(turned) == pytest.approx(np.hypot(19, 58) * 1e-3, rel=1e-3)
    with pytest.raises(GridMismatchError, match="0.06 mm off image"):
        still.require_same(turned, this="image", that="mask")
    still.require_same(turned, this="image", that="mask", tolerance_mm=0.1)


def test_a_flip_is_not_the_same_grid():
    flipped = np.diag([-1.0, 1, 1, 1])
    with pytest.raises(GridMismatchError, match=r"RAS.*LAS"):
        Grid((5, 5, 5), np.eye(4)).require_same(Grid((5, 5, 5), flipped), this="a", that="b")


def test_another_shape_names_both_and_the_way_out():
    with pytest.raises(
        GridMismatchError, match=r"mask has shape \(4, 4, 5\), image has .*Resample"
    ):
        Grid((4, 4, 4), np.eye(4)).require_same(
            Grid((4, 4, 5), np.eye(4)), this="image", that="mask"
        )


SINGULAR = np.diag([1.0, 1.0, 1.0, 1.0])
SINGULAR[:3, 2] = SINGULAR[:3, 1]
BENT = np.eye(4)
BENT[3, 0] = 1


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((4, 4), np.eye(4), "three axes"),
        ((4, 0, 4), np.eye(4), "three axes"),
        ((4, 4, 4, 2), np.eye(4), "three axes"),
        ((4, 4, 4), np.eye(3), "4 x 4"),
        ((4, 4, 4), np.diag([1, np.nan, 1, 1]), "non-finite"),
        ((4, 4, 4), np.diag([1.0, 0, 1, 1]), "above 0"),
        ((4, 4, 4), SINGULAR, "singular"),
        ((4, 4, 4), BENT, "last row"),
    ],
)
def test_impossible_grids_are_refused(shape, affine, message):
    with pytest.raises(GridError, match=message) as caught:
        Grid(shape, affine)
    assert isinstance(caught.value, MedvaeError)


@pytest.mark.parametrize("spacing", [(1, 1), (0, 1, 1), (-1, 1, 1), (np.nan, 1, 1), (np.inf, 1, 1)])
def test_impossible_spacing_is_refused(spacing):
    with pytest.raises(GridError, match="three numbers in mm above 0"):
        Grid.centred((4, 4, 4), spacing)
