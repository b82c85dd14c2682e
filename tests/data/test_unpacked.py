"""Claims about cases that lie uncompressed on a disk while training visits them."""

from __future__ import annotations

import gc
import stat
import subprocess
import sys
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch

from medvae3d.data.manifests import Case
from medvae3d.data.patches import patch_loader
from medvae3d.data.unpacked import Unpacked
from medvae3d.errors import MedvaeError, SettingError

SETTINGS = {"patch_shape": (4, 4, 4), "batch_size": 2, "seed": 5, "samples_per_case": 2}


@pytest.fixture
def cases(tmp_path):
    """Three cases in files, as only these are read anew."""
    random, made = np.random.default_rng(0), []
    for number in range(3):
        mask = np.zeros((8, 9, 7), np.uint8)
        mask[2:4, 3:5, 2:4] = 1
        files = [tmp_path / f"{number}_{what}.nii.gz" for what in ("mr", "mask")]
        for file, voxels in zip(files, (random.normal(size=mask.shape), mask), strict=True):
            nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), file)
        made.append(Case((files[0],), files[1], f"case{number}", "training"))
    return made


@pytest.fixture
def room(tmp_path):
    folder = tmp_path / "room"
    folder.mkdir()
    return folder


def batches(loader, epochs=3):
    found = [batch for _ in range(epochs) for batch in loader]
    loader.close()
    return found


@pytest.mark.parametrize("prepare", [None, "crop"])
@pytest.mark.parametrize("workers", [0, 2])
def test_patches_are_the_same_and_files_are_read_once(cases, room, prepare, workers):
    def crop(case):
        return {**case, "image": case["image"][:, :6], "mask": case["mask"][:, :6]}

    given = {**SETTINGS, "prepare": crop if prepare else None, "num_workers": workers}
    wanted = batches(patch_loader(cases, cache_mb=0, **given))
    loader = patch_loader(cases, cache_mb=0, disk_cache_mb=10, disk_cache_dir=room, **given)
    loads = []
    load = loader.queue.patches.load
    loader.queue.patches.load = lambda case: loads.append(case) or load(case)
    found = batches(loader)
    assert workers or len(loads) == len(cases)
    assert len(list(room.glob("*/*.pt"))) == len(cases)
    assert len(found) == len(wanted) > 3
    for one, other in zip(found, wanted, strict=True):
        assert one["case"] == other["case"]
        for key in ("image", "mask", "valid", "location"):
            assert torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype


def test_the_folder_is_private_and_goes_with_the_loader(cases, room):
    loader = patch_loader(cases, cache_mb=0, disk_cache_mb=10, disk_cache_dir=room, **SETTINGS)
    batches(loader, 1)
    (folder,) = room.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    del loader
    gc.collect()
    assert not list(room.iterdir())


def test_the_folder_goes_with_the_process(room):
    program = (
        "import torch; from medvae3d.data.patches import patch_loader\n"
        "case = {'image': torch.rand(1, 6, 6, 6), 'mask': torch.ones(1, 6, 6, 6).byte()}\n"
        "loader = patch_loader([case] * 2, cache_mb=0, disk_cache_mb=1,\n"
        f"    disk_cache_dir={str(room)!r}, **{SETTINGS!r})\n"
        "next(iter(loader))\n"
        f"import os; assert os.listdir({str(room)!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert not list(room.iterdir())


def test_what_fits_into_memory_or_finds_no_room_is_not_written(cases, room):
    for settings in ({"disk_cache_mb": 10}, {"cache_mb": 0, "disk_cache_mb": 0.0005}):
        loader = patch_loader(cases, disk_cache_dir=room, **settings, **SETTINGS)
        assert len(batches(loader, 2)) == 6
        assert not list(room.glob("*/*"))
        del loader


def test_a_file_that_changed_is_noticed_though_it_was_unpacked(cases, room):
    loader = patch_loader(cases, cache_mb=0, disk_cache_mb=10, disk_cache_dir=room, **SETTINGS)
    batches(loader, 1)
    cases[0].image[0].write_bytes(b"something else")
    with pytest.raises(MedvaeError, match="chang"):
        batches(loader, 1)


def test_a_disk_that_is_full_ends_the_writing_and_leaves_nothing_half_written(room, monkeypatch):
    def fail(case, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    unpacked = Unpacked(room, 1e6)
    with pytest.warns(UserWarning, match="No space left"):
        unpacked.keep(0, {"case": "one"}, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unpacked.keep(1, {"case": "two"}, 10)
    assert unpacked.get(0) is None and not list(unpacked.folder.iterdir())


def test_a_folder_that_is_not_there_is_refused(cases, tmp_path):
    with pytest.raises(SettingError, match="disk_cache_dir"):
        patch_loader(cases, disk_cache_mb=1, disk_cache_dir=tmp_path / "none", **SETTINGS)
