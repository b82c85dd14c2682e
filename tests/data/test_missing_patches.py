"""Patches of cases that lack a channel: marked as such, drawn and kept as those of the others."""

from __future__ import annotations

import hashlib
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from small_patches import assert_same

from medvae3d.data.datalists import MISSING, Case
from medvae3d.data.intensity import IntensityChannels, PercentileIntensity, WindowIntensity
from medvae3d.data.patch_cases import load_case
from medvae3d.data.patches import patch_loader
from medvae3d.errors import DataListError, GridError

SHAPE = (10, 11, 6)  # along the last axis, a patch of 8 is filled up
SETTINGS: dict[str, Any] = {
    "patch_shape": (8, 8, 8), "batch_size": 3, "seed": 5, "samples_per_case": 3, "jitter": 2
}  # fmt: skip
LOST = {0: 1, 2: 0}


def make_case(number, lost=(), value=-1.0):
    """A prepared case of two channels; those that it lacks hold a value."""
    random = torch.Generator().manual_seed(number)
    image = torch.rand(2, *SHAPE, generator=random)
    image[list(lost)] = value
    mask = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    mask[0, number : number + 2, 4:6, 2:4] = 1
    meta = {MISSING: list(lost)} if lost else {}
    return {"image": MetaTensor(image, meta=meta), "mask": mask, "case": f"case_{number}"}


def whole():
    return [make_case(number) for number in range(5)]


def lacking(value=-1.0):
    return [make_case(n, [LOST[n]] if n in LOST else [], value) for n in range(5)]


def epoch(cases, **changes):
    loader = patch_loader(cases, **{**SETTINGS, **changes})
    batches = [batch for _ in range(2) for batch in loader]
    loader.close()
    return batches


def test_a_missing_channel_is_nowhere_valid_and_all_else_is_as_without_it():
    """Places, order, masks, and of the other channel images and what was observed."""
    kinds = set()
    for batch, other in zip(epoch(lacking()), epoch(whole()), strict=True):
        assert batch["case"] == other["case"]
        assert torch.equal(batch["location"], other["location"])
        assert torch.equal(batch["mask"], other["mask"])
        assert other["valid"].shape == (3, 1, 8, 8, 8) and 0 < other["valid"].mean() < 1
        lost = [LOST.get(int(name[-1])) for name in batch["case"]]
        kinds.add(len([each for each in lost if each is not None]))
        assert batch["valid"].shape[1] == (1 if lost == [None] * 3 else 2)
        for row, channel in enumerate(lost):
            kept = [c for c in (0, 1) if c != channel]
            valid = batch["valid"][row].expand(2, -1, -1, -1)
            assert torch.equal(valid[kept], other["valid"][row].expand(len(kept), -1, -1, -1))
            assert torch.equal(batch["image"][row, kept], other["image"][row, kept])
            if channel is not None:
                assert not valid[channel].any() and (batch["image"][row, channel] == -1).all()
    assert {0, 1, 2} <= kinds


@pytest.mark.parametrize("value", [torch.nan, 1e6])
@pytest.mark.parametrize("sampling", ["label", "weights", "uniform"])
def test_what_stands_in_a_missing_channel_is_in_no_patch_and_moves_none(value, sampling):
    found = []
    for cases in (lacking(), lacking(value)):
        for case in cases:
            case["weights"] = case["mask"].float()
        found.append(epoch(cases, sampling=sampling))
    assert_same(*found)


def test_memory_disk_and_neither_give_the_same_patches(tmp_path):
    kept = epoch(lacking())
    assert_same(epoch(lacking(), cache_mb=0), kept)
    on_disk: dict[str, Any] = {"cache_mb": 0, "disk_cache_mb": 10, "disk_cache_dir": tmp_path}
    loader = patch_loader(lacking(), **SETTINGS, **on_disk)
    found = [batch for _ in range(2) for batch in loader]
    assert len(list(tmp_path.glob("*/*.pt"))) == 5
    loader.close()
    assert_same(found, kept)


@pytest.mark.integration
def test_patches_that_a_worker_makes_are_the_same():
    assert_same(epoch(lacking(), num_workers=1), epoch(lacking()))


