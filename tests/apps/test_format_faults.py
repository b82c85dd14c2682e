"""Claims about bad input of each import and export: one line with the file, 2, nothing written."""

from __future__ import annotations

import json
import resource
import shutil
import tarfile
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from small_sources import (
    WRITERS,
    describe,
    put,
    scan,
    write_bids,
    write_nnunet,
    write_series,
)

from medvae3d.apps.data_export import export
from medvae3d.data.datalists import read_datalist
from medvae3d.data.importing.slices import transfer_syntax
from medvae3d.data.volumes import write_volume
from medvae3d.geometry import Grid

MASK = "derivatives/seg/sub-02/anat/sub-02_desc-lesion_mask.nii.gz"


def refused(cli, root, *words):
    """Runs a command that must be refused; returns the one line that it says."""
    before = state(root)
    done = cli(*words)
    assert done.code == 2, done.out + done.error
    assert done.out == "" and "Traceback" not in done.error
    (line,) = done.error.splitlines()
    assert line.startswith("error: ")
    assert state(root) == before
    return line


def state(root):
    """Everything below a folder, hidden files too, with its content."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def cut(name, kept=0.6):
    """Lets a file end early."""

    def change(root):
        path = root / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])

    return change


def without(*names):
    def change(root):
        for name in names:
            (root / name).unlink()

    return change


def told(name, **changed):
    """Changes entries of a JSON file."""

    def change(root):
        content = json.loads((root / name).read_text())
        (root / name).write_text(json.dumps(content | changed))

    return change


def listed(*images):
    """Lets a data set of nnU-Net list its files."""
    return told("dataset.json", dataset={"c": {"images": images, "label": "labelsTr/c_0.nii.gz"}})


def masked(name, values):
    """Changes the values of a mask."""

    def change(root):
        put(root / name, sitk.Cast(scan(0, mask=True), sitk.sitkFloat32) * values)

    return change


# -- imports ------------------------------------------------------------------------------------


def series(root):
    write_series(root / "a")


def slice_of(place, spacing=(0.7, 0.9)):
    """Adds a slice to the series."""

    def change(root):
        write_series(root / "b", places=(place,), spacing=spacing)
        shutil.move(root / "b" / "001.dcm", root / "a" / "late.dcm")
        (root / "b").rmdir()

    return change


def undecodable(root):
    """Says of a slice that it is high-throughput JPEG 2000."""
    path = root / "a" / "002.dcm"
    content = path.read_bytes()
    old, new = transfer_syntax(path).encode() + b"\0", b"1.2.840.10008.1.2.4.201\0"
    at = content.index(old)
    group = int.from_bytes(content[140:144], "little") + len(new) - len(old)
    path.write_bytes(
        content[:140] + group.to_bytes(4, "little") + content[144 : at - 2]
        + len(new).to_bytes(2, "little") + new + content[at + len(old) :]
    )  # fmt: skip


def moved_aside(root):
    """Lets the gantry be tilted: each slice lies further aside than the one below."""
    for n, path in enumerate(sorted((root / "a").iterdir())):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"-3\\4\\", b"-3\\%d\\" % (4 + n)))


def two_series(root):
    """Two series in one folder, with a mask that may be of either."""
    write_series(root / "a")
    write_series(root / "b", seed=1)
    for path in (root / "b").iterdir():
        path.rename(root / "a" / f"other_{path.name}")
    put(root / "a" / "tumour.nrrd", scan(0, mask=True))


def segmented(root):
    """Three cases as DICOM with a segmentation each."""
    pytest.importorskip("highdicom")
    write_cases(root.parent / "cases", ("t1",))
    export(read_datalist(root.parent / "cases" / "list.json"), root, "dicom")


def without_series(root):
    shutil.rmtree(root / "case1_00001" / "t1")


def undecodable_segmentation(root):
    """Says of a segmentation that it is JPEG 2000, for which pydicom needs another package."""
    import pydicom

    path = root / "case1_00001" / "segmentation" / "0001.dcm"
    found = pydicom.dcmread(path)
    found.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51"] * int(found.NumberOfFrames))
    found["PixelData"].VR, found["PixelData"].is_undefined_length = "OB", True
    found.BitsAllocated, found.BitsStored, found.HighBit = 8, 8, 7
    found.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    found.save_as(path)


def alone_by_sidecar(root):
    describe(root / "sub-03/anat/sub-03_T1w.json", EchoTime=0.1)


def empty_bids(root):
    describe(root / "dataset_description.json", Name="none", BIDSVersion="1.9.0")
    (root / "sub-01").mkdir()


def third_participant(root):
    (root / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\nsub-03\n")


def nothing_fetched(root):
    """As git-annex leaves a file whose content was not fetched."""
    path = root / "sub-02/anat/sub-02_T1w.nii.gz"
    path.unlink()
    path.symlink_to("../../.git/annex/objects/x.nii.gz")


def between_members(root):
    with tarfile.open(root / "001.tar") as archive:
        second = list(archive)[1].offset
    content = (root / "001.tar").read_bytes()
    (root / "001.tar").write_bytes(content[:second])


# A fault: what is imported, what is done to it, further options, and what the line has to name.
IMPORTS = {
    "mixed spacings": (series, slice_of(10.0, (0.8, 0.9)), (), ("a", "late.dcm", "spacings")),
    "a missing slice": (series, without("a/002.dcm"), (), ("a", "missing", "001.dcm")),
    "mixed distances": (series, slice_of(10.8), (), ("a", "late.dcm")),
    "a syntax without a decoder": (series, undecodable, (), ("002.dcm", "1.2.840.10008.1.2.4.201")),
    "a tilted gantry": (series, moved_aside, (), ("a:", "tilted")),
    "a slice that ends early": (series, cut("a/003.dcm"), (), ("003.dcm",)),
    "a mask of one of two series": (two_series, None, (), ("a holds tumour.nrrd",)),
    "a segmentation of other images": (
        segmented, without_series, (), ("segmentation/0001.dcm", "in. Add the series")),
    "a segmentation without a decoder": (
        segmented, undecodable_segmentation, (),
        ("segmentation/0001.dcm", "1.2.840.10008.1.2.4.90")),
    "a series that is not there": (series, None, ("--channels", "MR"), ("in has", "CT")),
    "BIDS without participants": (empty_bids, None, (), ("in holds no participants",)),
    "BIDS of a participant without images": (
        write_bids, third_participant, (), ("participants.tsv", "sub-03")),
    "a sidecar without its image": (write_bids, alone_by_sidecar, (), ("sub-03_T1w.json",)),
    "BIDS without a mask": (write_bids, without(MASK), (), ("in:", "sub-02")),
    "BIDS that was not fetched": (write_bids, nothing_fetched, (), ("sub-02_T1w.nii.gz",)),
    "BIDS that ends early": (
        write_bids, cut("sub-02/anat/sub-02_T1w.nii.gz"), (), ("sub-02_T1w.nii.gz",)),
    "BIDS of another suffix": (write_bids, None, ("--channels", "FLAIR"), ("in has", "T1w")),
    "wrong channel names": (
        write_nnunet, told("dataset.json", channel_names={"0": "T1w"}), (),
        ("imagesTr", "c_0", "channel_names")),
    "channel names that are not numbered": (
        write_nnunet, told("dataset.json", channel_names={"T1w": 0}), (), ("dataset.json",)),
    "other channel names than wanted": (
        write_nnunet, None, ("--channels", "T1w,CT"), ("dataset.json", "T1w, FLAIR")),
    "nnU-Net without a mask": (
        write_nnunet, without("labelsTr/c_1.nii.gz"), (), ("labelsTr", "c_1")),
    "nnU-Net that ends early": (
        write_nnunet, cut("imagesTr/c_1_0001.nii.gz"), (), ("c_1_0001.nii.gz",)),
    "listed files of nnU-Net that are missing": (
        write_nnunet, listed("imagesTr/c_0_0000.nii.gz", "gone.nii.gz"), (),
        ("dataset.json", "gone.nii.gz")),
    "listed files of too few channels": (
        write_nnunet, listed("imagesTr/c_0_0000.nii.gz"), (),
        ("dataset.json", "c of dataset", "T1w, FLAIR")),
    "files of the Decathlon that are missing": (
        "msd", without("imagesTr/m_1.nii.gz"), (), ("dataset.json", "m_1.nii.gz")),
    "wrong channels of the Decathlon": (
        "msd", told("dataset.json", modality={"0": "CT"}), (), ("m_0.nii.gz", "CT")),
    "Decathlon that ends early": ("msd", cut("labelsTr/m_1.nii.gz"), (), ("m_1.nii.gz",)),
    "a tar that ends early": ("webdataset", cut("001.tar", 0.3), (), ("001.tar",)),
    "a tar that ends between members": ("webdataset", between_members, (), ("001.tar",)),
    "shards of other channels": ("webdataset", None, ("--channels", "t1"), ("in has", "ct")),
    "a list whose files are missing": (
        "list", without("i/3_t2.mha"), (), ("cases.json", "3_t2.mha")),
    "a list of other channels": (
        "list", None, ("--channels", "ct,t2"), ("cases.json", "t1, t2")),
    "a list whose volume ends early": ("list", cut("i/3_t2.mha"), (), ("3_t2.mha",)),
    "pairs that end early": ("pairs", cut("case3_mask.nrrd"), (), ("case3_mask.nrrd",)),
    "pairs without a mask": ("pairs", without("case1_mask.nrrd"), (), ("in:", "case1")),
    "a mask of fractions": (
        "pairs", masked("case3_mask.nrrd", 0.3), (), ("case3_mask.nrrd", "fractions")),
}  # fmt: skip


@pytest.mark.parametrize("fault", IMPORTS)
def test_an_import_of_bad_input_names_it_and_writes_nothing(cli, tmp_path, fault):
    write, change, words, names = IMPORTS[fault]
    root = tmp_path / "in"
    root.mkdir()
    (WRITERS[write] if isinstance(write, str) else write)(root)
    if change is not None:
        change(root)
    source = root / "cases.json" if write == "list" else root
    line = refused(cli, tmp_path, "data", "import", source, "--out", tmp_path / "new/out", *words)
    for name in names:
        assert name in line


# -- exports ------------------------------------------------------------------------------------

FORMATS = ("bids", "nnunet", "dicom", "webdataset")


def write_cases(root, names=("t1", "flair")):
    """Three cases in a list."""
    grid = Grid.centred((6, 7, 5), (1.0, 1.5, 2.0))
    entries = []
    for i in range(3):
        random = np.random.default_rng(i)
        for name in names:
            array = random.normal(100, 20, grid.shape).astype(np.float32)
            write_volume(root / f"case{i}_{name}.nii.gz", array, grid)
        mask = np.zeros(grid.shape, np.uint8)
        mask[1:3, 2:5, 1:3] = 1
        write_volume(root / f"case{i}_label.nii.gz", mask, grid)
        images = [f"case{i}_{name}.nii.gz" for name in names]
        entries.append({"image": images, "label": f"case{i}_label.nii.gz"})
    describe(root / "list.json", channels=list(names), training=entries, name="b",
             labels={"background": 0, "lesion": 1})  # fmt: skip


def rewritten(name, change):
    """Changes the voxels of a file, and perhaps its affine."""

    def changed(root):
        image = nib.load(root / name)
        array, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
        nib.save(nib.Nifti1Image(array, affine), root / name)

    return changed


def aside(array, affine):
    affine[0, 3] += 3
    return array, affine


def broken(array, affine):
    array[2, 2, 2] = np.nan
    return array, affine


def lacking(root):
    content = json.loads((root / "list.json").read_text())
    content["training"][2]["image"][1] = None
    (root / "list.json").write_text(json.dumps(content))


# A fault: what is done to the list, further options, what the line names, and for which formats.
EXPORTS = {
    "a volume that ends early": (cut("case2_flair.nii.gz"), (), ("case2_flair.nii.gz",), FORMATS),
    "a mask that ends early": (cut("case2_label.nii.gz"), (), ("case2_label.nii.gz",), FORMATS),
    "a volume that is missing": (
        without("case2_t1.nii.gz"), (), ("list.json", "case2_t1.nii.gz"), FORMATS),
    "a channel that a case lacks": (lacking, (), ("case2",), FORMATS),
    "too few names of channels": (None, ("--channels", "t1"), ("case0", "--channels"), FORMATS),
    "a name for two channels": (None, ("--channels", "t1,t1"), ("t1", "--channels"),
                              ("bids", "dicom", "webdataset")),
    "names that mean one thing": (None, ("--channels", "t1,t1w"), ("t1w", "T1w"), ("bids",)),
    "a name that the format does not know": (
        None, ("--channels", "t1,odd"), ("odd", "--channels"), ("bids", "dicom")),
    "a mask elsewhere": (
        rewritten("case2_label.nii.gz", aside), (), ("case2_t1.nii.gz", "case2_label.nii.gz"),
        ("nnunet", "dicom")),
    "a channel elsewhere": (
        rewritten("case2_flair.nii.gz", aside), (), ("case2_t1.nii.gz", "case2_flair.nii.gz"),
        ("nnunet", "dicom")),
    "a value that is not named": (
        rewritten("case2_label.nii.gz", lambda a, m: (a * 3, m)), (), ("case2_label.nii.gz", "3"),
        ("nnunet", "dicom")),
    "labels that are not consecutive": (
        told("list.json", labels={"background": 0, "lesion": 1, "core": 4}), (),
        ("case0_label.nii.gz", "[0, 1, 4]"), ("nnunet",)),
    "no mask to train on": (
        told("list.json", training=[{"image": ["case0_t1.nii.gz", "case0_flair.nii.gz"]}]), (),
        ("case0",), ("nnunet",)),
    "masks alone": (
        told("list.json", channels=[], training=[{"label": "case0_label.nii.gz"}]), (),
        ("case0", "no image"), ("nnunet", "dicom")),
    "a value that is none": (
        rewritten("case2_flair.nii.gz", broken), (), ("case2_flair.nii.gz", "NaN"), ("dicom",)),
    "a mask of fractions": (
        rewritten("case2_label.nii.gz", lambda a, m: (a * np.float32(0.5), m)), (),
        ("case2_label.nii.gz",), FORMATS),
}  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "format"), [(name, form) for name, each in EXPORTS.items() for form in each[3]]
)
def test_an_export_of_bad_input_names_it_and_writes_nothing(cli, tmp_path, fault, format):
    if format == "dicom":
        pytest.importorskip("highdicom")
    change, words, names, _ = EXPORTS[fault]
    write_cases(tmp_path / "in")
    if change is not None:
        change(tmp_path / "in")
    call = ("data", "export", tmp_path / "in/list.json", "--out", tmp_path / "new/out",
            "--format", format)  # fmt: skip
    line = refused(cli, tmp_path, *call, *words)
    for name in names:
        assert name in line


# -- the folder that is written -----------------------------------------------------------------


@contextmanager
def small_files(most):
    """Lets no file grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("command", ["import", "align", *FORMATS])
def test_where_nothing_can_be_written_nothing_changes(cli, tmp_path, command):
    if command == "dicom":
        pytest.importorskip("highdicom")
    write_cases(tmp_path / "in")
    call = ["data", command if command not in FORMATS else "export", tmp_path / "in/list.json"]
    call += ["--format", command] if command in FORMATS else []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    for out, said in (("full", "not an empty folder"), ("in/list.json", "not an empty folder"),
                      ("in/list.json/out", "cannot be written: Not a directory")):  # fmt: skip
        line = refused(cli, tmp_path, *call, "--out", tmp_path / out)
        assert said in line and out in line
    with small_files(100):
        line = refused(cli, tmp_path, *call, "--out", tmp_path / "out")
    assert "cannot be written: File too large" in line and "out" in line
