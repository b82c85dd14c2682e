"""Claims about importing: voxels, places and labels survive; what cannot be imported is named."""

from __future__ import annotations

import tarfile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torchio as tio
from small_sources import (
    WRITERS,
    describe,
    put,
    require_same,
    scan,
    write_bids,
    write_list,
    write_msd,
    write_nnunet,
    write_pairs,
    write_shards,
)

from medvae3d.data.datalists import read_datalist
from medvae3d.data.importing import import_dataset
from medvae3d.errors import (
    DataListError,
    GridError,
    LabelError,
    OutputError,
    SettingError,
    UnreadableFileError,
)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii.gz"])
def test_pairs_keep_voxels_places_and_labels(tmp_path, ending):
    write_pairs(tmp_path / "in", 2, ending)
    listed = read_datalist(import_dataset(tmp_path / "in", tmp_path / "out"))
    assert [case.name for case in listed] == ["case0", "case1"]
    for i, case in enumerate(listed):
        require_same(case.image[0], scan(i))
        require_same(case.label, scan(i, mask=True))
        assert nib.load(case.image[0]).get_data_dtype() == np.int16


@pytest.mark.parametrize(
    "names",
    [
        ("images/a.mha", "masks/a.mha"),
        ("a/t1.mha", "a/seg.mha"),
        ("a/a_t1.mha", "a/a_seg.mha"),
        ("a.mha", "a_label.mha"),
    ],
)
def test_pairs_are_found_in_folders_and_by_words(tmp_path, names):
    put(tmp_path / "in" / names[0], scan(0))
    put(tmp_path / "in" / names[1], scan(0, mask=True))
    (case,) = read_datalist(import_dataset(tmp_path / "in", tmp_path / "out"))
    assert (case.name, len(case.image)) == ("a", 1)
    require_same(case.label, scan(0, mask=True))


def test_nnunet_keeps_channels_labels_and_its_own_test_cases(tmp_path):
    write_nnunet(tmp_path / "in")
    listed = read_datalist(import_dataset(tmp_path / "in", tmp_path / "out"))
    assert [(case.name, case.split) for case in listed] == [
        ("c_0", "training"), ("c_1", "training"), ("t_0", "testing")
    ]  # fmt: skip
    require_same(listed.cases[1].image[1], scan(11))
    require_same(listed.cases[1].label, scan(1, mask=True))
    assert listed.info["channels"] == ["T1w", "FLAIR"]
    assert listed.info["labels"] == {"0": "background", "1": "lesion", "4": "core"}


def test_nnunet_may_list_files_that_lie_elsewhere(tmp_path):
    files = {
        case: {
            "images": [f"../imagesTr/{case}_{n:04d}.nii.gz" for n in range(2)],
            "label": str(tmp_path / f"labelsTr/{case}.nii.gz"),
        }
        for case in ("c_1", "c_0")
    }
    write_nnunet(tmp_path / "in", dataset=files)
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "in" / part).rename(tmp_path / part)
    listed = read_datalist(import_dataset(tmp_path / "in", tmp_path / "out"))
    assert [case.name for case in listed] == ["c_1", "c_0", "t_0"]
    require_same(listed.cases[0].image[1], scan(11))
    require_same(listed.cases[0].label, scan(1, mask=True))


def test_the_decathlon_has_its_four_dimensional_files_parted(tmp_path):
    write_msd(tmp_path / "in")
    listed = read_datalist(import_dataset(tmp_path / "in", tmp_path / "out"))
    assert [file.name for file in listed.cases[1].image] == ["m_1_FLAIR.nii.gz", "m_1_T1w.nii.gz"]
    require_same(listed.cases[1].image[0], scan(10))
    require_same(listed.cases[1].image[1], scan(11))
    assert listed.info["licence"] == "CC-BY-SA 4.0"


def test_bids_joins_images_with_the_masks_of_derivatives(tmp_path):
    write_bids(tmp_path / "in")
    listed = read_datalist(import_dataset(tmp_path / "in", tmp_path / "out"))
    assert [(case.name, case.subject) for case in listed] == [
        ("sub-01", "sub-01"), ("sub-02", "sub-02")
    ]  # fmt: skip
    require_same(listed.cases[1].image[0], scan(2))
    require_same(listed.cases[1].label, scan(2, mask=True))


