"""Claims about DICOM studies: several series become the channels of one case, on one grid."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from small_dicom import put_series

from medvae3d.data.datalists import read_datalist
from medvae3d.data.importing import import_dataset
from medvae3d.errors import DataListError, GridError, GridMismatchError


def pet_and_ct(root, **changed):
    """A coarse PET that reaches further up than the CT, and a fine CT; returns its voxels."""
    put_series(root / "pet", "PT", uid=1, shape=(5, 5, 6), spacing=(4, 4, 4), step=5.0,
               **{"origin": (0, 0, -8), **changed})  # fmt: skip
    return put_series(root / "ct", "CT", uid=2)


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(float)


def by_itk(folder):
    """A series as ITK reads it, without us."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    return sitk.Cast(sitk.ReadImage(names), sitk.sitkFloat64)


def mask_on(image, path):
    """A mask of the brighter half of an image, on its grid."""
    middle = float(np.median(sitk.GetArrayFromImage(image)))
    mask = sitk.Cast(image > middle, sitk.sitkUInt8)
    sitk.WriteImage(mask, str(path))
    return mask


def test_pet_and_ct_of_a_study_become_one_case_on_the_grid_of_the_first(tmp_path):
    array = pet_and_ct(tmp_path / "in")
    listed = read_datalist(import_dataset(tmp_path / "in", tmp_path / "out"))
    (case,) = listed
    assert (case.name, case.subject) == ("study-0001", "subject-001")
    assert listed.info["channels"] == ["CT", "PT"]
    assert np.array_equal(read(case.image[0]), array.T)  # voxel for voxel
    ct = by_itk(tmp_path / "in" / "ct")
    wanted = sitk.Resample(by_itk(tmp_path / "in" / "pet"), ct, sitk.Transform(), sitk.sitkLinear)
    assert np.allclose(read(case.image[1]), sitk.GetArrayFromImage(wanted), atol=1e-2)
    assert np.allclose(read(case.image[1]), array.T, atol=1e-2)  # both show the same ramp


def test_the_order_of_the_channels_says_whose_grid_it_is(tmp_path):
    pet_and_ct(tmp_path / "in")
    out = import_dataset(tmp_path / "in", tmp_path / "out", channels=["PET", "CT"])
    (case,) = read_datalist(out)
    pet = by_itk(tmp_path / "in" / "pet")
    assert np.allclose(read(case.image[0]), sitk.GetArrayFromImage(pet))
    ct = by_itk(tmp_path / "in" / "ct")
    lowest = float(sitk.GetArrayFromImage(ct).min())
    wanted = sitk.GetArrayFromImage(
        sitk.Resample(ct, pet, sitk.Transform(), sitk.sitkLinear, lowest)
    )
    found = read(case.image[1])
    inside = wanted != lowest
    assert inside.sum() > 40 and np.allclose(found[inside], wanted[inside], atol=1e-2)
    assert (found[:2] == lowest).all()  # two slices of PET lie below the CT
    (covered,) = (each["covered"] for each in json.loads(
        (tmp_path / "out" / "import.json").read_text())["cases"].values())  # fmt: skip
    x, y, z = np.meshgrid(*(np.arange(5) * 4,) * 2, np.arange(6) * 4 - 8, indexing="ij")
    met = (x < 15) & (y < 13) & (z > -1) & (z < 11)  # half a voxel beyond the outer ones
    assert covered == {"PET": 1.0, "CT": round(float(met.mean()), 4)}


@pytest.mark.parametrize("where", ["ct/mask.nii.gz", "pet/mask.nrrd", "mask.nii.gz"])
def test_a_mask_on_the_grid_of_either_series_comes_to_that_of_the_first(tmp_path, where):
    pet_and_ct(tmp_path / "in")
    of = "ct" if where.startswith("ct") else "pet"
    mask = mask_on(by_itk(tmp_path / "in" / of), tmp_path / "in" / where)
    (case,) = read_datalist(import_dataset(tmp_path / "in", tmp_path / "out"))
    found = read(case.label)
    assert found.shape == read(case.image[0]).shape and set(np.unique(found)) == {0, 1}
    if of == "ct":
        assert np.array_equal(found, sitk.GetArrayFromImage(mask))
        return
    share = sitk.Resample(sitk.Cast(mask, sitk.sitkFloat64), by_itk(tmp_path / "in" / "ct"),
                          sitk.Transform(), sitk.sitkLinear)  # fmt: skip
    share = sitk.GetArrayFromImage(share)
    sure = np.abs(share - 0.5) > 1e-6
    assert sure.mean() > 0.8 and np.array_equal(found[sure] > 0, share[sure] > 0.5)


