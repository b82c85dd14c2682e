"""Claims about importing DICOM series: slices make the volume that they are of, or are refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from small_sources import put, require_same, write_series

from medvae3d.data.datalists import read_datalist
from medvae3d.data.importing import import_dataset
from medvae3d.data.importing.slices import transfer_syntax
from medvae3d.errors import GridError


def test_a_series_is_what_was_written_slice_by_slice(tmp_path):
    array = write_series(tmp_path / "in" / "a")
    write_series(tmp_path / "in" / "b", seed=1)
    write_series(tmp_path / "in" / "c", seed=2, patient="P8")
    path = import_dataset(tmp_path / "in", tmp_path / "out")
    listed = read_datalist(path)
    assert [case.subject for case in listed] == ["subject-001", "subject-001", "subject-002"]
    assert "P7" not in path.read_text()
    made = sitk.ReadImage(str(listed.cases[0].image[0]))
    assert np.array_equal(sitk.GetArrayFromImage(made), array)
    names = [str(tmp_path / "in" / "a" / f"{n:03d}.dcm") for n in (4, 3, 2, 1)]
    wanted = sitk.ReadImage(names)  # ITK's own reader of series
    assert np.allclose(made.GetSpacing(), wanted.GetSpacing(), atol=1e-4)
    require_same(listed.cases[0].image[0], wanted)


def test_compressed_slices_with_a_decoder_lose_nothing(tmp_path):
    array = write_series(tmp_path / "in", packed=True)
    assert transfer_syntax(tmp_path / "in" / "001.dcm") == "1.2.840.10008.1.2.4.70"
    (tmp_path / "out").mkdir()  # an empty folder may be there already
    (case,) = read_datalist(import_dataset(tmp_path / "in", tmp_path / "out"))
    made = sitk.GetArrayFromImage(sitk.ReadImage(str(case.image[0])))
    assert np.array_equal(made, array)


def test_a_header_without_numbers_is_named(tmp_path):
    write_series(tmp_path / "in")
    path = tmp_path / "in" / "002.dcm"
    path.write_bytes(path.read_bytes().replace(b"-3\\4\\5", b"-3+4\\5"))
    with pytest.raises(GridError, match=r"002.dcm has the position '-3\+4"):
        import_dataset(tmp_path / "in", tmp_path / "out")


def test_a_mask_beside_the_slices_is_that_of_the_series(tmp_path):
    write_series(tmp_path / "in" / "a")
    image = sitk.ReadImage([str(tmp_path / "in" / "a" / f"{n:03d}.dcm") for n in (4, 3, 2, 1)])
    mask = sitk.Cast(image > 500, sitk.sitkUInt8)
    put(tmp_path / "in" / "a" / "tumour.nrrd", mask)
    (case,) = read_datalist(import_dataset(tmp_path / "in", tmp_path / "out"))
    require_same(case.label, mask)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"places": (0, 2.5, 7.5, 10)}, "about 1 slices are missing"),
        ({"places": (0, 2.5, 2.5, 5)}, "same place"),
        ({"places": (0, 2.5, 5, 8.1)}, "mixed distances"),
    ],
)
def test_slices_that_make_no_volume_are_refused(tmp_path, changed, said):
    write_series(tmp_path / "in", **changed)
    with pytest.raises(GridError, match=said):
        import_dataset(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mixed_pixel_spacings_are_refused_with_both(tmp_path):
    write_series(tmp_path / "in")
    write_series(tmp_path / "other", places=(10.0,), spacing=(0.8, 0.9))
    shutil.copy(tmp_path / "other" / "001.dcm", tmp_path / "in" / "009.dcm")
    with pytest.raises(GridError, match=r"mixed pixel spacings: 0.9 x 0.7 and 0.9 x 0.8"):
        import_dataset(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