def test_a_monai_list_keeps_splits_subjects_and_channels(tmp_path):
    write_list(tmp_path / "in")
    listed = read_datalist(import_dataset(tmp_path / "in" / "cases.json", tmp_path / "out"))
    assert [(case.subject, case.split) for case in listed] == [
        ("p0", "training"), ("p1", "training"), ("p2", "validation"), ("p3", "testing")
    ]  # fmt: skip
    require_same(listed.cases[2].image[1], scan(21))
    require_same(listed.cases[2].label, scan(2, mask=True))
    assert listed.info["channels"] == ["t1", "t2"] and listed.info["labels"]["4"] == "core"
    dealt = import_dataset(tmp_path / "in" / "cases.json", tmp_path / "new", shares=(0, 1, 0))
    assert [case.split for case in read_datalist(dealt)] == ["validation"] * 3 + ["testing"]


def test_subjects_of_torchio_come_from_files_or_from_memory(tmp_path):
    subjects = []
    for i in range(2):
        put(tmp_path / f"{i}.nrrd", scan(i))
        put(tmp_path / f"{i}_m.nrrd", scan(i, mask=True))
        image, mask = (
            tio.ScalarImage(tmp_path / f"{i}.nrrd"),
            tio.LabelMap(tmp_path / f"{i}_m.nrrd"),
        )
        subjects.append(
            tio.Subject(ct=image, tumour=mask, name=f"s{i}", patient="P", split="testing")
        )
    subjects[1].load()
    subjects[1]["ct"].set_data(subjects[1]["ct"].data + 1)  # what memory has, not the file
    out = import_dataset(tio.SubjectsDataset(subjects), tmp_path / "out")
    listed = read_datalist(out)
    assert [(c.name, c.subject, c.split) for c in listed] == [
        ("s0", "P", "testing"), ("s1", "P", "testing")
    ]  # fmt: skip
    require_same(listed.cases[0].image[0], scan(0))
    require_same(listed.cases[0].label, scan(0, mask=True))
    changed = sitk.ReadImage(str(listed.cases[1].image[0]))
    assert np.array_equal(sitk.GetArrayFromImage(changed), sitk.GetArrayFromImage(scan(1)) + 1)
    assert np.allclose(
        nib.load(listed.cases[1].image[0]).affine, subjects[1]["ct"].affine, atol=1e-5
    )
    with pytest.raises(DataListError, match="not all are subjects"):
        import_dataset([1, 2], tmp_path / "no")
    with pytest.raises(DataListError, match="lacks ct"):
        import_dataset(
            [subjects[0], tio.Subject(t1=subjects[0]["ct"])], tmp_path / "no", channels=["ct"]
        )


