"""Claims about DICOM: others read what was written, whole, and it comes back."""

from __future__ import annotations

import json
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from small_exports import STORED, at_the_same_places, files, put_out, write_list

from medvae3d.data.datalists import read_datalist
from medvae3d.data.importing import import_dataset
from medvae3d.errors import DataListError


@pytest.mark.parametrize("mirrored", [False, True])
def test_itk_reads_the_values_and_places_of_each_series(cli, tmp_path, mirrored):
    pytest.importorskip("highdicom")
    listed = write_list(tmp_path / "in", tuple(STORED), mirrored=mirrored)
    out = put_out(cli, listed, tmp_path / "out", "--format", "dicom")
    (about,) = json.loads((out / "studies.json").read_text())["cases"]
    for name in STORED:
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(out / about["folder"] / name))
        assert len(names) == 5
        source = sitk.ReadImage(str(tmp_path / "in" / f"case0_{name}.nii.gz"))
        found = at_the_same_places(sitk.Cast(sitk.ReadImage(names), sitk.sitkFloat64), source)
        worst = np.abs(found - sitk.GetArrayFromImage(source)).max()
        assert worst <= about["series"][name]["largest_rounding"] + 1e-5
        assert about["series"][name]["largest_rounding"] < 0.02


def test_headers_say_synthetic_and_what_belongs_together(cli, tmp_path):
    pytest.importorskip("highdicom")
    pydicom = pytest.importorskip("pydicom")
    listed = write_list(tmp_path / "in", ("ct", "pet"))
    out = put_out(cli, listed, tmp_path / "out", "--format", "dicom")
    made = [pydicom.dcmread(path) for path in sorted(out.rglob("*.dcm"))]
    assert {each.SyntheticData for each in made} == {"YES"}
    images = [each for each in made if each.Modality != "SEG"]
    assert {tuple(each.ImageType)[:2] for each in made} == {("DERIVED", "SECONDARY"),
                                                           ("DERIVED", "PRIMARY")}  # fmt: skip
    assert all(each.ImageType[3] == "SYNTHETIC" for each in images)
    assert len({each.StudyInstanceUID for each in made}) == 1
    assert len({each.FrameOfReferenceUID for each in made}) == 1
    assert len({each.SeriesInstanceUID for each in made}) == 3
    assert len({each.SOPInstanceUID for each in made}) == len(made) == 11
    assert all(str(each.PatientName).startswith("SYNTHETIC") for each in made)
    assert all(pydicom.uid.UID(each.SOPInstanceUID).is_valid for each in made)
    assert {each.Modality for each in made} == {"CT", "PT", "SEG"}


def test_the_segmentation_lies_on_the_lesions(cli, tmp_path):
    hd = pytest.importorskip("highdicom")
    listed = write_list(tmp_path / "in", mirrored=True)
    out = put_out(cli, listed, tmp_path / "out", "--format", "dicom")
    found = hd.seg.segread(next(out.glob("*/segmentation/*.dcm")))
    assert [found.get_segment_description(n).segment_label for n in (1, 2)] == ["lesion", "core"]
    volume = found.get_volume(combine_segments=True)
    image = nib.load(tmp_path / "in" / "case0_label.nii.gz")
    to_lps = np.diag([-1, -1, 1, 1])
    places = {}
    for name, array, affine in (
        ("made", volume.array, volume.affine),
        ("source", np.asarray(image.dataobj), to_lps @ image.affine),
    ):
        index = np.argwhere(array > 0)
        points = nib.affines.apply_affine(affine, index).round(3)
        places[name] = {(*p, int(v)) for p, v in zip(points, array[array > 0], strict=True)}
    assert places["made"] == places["source"] and len(places["made"]) == 13


