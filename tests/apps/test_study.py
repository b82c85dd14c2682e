"""The command ``study segmentation`` on small bundles: what it does, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import tiny_bundles as tiny

from medvae3d.apps.study_inputs import read_real_cases, training_cases
from medvae3d.data.volumes import read_mask, read_volume, write_volume
from medvae3d.geometry import Grid
from medvae3d.studies.segmentation import SegmentationWork

ARMS = "real,classical,copies,copy_paste,carvemix,handmade"


@pytest.fixture(scope="module")
def names(cases):
    listed = json.loads(cases.read_text())
    return {
        split: [entry["subject"] for entry in listed[split]] for split in ("training", "validation")
    }


@pytest.fixture
def generator(bundles, tmp_path, names):
    """A bundle that says that it was trained on all training cases."""
    folder = tmp_path / "balls"
    shutil.copytree(bundles / "balls", folder)
    (folder / "run.json").write_text(json.dumps({"training_cases": names["training"]}))
    return folder


def study(cases, bundle, out, *words):
    # Volumes of tiny bundles have 16 voxels a side: the least that the segmenter takes.
    return (
        "study", "segmentation", "--datalist", cases, "--bundle", f"vae={bundle}", "--out", out,
        "--split", "validation", "--seeds", "1", "--steps", "2", *words,
    )  # fmt: skip


def test_an_image_that_is_the_same_everywhere_is_named(refused, cases, bundles, tmp_path):
    folder = shutil.copytree(cases.parent, tmp_path / "data")
    file = folder / "images" / "ball_001_ct.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine), file)
    words = study(folder / "datalist.json", bundles / "balls", tmp_path / "o", "--arms", "real")
    error = refused(*words, out=tmp_path / "o")
    assert f"{file} is 0 in every voxel; an image has at least two values" in error


def test_a_study_does_not_go_on_with_other_cases(cli, refused, cases, bundles, tmp_path):
    """A file of the same name and size, in which one voxel is another one."""
    folder, out = shutil.copytree(cases.parent, tmp_path / "data"), tmp_path / "study"
    words = study(folder / "datalist.json", bundles / "balls", out, "--arms", "real")
    assert cli(*words, "--n", "3").code == 0
    file = folder / "images" / "ball_001_ct.nii.gz"
    volume = read_volume(file)
    volume.array[0, 0, 0] += 1
    write_volume(file, volume.array, volume.grid, slope=1)
    assert "holds a study with sha256_of_the_cases" in refused(*words, "--n", "4", out=out)
    shutil.copyfile(cases.parent / "images" / file.name, file)
    assert cli(*words, "--n", "4").code == 0


def rows(folder):
    """cells.csv by arm and ratio, without the times."""
    with (folder / "cells.csv").open() as file:
        found = list(csv.DictReader(file))
    assert all(float(row.pop("seconds")) >= 0 for row in found)
    return {(row["arm"], row["n"], row["ratio"]): row for row in found}


def test_a_study_without_samples_compares_all_arms_and_goes_on(cli, cases, bundles, tmp_path):
    out = tmp_path / "study"
    words = study(cases, bundles / "balls", out, "--n", "3", "--arms")
    done = cli(*words, ARMS)
    assert done.code == 0, done.error
    first = rows(out)
    assert {arm for arm, _, _ in first} == set(ARMS.split(","))
    assert "difference to classical" in done.out and "carvemix" in done.out
    found = json.loads((out / "study.json").read_text())
    assert found["cells"] == {"done": 6, "wanted": 6}
    assert {"dice", "hd95_mm", "precision"} <= {row["measure"] for row in found["rows"]}
    assert (out / "dice_over_n.png").read_bytes()[:4] == b"\x89PNG"
    # One cell is lost, another is asked for besides: only these two are done.
    stamps = {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    (out / "cells" / "n3_r1_carvemix_s0.json").unlink()
    again = cli(*words, f"{ARMS},copies", "--ratio", "1", "--json")
    assert json.loads(again.out) == json.loads((out / "study.json").read_text())
    assert rows(out) == first
    again = {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    changed = {name for name in again if again[name] != stamps.get(name)}
    assert changed == {"n3_r1_carvemix_s0.json"}


def test_a_study_that_is_stopped_leaves_a_line_for_each_cell_that_was_done(
    cli, cases, bundles, tmp_path, monkeypatch
):
    class Stopped(Exception):
        pass

    train = SegmentationWork.__call__

    def stopped(self, cell):
        if cell.arm == "classical":
            raise Stopped
        return train(self, cell)

    monkeypatch.setattr(SegmentationWork, "__call__", stopped)
    out = tmp_path / "study"
    with pytest.raises(Stopped):
        cli(*study(cases, bundles / "balls", out, "--n", "2", "--arms", "real,classical"))
    assert set(rows(out)) == {("real", "2", "0")}


@pytest.mark.integration
def test_samples_of_a_generator_are_two_arms_more(cli, cases, generator, tmp_path):
    out = tmp_path / "study"
    words = study(cases, generator, out, "--arms", "classical,synthetic,only", "--ratio", "0.5,1")
    done = cli(*words, "--export-nnunet")
    assert done.code == 0, done.error
    assert {(arm, ratio) for arm, _, ratio in rows(out)} == {
        ("classical", "0"), ("synthetic:vae", "0.5"), ("synthetic:vae", "1"),
        ("only:vae", "0.5"), ("only:vae", "1"),
    }  # fmt: skip
    cell = json.loads((out / "cells" / "n4_r0.5_synthetic+vae_s0.json").read_text())
    assert (cell["real_cases"], cell["extra_cases"]) == (4, 2)
    alone = json.loads((out / "cells" / "n4_r1_only+vae_s0.json").read_text())
    assert (alone["real_cases"], alone["extra_cases"], alone["real_share"]) == (0, 4, 0.0)
    made = sorted(path.name for path in (out / "nnunet").iterdir())
    assert len(made) == 4 and made[0].startswith("Dataset501_")
    described = json.loads((out / "nnunet" / made[0] / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "tumour": 1}


@pytest.mark.integration
def test_the_filter_keeps_what_agrees_and_says_how_much(cli, refused, cases, generator, tmp_path):
    out = tmp_path / "study"
    words = ("--arms", "classical,synthetic", "--filter", "agreement", "--filter-above")
    assert cli(*study(cases, generator, out, *words, "0")).code == 0
    cell = json.loads((out / "cells" / "n4_r1_synthetic+vae_s0.json").read_text())
    assert (cell["filter_accepted"], cell["filter_kept"], cell["extra_cases"]) == (1.0, 4, 4)
    # Twice as many as are needed are made, so that some can be left out.
    assert len(list((out / "samples" / "n=4" / "vae" / "seed=0" / "labelsTr").iterdir())) == 8
    said = refused(*study(cases, generator, tmp_path / "strict", *words, "1"))
    assert "none of 8 samples of vae" in said and "--filter-above" in said


@pytest.mark.integration
def test_the_study_fits_the_generator_on_the_real_cases_of_a_cell(cli, cases, trainable, tmp_path):
    out = tmp_path / "study"
    words = study(cases, trainable, out, "--n", "2", "--arms", "classical,synthetic")
    done = cli(*words, "--fit", "small", "--fit-setting", "spacing=[4,4,4]")
    assert done.code == 0, done.error
    real = read_real_cases(cases, "validation", 0)
    assert set(training_cases(out / "generators" / "n=2" / "vae")) == set(real.names(2))
    assert "synthetic:vae" in done.out
    # Real cases are prepared as the fitted generator was, and not as the shipped one.
    form = json.loads((out / "settings.json").read_text())["form"]
    assert (form["shape"], form["spacing_mm"]) == ([16] * 3, [4.0] * 3)


def test_a_generator_that_does_not_say_what_it_has_seen_is_refused(
    refused, cases, bundles, tmp_path
):
    out = tmp_path / "study"
    said = refused(*study(cases, bundles / "balls", out, "--arms", "synthetic"), out=out)
    assert "does not say which cases it was trained on" in said and "--fit" in said


def test_a_generator_that_has_seen_more_is_refused(refused, cases, generator, names, tmp_path):
    out = tmp_path / "study"
    words = ("--arms", "classical,synthetic", "--n")
    said = refused(*study(cases, generator, out, *words, "2"), out=out)
    assert "trained on 4 cases, 2 of them not among the 2 real cases" in said
    (generator / "run.json").write_text(json.dumps({"training_cases": names["validation"][:1]}))
    said = refused(*study(cases, generator, out, *words, "all"), out=out)
    assert f"of the cases that are judged, such as {names['validation'][0]}" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--n", "5"), "asks for 5 real training cases"),
        (("--n", "some"), "--n has 'some'"),
        (("--split", "testing"), "no case with image and label under testing"),
        (("--split", "training"), "--split is 'training'"),
        (("--ratio", "0"), "--ratio is '0'"),
        (("--arms", "magic"), "--arms has 'magic'"),
        (("--arms", "synthetic:other"), "--arms has 'synthetic:other'"),
        (("--filter", "looks"), "--filter is 'looks'"),
        (("--real-share", "2"), "--real-share is '2'"),
        (("--synthetic-until", "0"), "--synthetic-until is 0"),
        (("--bundle", "vae=other"), "each name once"),
        (("--fit", "huge"), "has no recipe 'huge'"),
        (("--seeds", "0"), "--seeds is '0'"),
    ],
)
def test_what_cannot_be_used_is_refused(refused, cases, bundles, tmp_path, words, told):
    out = tmp_path / "study"
    said = refused(*study(cases, bundles / "balls", out, "--arms", "classical", *words), out=out)
    assert told in said


def test_a_patient_on_both_sides_is_refused(refused, cases, bundles, tmp_path):
    listed = json.loads(cases.read_text())
    for entries in (listed["training"], listed["validation"]):
        for entry in entries:
            entry["image"] = [str(cases.parent / file) for file in entry["image"]]
            entry["label"] = str(cases.parent / entry["label"])
    listed["validation"][0]["subject"] = listed["training"][0]["subject"]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(listed))
    said = refused(*study(path, bundles / "balls", tmp_path / "study", "--arms", "classical"))
    assert "both in training and in validation" in said


def test_a_mask_that_lies_elsewhere_than_its_image_is_refused(refused, cases, bundles, tmp_path):
    folder = shutil.copytree(cases.parent, tmp_path / "cases")
    path = folder / "labels" / "ball_001_gtv.nii.gz"
    mask = read_mask(path)
    moved = mask.grid.affine.copy()
    moved[0, 3] += 20
    write_volume(path, mask.array, Grid(mask.grid.shape, moved))
    out = tmp_path / "study"
    words = study(folder / cases.name, bundles / "balls", out, "--arms", "classical", "--n", "2")
    assert "ball_001_gtv.nii.gz" in refused(*words, out=out)


def test_labels_of_bundle_and_list_have_to_be_the_same(refused, cases, tmp_path):
    two = tiny.config(tiny.TWO_LABELS)
    two["channels"] = tiny.CHANNELS
    folder = tmp_path / "two"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(two))
    out = tmp_path / "study"
    said = refused(*study(cases, folder, out, "--arms", "classical"), out=out)
    assert "has the label back" in said


def test_bundles_of_other_channels_are_not_compared(refused, cases, bundles, tmp_path):
    other = json.loads((bundles / "balls" / "configs" / "inference.json").read_text())
    other["channels"] = other["channels"][:1]
    folder = tmp_path / "one"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(other))
    words = study(cases, bundles / "balls", tmp_path / "study", "--arms", "classical")
    assert "differ in channels" in refused(*words, "--bundle", f"other={folder}")


def test_other_settings_than_before_are_refused(cli, refused, cases, bundles, tmp_path):
    out = tmp_path / "study"
    words = study(cases, bundles / "balls", out, "--arms", "classical", "--n", "2")
    assert cli(*words).code == 0
    assert "holds a study with segmenter" in refused(*words, "--steps", "3", out=out)
