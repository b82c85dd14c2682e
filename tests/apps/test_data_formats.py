"""Claims about exports and data sets in Python: others read what was written, whole."""

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
from small_exports import files, put_out, write_list

import medvae3d
from medvae3d.apps.bundle import load_bundle
from medvae3d.data.datalists import read_datalist
from medvae3d.data.importing import import_dataset
from medvae3d.data.volumes import write_volume
from medvae3d.errors import DataListError, SettingError
from medvae3d.geometry import Grid

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
