"""Claims about DICOM, WebDataset and data sets in Python: others read what was written, whole."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from unittest import mock

import monai.data
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio as tio

import medvae3d
from medvae3d.apps.bundle import load_bundle
from medvae3d.data.datalists import read_datalist
from medvae3d.data.importing import import_dataset
from medvae3d.data.volumes import write_volume
from medvae3d.errors import DataListError, SettingError
from medvae3d.geometry import Grid

TURN = np.deg2rad(20)
AXES = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])
# Stored type and step of each channel; MR with a step, which not all readers of DICOM apply.
STORED = {"ct": (np.int16, None), "pet": (np.int16, 0.005), "flair": (np.float32, None),
          "t1": (np.int16, 0.1)}  # fmt: skip


def write_list(root, names=("ct",), count=1, mirrored=False, labels=None):
    """Synthetic cases with records on an oblique grid."""
    affine = np.eye(4)
    affine[:3, :3] = AXES @ np.diag([-0.7 if mirrored else 0.7, 0.9, 2.5])
    affine[:3, 3] = (-12, 30, 7)
    grid = Grid((6, 7, 5), affine)
    (root / "records").mkdir(parents=True)
    entries = []
    for i in range(count):
        random = np.random.default_rng(i)
        images = [f"case{i}_{name}.nii.gz" for name in names]
        for name, image in zip(names, images, strict=True):
            dtype, step = STORED[name]
            array = random.integers(-900 if name == "ct" else 0, 900, grid.shape) * (step or 1.0)
            array = array + (random.random(grid.shape) if dtype == np.float32 else 0)
            write_volume(root / image, array.astype(np.float32), grid, dtype=dtype, slope=step)
        mask = np.zeros(grid.shape, np.uint8)
        mask[1:3, 2:5, 1:3] = 1
        mask[4, 5, 4] = 2
        write_volume(root / f"case{i}_label.nii.gz", mask, grid)
        record = {"synthetic": True, "bundle": "b 1.0", "seed": 0, "index": i}
        (root / "records" / f"case{i}.json").write_text(json.dumps(record))
        image = images if len(images) > 1 else images[0]
        entries.append({"image": image, "label": f"case{i}_label.nii.gz", "subject": f"p{i}"})
    labels = labels or {"background": 0, "lesion": 1, "core": 2}
    content = {"name": "b", "synthetic": True, "channels": list(names), "labels": labels}
    (root / "list.json").write_text(json.dumps({**content, "training": entries}))
    return root / "list.json"


def files(folder):
    """All files but the command's own note of its options, which name the folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and p.name != "options.json"}  # fmt: skip


def put_out(cli, listed, out, *words):
    done = cli("data", "export", listed, "--out", out, *words)
    assert done.code == 0, done.error
    return out


def at_the_same_places(image, source, *, fill=-9999.0):
    """The voxels of an image where those of a source lie, by place in mm, not by index."""
    where = sitk.Resample(image, source, sitk.Transform(), sitk.sitkNearestNeighbor, fill)
    return sitk.GetArrayFromImage(where).astype(float)


# -- DICOM --------------------------------------------------------------------------------------


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


# -- WebDataset ---------------------------------------------------------------------------------


# Its readers are closed when the garbage is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards_that_were_written(cli, tmp_path):
    wds = pytest.importorskip("webdataset")
    listed = write_list(tmp_path / "in", ("ct", "pet"), count=3)
    words = ("--format", "webdataset", "--shard-size", 2)
    out = put_out(cli, listed, tmp_path / "out", *words)
    index = json.loads((out / "shards.json").read_text())
    assert [(s["file"], s["cases"]) for s in index["shards"]] == [("000000.tar", 2),
                                                                 ("000001.tar", 1)]  # fmt: skip
    urls = [str(out / shard["file"]) for shard in index["shards"]]
    items = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [item["json"]["case"] for item in items] == ["case0", "case1", "case2"]
    assert all(item["json"]["Synthetic"] for item in items)
    for item, source in zip(items, read_datalist(listed), strict=True):
        for word, path in (("ct", source.image[0]), ("pet", source.image[1]),
                           ("label", source.label)):  # fmt: skip
            image = nib.Nifti1Image.from_bytes(item[f"{word}.nii.gz"])
            assert np.array_equal(image.get_fdata(), nib.load(path).get_fdata())
            assert np.array_equal(image.affine, nib.load(path).affine)
    assert files(out) == files(put_out(cli, listed, tmp_path / "again", *words))


