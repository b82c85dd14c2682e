"""Patches are where the lesions are, and the same however they are made."""

from __future__ import annotations

import gc
import threading
import time

import nibabel as nib
import numpy as np
import pytest
import torch
import torchio as tio
from ignite.engine import Engine
from small_patches import assert_same

from medvae3d.data.intensity import IntensityChannels, WindowIntensity
from medvae3d.data.manifests import Case
from medvae3d.data.patch_cases import load_case
from medvae3d.data.patches import patch_loader
from medvae3d.data.sampling import LesionSampler
from medvae3d.errors import (
    DataListError,
    GridError,
    GridMismatchError,
    LabelError,
    SettingError,
)

SHAPE = (20, 22, 18)


def make_case(number, shape=SHAPE, channels=1, lesion=None):
    """A volume whose voxels count up from 1000 times the case's number, and one small lesion."""
    voxels = torch.arange(np.prod(shape), dtype=torch.float32).view(1, *shape) + 100_000 * number
    mask = torch.zeros(1, *shape, dtype=torch.uint8)
    place = lesion or (4 + number, 10, 8)
    mask[(0, *[slice(p, p + 2) for p in place])] = 1
    return {"image": voxels.expand(channels, -1, -1, -1), "mask": mask, "case": f"case_{number}"}


CASES = [make_case(number) for number in range(7)]
SETTINGS = {"patch_shape": (8, 8, 8), "batch_size": 4, "seed": 5, "samples_per_case": 3}


def epochs(count=1, cases=CASES, start=(0, 0), **changes):
    """Batches of some epochs in a row, all kept."""
    loader = patch_loader(cases, **{**SETTINGS, "max_length": 12, **changes})
    loader.set_epoch(*start)
    batches = [batch for _ in range(count) for batch in loader]
    loader.close()
    return batches


@pytest.fixture
def expected():
    return epochs(2)


@pytest.mark.integration
@pytest.mark.parametrize("workers", [1, 2])
def test_patches_do_not_depend_on_the_number_of_workers(expected, workers):
    assert_same(epochs(2, num_workers=workers), expected)


def test_patches_do_not_depend_on_the_thread_or_the_cache(expected):
    assert_same(epochs(2, prefetch=False), expected)
    assert_same(epochs(2, cache_mb=0), expected)


def test_patches_do_not_depend_on_the_speed_of_the_disk(expected):
    def slowly(case):
        time.sleep(0.003 * (int(case["case"][-1]) % 3))
        return case

    assert_same(epochs(2, prepare=slowly, cache_mb=0), expected)


@pytest.mark.parametrize("start", [(0, 1), (0, 3), (0, 4), (1, 0), (1, 2)])
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(expected, start):
    epoch, batch = start
    assert_same(epochs(2 - epoch, start=start), expected[5 * epoch + batch :])


def test_state_counts_what_was_handed_out_and_not_what_was_made_ahead(expected):
    loader = patch_loader(CASES, **SETTINGS, max_length=12)
    seen = []
    for batch in loader:
        seen.append(batch)
        if len(seen) == 3:
            break
    assert loader.state_dict() == {"epoch": 0, "batch": 3}
    other = patch_loader(CASES, **SETTINGS, max_length=12)
    other.load_state_dict(loader.state_dict())
    assert_same([*seen, *other, *other], expected)
    assert other.state_dict() == {"epoch": 2, "batch": 0}


def test_state_after_the_last_batch_is_the_next_epoch():
    loader = patch_loader(CASES, **SETTINGS)
    batches = iter(loader)
    for _ in range(len(loader)):
        next(batches)
    assert loader.state_dict() == {"epoch": 1, "batch": 0}


def test_resuming_loads_only_the_block_it_lands_in():
    loaded = []

    def noted(case):
        loaded.append(case["case"])
        return case

    settings = {**SETTINGS, "max_length": 12, "prepare": noted, "prefetch": False}
    loader = patch_loader(CASES, **settings)
    loader.set_epoch(0, 4)  # patch 12 of 21, the block of cases 4 and 5 in the order
    next(iter(loader))
    assert len(loaded) <= 4