def test_patches_of_whole_cases_are_those_of_the_shipped_bundles():
    """To the byte: their weights are trained again from the same draws."""
    digest = hashlib.sha256()
    for batch in epoch(whole()):
        for key in ("location", "valid", "mask"):
            digest.update(batch[key].numpy().tobytes())
        digest.update(" ".join(batch["case"]).encode())
    assert digest.hexdigest() == (
        "38150daeafc09b03ef283dcd3f173de61ad044e8b92c0070afce61b64d71e575"
    )


def test_a_mask_alone_shares_a_batch_with_a_case_that_lacks_a_channel():
    alone = {"mask": make_case(1)["mask"], "case": "alone"}
    (batch,) = patch_loader([alone, *lacking()[:2]], **{**SETTINGS, "samples_per_case": 1})
    seen = dict(zip(batch["case"], batch["valid"].flatten(2).amax(2).tolist(), strict=True))
    assert seen == {"alone": [0, 0], "case_0": [1, 0], "case_1": [1, 1]}


@pytest.fixture
def files(tmp_path):
    """Files of two channels and a mask, the second of them bright."""
    random, found = np.random.default_rng(0), []
    for name in ("ct", "mr", "mask"):
        voxels = random.uniform(10, 300, SHAPE).astype(np.float32)
        if name == "mask":
            voxels = (np.indices(SHAPE).max(0) < 3).astype(np.uint8)
        found.append(tmp_path / f"a_{name}.nii.gz")
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), found[-1])
    return found


@pytest.mark.parametrize("lost", [0, 1])
def test_files_with_null_are_read_in_their_places(files, lost):
    schemes = IntensityChannels((WindowIntensity(0, 300), PercentileIntensity()))
    *images, label = files
    all_of_it = load_case({"image": images, "label": label, "case": "a"}, schemes)
    there: Any = [file for file in images if file != images[lost]]
    forms = [
        Case(tuple(there), label, "a", "training", {"case": "a"}, (lost,)),
        {"image": [None if f not in there else f for f in images], "label": label, "case": "a"},
        {"image": str(there[0]), "label": label, "case": "a", MISSING: [lost]},
    ]
    for form in forms:
        found = load_case(form, schemes)
        assert found[MISSING] == (lost,) and found["image"].shape == (2, *SHAPE)
        assert (found["image"][lost] == -1).all()
        assert torch.equal(found["image"][1 - lost], all_of_it["image"][1 - lost])
        (batch,) = patch_loader([form], **SETTINGS, intensities=schemes)
        assert batch["valid"].flatten(2).amax(2).tolist() == [[lost, 1 - lost]] * 3
    assert all_of_it[MISSING] == ()


def test_a_file_of_two_channels_beside_null_is_refused(files, tmp_path):
    both = np.ones((*SHAPE, 2), np.float32)
    nib.save(nib.Nifti1Image(both, np.eye(4)), tmp_path / "both.nii.gz")
    with pytest.raises(GridError, match=r"both\.nii"):
        load_case({"image": [tmp_path / "both.nii.gz", None], "label": files[-1]})


@pytest.mark.parametrize("form", ["files", "case", "prepared", "cut"])
def test_a_case_without_any_channel_is_refused_by_name(files, form):
    prepare = None
    cases: dict[str, Any] = {
        "files": {"image": [None, None], "label": files[-1], "case": "case_9"},
        "case": Case((), files[-1], "a", "training", {"case": "case_9"}, (0, 1)),
        "prepared": make_case(0, [0, 1]) | {"case": "case_9"},
        "cut": make_case(0, [0]) | {"case": "case_9"},
    }
    if form == "cut":
        prepare = lambda case: {**case, "image": case["image"][:1]}
    with pytest.raises(DataListError, match="case case_9 has none of its . channels. Leave"):
        epoch([cases[form]], prepare=prepare)


def test_what_prepares_a_case_may_forget_what_it_lacks_or_cut_it_off():
    forgets = lambda case: {"image": case["image"] + 1, "mask": case["mask"], "case": case["case"]}
    (batch,) = epoch([make_case(0, [1])], prepare=forgets)[:1]
    assert batch["valid"].flatten(2).amax(2).tolist() == [[1, 0]] * 3
    assert (batch["image"][:, 1] == -1).all()
    first = lambda case: {**case, "image": case["image"][:1]}
    (batch,) = epoch([make_case(0, [1])], prepare=first)[:1]
    assert batch["image"].shape == batch["valid"].shape == (3, 1, 8, 8, 8)
    assert batch["valid"].amax() == 1