def test_shards_come_back_as_they_were(cli, tmp_path):
    listed = write_list(tmp_path / "in", ("ct", "pet"), count=3)
    out = put_out(cli, listed, tmp_path / "out", "--format", "webdataset", "--shard-size", 2)
    back = read_datalist(import_dataset(out, tmp_path / "back"))
    assert [case.subject for case in back] == ["p0", "p1", "p2"]
    assert back.info["channels"] == ["ct", "pet"] and back.info["labels"]["2"] == "core"
    for case, source in zip(back, read_datalist(listed), strict=True):
        for new, old in zip(case.files, source.files, strict=True):
            assert np.array_equal(nib.load(new).get_fdata(), nib.load(old).get_fdata())
            assert np.array_equal(nib.load(new).affine, nib.load(old).affine)


def test_members_of_a_case_may_lie_anywhere_in_a_shard(cli, tmp_path):
    listed = write_list(tmp_path / "in", ("ct", "pet"), count=3)
    out = put_out(cli, listed, tmp_path / "out", "--format", "webdataset")
    with tarfile.open(out / "000000.tar") as archive:
        members = [(each, archive.extractfile(each).read()) for each in archive]
    # All CT, then all PET, the last case first, and so on.
    members.sort(key=lambda pair: (pair[0].name.split(".")[1:], -int(pair[0].name[4])))
    with tarfile.open(out / "000000.tar", "w") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    back = read_datalist(import_dataset(out, tmp_path / "back"))
    sources = {case.name: case for case in read_datalist(listed)}
    assert sorted(case.name for case in back) == sorted(sources)
    for case in back:
        for new, old in zip(case.files, sources[case.name].files, strict=True):
            assert np.array_equal(nib.load(new).get_fdata(), nib.load(old).get_fdata())


def test_shards_that_are_not_whole_leave_with_2_and_nothing(cli, tmp_path):
    listed = write_list(tmp_path / "in", count=3)
    out = put_out(cli, listed, tmp_path / "out", "--format", "webdataset", "--shard-size", 2)
    whole = (out / "000001.tar").read_bytes()
    for content, said in ((None, "names 000001.tar"), (whole[:700], "to its end")):
        (out / "000001.tar").unlink()
        if content is not None:
            (out / "000001.tar").write_bytes(content)
        done = cli("data", "import", out, "--out", tmp_path / "back")
        assert done.code == 2 and said in " ".join(done.error.split())
        assert not (tmp_path / "back").exists()
        (out / "000001.tar").write_bytes(whole)
    with tarfile.open(out / "000001.tar", "w"):
        pass
    done = cli("data", "import", out, "--out", tmp_path / "back")
    assert done.code == 2 and "promises 3 cases" in " ".join(done.error.split())


# -- what cannot be exported --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "changed", "said"),
    [
        (("--format", "dicom", "--channels", "odd"), {}, "no DICOM modality"),
        (("--format", "dicom"), {"labels": {"background": 0, "lesion": 1}}, "a segment needs"),
        (("--format", "webdataset", "--channels", "label"), {}, "names of members"),
        (("--format", "webdataset", "--shard-size", "0"), {}, "--shard-size"),
        (("--format", "dicom", "--channels", "ct,pet"), {}, "has 1 images"),
    ],
)
def test_each_refusal_leaves_with_2_and_nothing(cli, tmp_path, words, changed, said):
    pytest.importorskip("highdicom")
    listed = write_list(tmp_path / "in", **changed)
    done = cli("data", "export", listed, "--out", tmp_path / "out", *words)
    assert done.code == 2 and said in " ".join(done.error.split())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_small_values_keep_their_digits_in_dicom(cli, tmp_path):
    """Diffusion in m^2/s is about 1e-9, and its steps are far smaller."""
    pytest.importorskip("highdicom")
    listed = write_list(tmp_path / "in", ("flair",))
    path = tmp_path / "in" / "case0_flair.nii.gz"
    image = nib.load(path)
    small = (image.get_fdata() * 1e-12).astype(np.float32)
    write_volume(path, small, Grid((6, 7, 5), image.affine))
    out = put_out(cli, listed, tmp_path / "out", "--format", "dicom")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(next(out.glob("*/flair"))))
    found = np.stack(
        [sitk.GetArrayFromImage(sitk.ReadImage(n, sitk.sitkFloat64))[0] for n in names]
    )
    assert np.allclose(found.T, small, rtol=0, atol=small.max() / 65534 * 1.01)
    assert len(np.unique(found)) > 100


def test_axes_that_are_skewed_are_refused(cli, tmp_path):
    pytest.importorskip("highdicom")
    listed = write_list(tmp_path / "in")
    image = nib.load(tmp_path / "in" / "case0_ct.nii.gz")
    affine = image.affine.copy()
    affine[0, 2] += 0.3
    write_volume(
        tmp_path / "in" / "case0_ct.nii.gz", np.asarray(image.dataobj), Grid((6, 7, 5), affine)
    )
    done = cli("data", "export", listed, "--out", tmp_path / "out", "--format", "dicom")
    assert done.code == 2 and "right angles" in done.error
    assert not (tmp_path / "out").exists()


