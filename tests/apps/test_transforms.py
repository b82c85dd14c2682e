"""Claims about lesions put into training cases on the fly: what changes, and what it depends on."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import monai.data
import numpy as np
import pytest
import torch
import torchio as tio
from monai.transforms import Compose, EnsureChannelFirstd, Flipd, LoadImaged, Orientationd

import medvae3d
from medvae3d.errors import BundleError, GridError, LabelError, SettingError
from medvae3d.transforms import RandomSynthesizeLesion, RandSynthesizeLesiond, SynthesizeLesion

COUNT = "synthetic_lesions"


@pytest.fixture(scope="module")
def bundle(bundles):
    return str(bundles / "stages")


def item(scan, number=0):
    files = [str(scan / "pet.nii.gz"), str(scan / "ct.nii.gz")]
    return {"image": files, "label": str(scan / "label.nii.gz"), "number": number}


@pytest.fixture(scope="module")
def case(scan):
    keys = ("image", "label")
    return Compose([LoadImaged(keys), EnsureChannelFirstd(keys)])(item(scan))


def add(bundle, **options):
    return RandSynthesizeLesiond("image", bundle, **{"prob": 1.0, "seed": 0, **options})


def test_a_lesion_is_added_and_nothing_else_changes(bundle, case):
    made = add(bundle)(case)
    (record,) = json.loads(made["image"].applied_operations[-1]["extra_info"]["lesions"])
    before, after = case["label"].as_tensor(), made["label"].as_tensor()
    assert int((after != before).sum()) == record["voxels"] > 0
    assert made["image"].meta[COUNT] == made["label"].meta[COUNT] == 1
    changed = (made["image"].as_tensor() != case["image"].as_tensor()).any(0)
    assert 0 < int(changed.sum()) <= record["zone_voxels"]
    assert made["image"].affine.equal(case["image"].affine)
    assert made["label"].dtype == case["label"].dtype


def test_the_inverse_puts_every_voxel_back(bundle, scan, case):
    keys = ("image", "label")
    steps = Compose([add(bundle), Orientationd(keys, "LPS", labels=None), Flipd(keys, 0)])
    back = steps.inverse(steps(case))
    for key in keys:
        assert torch.equal(back[key].as_tensor(), case[key].as_tensor())
        assert back[key].applied_operations == case[key].applied_operations
    kept = add(bundle, invertible=False)
    made = kept(case)
    assert torch.equal(kept.inverse(made)["image"].as_tensor(), made["image"].as_tensor())


def test_cases_of_a_batch_are_put_back_one_by_one(bundle, scan, case):
    """Their lesions lie in boxes of different shapes, so what was there cannot be stacked."""
    keys = ("image", "label")
    steps = Compose([LoadImaged(keys), EnsureChannelFirstd(keys), add(bundle)])
    items = monai.data.Dataset([item(scan, n) for n in (0, 1)], steps)
    (batch,) = monai.data.DataLoader(items, batch_size=2)
    parts = monai.data.decollate_batch(batch)
    boxes = [part["image"].applied_operations[-1]["extra_info"]["box"] for part in parts]
    assert boxes[0] != boxes[1]
    for part in parts:
        assert not torch.equal(part["label"].as_tensor(), case["label"].as_tensor())
        back = steps.transforms[-1].inverse(part)
        for key in keys:
            assert torch.equal(back[key].as_tensor(), case[key].as_tensor())


def test_the_random_state_decides(bundle, case):
    adder = add(bundle, seed=None)
    runs = []
    for seed in (3, 3, 4):
        adder.set_random_state(seed)
        runs.append(adder(case)["image"].as_tensor())
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def loaded(bundle, scan, workers, epochs=2, order=(0, 1, 2), **options):
    """What a loader gives over epochs, by case."""
    keys = ("image", "label")
    adder = add(bundle, prob=0.7, case_key="number", **options)
    steps = Compose([LoadImaged(keys), EnsureChannelFirstd(keys), adder])
    items = monai.data.Dataset([item(scan, n) for n in order], steps)
    found = []
    for _ in range(epochs):
        loader = monai.data.DataLoader(items, batch_size=1, num_workers=workers)
        batches = {int(batch["number"]): batch for batch in loader}
        found += [(batches[n]["image"].as_tensor(), batches[n]["label"].as_tensor())
                  for n in sorted(order)]  # fmt: skip
    return found


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same(bundle, scan):
    alone = loaded(bundle, scan, 0)
    for other in (loaded(bundle, scan, 2), loaded(bundle, scan, 3, order=(2, 0, 1))):
        for ours, theirs in zip(alone, other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    # Lesions differ between cases and between epochs, so that equality above says something.
    sums = [float(image.double().sum()) for image, _ in alone]
    assert len(set(sums)) >= 4


@pytest.mark.slow
def test_the_random_state_decides_in_workers_too(bundle, scan):
    runs = []
    for seed in (1, 1, 2):
        monai.utils.set_determinism(seed)
        runs.append([image for image, _ in loaded(bundle, scan, 2, epochs=1, seed=None)])
    monai.utils.set_determinism(None)
    same, other = ([torch.equal(a, b) for a, b in zip(runs[0], run, strict=True)]
                   for run in runs[1:])  # fmt: skip
    assert all(same) and not all(other)


def test_epochs_can_be_named(bundle, case):
    adder = add(bundle)
    first, second = adder(case)["image"], adder(case)["image"]
    assert not torch.equal(first.as_tensor(), second.as_tensor())
    adder.set_epoch(0)
    assert torch.equal(adder(case)["image"].as_tensor(), first.as_tensor())
    assert torch.equal(adder(case)["image"].as_tensor(), first.as_tensor())
    with pytest.raises(SettingError, match="needs a seed"):
        add(bundle, seed=None).set_epoch(1)


def test_copies_count_the_same_visits(bundle):
    adder = add(bundle)
    assert adder.draws("a") != adder.draws("a")
    fresh = add(bundle).draws
    firsts = [fresh("a"), fresh("a")]
    assert firsts[0] == add(bundle).draws("a")
    # A pickled transform carries its settings and the epoch, not the weights.
    assert len(pickle.dumps(copy.copy(adder.maker))) < 1000


def test_prob_is_the_share_of_cases(bundle):
    draws = add(bundle).draws
    chances = np.array([draws(str(n))[0] for n in range(400)])
    assert abs((chances < 0.3).mean() - 0.3) < 0.07


def test_other_labels_stay_and_lesions_get_the_value_asked_for(bundle, case):
    organs = {**case, "label": case["label"].clone()}
    organs["label"][:] = torch.where(case["label"] > 0, 7, 3)
    made = add(bundle, label_value=7)(organs)["label"].as_tensor()
    assert set(made.unique().tolist()) == {3, 7}
    assert int((made == 7).sum()) > int((case["label"] > 0).sum())


@pytest.mark.slow
def test_a_case_without_room_stays_as_it_is(bundle, case):
    full = {**case, "label": torch.ones_like(case["label"])}
    adder = add(bundle)
    made = adder(full)
    assert torch.equal(made["image"].as_tensor(), case["image"].as_tensor())
    assert made["image"].meta[COUNT] == 0
    assert "rejected" in made["image"].applied_operations[-1]["extra_info"]["reason"]
    assert torch.equal(adder.inverse(made)["label"].as_tensor(), full["label"].as_tensor())


def test_what_cannot_be_used_is_named(bundles, bundle, case):
    with pytest.raises(BundleError, match="whole volumes"):
        RandSynthesizeLesiond("image", bundles / "balls")
    with pytest.raises(SettingError, match="whole numbers from 1"):
        add(bundle, lesions=(0, 2))
    with pytest.raises(GridError, match="does not say where"):
        add(bundle)({**case, "image": case["image"].as_tensor()})
    with pytest.raises(LabelError, match="one-hot"):
        add(bundle)({**case, "label": torch.cat([case["label"]] * 2)})
    with pytest.raises(SettingError, match="2 channels|1 channels"):
        add(bundle)({**case, "image": case["image"][:1]})


def subject(scan):
    return tio.Subject(
        pet=tio.ScalarImage(scan / "pet.nii.gz"),
        ct=tio.ScalarImage(scan / "ct.nii.gz"),
        label=tio.LabelMap(scan / "label.nii.gz"),
    )


def test_torchio_gets_the_same_lesion_for_the_same_seed(bundle, case):
    adder = add(bundle, seed=None).set_random_state(0)
    made = adder(case)
    # The readers round differently, so both get the same voxels.
    pet, ct = (each[None].as_tensor() for each in case["image"])
    affine = case["image"].affine.numpy()
    same = tio.Subject(
        pet=tio.ScalarImage(tensor=pet, affine=affine),
        ct=tio.ScalarImage(tensor=ct, affine=affine),
        label=tio.LabelMap(tensor=case["label"].as_tensor(), affine=affine),
    )
    same = SynthesizeLesion(bundle, ("pet", "ct"), seed=adder._seed)(same)
    image = torch.cat([same["pet"].data, same["ct"].data])
    assert torch.equal(image, made["image"].as_tensor())
    assert torch.equal(same["label"].data.float(), made["label"].as_tensor().float())
    assert same[COUNT] == 1


def test_torchio_records_what_it_did_and_plays_it_again(bundle, scan):
    adder = RandomSynthesizeLesion(bundle, ("pet", "ct"), p=1, seed=5)
    made = adder(subject(scan))
    again = made.get_composed_history()(subject(scan))
    assert torch.equal(made["ct"].data, again["ct"].data)
    assert torch.equal(made["label"].data, again["label"].data)
    assert not torch.equal(adder(subject(scan))["label"].data, made["label"].data)
    none = RandomSynthesizeLesion(bundle, ("pet", "ct"), p=0.0)(subject(scan))
    assert none[COUNT] == 0 and none.get_composed_history().transforms == []


@pytest.mark.gpu
def test_a_gpu_makes_the_lesion_of_the_cpu(bundle, case):
    on_cpu, on_gpu = (add(bundle, device=d)(case) for d in ("cpu", "cuda"))
    same = on_cpu["label"].as_tensor() == on_gpu["label"].as_tensor().cpu()
    assert float((~same).float().mean()) < 1e-3  # convolutions round differently


def test_transforms_are_found_without_being_loaded():
    code = (
        "import sys, medvae3d; assert 'torch' not in sys.modules; t = medvae3d.transforms;"
        "assert 'torch' not in sys.modules and 'RandSynthesizeLesiond' in dir(t)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert medvae3d.transforms.RandSynthesizeLesiond is RandSynthesizeLesiond
