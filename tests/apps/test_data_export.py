"""Claims about ``medvae3d data export``: what is written reads back and is named synthetic."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medvae3d.data.datalists import read_datalist
from medvae3d.data.importing import import_dataset
from medvae3d.data.volumes import write_volume
from medvae3d.geometry import Grid

GRID = Grid.centred((5, 6, 4), (1.0, 1.5, 2.0))


@pytest.fixture
def listed(tmp_path):
    """Two synthetic cases of two channels with their records, as ``generate`` writes them."""
    root, entries = tmp_path / "in", []
    for i in range(2):
        random = np.random.default_rng(i)
        for c in range(2):
            array = random.integers(-90, 90, GRID.shape).astype(np.int16)
            write_volume(root / f"imagesTr/b_s0_{i}_{c:04d}.nii.gz", array, GRID)
        mask = np.zeros(GRID.shape, np.uint8)
        mask[1 : 3 + i, 2, 2] = 1
        write_volume(root / f"labelsTr/b_s0_{i}.nii.gz", mask, GRID)
        (root / "records").mkdir(exist_ok=True)
        record = {"case": f"b_s0_{i}", "synthetic": True, "seed": 0, "index": i}
        (root / f"records/b_s0_{i}.json").write_text(json.dumps(record))
        images = [f"imagesTr/b_s0_{i}_{c:04d}.nii.gz" for c in range(2)]
        entries.append({"image": images, "label": f"labelsTr/b_s0_{i}.nii.gz"})
    content = {"channel_names": {"0": "T1w", "1": "FLAIR"}, "name": "b",
               "labels": {"background": 0, "lesion": 1}, "training": entries}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))
    return root / "dataset.json"


def require_same(made, source):
    for new, old in zip(made, source, strict=True):
        for path, other in (*zip(new.image, old.image, strict=True), (new.label, old.label)):
            ours, theirs = (sitk.ReadImage(str(each)) for each in (path, other))
            assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
            assert np.allclose(nib.load(path).affine, nib.load(other).affine, atol=1e-6)


@pytest.mark.parametrize(
    ("format", "channels"), [("bids", ["T1w", "FLAIR"]), ("nnunet", ["T1w", "FLAIR"])]
)
def test_what_is_exported_comes_back_by_an_import(cli, tmp_path, listed, format, channels):
    done = cli("data", "export", str(listed), "--out", str(tmp_path / "o"), "--format", format)
    assert done.code == 0
    root = next((tmp_path / "o").glob("Dataset501_*"), tmp_path / "o")
    path = import_dataset(root, tmp_path / "back", format=format, channels=channels)
    require_same(read_datalist(path), read_datalist(listed))


def test_sidecars_say_synthetic_with_the_facts_of_the_record(cli, tmp_path, listed):
    cli("data", "export", str(listed), "--out", str(tmp_path / "o"), "--format", "bids")
    sidecars = sorted((tmp_path / "o").glob("sub-*/anat/*.json"))
    assert len(sidecars) == 6
    assert all(json.loads(path.read_text())["Synthetic"] is True for path in sidecars)
    assert json.loads(sidecars[-1].read_text())["Record"]["index"] == 1
    assert all("desc-synthetic" in path.name for path in sidecars)
    description = json.loads((tmp_path / "o" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and "synthetic" in description["Name"]


def test_what_a_format_cannot_hold_leaves_with_2_and_nothing(cli, tmp_path, listed):
    where = ("data", "export", str(listed), "--out", str(tmp_path / "o"))
    for words in (("--format", "zip"), ("--format", "bids", "--channels", "T1w,odd"),
                  ("--format", "nnunet", "--channels", "T1w")):  # fmt: skip
        done = cli(*where, *words)
        assert done.code == 2 and done.error.startswith("error: ")
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
