"""Data lists with null for a channel: read, checked, prepared, and refused where all are needed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from medvae3d.apps.data_export import export
from medvae3d.apps.data_for_training import require_trainable
from medvae3d.apps.datasets import list_as_dataset
from medvae3d.apps.evaluate_lists import choose
from medvae3d.apps.study_inputs import read_real_cases
from medvae3d.data.aligning import align
from medvae3d.data.datalists import DataList, as_monai, read_datalist, write_datalist
from medvae3d.data.forms import read_form
from medvae3d.data.importing.writing import import_dataset
from medvae3d.data.integrity import check
from medvae3d.data.patches import patch_loader
from medvae3d.data.preparation import case_transforms, imaged, read_items
from medvae3d.data.transforms import PARAMS_KEY, missing_channels
from medvae3d.errors import DataListError, IntensityError
from medvae3d.evaluation.cases import whole_cases

MR = {"name": "MR", "intensity": {"kind": "percentile", "low": 0.5, "high": 99.5}}
LABELS = {"background": 0, "lesion": 1}


def lacking(listed: DataList, numbers: dict[int, int]) -> list:
    """The cases of a list, some without one of their two channels."""
    cases = []
    for index, case in enumerate(listed):
        lost = numbers.get(index)
        if lost is not None:
            case = replace(case, image=(case.image[1 - lost],), missing=(lost,))
        cases.append(case)
    return cases


@pytest.fixture(scope="module")
def gaps(phantom_list, tmp_path_factory) -> Path:
    """The phantoms; the first lacks its second channel, the third its first."""
    listed = read_datalist(phantom_list)
    path = tmp_path_factory.mktemp("gaps") / "datalist.json"
    write_datalist(path, lacking(listed, {0: 1, 2: 0}), listed.info)
    return path


def test_null_stands_for_a_channel_in_the_list_and_survives_it(gaps, tmp_path):
    content = json.loads(gaps.read_text())
    assert [file is None for file in content["training"][0]["image"]] == [False, True]
    listed = read_datalist(gaps)
    first, second, third = listed.cases[:3]
    assert (first.missing, second.missing, third.missing) == ((1,), (), (0,))
    assert first.channels == (first.image[0], None)
    assert third.channels == (None, third.image[0])
    assert third.name == third.subject == "phantom_0002"
    write_datalist(tmp_path / "again.json", listed.cases, listed.info)
    again = read_datalist(tmp_path / "again.json")
    assert [case.missing for case in again] == [case.missing for case in listed]
    assert [case.image[0].resolve() for case in again] == [c.image[0].resolve() for c in listed]


def test_a_case_that_lacks_all_channels_is_refused(tmp_path):
    (tmp_path / "l.json").write_text('{"training": [{"image": [null, null], "label": "m.nii"}]}')
    with pytest.raises(
        DataListError, match=r"entry 0 of training has null for each .* 'image' out"
    ):
        read_datalist(tmp_path / "l.json", check_files=False)


def test_nothing_but_null_is_in_the_place_of_a_file(tmp_path):
    for wrong in ("", 0, False):
        entry = {"image": ["a.nii", wrong]}
        (tmp_path / "l.json").write_text(json.dumps({"training": [entry]}))
        with pytest.raises(DataListError, match="with null for a channel that the case lacks"):
            read_datalist(tmp_path / "l.json", check_files=False)


def test_a_check_finds_nothing_wrong_with_null_and_counts_it(gaps):
    report = check(read_datalist(gaps))
    assert not report.findings and not report.unreadable
    assert [item is None for item in report.cases[2].channels] == [True, False]
    assert report.summary["splits"]["training"]["cases_without_channel"] == {0: 1, 1: 1}
    assert report.summary["splits"]["training"]["channels"] == [2]


def test_a_file_of_several_channels_beside_null_is_a_finding(gaps, tmp_path):
    import nibabel as nib

    case = read_datalist(gaps).cases[0]
    volume = nib.load(case.image[0])
    both = np.stack([np.asarray(volume.dataobj)] * 2, -1).astype(np.float32)
    nib.save(nib.Nifti1Image(both, volume.affine), tmp_path / "both.nii.gz")
    report = check(DataList((replace(case, image=(tmp_path / "both.nii.gz",)),), tmp_path))
    assert "channels" in {finding.kind for finding in report.findings}
    assert "one file a channel" in " ".join(finding.text for finding in report.findings)


def test_the_form_is_that_of_the_cases_that_have_the_channel(gaps, phantom_list):
    forms = []
    for path in (phantom_list, gaps):
        listed = read_datalist(path)
        forms.append(read_form(listed, check(listed)))
    assert forms[0].settings == forms[1].settings
    bare = replace(read_datalist(gaps), info={})
    named = read_form(bare, check(bare))
    assert [channel["name"] for channel in named.channels] == ["FLAIR", "T1"]


def prepared(path: Path, **options) -> list:
    steps = case_transforms([MR, MR], (6, 6, 6), (40, 32, 40), LABELS, **options)
    return [Compose(steps)(item) for item in read_items(str(path), "training")[:3]]


def test_what_there_is_is_prepared_as_if_nothing_were_missing(gaps, phantom_list):
    whole, some = prepared(phantom_list), prepared(gaps)
    for row, (one, other) in enumerate(zip(whole, some, strict=True)):
        lost = {0: 1, 2: 0}.get(row)
        seen = one["valid"].as_tensor()
        assert 0 < seen.mean() < 1  # padded
        kept = [channel for channel in (0, 1) if channel != lost]
        assert torch.equal(one["image"][kept].as_tensor(), other["image"][kept].as_tensor())
        assert torch.equal(one["label"].as_tensor(), other["label"].as_tensor())
        if lost is None:
            assert torch.equal(seen, other["valid"].as_tensor())
            continue
        assert (other["image"][lost] == -1).all() and not other["valid"][lost].any()
        assert torch.equal(other["valid"][kept].as_tensor(), seen)
        assert missing_channels(other["image"]) == (lost,)
        assert other["image"].meta[PARAMS_KEY].isnan().all(1).tolist() == [lost == 0, lost == 1]


def test_a_case_without_any_channel_that_is_read_is_refused(gaps):
    steps = Compose(case_transforms([MR], (6, 6, 6), (32, 32, 32), LABELS))
    items = read_items(str(gaps), "training")
    assert "valid" in steps(items[0])
    with pytest.raises(RuntimeError, match="FirstChannelsd") as caught:
        steps(items[2])
    assert isinstance(caught.value.__cause__, IntensityError)
    assert "of a channel that the model does not read" in str(caught.value.__cause__)


def settings_of(channels: int = 2) -> dict:
    return {"labels": LABELS, "channels": [MR] * channels, "train": {}}


def test_training_takes_cases_that_lack_a_channel(gaps):
    assert require_trainable(read_datalist(gaps), settings_of()) == []


def test_a_channel_that_no_case_has_is_refused(phantom_list, gaps):
    listed = read_datalist(phantom_list)
    every = lacking(listed, dict.fromkeys(range(len(listed)), 1))
    listed = replace(listed, cases=tuple(every))
    with pytest.raises(DataListError, match=r"channel 1 \(MR\) is null in every training case"):
        require_trainable(listed, settings_of())
    with pytest.raises(DataListError, match="channel 1 .* is null in every training case"):
        read_form(listed, check(listed))
    with pytest.raises(DataListError, match="phantom_0002 has none of the 1 channels"):
        require_trainable(read_datalist(gaps), settings_of(1))


def test_training_on_patches_takes_them_too(gaps):
    patches = {"_target_": "medvae3d.data.patches.patch_loader"}
    settings = {**settings_of(), "train": {"patches": patches}}
    assert require_trainable(read_datalist(gaps), settings) == []
    cases = imaged(prepared(gaps))
    loader = patch_loader(cases, patch_shape=(8, 8, 8), batch_size=3, seed=1, samples_per_case=1)
    (batch,) = loader
    loader.close()
    seen = batch["valid"].flatten(2).amax(2)
    found = dict(zip(batch["case"], seen.tolist(), strict=True))
    assert found == {"phantom_0000": [1, 0], "phantom_0001": [1, 1], "phantom_0002": [0, 1]}


def test_null_survives_an_import_and_an_alignment(gaps, tmp_path):
    imported = import_dataset(gaps, tmp_path / "imported", format="monai")
    aligned = align(read_datalist(gaps), tmp_path / "aligned")
    assert aligned
    for path in (imported, tmp_path / "aligned" / "datalist.json"):
        listed = read_datalist(path)
        assert [case.missing for case in listed][:3] == [(1,), (), (0,)]
        assert not check(listed).findings
    assert read_datalist(imported).cases[2].image[0].name == "phantom_0002_t1.nii.gz"


@pytest.mark.parametrize("name", ["report", "study", "export", "torchio", "monai"])
def test_what_needs_every_channel_names_the_case_and_the_way_out(name, gaps, tmp_path):
    listed = read_datalist(gaps)
    asked = {
        "report": lambda: choose(listed, "all"),
        "study": lambda: read_real_cases(gaps, "validation", 0),
        "export": lambda: export(listed, tmp_path / "out", "nnunet"),
        "torchio": lambda: list_as_dataset(listed, kind="torchio"),
        "monai": lambda: as_monai(listed),
    }
    with pytest.raises(DataListError, match=r"phantom_0000, whose channel 1 .* `medvae3d impute`"):
        asked[name]()
    assert not (tmp_path / "out").exists()


def test_prepared_cases_are_refused_as_well(gaps):
    with pytest.raises(DataListError, match="2 of 3 cases lack a channel, such as phantom_0000"):
        whole_cases(prepared(gaps))