def test_bytes_depend_on_the_seed_and_on_the_cases_alone(cli, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    listed = write_list(tmp_path / "in")
    one, same, other = (
        put_out(cli, listed, tmp_path / name, "--format", "dicom", "--seed", seed)
        for name, seed in (("one", 3), ("same", 3), ("other", 4))
    )
    assert files(one) == files(same)
    pairs = list(zip(sorted(one.rglob("*.dcm")), sorted(other.rglob("*.dcm")), strict=True))
    for a, b in ((pydicom.dcmread(x), pydicom.dcmread(y)) for x, y in pairs):
        assert a.PixelData == b.PixelData and a.SOPInstanceUID != b.SOPInstanceUID


def test_dicom_comes_back_with_its_segmentation(cli, tmp_path):
    pytest.importorskip("highdicom")
    listed = write_list(tmp_path / "in", count=2)
    out = put_out(cli, listed, tmp_path / "out", "--format", "dicom")
    back = read_datalist(import_dataset(out, tmp_path / "back"))
    assert back.info["labels"] == {"0": "background", "1": "lesion", "2": "core"}
    assert len({case.subject for case in back}) == 2
    for case, source in zip(back, read_datalist(listed), strict=True):
        for new, old in ((case.image[0], source.image[0]), (case.label, source.label)):
            assert np.array_equal(nib.load(new).get_fdata(), nib.load(old).get_fdata())
            assert np.allclose(nib.load(new).affine, nib.load(old).affine, atol=1e-4)


@pytest.mark.parametrize("names", [("ct", "pet"), ("t1", "flair")])
def test_studies_come_back_as_cases_of_several_channels(cli, tmp_path, names):
    pytest.importorskip("highdicom")
    listed = write_list(tmp_path / "in", names)
    out = put_out(cli, listed, tmp_path / "out", "--format", "dicom")
    steps = [about["largest_rounding"] for case in
             json.loads((out / "studies.json").read_text())["cases"]
             for about in case["series"].values()]  # fmt: skip
    done = cli("data", "import", out, "--out", tmp_path / "back", "--channels", ",".join(names))
    assert done.code == 0, done.error
    back = read_datalist(tmp_path / "back" / "datalist.json")
    assert back.info["channels"] == list(names)
    for case, source in zip(back, read_datalist(listed), strict=True):
        for new, old in zip((*case.image, case.label), (*source.image, source.label), strict=True):
            worst = np.abs(nib.load(new).get_fdata() - nib.load(old).get_fdata()).max()
            assert worst <= max(steps) + 1e-4
            assert np.allclose(nib.load(new).affine, nib.load(old).affine, atol=1e-4)


def test_a_segmentation_of_one_series_comes_to_the_grid_of_another(cli, tmp_path):
    pytest.importorskip("highdicom")
    listed = write_list(tmp_path / "in", ("ct", "pet"))
    out = put_out(cli, listed, tmp_path / "out", "--format", "dicom")
    next(out.glob("*/pet/0005.dcm")).unlink()  # the PET ends a slice earlier than the CT
    done = cli("data", "import", out, "--out", tmp_path / "back", "--channels", "pet,ct")
    assert done.code == 0, done.error
    (case,) = read_datalist(tmp_path / "back" / "datalist.json")
    (source,) = read_datalist(listed)
    for new, old in ((case.label, source.label), (case.image[1], source.image[0])):
        found, wanted = nib.load(new).get_fdata(), nib.load(old).get_fdata()[:, :, :4]
        assert np.allclose(found, wanted, atol=0.05)
    shutil.rmtree(next(out.glob("*/ct")))
    with pytest.raises(DataListError, match="the series that it segments is not under"):
        import_dataset(out, tmp_path / "no")


@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
def test_dcm2niix_makes_the_same_volume(cli, tmp_path):
    pytest.importorskip("highdicom")
    listed = write_list(tmp_path / "in", ("t1",))
    out = put_out(cli, listed, tmp_path / "out", "--format", "dicom")
    (tmp_path / "nii").mkdir()
    call = ["dcm2niix", "-z", "n", "-f", "made", "-o", tmp_path / "nii", next(out.glob("*/t1"))]
    subprocess.run(call, check=True, capture_output=True)
    source = sitk.ReadImage(str(tmp_path / "in" / "case0_t1.nii.gz"))
    made = sitk.ReadImage(str(tmp_path / "nii" / "made.nii"))
    found = at_the_same_places(sitk.Cast(made, sitk.sitkFloat64), source)
    assert np.abs(found - sitk.GetArrayFromImage(source)).max() < 1e-3
    said = json.loads((tmp_path / "nii" / "made.json").read_text())
    assert said["ImageType"] == ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_a_conformance_checker_finds_only_what_it_is_too_old_for(cli, tmp_path):
    pytest.importorskip("highdicom")
    listed = write_list(tmp_path / "in", ("ct", "pet", "flair"))
    out = put_out(cli, listed, tmp_path / "out", "--format", "dicom")
    for path in sorted(out.rglob("0001.dcm")):
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        said = [line for line in done.stderr.splitlines() if line.startswith("Error")]
        # Synthetic Data (0008,001C) is younger than most copies of the tool.
        assert [line for line in said if "0x0008,0x001c" not in line] == [], path


def damage_segmentation(out, what):
    """Changes the segmentation of an export."""
    import pydicom

    path = next(out.glob("*/segmentation/*.dcm"))
    found = pydicom.dcmread(path)
    if what == "elsewhere":
        groups = found.PerFrameFunctionalGroupsSequence[0]
        groups.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]
        found.save_as(path)
    elif what == "cut off":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        shutil.copy(path, path.with_name("0002.dcm"))


@pytest.mark.parametrize(
    ("what", "said"),
    [("elsewhere", "lies on no slice"), ("cut off", "cannot be read as a DICOM segmentation"),
     ("twice", "segmentations of one series")],
)  # fmt: skip
def test_a_wrong_segmentation_is_named_and_nothing_is_written(cli, tmp_path, what, said):
    pytest.importorskip("highdicom")
    out = put_out(cli, write_list(tmp_path / "in"), tmp_path / "out", "--format", "dicom")
    damage_segmentation(out, what)
    done = cli("data", "import", out, "--out", tmp_path / "back")
    assert done.code == 2 and said in " ".join(done.error.split())
    assert not (tmp_path / "back").exists()
