"""Claims about how any lists are brought to one grid and one scale."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from small_lists import SHAPE, SPACING, boxes, volumes, write_list

from medvae3d.apps import evaluate_cases, evaluate_reading
from medvae3d.apps.evaluate_cases import read_sets
from medvae3d.apps.evaluate_lists import (
    choose,
    common_labels,
    declared_labels,
    first_channels,
    open_list,
)
from medvae3d.data.volumes import write_volume
from medvae3d.errors import SettingError, UnreadableFileError
from medvae3d.geometry import Grid


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


def test_lists_with_other_channels_have_no_images_and_keep_their_masks(tmp_path):
    for name, channels in (("real", 2), ("made", 1)):
        (tmp_path / name).mkdir()
        write_list(tmp_path / name, volumes(2, 0, channels), boxes(2))
    lists = sets(real=tmp_path / "real/list.json", synthetic=tmp_path / "made/list.json")
    read = read_sets(lists)
    found = read.blocked["image"]
    assert re.search(r"real/list.json has 2 channels.*made/list.json has 1", found)
    assert found.rstrip(".") in " ".join(read.warnings)
    assert not read.sets["real"].valid.any() and float(read.sets["real"].image.max()) == -1
    assert read.sets["real"].mask.any() and set(read.blocked) == {"image"}


def test_a_reference_that_is_the_odd_one_is_left_out_and_the_others_stay(tmp_path):
    for name, channels, value in (("real", 1, 1), ("two", 2, 1), ("other", 1, 3)):
        (tmp_path / name).mkdir()
        write_list(tmp_path / name, volumes(2, 0, channels), boxes(2, value))
    real = tmp_path / "real/list.json"
    for name, words in (("two", "has 2; both need the same channels"), ("other", "has 3; both")):
        odd = sets(real=real, synthetic=real, reference=tmp_path / name / "list.json")
        read = read_sets(odd)
        assert set(read.sets) == set(read.lists) == set(read.hashes) == {"real", "synthetic"}
        assert not read.blocked
        assert any("the reference was left out" in w and words in w for w in read.warnings)


def test_a_case_whose_mask_lies_elsewhere_is_left_out_and_named(tmp_path):
    path = write_list(tmp_path, volumes(3, 0), boxes(3))
    grid = Grid.centred(SHAPE, (2.0, 2.0, 5.0))
    write_volume(tmp_path / "case_001_0001.nii.gz", boxes(1)[0], grid)
    read = read_sets(sets(real=path, synthetic=path))
    assert read.sets["real"].names == ("case_000", "case_002")
    assert [case.name for case in read.lists["real"].cases] == ["case_000", "case_002"]
    assert any("1 of 3 real cases left out" in w and "case_001" in w for w in read.warnings)
    for number in (0, 2):
        write_volume(tmp_path / f"case_00{number}_0001.nii.gz", boxes(1)[0], grid)
    read = read_sets(sets(real=path, synthetic=path))
    assert "no mask of" in read.blocked["mask"] and "image" not in read.blocked
    assert len(read.sets["real"]) == 3 and not read.sets["real"].mask.any()
    assert read.frame.labels == ()


def test_a_constant_image_is_not_judged_and_keeps_its_mask(tmp_path):
    arrays = volumes(3, 0)
    arrays[1][:] = 7
    path = write_list(tmp_path, arrays, boxes(3))
    read = read_sets(sets(real=path, synthetic=path), intensity="percentile")
    assert read.sets["real"].valid.flatten(1).any(1).tolist() == [True, False, True]
    assert read.sets["real"].mask.flatten(1).any(1).all()
    assert any(
        "the images of 1 of 3 real cases are not judged (case_001)" in w for w in read.warnings
    )
    for array in arrays:
        array[:] = 7
    write_list(tmp_path, arrays, boxes(3))
    read = read_sets(sets(real=path, synthetic=path))
    assert "is 7 in nearly all voxels" in read.blocked["image"]
    assert read.sets["real"].mask.any() and not read.sets["real"].valid.any()


def test_cases_of_very_different_gain_are_said_to_need_a_scale_of_their_own(tmp_path):
    arrays = [gain * array for gain, array in zip((1, 2, 8, 20), volumes(4, 0), strict=True)]
    path = write_list(tmp_path, arrays, boxes(4))
    lists = sets(real=path, synthetic=path)
    assert any("--intensity percentile" in text for text in read_sets(lists).warnings)
    assert not any("percentile" in w for w in read_sets(lists, intensity="percentile").warnings)


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


def test_lists_with_other_labels_have_no_masks_unless_the_labels_are_named(tmp_path):
    for name, value in (("real", 1), ("made", 3)):
        (tmp_path / name).mkdir()
        write_list(tmp_path / name, volumes(2, 0), boxes(2, value))
    lists = sets(real=tmp_path / "real/list.json", synthetic=tmp_path / "made/list.json")
    found = read_sets(lists)
    assert re.search(r"real/list.json has the labels 1, .*has 3", found.blocked["mask"])
    assert found.sets["real"].valid.all() and not found.sets["real"].mask.any()
    read = read_sets(lists, labels={"core": 1, "rim": 3})
    assert read.frame.labels == ("core", "rim")
    values = [read.sets[name].mask.unique().tolist() for name in ("real", "synthetic")]
    assert values == [[0, 1], [0, 2]], "labels are numbered in order"
    odd = read_sets(lists, labels={"core": 1})
    assert "values [3]; allowed are [0, 1]" in odd.blocked["mask"]


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
    with pytest.raises(SettingError, match=r"largest real case is .*case_000_0000\.nii\.gz"):
        read_sets(sets(real=path, synthetic=path))


def test_memory_that_ends_while_a_case_is_resampled_is_told_of_it(tmp_path, monkeypatch):
    path = write_list(tmp_path, volumes(4, 0), boxes(4))

    def full(self, data):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(evaluate_reading.SafeSpacingd, "__call__", full)
    with pytest.raises(UnreadableFileError, match=r"case_000_0000\.nii\.gz\) does not fit into"):
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
    odd["synthetic"] = odd["real"]
    assert "la_01 has 1 channels, la_02 has 2" in read_sets(odd).blocked["image"]


def test_a_folder_is_opened_by_the_list_in_it_and_one_without_is_told(tmp_path):
    path = write_list(tmp_path, volumes(2, 0), boxes(2))
    path = path.rename(path.with_name("datalist.json"))
    assert len(open_list(path.parent).cases) == 2
    path.unlink()
    with pytest.raises(UnreadableFileError, match="folder without dataset.json or datalist.json"):
        open_list(tmp_path)


def test_cases_of_one_name_can_be_told_apart(tmp_path):
    path = write_list(tmp_path, volumes(2, 0), boxes(2))
    path.write_text(path.read_text().replace('case_001"', 'case_000"'))
    read = read_sets(sets(real=path, synthetic=path))
    assert read.sets["real"].names == ("case_000", "case_000 (2)")
