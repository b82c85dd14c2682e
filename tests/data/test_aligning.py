"""Claims about aligning: voxels stay where they are in mm, and it is said what was done."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from medvae3d.data.aligning import align
from medvae3d.data.datalists import Case, DataList, read_datalist
from medvae3d.data.integrity import check
from medvae3d.data.volumes import read_mask, read_volume, write_volume
from medvae3d.errors import GridMismatchError, SettingError
from medvae3d.geometry import Grid

GRID = Grid.centred((8, 9, 7), (1.0, 1.5, 2.0))


def make(folder, mask, grid):
    image = np.random.default_rng(0).integers(0, 99, GRID.shape).astype(np.int16)
    write_volume(folder / "a_ct.nii.gz", image, GRID)
    write_volume(folder / "a_mask.nii.gz", mask, grid)
    case = Case((folder / "a_ct.nii.gz",), folder / "a_mask.nii.gz", "a", "training")
    return DataList((case,), folder, {"labels": {"0": "background", "1": "a", "4": "b"}})


def box(shape, low, high, value=1):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(map(slice, low, high))] = value
    return mask


def test_axes_in_another_order_are_put_back_without_interpolation(tmp_path):
    wanted = box(GRID.shape, (1, 2, 3), (4, 6, 5)) + box(GRID.shape, (6, 7, 1), (7, 9, 2), 4)
    turned = sitk.DICOMOrient(
        sitk.PermuteAxes(_itk(tmp_path, wanted), (2, 0, 1)), "SRA"
    )  # by other code than ours
    sitk.WriteImage(turned, str(tmp_path / "turned.nii.gz"))
    given = read_mask(tmp_path / "turned.nii.gz")
    assert given.grid.shape != GRID.shape
    done = align(make(tmp_path, given.array, given.grid), tmp_path / "out")
    assert [each.what for each in done] == ["kept", "reordered"]
    listed = read_datalist(tmp_path / "out" / "datalist.json")
    mask = read_mask(listed.cases[0].label)
    assert np.array_equal(mask.array, wanted)
    assert check(listed).exit_code == 0


def _itk(folder, mask):
    write_volume(folder / "itk.nii.gz", mask, GRID)
    return sitk.ReadImage(str(folder / "itk.nii.gz"))


@pytest.mark.parametrize("mode", ["label", "nearest"])
def test_a_finer_mask_keeps_volume_and_labels(tmp_path, mode):
    fine = Grid.centred((16, 18, 14), (0.5, 0.75, 1.0))
    mask = box(fine.shape, (2, 4, 4), (8, 12, 10)) + box(fine.shape, (10, 4, 4), (14, 12, 10), 4)
    done = align(make(tmp_path, mask, fine), tmp_path / "out", mode=mode)
    assert done[1].what == "resampled" and done[1].after_ml == pytest.approx(done[1].before_ml)
    listed = read_datalist(tmp_path / "out" / "datalist.json")
    made = read_mask(listed.cases[0].label)
    wanted = box(GRID.shape, (1, 2, 2), (4, 6, 5)) + box(GRID.shape, (5, 2, 2), (7, 6, 5), 4)
    assert np.array_equal(made.array, wanted)
    assert check(listed).exit_code == 0


def test_all_files_can_be_brought_to_one_order_of_axes(tmp_path):
    listed = make(tmp_path, box(GRID.shape, (1, 2, 3), (4, 6, 5)), GRID)
    align(listed, tmp_path / "out", axes="PIR")
    (case,) = read_datalist(tmp_path / "out" / "datalist.json")
    image, before = read_volume(case.image[0]), read_volume(listed.cases[0].image[0])
    assert image.grid.axcodes == "PIR" and image.dtype == np.int16
    places = before.grid.to_world(np.argwhere(before.array == before.array.max()))
    index = np.rint(image.grid.to_index(places)).astype(int)
    assert (image.array[tuple(index.T)] == before.array.max()).all()
    assert read_mask(case.label).grid == image.grid


def test_a_mask_that_lies_elsewhere_is_refused_and_nothing_is_left(tmp_path):
    affine = GRID.affine.copy()
    affine[0, 3] = 500
    listed = make(tmp_path / "in", box(GRID.shape, (1, 1, 1), (3, 3, 3)), Grid(GRID.shape, affine))
    with pytest.raises(GridMismatchError, match="lies elsewhere"):
        align(listed, tmp_path / "out")
    for words in ({"axes": "RRS"}, {"mode": "cubic"}):
        with pytest.raises(SettingError, match="allowed"):
            align(listed, tmp_path / "out", **words)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
