"""Claims about how any lists are brought to one grid and one scale."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from medvae3d.apps import evaluate_cases
from medvae3d.apps.evaluate_cases import read_sets
from medvae3d.apps.evaluate_lists import (
    choose,
    common_labels,
    declared_labels,
    first_channels,
    open_list,
)
from medvae3d.data.datalists import Case, write_datalist
from medvae3d.data.volumes import write_volume
from medvae3d.errors import DataListError, LabelError, SettingError, UnreadableFileError
from medvae3d.geometry import Grid

SHAPE, SPACING = (10, 12, 8), (2.0, 2.0, 3.0)


def write_list(folder, arrays, masks=None, *, info=None, spacing=SPACING, axcodes="RAS"):
    """A data list of images, each (C, I, J, K), stored with the axes given."""
    cases = []
    for number, array in enumerate(arrays):
        name = f"case_{number:03d}"
        mask = np.zeros(array.shape[1:], np.uint8) if masks is None else masks[number]
        grid = Grid.centred(array.shape[1:], spacing)
        files = []
        for channel, voxels in enumerate((*array, mask)):
            path = folder / f"{name}_{channel:04d}.nii.gz"
            turned = nib.Nifti1Image(voxels, grid.affine)
            to = nib.orientations.axcodes2ornt(axcodes)
            turned = turned.as_reoriented(
                nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), to)
            )
            write_volume(path, np.asarray(turned.dataobj), Grid.from_image(turned))
            files.append(path)
        label = None if masks is None else files[-1]
        cases.append(Case(tuple(files[:-1]), label, name, "training", {"case": name}))
    write_datalist(folder / "list.json", cases, info)
    return folder / "list.json"


def volumes(count, seed, channels=1):
    rng = np.random.default_rng(seed)
    return [rng.uniform(0, 100, (channels, *SHAPE)).astype(np.float32) for _ in range(count)]


def boxes(count, value=1):
    masks = [np.zeros(SHAPE, np.uint8) for _ in range(count)]
    for number, mask in enumerate(masks):
        mask[2 + number % 3 : 5, 3:6, 2:5] = value
    return masks


def sets(**paths):
    return {name: choose(open_list(path), "all") for name, path in paths.items()}


def test_another_orientation_of_the_file_gives_the_same_case(tmp_path):
    arrays, masks = volumes(3, 0, 2), boxes(3)
    for name, axes in (("real", "RAS"), ("made", "PSL")):
        (tmp_path / name).mkdir()
        write_list(tmp_path / name, arrays, masks, axcodes=axes)
    read = read_sets(sets(real=tmp_path / "real/list.json", synthetic=tmp_path / "made/list.json"))
    real, made = read.sets["real"], read.sets["synthetic"]
    assert torch.allclose(real.image, made.image, atol=1e-4)
    assert torch.equal(real.mask, made.mask)
    assert torch.equal(real.mask[:, 0], torch.from_numpy(np.stack(masks)).float())
    assert read.frame.spacing_mm == SPACING and read.frame.shape == SHAPE


def test_the_scale_is_that_of_the_real_cases(tmp_path):
    arrays = volumes(4, 1)
    for name, gain in (("real", 1.0), ("made", 0.5)):
        (tmp_path / name).mkdir()
        write_list(tmp_path / name, [gain * array for array in arrays], boxes(4))
    read = read_sets(sets(real=tmp_path / "real/list.json", synthetic=tmp_path / "made/list.json"))
    low, high = (read.frame.intensities[0][key] for key in ("low", "high"))
    wanted = np.percentile(np.stack(arrays), (0.1, 99.9))
    assert np.allclose((low, high), wanted, atol=0.3)
    middle = (read.sets["synthetic"].image + 1) / 2 * (high - low) + low
    assert float(middle.mean()) == pytest.approx(0.5 * np.mean(arrays), rel=0.02)
    own = read_sets(
        sets(real=tmp_path / "real/list.json", synthetic=tmp_path / "made/list.json"),
        intensity="percentile",
    )
    pair = (own.sets["real"].image, own.sets["synthetic"].image)
    assert torch.allclose(*pair, atol=1e-3), "by its own percentiles a gain is gone"


def test_another_voxel_size_and_shape_come_to_the_grid_of_the_real_cases(tmp_path):
    for name in ("real", "made"):
        (tmp_path / name).mkdir()
    write_list(tmp_path / "real", volumes(3, 0), boxes(3))
    fine = [np.repeat(x, 2, axis=1)[:, :, :10] for x in volumes(2, 1)]
    fine_masks = [np.repeat(m, 2, axis=0)[:, :10] for m in boxes(2)]
    write_list(tmp_path / "made", fine, fine_masks, spacing=(1.0, 2.0, 3.0))
    read = read_sets(sets(real=tmp_path / "real/list.json", synthetic=tmp_path / "made/list.json"))
    made = read.sets["synthetic"]
    assert made.image.shape[2:] == SHAPE
    assert float(made.valid[0].sum()) == 10 * 10 * 8, "what was padded was not observed"
    assert float(made.image[0][made.valid[0] == 0].max()) == -1
    for words in ("2 of 2 synthetic cases were resampled", "2 of 2 synthetic cases were smaller"):
        assert any(words in each for each in read.warnings)


def test_lists_with_other_channels_are_refused_with_both_named(tmp_path):
    for name, channels in (("real", 2), ("made", 1)):
        (tmp_path / name).mkdir()
        write_list(tmp_path / name, volumes(2, 0, channels), boxes(2))
    lists = sets(real=tmp_path / "real/list.json", synthetic=tmp_path / "made/list.json")
    with pytest.raises(DataListError, match=r"real/list.json has 2 channels.*made/list.json has 1"):
        read_sets(lists)


def test_the_first_channels_of_a_list_can_be_taken(tmp_path):
    arrays = volumes(2, 0, 2)
    for name, channels in (("real", 2), ("made", 1)):
        (tmp_path / name).mkdir()
        write_list(tmp_path / name, [array[:channels] for array in arrays], boxes(2))
    lists = sets(real=tmp_path / "real/list.json", synthetic=tmp_path / "made/list.json")
    one = {name: first_channels(each, 1) for name, each in lists.items()}
    read = read_sets(one)
    assert torch.equal(read.sets["real"].image, read.sets["synthetic"].image)
    assert any("only the first 1 channel files" in text for text in read.warnings)
    assert one["synthetic"] is lists["synthetic"]


def test_lists_with_other_labels_are_refused_unless_the_labels_are_named(tmp_path):
    for name, value in (("real", 1), ("made", 3)):
        (tmp_path / name).mkdir()
        write_list(tmp_path / name, volumes(2, 0), boxes(2, value))
    lists = sets(real=tmp_path / "real/list.json", synthetic=tmp_path / "made/list.json")
    with pytest.raises(DataListError, match=r"real/list.json has the labels 1, .*has 3"):
        read_sets(lists)
    read = read_sets(lists, labels={"core": 1, "rim": 3})
    assert read.frame.labels == ("core", "rim")
    values = [read.sets[name].mask.unique().tolist() for name in ("real", "synthetic")]
    assert values == [[0, 1], [0, 2]], "labels are numbered in order"
    with pytest.raises(LabelError, match=r"values \[3\]; allowed are \[0, 1\]"):
        read_sets(lists, labels={"core": 1})


@pytest.mark.parametrize(
    "labels", [{"1": "lesion", "0": "air"}, {"air": 0, "lesion": 1}, {1: "lesion"}]
)
def test_labels_are_read_as_monai_and_as_nnunet_write_them(labels):
    assert declared_labels(labels) == {1: "lesion"}


def test_a_declared_label_that_no_case_has_is_no_difference(tmp_path):
    for name, value in (("real", 2), ("made", 1)):
        (tmp_path / name).mkdir()
        labels = {"labels": {"0": "air", "1": "core", "2": "rim"}}
        write_list(tmp_path / name, volumes(2, 0), boxes(2, value), info=labels)
    lists = sets(real=tmp_path / "real/list.json", synthetic=tmp_path / "made/list.json")
    assert common_labels(lists, {"real": {0, 2}, "synthetic": {0, 1}}) == (("core", "rim"), (1, 2))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = write_list(tmp_path, volumes(2, 0), boxes(2))
    broken = tmp_path / "case_001_0000.nii.gz"
    whole = broken.read_bytes()
    for content in (whole[:40], whole[: len(whole) // 2], b"nothing"):
        broken.write_bytes(content)
        with pytest.raises(UnreadableFileError, match="case_001_0000"):
            read_sets(sets(real=path, synthetic=path))


def test_too_much_for_the_memory_is_refused_with_three_ways_out(tmp_path, monkeypatch):
    path = write_list(tmp_path, volumes(4, 0), boxes(4))
    monkeypatch.setattr(evaluate_cases, "available_bytes", lambda: 40_000.0)
    with pytest.raises(SettingError, match=r"--most 2.*--spacing .*--shape \d+,\d+,\d+"):
        read_sets(sets(real=path, synthetic=path))


def test_a_raw_data_set_of_nnunet_is_a_list(tmp_path):
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (tmp_path / part).mkdir()
    grid = Grid.centred(SHAPE, SPACING)
    for name in ("la_01", "la_02"):
        for channel in range(2):
            path = tmp_path / "imagesTr" / f"{name}_{channel:04d}.nii.gz"
            write_volume(path, volumes(1, 0)[0][0], grid)
        write_volume(tmp_path / "labelsTr" / f"{name}.nii.gz", boxes(1)[0], grid)
    content = {
        "channel_names": {"0": "PET", "1": "CT"}, "labels": {"background": 0, "tumour": 1},
        "numTraining": 2, "file_ending": ".nii.gz",
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    chosen = choose(open_list(tmp_path), "training")
    assert [case.name for case in chosen.cases] == ["la_01", "la_02"]
    assert [len(case.image) for case in chosen.cases] == [2, 2]
    assert chosen.channels == ("PET", "CT") and chosen.labels == {1: "tumour"}
    (tmp_path / "imagesTr" / "la_01_0000.nii.gz").rename(tmp_path / "gone.nii.gz")
    odd = {"real": choose(open_list(tmp_path), "training")}
    with pytest.raises(DataListError, match="la_01 has 1 channels, la_02 has 2"):
        read_sets(odd)


def test_cases_of_one_name_can_be_told_apart(tmp_path):
    path = write_list(tmp_path, volumes(2, 0), boxes(2))
    path.write_text(path.read_text().replace('case_001"', 'case_000"'))
    read = read_sets(sets(real=path, synthetic=path))
    assert read.sets["real"].names == ("case_000", "case_000 (2)")