def test_epochs_and_seeds_differ():
    first, second = epochs(), epochs(start=(1, 0))
    assert [b["case"] for b in first] != [b["case"] for b in second]
    assert not torch.equal(first[0]["location"], epochs(seed=6)[0]["location"])


def test_an_epoch_has_each_case_equally_often():
    batches = epochs(drop_last=False, sampling="uniform")
    names = [name for batch in batches for name in batch["case"]]
    assert sorted(names) == sorted(f"case_{n}" for n in range(7) for _ in range(3))
    assert [len(batch["case"]) for batch in batches] == [4, 4, 4, 4, 4, 1]
    places = {
        (name, *location)
        for batch in batches
        for name, location in zip(batch["case"], batch["location"].tolist(), strict=True)
    }
    assert len(places) == 21


def test_cases_are_mixed_within_a_batch():
    names = [set(batch["case"]) for batch in epochs(4, batch_size=6, max_length=42)]
    assert sum(len(n) for n in names) / len(names) > 2


def test_the_global_random_state_is_neither_read_nor_written():
    torch.manual_seed(1)
    np.random.seed(1)
    before, before_np = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = epochs()
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == before_np).all()
    torch.manual_seed(2)
    assert_same(epochs(), first)


def test_patches_lie_where_they_say():
    for batch in epochs():
        for name, patch, location in zip(
            batch["case"], batch["image"], batch["location"].tolist(), strict=True
        ):
            whole = CASES[int(name[-1])]["image"]
            window = [slice(a, b) for a, b in zip(location[:3], location[3:], strict=True)]
            assert torch.equal(patch, whole[(slice(None), *window)])


def test_every_patch_hits_the_lesion():
    for batch in epochs(label_probabilities={1: 1.0}, jitter=3):
        assert (batch["mask"].flatten(1).amax(1) == 1).all()


@pytest.mark.parametrize("corner", [(0, 0, 0), (18, 20, 16)])
def test_a_lesion_in_the_corner_is_hit(corner):
    """torchio's own samplers clear half a patch along the border, and find nothing here."""
    case = make_case(0, lesion=corner)
    for batch in epochs(cases=[case, case], jitter=2):
        assert (batch["mask"].flatten(1).sum(1) == 8).all()


def test_jitter_moves_lesions_off_the_middle():
    def spread(jitter):
        centres = [
            (patch[0].nonzero().float().mean(0) - 4).abs().max()
            for batch in epochs(3, jitter=jitter)
            for patch in batch["mask"]
        ]
        return max(centres)

    assert spread(0) <= 1
    assert spread(3) >= 2


def test_labels_come_in_their_shares():
    case = make_case(0, shape=(30, 30, 30))
    case["mask"][0, 20:22, 20:22, 20:22] = 2
    sampler = LesionSampler((5, 5, 5), label_probabilities={0: 0.2, 1: 0.2, 2: 0.6})
    subject = tio.Subject(mask=tio.LabelMap(tensor=case["mask"]), random=np.random.default_rng(0))
    centres = sampler.starts(subject, 2000) + 2
    labels = case["mask"][0][tuple(centres.T)]
    shares = [(labels == value).float().mean().item() for value in (0, 1, 2)]
    assert shares == pytest.approx([0.2, 0.2, 0.6], abs=0.04)


def test_weights_draw_voxels_by_their_weight():
    case = make_case(0)
    case["weights"] = torch.zeros(1, *SHAPE)
    case["weights"][0, 10, 10, 10] = 3
    case["weights"][0, 4, 4, 12] = 1
    batches = epochs(cases=[case], sampling="weights", samples_per_case=200)
    starts = torch.cat([batch["location"][:, :3] for batch in batches]).tolist()
    assert {tuple(s) for s in starts} == {(6, 6, 6), (0, 0, 8)}
    assert starts.count([6, 6, 6]) / len(starts) == pytest.approx(0.75, abs=0.1)
    with pytest.raises(DataListError, match="case_1 has no 'weights' volume"):
        epochs(cases=[make_case(1)], sampling="weights", samples_per_case=4)