def test_series_of_one_modality_are_told_by_their_descriptions(tmp_path):
    at = {"shape": (5, 5, 4), "study": "1.5"}
    put_series(tmp_path / "in/a", "MR", uid=1, description="ax T1 mprage", **at)
    put_series(
        tmp_path / "in/b", "MR", uid=2, description="ax FLAIR", values=lambda x, y, z: z, **at
    )
    put_series(tmp_path / "in/c", "MR", uid=3, description="localiser", frame="9.9", **at)
    out = import_dataset(tmp_path / "in", tmp_path / "out", channels=["FLAIR", "T1"])
    (case,) = read_datalist(out)
    assert [path.name for path in case.image] == ["study-0001_FLAIR.nii.gz", "study-0001_T1.nii.gz"]
    assert np.array_equal(read(case.image[0])[:, 0, 0], [0, 2, 4, 6])
    single = import_dataset(tmp_path / "in", tmp_path / "single")  # as before: a series a case
    assert len(read_datalist(single)) == 3


def test_each_study_is_a_case_of_its_patient(tmp_path):
    for n, patient in enumerate(("P1", "P1", "P2")):
        for kind in ("CT", "PT"):
            at = {"patient": patient, "study": f"1.5.{n}", "frame": f"1.7.{n}", "shape": (4, 4, 3)}
            put_series(tmp_path / f"in/{n}_{kind}", kind, uid=f"{n + 1}{ord(kind[0])}", **at)
    listed = read_datalist(import_dataset(tmp_path / "in", tmp_path / "out"))
    assert [case.subject for case in listed] == ["subject-001", "subject-001", "subject-002"]
    assert all(len(case.image) == 2 for case in listed)


def other_frame(root):
    pet_and_ct(root, frame="1.7.1")


def no_frame(root):
    pet_and_ct(root, frame="")


def other_patient(root):
    pet_and_ct(root, patient="P2")


def other_study(root):
    pet_and_ct(root, study="1.6")


def two_of_a_kind(root):
    pet_and_ct(root)
    put_series(root / "ct2", "CT", uid=3, description="thin")


def elsewhere(root):
    pet_and_ct(root, origin=(900, 0, 0))


def mixed_frames(root):
    pet_and_ct(root)
    put_series(root / "ct", "CT", uid=2, frame="1.7.1", shape=(8, 7, 1), origin=(0, 0, 12))
    (root / "ct" / "CT_2_000.dcm").rename(root / "ct" / "late.dcm")
    put_series(root / "ct", "CT", uid=2)


def mixed_patients(root):
    pet_and_ct(root)
    put_series(root / "ct", "CT", uid=2, patient="P2", shape=(8, 7, 1), origin=(0, 0, 12))
    (root / "ct" / "CT_2_000.dcm").rename(root / "ct" / "late.dcm")
    put_series(root / "ct", "CT", uid=2)


def two_masks(root):
    pet_and_ct(root)
    for name in ("ct", "pet"):
        mask_on(by_itk(root / name), root / name / "mask.nii.gz")


def mask_elsewhere(root):
    pet_and_ct(root)
    mask = mask_on(by_itk(root / "ct"), root / "ct" / "mask.nii.gz")
    mask.SetOrigin((500, 0, 0))
    sitk.WriteImage(mask, str(root / "ct" / "mask.nii.gz"))


REFUSED = {
    other_frame: (
        GridMismatchError,
        r"ct \(CT\) and .*pet \(PT\) have the frames of reference 1.7",
    ),
    no_frame: (GridMismatchError, "frames of reference 1.7 and none"),
    other_patient: (DataListError, "of one study but of different patients"),
    other_study: (DataListError, r"no series PT: it has .*ct \(CT\)"),
    two_of_a_kind: (DataListError, r"2 series CT: .*ct \(CT\), .*ct2 \(CT, 'thin'\)"),
    elsewhere: (GridMismatchError, "pet does not meet that in"),
    mixed_frames: (GridError, "more than one frame of reference"),
    mixed_patients: (GridError, "more than one patient"),
    two_masks: (DataListError, "are masks of"),
    mask_elsewhere: (GridMismatchError, "no voxel left"),
}


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.__name__)
def test_what_is_not_of_one_place_is_refused_by_name(tmp_path, fault):
    fault(tmp_path / "in")
    error, said = REFUSED[fault]
    with pytest.raises(error, match=said) as caught:
        import_dataset(tmp_path / "in", tmp_path / "out")
    assert "P2" not in str(caught.value)  # no patient's name in a log
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_channel_that_no_study_has_is_refused_with_what_there_is(tmp_path):
    pet_and_ct(tmp_path / "in")
    for channels, said in ((["CT", "MR"], "no series MR"), (["MR"], "channels CT, PT"),
                           (["CT", "ct"], "names of two channels")):  # fmt: skip
        with pytest.raises(DataListError, match=said):
            import_dataset(tmp_path / "in", tmp_path / "out", channels=channels)
    assert not (tmp_path / "out").exists()