def test_an_extra_that_is_missing_is_named(cli, tmp_path):
    listed = write_list(tmp_path / "in")
    with mock.patch.dict("sys.modules", highdicom=None):
        done = cli("data", "export", listed, "--out", tmp_path / "out", "--format", "dicom")
    assert done.code == 2 and "medvae3d[dicom]" in done.error


# -- other people's checks ----------------------------------------------------------------------


# Where `make test-slow` puts it, so that its packages do not get among those of the environment.
NNUNET = Path(sys.prefix) / "nnunet"
CHECK = """
import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
verify_dataset_integrity(sys.argv[1], 1)
try:
    verify_dataset_integrity(sys.argv[2], 1)
except Exception as error:
    print("refused:", error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not (NNUNET / "nnunetv2").is_dir(), reason="make test-slow installs nnU-Net")
def test_nnunet_finds_no_fault_in_its_own_check(cli, tmp_path):
    listed = write_list(tmp_path / "in", ("ct", "pet"), count=3)
    out = put_out(cli, listed, tmp_path / "out", "--format", "nnunet")
    made = next(out.glob("Dataset501_*"))
    damaged = shutil.copytree(made, tmp_path / "damaged")
    next(damaged.glob("imagesTr/*_0001.nii.gz")).unlink()
    call = [sys.executable, "-W", "ignore", "-c", CHECK, made, damaged]
    paths = os.pathsep.join([str(NNUNET), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    of_made, end, of_damaged = done.stdout.partition("verify_dataset_integrity Done")
    assert end and "Error" not in of_made
    assert "refused:" in of_damaged


# Beside this Python, if it is not activated. The older npm package knows no derivatives.
PLACES = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
VALIDATOR = shutil.which("bids-validator-deno", path=PLACES)


@pytest.mark.skipif(VALIDATOR is None, reason="pip install bids-validator-deno to run it")
def test_the_bids_validator_finds_no_error(cli, tmp_path):
    listed = write_list(tmp_path / "in", ("pet", "flair", "t1", "ct"), count=2)
    out = put_out(cli, listed, tmp_path / "out", "--format", "bids")
    call = [VALIDATOR, "--format", "json", str(out)]
    paths = {**os.environ, "PATH": PLACES}
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=paths)
    found = json.loads(done.stdout)["issues"]["issues"]
    assert [each for each in found if each["severity"] == "error"] == []
    assert len(json.loads(done.stdout)["summary"]["subjects"]) == 2  # it has read our files


# -- data sets in Python ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["monai", "torchio"])
def test_a_bundle_is_a_data_set_of_the_samples_that_it_writes(bundles, kind):
    bundle = load_bundle(bundles / "balls")
    wanted = list(bundle.generate(3, seed=4))
    made = bundle.as_dataset(3, seed=4, kind=kind)
    assert len(made) == 3 and isinstance(
        made, monai.data.Dataset if kind == "monai" else tio.SubjectsDataset
    )
    for index in (2, 0, 1):
        item, sample = made[index], wanted[index]
        if kind == "torchio":
            image = torch.cat([item["pet"].data, item["ct"].data])
            label, affine = item["label"].data, item["ct"].affine
        else:
            image, label = item["image"].as_tensor(), item["label"].as_tensor()
            affine = item["image"].affine.numpy()
        assert torch.equal(image, sample.image) and torch.equal(label, sample.label)
        assert np.array_equal(affine, sample.grid.affine)
        assert item["case"] == sample.record["case"] and item["synthetic"]


def test_loaders_of_others_batch_samples_and_cases(bundles, tmp_path):
    samples = load_bundle(bundles / "balls").as_dataset(2, seed=1)
    (batch,) = monai.data.DataLoader(samples, batch_size=2)
    assert batch["image"].shape == (2, 2, 16, 16, 16)
    listed = write_list(tmp_path / "in", ("ct", "pet"), count=2)
    subjects = medvae3d.list_as_dataset(listed, kind="torchio", split="training")
    (batch,) = tio.SubjectsLoader(subjects, batch_size=2)
    assert batch["pet"]["data"].shape == (2, 1, 6, 7, 5) and batch["subject"] == ["p0", "p1"]
    items = medvae3d.list_as_dataset(listed)
    assert items[1]["image"][0].endswith("case1_ct.nii.gz") and items[1]["split"] == "training"
    with pytest.raises(DataListError, match="no case in testing"):
        medvae3d.list_as_dataset(listed, split="testing")
    with pytest.raises(SettingError, match="kind is 'keras'"):
        medvae3d.list_as_dataset(listed, kind="keras")
    assert Path(listed).is_file()