def test_uniform_patches_reach_both_ends_of_every_axis():
    batches = epochs(cases=[make_case(0)], sampling="uniform", samples_per_case=400)
    starts = torch.cat([batch["location"][:, :3] for batch in batches])
    assert starts.amin(0).tolist() == [0, 0, 0]
    assert starts.amax(0).tolist() == [12, 14, 10]


def test_the_sampler_works_in_plain_torchio():
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=CASES[0]["image"].clone()),
        mask=tio.LabelMap(tensor=CASES[0]["mask"]),
    )
    queue = tio.Queue(tio.SubjectsDataset([subject, subject]), 4, 2, LesionSampler((8, 8, 8)))
    patches = [queue[0] for _ in range(4)]
    assert all(patch["mask"].data.any() for patch in patches)
    assert patches[0]["image"].shape == (1, 8, 8, 8)


def test_a_small_volume_is_filled_up_and_says_so():
    case = make_case(0, shape=(6, 22, 18), lesion=(2, 4, 4))
    case["image"] = case["image"] + 1
    (batch,) = epochs(cases=[case], samples_per_case=4, fill=-1.0)
    assert batch["image"].shape == (4, 1, 8, 8, 8)
    assert batch["location"][:, 0].tolist() == [-1] * 4
    assert (batch["image"][:, :, [0, 7]] == -1).all()
    assert torch.equal(batch["valid"] == 1, batch["image"] > 0)
    assert (batch["mask"].flatten(1).sum(1) == 8).all()


def test_a_small_volume_can_be_refused():
    case = make_case(3, shape=(6, 22, 18), lesion=(2, 4, 4))
    with pytest.raises(GridError, match=r"case_3 has \(6, 22, 18\) voxels, the patch \(8, 8, 8\)"):
        epochs(cases=[case], samples_per_case=4, pad=False)


@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("shares", [None, {0: 0.5, 1: 0.5}])
def test_an_empty_mask_is_named(prefetch, shares):
    """Through the thread too: MONAI's buffer would swallow the error and end the epoch."""
    cases = [*CASES, {**make_case(8), "mask": torch.zeros(1, *SHAPE, dtype=torch.uint8)}]
    with pytest.raises(LabelError, match=r"case case_8 has an empty mask.*allow_empty"):
        epochs(cases=cases, prefetch=prefetch, label_probabilities=shares)
    assert len(epochs(cases=cases, prefetch=prefetch, allow_empty=True)) == 6


@pytest.mark.integration
def test_an_error_in_a_worker_reaches_the_caller():
    cases = [{**make_case(8), "mask": torch.zeros(1, *SHAPE, dtype=torch.uint8)}] * 2
    with pytest.raises(LabelError, match="case_8 has an empty mask"):
        epochs(cases=cases, num_workers=1)


def test_a_mask_alone_gives_zeros_that_are_nowhere_valid():
    alone = {"mask": CASES[0]["mask"], "case": "alone"}
    batches = epochs(cases=[alone, *[make_case(n, channels=2) for n in range(1, 4)]])
    seen = 0
    for batch in batches:
        assert batch["image"].shape[1] == 2
        for name, image, valid in zip(batch["case"], batch["image"], batch["valid"], strict=True):
            assert valid.unique().tolist() == [0.0 if name == "alone" else 1.0]
            assert image.any() == (name != "alone")
            seen += name == "alone"
    assert seen == 3


def test_processes_share_the_cases():
    def names(rank):
        return [n for b in epochs(rank=rank, world_size=2, batch_size=3) for n in b["case"]]

    first, second = names(0), names(1)
    assert len(first) == len(second) == 12
    assert set(first) | set(second) == {f"case_{n}" for n in range(7)}
    assert len(set(first) & set(second)) == 1  # 7 cases for 2: one is seen by both


