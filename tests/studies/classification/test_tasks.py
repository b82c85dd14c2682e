"""Tasks: subjects stay in one split, numbers are nested and balanced, patches are matched."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medvae3d.data.datalists import DataList, read_datalist
from medvae3d.data.transforms import SafeSpacingd
from medvae3d.data.volumes import write_volume
from medvae3d.errors import (
    DataListError,
    IntensityError,
    SettingError,
    UnreadableFileError,
    causes,
)
from medvae3d.geometry import Grid
from medvae3d.studies.classification.patches import PatchForm, candidates, matched
from medvae3d.studies.classification.sources import TASKS, TableForm, sample_images, table_task
from medvae3d.studies.classification.tasks import Images, simplest_rule, task_of

FORM = PatchForm(("free", "lesion"), (), (1.0, 1.0, 1.0), shape=(6, 6, 6), pairs=3, step=1)


def test_a_subject_in_two_splits_is_refused():
    x = torch.zeros(1, 2, 2, 2)
    with pytest.raises(DataListError, match="subject a is in training and in testing"):
        task_of("t", [(x, 0, "a", "training"), (x, 1, "a", "testing")], ("no", "yes"))


def test_each_number_of_cases_holds_all_smaller_ones_and_as_many_of_either_class(make_balls):
    task = make_balls(training=6, unseen=2, cases=2)
    few, many = task.training(4, seed=3), task.training(9, seed=3)
    assert few.y.sum() == 4 and len(few) == 8
    for value in (0, 1):
        assert torch.equal(many.of_class(value)[:4], few.of_class(value))
    # As many subjects as there are: six cases of a class are of six subjects.
    order = task.training_order(3)
    assert len({task.subjects[row] for row in order[0][:6]}) == 6
    # Both classes take the same subjects.
    subjects = [[task.subjects[row] for row in rows] for rows in order]
    assert subjects[0] == subjects[1]


def test_more_cases_than_there_are_and_missing_classes_are_refused(balls):
    with pytest.raises(SettingError, match="asks for 9 training cases.*has 8"):
        balls.training(9, 0)
    parts = [(torch.zeros(1, 2, 2, 2), 0, str(i), "testing") for i in range(3)]
    one = task_of("t", parts, ("no", "yes"))
    with pytest.raises(DataListError, match="class yes has 0 cases under testing"):
        one.require("testing")


def test_the_simplest_rule_sees_brightness_and_nothing_else(make_balls):
    bright = make_balls(training=10)
    unseen = bright.part("testing")
    assert roc_auc_score(unseen.y, simplest_rule(bright.part("training"), unseen)) > 0.95
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 1, 4, 4, 4, generator=generator)
    x = (x - x.mean((2, 3, 4), keepdim=True)) / x.std((2, 3, 4), keepdim=True)
    y = (x[:, 0, 0, 0, 0] > x[:, 0, 0, 0, 1]).long()
    auc = roc_auc_score(y[30:], simplest_rule(Images(x[:30], y[:30]), Images(x[30:], y[30:])))
    assert 0.2 < auc < 0.8


def test_pairs_have_a_lesion_and_none_and_alike_places():
    body = np.zeros((24, 12, 30), bool)
    body[4:20] = True
    lesion = np.zeros_like(body)
    lesion[6:10, 2:8, 20:24] = True
    found = candidates(lesion, body, FORM)
    pairs = matched(found, FORM, seed=0)
    assert 1 <= len(pairs) <= 3
    shift = []
    for shown, free in pairs:
        boxes = [tuple(slice(s, s + 6) for s in start) for start in (shown, free)]
        assert lesion[boxes[0]].mean() >= 0.1
        assert not lesion[boxes[1]].any()
        assert min(body[box].mean() for box in boxes) >= 0.5
        shift.append(abs(int(shown[2]) - int(free[2])))
    # There is room beside the lesion at its own height, and none has to be taken far away.
    assert max(shift) <= 6
    anywhere = np.abs(found.starts[found.lesion == 0][:, 2] - pairs[0, 0, 2]).mean()
    assert np.mean(shift) < 0.6 * anywhere
    np.testing.assert_array_equal(matched(found, FORM, seed=0), pairs)


def test_shares_of_patches_are_those_counted_voxel_by_voxel():
    rng = np.random.default_rng(0)
    lesion = rng.random((9, 8, 10)) > 0.7
    found = candidates(lesion, np.ones_like(lesion), FORM)
    for start, share in zip(found.starts[::7], found.lesion[::7], strict=True):
        box = tuple(slice(s, s + 6) for s in start)
        assert share == pytest.approx(lesion[box].mean())


def write_table(folder, classes, key="class"):
    rng = np.random.default_rng(0)
    grid = Grid.centred((8, 8, 8), (2.0, 2.0, 2.0))
    lists = {"training": [], "testing": []}
    for index, value in enumerate(classes):
        image = rng.uniform(1, 2, grid.shape).astype(np.float32) + (value == "AD")
        write_volume(folder / f"s{index}.nii.gz", image, grid)
        split = "training" if index % 2 else "testing"
        lists[split].append({"image": f"s{index}.nii.gz", key: value, "subject": f"s{index}"})
    path = folder / "cases.json"
    path.write_text(json.dumps(lists), encoding="utf-8")
    return read_datalist(path)


def test_a_data_list_with_classes_is_a_task(tmp_path):
    datalist = write_table(tmp_path, ["CN", "CN", "AD", "AD", "MCI", "MCI"], key="diagnosis")
    form = TableForm("diagnosis", shape=(8, 8, 8), classes=("CN", "AD"))
    task = table_task(datalist, form)
    assert task.classes == ("CN", "AD")
    assert task.counts("training") == task.counts("testing") == {"CN": 1, "AD": 1}
    assert task.images.x.shape == (4, 1, 8, 8, 8)
    assert float(task.images.x.min()) >= -1
    with pytest.raises(DataListError, match="AD, CN, MCI.*--classes"):
        table_task(datalist, TableForm("diagnosis", shape=(8, 8, 8)))
    with pytest.raises(DataListError, match="no class under 'class'"):
        table_task(datalist, TableForm(shape=(8, 8, 8)))
    first, second, *others = datalist.cases
    odd = replace(datalist, cases=(first, replace(second, image=second.image * 2), *others))
    with pytest.raises(DataListError, match="has 2 files of images, .* has 1"):
        table_task(odd, form)


def test_an_image_without_contrast_or_of_several_channels_is_named(tmp_path):
    datalist = write_table(tmp_path, ["AD", "CN", "CN", "AD"])
    form, grid = TableForm(shape=(8, 8, 8)), Grid.centred((8, 8, 8), (2.0, 2.0, 2.0))
    write_volume(tmp_path / "s2.nii.gz", np.full(grid.shape, 7, np.int16), grid)
    with pytest.raises(Exception) as caught:
        table_task(datalist, form)
    said = next(each for each in causes(caught.value) if isinstance(each, IntensityError))
    assert f"{tmp_path / 's2.nii.gz'}: percentiles" in str(said)
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8, 2)), grid.affine), tmp_path / "s1.nii.gz")
    with pytest.raises(DataListError, match=r"s1\.nii\.gz of case s1 holds 2 channels"):
        table_task(datalist, form)


def test_memory_that_ends_while_a_case_is_read_is_told_of_it(tmp_path, monkeypatch):
    datalist = write_table(tmp_path, ["AD", "CN", "CN", "AD"])

    def full(self, data, **options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(SafeSpacingd, "__call__", full)
    with pytest.raises(UnreadableFileError, match=r"s1\.nii\.gz\) does not fit into the memory"):
        table_task(datalist, TableForm(shape=(8, 8, 8)))


def test_samples_are_read_by_the_rule_of_the_task(tmp_path):
    datalist = write_table(tmp_path, ["AD", "CN", "CN", "AD"])
    form = TableForm(shape=(8, 8, 8))
    task = table_task(datalist, form)
    (tmp_path / "made").mkdir()
    made = sample_images(task, write_table(tmp_path / "made", ["CN", "AD", "MCI"]), form, 0)
    assert sorted(made.y.tolist()) == [0, 1]
    (tmp_path / "one").mkdir()
    with pytest.raises(DataListError, match="AD, CN|CN"):
        sample_images(task, write_table(tmp_path / "one", ["CN", "CN"]), form, 0)


def test_a_data_list_without_images_gives_no_task():
    for name, kind in TASKS.items():
        if kind.dataset is not None:
            with pytest.raises(DataListError):
                kind.make(DataList((), None), 0)
        else:
            assert name == "scanpath"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "split"), [("tumour_patch", "testing")])
def test_tasks_on_real_scans_are_not_told_by_mean_and_deviation(shared_data, name, split):
    kind = TASKS[name]
    task = kind.make(read_datalist(shared_data / kind.dataset / "datalist.json"), 0)
    unseen = task.part(split)
    assert task.counts("training") == {"tumour-free": 128, "tumour": 128}
    auc = roc_auc_score(unseen.y, simplest_rule(task.part("training"), unseen))
    assert auc < 0.8
