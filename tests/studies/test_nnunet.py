"""Exported data sets: what nnU-Net's own check of a raw data set asks for, asked here."""

import json
import re

import nibabel as nib
import numpy as np
import pytest

from medvae3d.errors import SettingError
from medvae3d.studies.nnunet import dataset_folder, write_dataset

LABELS = {"background": 0, "tumour": 1}
SPACING = (2.0, 1.0, 1.5)


@pytest.fixture
def exported(tmp_path, balls):
    folder = dataset_folder(tmp_path, 501, "synthetic:h vae/2")
    training = {"real": balls(3), "synthetic": balls(2, seed=1)}
    write_dataset(folder, training, balls(2, seed=2), LABELS, ["PET"], SPACING)
    return folder


def test_the_folder_has_a_name_that_nnunet_knows(exported, tmp_path):
    assert re.fullmatch(r"Dataset\d{3}_[A-Za-z0-9-]+", exported.name)
    with pytest.raises(SettingError, match="1 to 999"):
        dataset_folder(tmp_path, 1000, "x")


def test_its_description_has_all_that_is_required(exported):
    found = json.loads((exported / "dataset.json").read_text())
    assert {"labels", "channel_names", "numTraining", "file_ending"} <= set(found)
    assert found["labels"]["background"] == 0
    assert (np.ediff1d(list(found["labels"].values())) == 1).all()
    assert set(found["channel_names"]) == {"0"}


def test_every_case_has_all_channels_and_a_mask_on_the_same_grid(exported):
    found = json.loads((exported / "dataset.json").read_text())
    ending = found["file_ending"]
    for part, count in (("Tr", found["numTraining"]), ("Ts", 2)):
        images = sorted(path.name for path in (exported / f"images{part}").iterdir())
        cases = {re.sub(r"_\d{4}$", "", name.removesuffix(ending)) for name in images}
        labels = {p.name.removesuffix(ending) for p in (exported / f"labels{part}").iterdir()}
        assert cases == labels and len(cases) == count == len(images)
        for case in cases:
            image = nib.load(exported / f"images{part}" / f"{case}_0000{ending}")
            mask = nib.load(exported / f"labels{part}" / f"{case}{ending}")
            values = np.asanyarray(mask.dataobj)
            assert image.shape == mask.shape
            assert np.array_equal(image.affine, mask.affine)
            assert image.header.get_zooms() == SPACING
            assert np.isfinite(np.asanyarray(image.dataobj)).all()
            assert set(np.unique(values)) <= set(found["labels"].values())


def test_voxels_are_those_of_the_arm(exported, balls):
    first = sorted((exported / "imagesTr").iterdir())[0]
    stored = np.asanyarray(nib.load(first).dataobj)
    assert np.array_equal(stored, balls(3).image[0, 0].numpy())


def test_a_data_set_that_is_whole_is_left_as_it_is(exported, balls):
    before = {p: p.stat().st_mtime_ns for p in exported.rglob("*")}
    write_dataset(exported, {"real": balls(4)}, balls(1), LABELS, ["PET"], SPACING)
    assert {p: p.stat().st_mtime_ns for p in exported.rglob("*")} == before


def test_labels_that_nnunet_would_refuse_are_refused(tmp_path, balls):
    for labels in ({"background": 0, "tumour": 2}, {"nothing": 0, "tumour": 1}):
        with pytest.raises(SettingError, match="background as 0"):
            write_dataset(tmp_path / "x", {"real": balls(1)}, balls(1), labels, ["PET"], SPACING)
    assert not (tmp_path / "x").exists()