def test_a_loader_that_is_dropped_takes_its_thread_along():
    before = set(threading.enumerate())
    loader = patch_loader(CASES, **SETTINGS)
    next(iter(loader))
    # Those of earlier tests may end meanwhile, so threads are told apart and not counted.
    (begun,) = set(threading.enumerate()) - before
    del loader
    gc.collect()
    assert not begun.is_alive()


def test_one_thread_serves_all_epochs():
    loader = patch_loader(CASES, **SETTINGS)
    list(loader)
    stream = loader._stream
    list(loader)
    assert loader._stream is stream
    loader.close()
    assert len(list(loader)) == 5


def test_a_case_in_memory_is_loaded_once():
    loaded = []
    epochs(3, prepare=lambda case: loaded.append(case["case"]) or case)
    assert sorted(loaded) == [f"case_{n}" for n in range(7)]


@pytest.fixture
def files(tmp_path):
    def write(name, array, shift=0.0):
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        affine[0, 3] = shift
        nib.save(nib.Nifti1Image(array, affine), tmp_path / name)
        return tmp_path / name

    return write


def test_a_case_of_files_is_read_and_normalised(files):
    pet = np.full(SHAPE, 50, np.int16)
    mask = CASES[0]["mask"][0].numpy()
    case = Case(
        image=(files("a_pet.nii.gz", pet), files("a_ct.nii.gz", pet * 6)),
        label=files("a_mask.nii.gz", mask),
        subject="a",
        split="training",
    )
    window = IntensityChannels((WindowIntensity(0, 100), WindowIntensity(0, 300)))
    loaded = load_case(case, window, values=(1,))
    assert loaded["image"].shape == (2, *SHAPE)
    assert loaded["image"][0].unique().tolist() == [0.0]
    assert loaded["image"][1].unique().tolist() == [1.0]
    assert torch.equal(loaded["mask"][0], CASES[0]["mask"][0])
    with pytest.raises(LabelError, match="holds 1"):
        load_case(case, values=(2,))


def test_channels_and_masks_off_their_grid_are_named(files):
    image = np.ones(SHAPE, np.float32)
    mask = CASES[0]["mask"][0].numpy()
    near, far = files("b_pet.nii.gz", image), files("b_ct.nii.gz", image, shift=3.0)
    label = files("b_mask.nii.gz", mask, shift=3.0)
    with pytest.raises(GridMismatchError, match=r"b_ct\.nii"):
        load_case({"image": [str(near), str(far)], "label": str(label)})
    with pytest.raises(GridMismatchError, match="label of b_mask lies 3"):
        load_case({"image": str(near), "label": str(label)})
    with pytest.raises(GridError, match="case c: image has"):
        load_case({"image": torch.ones(1, 4, 4, 4), "mask": torch.ones(1, 4, 4, 5), "case": "c"})


def test_a_case_without_label_is_named(files):
    with pytest.raises(LabelError, match="case x has no label"):
        load_case({"image": torch.ones(1, 4, 4, 4), "case": "x"})


def test_cases_of_other_channels_are_named():
    with pytest.raises(DataListError, match="case_1 has 1 channels, others have 2"):
        epochs(cases=[make_case(1), make_case(1)], channels=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of 2"),
        ({"patch_shape": (8, 8)}, "patch_shape"),
        ({"sampling": "grid"}, "sampling is 'grid'"),
        ({"label_probabilities": {1: 0}}, "label_probabilities"),
        ({"jitter": 4}, "jitter is 4 voxels"),
        ({"batch_size": 22}, "make no full batch of 22"),
    ],
)
def test_impossible_settings_are_named(changes, message):
    with pytest.raises(SettingError, match=message):
        patch_loader(CASES, **{**SETTINGS, **changes})


def test_no_case_is_an_error():
    with pytest.raises(DataListError, match="no case"):
        patch_loader([], **SETTINGS)


def test_an_ignite_engine_sees_the_epochs_of_the_loader(expected):
    seen = []
    engine = Engine(lambda engine, batch: seen.append(batch))
    loader = patch_loader(CASES, **SETTINGS, max_length=12)
    engine.run(loader, max_epochs=2)
    assert_same(seen, expected)
    loader.close()