def test_shards_are_joined_to_cases(tmp_path):
    write_shards(tmp_path / "in", extra={"__notes__.txt": b"x"})
    listed = read_datalist(import_dataset(tmp_path / "in", tmp_path / "out"))
    assert [(c.name, c.subject) for c in listed] == [("c0", "p0"), ("c1", "p0"), ("c2", "p1")]
    require_same(listed.cases[2].image[0], scan(2))
    require_same(listed.cases[2].label, scan(2, mask=True))
    one = import_dataset(tmp_path / "in" / "001.tar", tmp_path / "one")
    assert [case.name for case in read_datalist(one)] == ["c2"]


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.75, "between members", "no end mark"])
def test_a_tar_that_ends_early_is_named_wherever_it_was_cut(tmp_path, kept):
    write_shards(tmp_path / "in")
    path = tmp_path / "in" / "000.tar"
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        members = list(archive)
        end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    cut = {"between members": members[3].offset, "no end mark": end}
    path.write_bytes(content[: cut[kept] if kept in cut else int(end * kept)])
    with pytest.raises(UnreadableFileError, match=r"000\.tar cannot be read to its end"):
        import_dataset(tmp_path / "in", tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["in"]


def unlink(name):
    return lambda root: (root / name).unlink()


def bare_nrrd(root):
    path = root / "case0_ct.nrrd"
    head, _, voxels = path.read_bytes().partition(b"\n\n")
    lines = [line for line in head.split(b"\n") if not line.startswith(b"space")]
    path.write_bytes(b"\n".join(lines) + b"\n\n" + voxels)


def fractions(root):
    put(root / "case0_mask.nrrd", sitk.Cast(scan(0, mask=True), sitk.sitkFloat32) * 0.3)


def late_damage(root):
    path = root / "case3_mask.nrrd"  # the last file that is read
    path.write_bytes(path.read_bytes()[:-60])


FAULTS = {
    "two names for a channel": ("nnunet", {"channel_names": {"0": "T1w"}}, None, DataListError,
                                "channel_names"),
    "channels not numbered": ("nnunet", {"channel_names": {"T1w": 0}}, None, DataListError,
                              "keys count"),
    "other channels wanted": ("nnunet", {}, {"channels": ["CT"]}, DataListError, "--channels"),
    "too few cases": ("nnunet", {"numTraining": 5}, None, DataListError, "promises 5"),
    "no label": ("nnunet", {}, unlink("labelsTr/c_1.nii.gz"), DataListError, "no file for c_1"),
    "missing volume": ("msd", {}, unlink("imagesTr/m_1.nii.gz"), UnreadableFileError, "m_1"),
    "channels in the file": ("msd", {"modality": {"0": "CT"}}, None, DataListError, "2 channels"),
    "mask alone": ("pairs", {}, unlink("case1_ct.nrrd"), DataListError, "no image"),
    "mask missing": ("pairs", {}, unlink("case1_mask.nrrd"), DataListError, "no mask: case1"),
    "axes unknown": ("pairs", {}, bare_nrrd, GridError, "'space'"),
    "mask of fractions": ("pairs", {}, fractions, LabelError, "fractions"),
    "damage at the end": ("pairs", {}, late_damage, UnreadableFileError, "case3_mask"),
    "BIDS without a mask": (
        "bids", {}, unlink("derivatives/seg/sub-02/anat/sub-02_desc-lesion_mask.nii.gz"),
        DataListError, "no mask: sub-02",
    ),
    "list without image": (
        "list", {"training": [{"label": "m/0.nii.gz"}]}, None, DataListError, "have no image"),
    "list of series": (
        "list", {"training": [{"image": "cases.json"}]}, None, DataListError, "by their folders"),
    "other channels in a list": (
        "list", {}, {"channels": ["ct", "t2"]}, DataListError, "has the channels t1, t2"),
    "double members": ("webdataset", {"extra": {"c0.ct.nii.gz": b"x"}}, None, DataListError,
                       "occurs twice"),
    "no such channel": ("webdataset", {}, {"channels": ["t1"]}, DataListError, "--channels"),
    "format unknown": ("pairs", {}, {"format": "zip"}, SettingError, "--format"),
    "shares": ("pairs", {}, {"shares": (1, -1, 0)}, SettingError, "--split"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_a_name_and_leaves_nothing(tmp_path, fault):
    kind, changed, change, error, said = FAULTS[fault]
    root = tmp_path / "in"
    WRITERS[kind](root, **changed)
    options = change if isinstance(change, dict) else {}
    source = root / "cases.json" if kind == "list" else root
    if callable(change):
        change(root)
    with pytest.raises(error, match=said):
        import_dataset(source, tmp_path / "new" / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_participant_without_files_is_named(tmp_path):
    write_bids(tmp_path / "in")
    table = "participant_id\tage\nsub-01\t30\nsub-02\t31\nsub-03\t32\n"
    (tmp_path / "in" / "participants.tsv").write_text(table)
    with pytest.raises(DataListError, match="names sub-03, of whom"):
        import_dataset(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_no_participant_are_named(tmp_path):
    write_bids(tmp_path / "in")
    (tmp_path / "in" / "participants.tsv").write_text("participant_id\nsub-02\n")
    with pytest.raises(DataListError, match=r"participants\.tsv lacks sub-01"):
        import_dataset(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bids_without_participants_is_named(tmp_path):
    describe(tmp_path / "in" / "dataset_description.json", Name="none", BIDSVersion="1.9.0")
    with pytest.raises(DataListError, match="holds no participants"):
        import_dataset(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_written_over(tmp_path):
    write_pairs(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="not an empty folder"):
        import_dataset(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_patients_are_dealt_whole_and_by_the_seed(tmp_path):
    for i in range(10):
        for session in (1, 2):
            put(tmp_path / f"in/sub-{i:02d}_ses-{session}.nii.gz", scan(2 * i + session))
    made = [
        read_datalist(import_dataset(tmp_path / "in", tmp_path / str(n), shares=(6, 2, 2), seed=s))
        for n, s in enumerate((3, 3, 4))
    ]
    splits = [{case.name: case.split for case in listed} for listed in made]
    assert splits[0] == splits[1] != splits[2]
    assert [len(made[0].split(name)) for name in ("training", "validation", "testing")] == [
        12,
        4,
        4,
    ]
    assert all(
        splits[0][f"sub-{i:02d}_ses-1"] == splits[0][f"sub-{i:02d}_ses-2"] for i in range(10)
    )
