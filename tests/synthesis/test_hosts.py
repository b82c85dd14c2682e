"""Hosts are read with their checks, and the frame of the weights loses nothing of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medvae3d.data.phantom import PhantomCase, phantom_case
from medvae3d.data.volumes import read_volume, write_volume
from medvae3d.errors import (
    GridError,
    GridMismatchError,
    IntensityError,
    LabelError,
    SettingError,
    UnreadableFileError,
)
from medvae3d.geometry import Grid
from medvae3d.synthesis.frames import Frame
from medvae3d.synthesis.hosts import phantom_host, read_host
from medvae3d.synthesis.placement import find_brain
from medvae3d.synthesis.recipe import Recipe

SHAPE, SPACING = (40, 44, 40), (4.5, 4.5, 4.5)


def recipe(*names: str, **synthesis: Any) -> Recipe:
    channels = [{"name": name, "intensity": {"kind": "percentile"}} for name in names or ("FLAIR",)]
    return Recipe.from_config(
        {
            "channels": channels,
            "labels": {"background": 0, "lesion": 1},
            "spacing": [4.5] * 3,
            "spatial_shape": [16] * 3,
            "synthesis": {"kind": "insertion", **synthesis},
        }
    )


@pytest.fixture(scope="module")
def case() -> PhantomCase:
    return phantom_case(3, SHAPE, SPACING, (1, 2))


@pytest.fixture(scope="module")
def files(case: PhantomCase, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hosts")
    paths = {name: folder / f"case_{name}.nii.gz" for name in ("flair", "t1", "label", "brain")}
    for index, name in enumerate(("flair", "t1")):
        write_volume(paths[name], case.image[index], case.grid, slope=0.1)
    write_volume(paths["label"], case.label, case.grid)
    write_volume(paths["brain"], case.brain, case.grid)
    return paths


def stored(path: Path, axcodes: str) -> Path:
    """The same volume with its axes stored in another order."""
    volume = read_volume(path)
    turn = nib.orientations.axcodes2ornt(axcodes)
    turned = nib.Nifti1Image(volume.array, volume.grid.affine).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(volume.grid.affine), turn)
    )
    changed = path.with_name(f"{axcodes}_{path.name}")
    write_volume(changed, np.asarray(turned.dataobj), Grid.from_image(turned), slope=0.1)
    return changed


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_a_host_is_read_with_its_label_and_brain(files: dict[str, Path], case: PhantomCase) -> None:
    host = read_host([files["flair"], files["t1"]], files["label"], recipe("FLAIR", "T1"))
    assert host.image.shape == (2, *SHAPE)
    np.testing.assert_allclose(host.image, case.image, atol=0.051)
    np.testing.assert_array_equal(host.label, case.label)
    assert host.grid == case.grid
    assert host.name == "case_flair"


def test_without_a_label_nothing_is_there(files: dict[str, Path]) -> None:
    assert not read_host([files["flair"]], None, recipe()).label.any()


@pytest.mark.parametrize("seed", [0, 3])
def test_the_brain_is_found(seed: int) -> None:
    case = phantom_case(seed, (50, 56, 48), (3.5, 3.5, 3.5), (0, 0))
    brain = case.brain > 0
    for channel in case.image:
        assert dice(find_brain(channel, case.grid.spacing), brain) > 0.85
        extracted = find_brain(channel * brain, case.grid.spacing)
        assert dice(extracted, brain) > 0.97


def test_the_brain_is_the_same_whatever_the_order_of_axes(files: dict[str, Path]) -> None:
    host = read_host([files["flair"]], None, recipe())
    turned = read_host([stored(files["flair"], "PIR")], None, recipe())
    back = Frame.of(turned.grid, SPACING).reorient(turned.brain)
    np.testing.assert_array_equal(back, host.brain)


def test_a_given_brain_is_taken(files: dict[str, Path], case: PhantomCase) -> None:
    host = read_host([files["flair"]], None, recipe(), brain=files["brain"])
    np.testing.assert_array_equal(host.brain, case.brain > 0)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
def test_what_is_read_is_what_would_be_stored(
    tmp_path: Path, case: PhantomCase, dtype: str
) -> None:
    path = tmp_path / "host.nii.gz"
    slope = None if dtype == "float32" else 4.0
    write_volume(path, case.image[0], case.grid, dtype=dtype, slope=slope, clip=True)
    host = read_host([path], None, recipe())
    np.testing.assert_array_equal(host.as_stored(0, host.image[0]), host.image[0])
    changed = host.as_stored(0, host.image[0] + np.float32(1.7))
    out, where = tmp_path / "out.nii.gz", np.zeros(SHAPE, bool)
    where[20:24, 20:24, 20:24] = True
    host.write_channel(0, out, changed, where)
    again = read_volume(out)
    np.testing.assert_array_equal(again.array[~where], host.image[0][~where])
    np.testing.assert_array_equal(again.array[where], changed[where])
    assert again.dtype == dtype


def test_values_beyond_the_range_of_the_host_are_cut(tmp_path: Path, case: PhantomCase) -> None:
    path = tmp_path / "host.nii.gz"
    write_volume(path, case.image[0], case.grid, dtype="uint8", slope=4.0, clip=True)
    host = read_host([path], None, recipe())
    assert host.as_stored(0, np.array([-50, 5000], np.float32)).tolist() == [0, 1020]


# -- what is refused ------------------------------------------------------------------------------


def test_the_number_of_channels_must_be_right(files: dict[str, Path]) -> None:
    with pytest.raises(SettingError, match="2 image files; these weights need 1: FLAIR"):
        read_host([files["flair"], files["t1"]], None, recipe())


def test_channels_must_lie_on_one_grid(
    files: dict[str, Path], case: PhantomCase, tmp_path: Path
) -> None:
    moved = Grid(SHAPE, case.grid.affine + np.eye(4)[:, :1] * [0, 0, 0, 1.0])
    write_volume(tmp_path / "moved.nii.gz", case.image[1], moved)
    with pytest.raises(GridMismatchError, match=r"moved\.nii\.gz lies 1\.00 mm off"):
        read_host([files["flair"], tmp_path / "moved.nii.gz"], None, recipe("FLAIR", "T1"))


def test_the_label_must_lie_on_the_image(files: dict[str, Path], tmp_path: Path) -> None:
    grid = Grid.centred((40, 44, 39), SPACING)
    write_volume(tmp_path / "label.nii", np.zeros(grid.shape, np.uint8), grid)
    with pytest.raises(GridMismatchError, match="label.nii"):
        read_host([files["flair"]], tmp_path / "label.nii", recipe())


def test_unknown_label_values_are_refused(
    files: dict[str, Path], case: PhantomCase, tmp_path: Path
) -> None:
    write_volume(tmp_path / "label.nii", 4 * case.label, case.grid)
    with pytest.raises(LabelError, match=r"\[4\]; allowed are the values \[0, 1\]"):
        read_host([files["flair"]], tmp_path / "label.nii", recipe())


def test_a_scan_too_small_for_the_patch_is_refused(case: PhantomCase, tmp_path: Path) -> None:
    grid = case.grid.crop((0, 0, 20), (40, 44, 9))
    write_volume(tmp_path / "slab.nii", case.image[0][:, :, 20:29], grid)
    with pytest.raises(GridError, match="40 x 44 x 9 voxels .* need 16 x 16 x 16 or more"):
        read_host([tmp_path / "slab.nii"], None, recipe())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda x: np.where(x > 100, np.nan, x), IntensityError, "NaN"),
        (lambda x: x - 1000, IntensityError, "negative|above 0"),
        (lambda x: 0 * x + 5, IntensityError, "contrast|5 in all"),
        (lambda x: 0 * x, IntensityError, "0 in all"),
    ],
)
def test_images_that_cannot_be_used_are_refused(
    case: PhantomCase, tmp_path: Path, change: Any, error: type[Exception], says: str
) -> None:
    write_volume(tmp_path / "bad.nii", change(case.image[0]).astype(np.float32), case.grid)
    with pytest.raises(error, match=says) as caught:
        read_host([tmp_path / "bad.nii"], None, recipe())
    assert "bad.nii" in str(caught.value)


@pytest.mark.parametrize("shape", [(40, 44), (40, 44, 40, 2), (40, 44, 40, 1, 2)])
def test_other_than_three_axes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nib.save(nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), tmp_path / "flat.nii")
    with pytest.raises(GridError, match="flat.nii"):
        read_host([tmp_path / "flat.nii"], None, recipe())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="none.nii.gz"):
        read_host([tmp_path / "none.nii.gz"], None, recipe())


def test_a_brain_mask_must_be_of_this_scan(
    files: dict[str, Path], case: PhantomCase, tmp_path: Path
) -> None:
    write_volume(tmp_path / "empty.nii", 0 * case.brain, case.grid)
    with pytest.raises(LabelError, match=r"empty\.nii is empty"):
        read_host([files["flair"]], None, recipe(), brain=tmp_path / "empty.nii")
    corner = np.zeros(SHAPE, np.uint8)
    corner[:2, :2, :2] = 1
    write_volume(tmp_path / "corner.nii", corner, case.grid)
    with pytest.raises(LabelError, match=r"corner\.nii: the brain mask meets no voxel"):
        read_host([files["flair"]], None, recipe(), brain=tmp_path / "corner.nii")


# -- phantoms -------------------------------------------------------------------------------------


def test_a_phantom_host_depends_on_seed_and_index_alone() -> None:
    told = recipe(phantom_shape=[24, 28, 24], phantom_spacing=[7, 7, 7])
    a, b, other = (phantom_host(told, 5, index) for index in (1, 1, 2))
    np.testing.assert_array_equal(a.image, b.image)
    assert (a.image != other.image).any()
    assert a.grid.shape == (24, 28, 24) and a.grid.spacing == (7.0, 7.0, 7.0)
    assert not a.label.any() and a.brain.any()


def test_phantom_channels_follow_their_names() -> None:
    grid = {"phantom_shape": [24, 28, 24], "phantom_spacing": [7, 7, 7]}
    t1, flair = phantom_host(recipe("T1", "FLAIR", **grid), 0, 0).image
    drawn = phantom_host(recipe("flair", **grid), 0, 0)
    np.testing.assert_array_equal(flair, drawn.image[0])
    assert (t1 != flair).any()


# -- the frame ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axcodes", ["RAS", "LAS", "LPI", "SAR", "PIR", "ILA"])
def test_axes_of_the_right_size_are_turned_and_not_interpolated(
    files: dict[str, Path], axcodes: str
) -> None:
    volume = read_volume(stored(files["flair"], axcodes))
    frame = Frame.of(volume.grid, (4.53, 4.48, 4.5))
    assert frame.is_exact
    moved = frame.to_frame(volume.array)
    np.testing.assert_array_equal(moved, read_volume(files["flair"]).array)
    back, box = frame.to_host(moved[5:20, 10:40, 3:9], (5, 10, 3))
    np.testing.assert_array_equal(back, volume.array[box])
    part, start = frame.box_to_frame(back, box)
    assert start == (5, 10, 3)
    np.testing.assert_array_equal(part, moved[5:20, 10:40, 3:9])


@pytest.mark.parametrize("axcodes", ["RAS", "LPI", "SAR"])
def test_points_keep_their_place(axcodes: str) -> None:
    turn = nib.orientations.axcodes2ornt(axcodes)
    image = nib.Nifti1Image(np.zeros((20, 30, 12), np.uint8), np.diag([2, 3, 5.0, 1]))
    image.affine[:3, 3] = (-20, 7, 3)
    image = image.as_reoriented(turn)
    frame = Frame.of(Grid.from_image(image), (2.5, 2.0, 4.0))
    i, j, k = np.meshgrid(*map(np.arange, image.shape), indexing="ij")
    world = frame.host.to_world(np.stack([i, j, k], -1))
    # The x coordinate of each voxel, brought into the frame, is that of the frame's voxel there.
    for axis in range(3):
        moved = frame.to_frame(world[..., axis])
        point = frame.host.to_world([7, 9, 5])
        nearest = np.rint(frame.to_index(point)).astype(int)
        error = abs(moved[tuple(nearest)] - point[axis])
        assert error <= (2.5, 2.0, 4.0)[axis] / 2 + 1e-3


def test_an_oblique_scan_is_not_interpolated_for_being_oblique() -> None:
    turn = nib.eulerangles.euler2mat(0.1, 0.2, -0.1)
    affine = np.eye(4)
    affine[:3, :3] = turn * 2.0
    assert Frame.of(Grid((20, 20, 20), affine), (2, 2, 2)).is_exact


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 3.0, 7.0), (1.3, 2.6, 0.9)])
def test_a_constant_volume_stays_constant(spacing: tuple[float, float, float]) -> None:
    frame = Frame.of(Grid.centred((18, 20, 9), (1.7, 1.1, 4.0)), spacing)
    moved = frame.to_frame(np.full((18, 20, 9), 7.0))
    np.testing.assert_allclose(moved, 7, rtol=1e-5)
    back, box = frame.to_host(np.ones(frame.shape), (0, 0, 0))
    inner = tuple(slice(3, -3) for _ in range(3))
    np.testing.assert_allclose(back[inner], 1, rtol=1e-5)
    assert box == (slice(0, 18), slice(0, 20), slice(0, 9))


def test_a_box_is_carried_as_the_whole_would_be() -> None:
    rng = np.random.default_rng(0)
    frame = Frame.of(Grid.centred((30, 30, 12), (1.0, 0.8, 3.0)), (1.0, 1.2, 1.0))
    whole = np.zeros(frame.shape, np.float32)
    whole[8:15, 6:12, 10:18] = rng.normal(size=(7, 6, 8))
    reference, _ = frame.to_host(whole, (0, 0, 0))
    part, box = frame.to_host(whole[8:15, 6:12, 10:18], (8, 6, 10))
    filled = np.zeros_like(reference)
    filled[box] = part
    np.testing.assert_allclose(filled, reference, atol=1e-6)


def test_boxes_beyond_the_border_are_cut() -> None:
    frame = Frame.of(Grid.centred((10, 10, 10), (1.0, 1.0, 2.0)), (1.0, 1.0, 1.0))
    part, box = frame.to_host(np.ones((6, 6, 6)), (-3, 7, 17))
    assert box[0] == slice(0, 3) and box[1] == slice(7, 10) and box[2].stop == 10
    assert part.shape == tuple(side.stop - side.start for side in box)


def test_thin_structures_are_averaged_and_not_skipped() -> None:
    """Every third voxel set: linear interpolation at a third of the size would see all or none."""
    array = np.zeros((30, 8, 8))
    array[::3] = 1
    frame = Frame.of(Grid.centred((30, 8, 8), (1.0, 1.0, 1.0)), (3.0, 1.0, 1.0))
    np.testing.assert_allclose(frame.to_frame(array)[2:-2], 1 / 3, atol=1e-5)
