"""Claims about bad input of a training: a message that says what to do, exit code 2, no folder."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from small_files import stored

# What is wrong is found before the folder of the run is made.


def train(bundle, datalist, out, *words):
    recipe = ("--recipe", "small")
    return ("train", bundle, "--datalist", datalist, "--out", out, *recipe, *words)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("max_epoch=5", "Did you mean max_epochs?"),
        ("network_def#dropuot=0.1", "Did you mean network_def#dropout?"),
        ("decay=0.9", "Did you mean ema#decay?"),
        ("zzz=1", "`configs/train.json` lists them all"),
        ("max_epochs", "'max_epochs' is no setting; allowed is KEY=VALUE"),
        ("max_epochs=many", "which is text; allowed is a number"),
        ("max_epochs=0", "allowed are whole numbers from 1 on"),
        ("max_epochs=1.5", "allowed are whole numbers from 1 on"),
        ("spatial_shape=16", "which is a number; allowed is a list"),
        ("resume=true", "it belongs to --resume"),
        ("bundle_root=x", "it belongs to --out"),
        ("train#players#7#name=x", "there is no setting 'train#players#7#name'"),
    ],
)
def test_a_setting_that_cannot_be_used(refused, trainable, cases, tmp_path, setting, message):
    assert message in refused(*train(trainable, cases, tmp_path / "out", setting), out=tmp_path)


def test_settings_that_make_no_network(refused, trainable, cases, tmp_path):
    words = train(trainable, cases, tmp_path / "out", "network_def#channels=[0,0]")
    assert "cannot be set up with these settings" in refused(*words, out=tmp_path)


def test_a_recipe_that_is_not_there(refused, trainable, cases, tmp_path):
    words = ("train", trainable, "--datalist", cases, "--out", tmp_path / "out", "--recipe", "tiny")
    error = refused(*words, out=tmp_path)
    assert "pair has no recipe 'tiny'; it has small" in error


def test_a_bundle_that_cannot_be_trained(refused, bundles, cases, tmp_path):
    words = ("train", bundles / "balls", "--datalist", cases, "--out", tmp_path / "out")
    assert "train.json does not exist" in refused(*words, out=tmp_path)


def test_a_folder_that_holds_something_else(refused, trainable, cases, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    error = refused(*train(trainable, cases, tmp_path), out=tmp_path)
    assert "neither empty nor the folder of a training run" in error


@pytest.fixture
def own_cases(cases, tmp_path):
    """A copy of the cases to spoil, and the content of its list."""
    folder = shutil.copytree(cases.parent, tmp_path / "data")
    return folder / "datalist.json"


def spoil(datalist, change):
    content = json.loads(datalist.read_text())
    change(content)
    datalist.write_text(json.dumps(content))
    return datalist


def damage(datalist, what):
    """Spoils one training case in the way that is named."""
    first = json.loads(datalist.read_text())["training"][0]
    pet, ct = (datalist.parent / name for name in first["image"])
    label = datalist.parent / first["label"]
    affine = nib.load(label).affine
    mask = np.asarray(nib.load(label).dataobj)
    ones = np.ones(mask.shape, np.float32)

    def listed(**changes):
        spoil(datalist, lambda content: content["training"][0].update(changes))

    ways = {
        "no training": lambda: spoil(datalist, lambda content: content.update(training=[])),
        "no label": lambda: listed(label=None),
        "no image": lambda: listed(image=None),
        "one channel": lambda: listed(image=first["image"][0]),
        "wrong order": lambda: listed(image=first["image"][::-1]),
        "missing file": pet.unlink,
        "truncated": lambda: pet.write_bytes(pet.read_bytes()[:-500]),
        "empty mask": lambda: stored(label, mask * 0, affine),
        "unknown label": lambda: stored(label, mask * 3, affine),
        "float label": lambda: stored(label, mask * np.float32(0.5), affine),
        "other grid": lambda: stored(label, mask, affine @ np.diag([1, 1, 1.2, 1])),
        "NaN": lambda: stored(pet, ones * np.nan, affine),
        "constant": lambda: stored(ct, ones, affine),
        "5D": lambda: stored(pet, np.ones((*mask.shape, 1, 2), np.float32), affine),
        "becquerel": lambda: stored(pet, 9e4 * (1 + mask.astype(np.float32)), affine),
    }
    ways[what]()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no training", "no case under 'training'"),
        ("no label", "has no label; training needs it"),
        ("no image", "has no image; training needs it"),
        ("one channel", "has 1 channels"),
        ("missing file", "do not exist"),
        ("truncated", "truncated"),
        ("empty mask", "is empty: there is no voxel above 0"),
        ("unknown label", "holds the label values [3]; allowed are"),
        ("float label", "no whole numbers, such as 0.5"),
        ("other grid", "mm off"),
        ("NaN", "NaN or infinite"),
        ("constant", "in every voxel"),
        ("5D", "three axes"),
        ("becquerel", "SUV"),
        ("wrong order", "right order"),
    ],
)
def test_cases_that_cannot_be_trained_on(refused, trainable, own_cases, tmp_path, what, message):
    damage(own_cases, what)
    out = tmp_path / "out"
    assert message in refused(*train(trainable, own_cases, out), out=out)


def test_several_faults_are_told_at_once(refused, trainable, own_cases, tmp_path):
    damage(own_cases, "empty mask")
    damage(own_cases, "constant")
    error = refused(*train(trainable, own_cases, tmp_path / "out"), out=tmp_path / "out")
    assert "2 things are wrong" in error
    assert "is empty" in error
    assert "in every voxel" in error


# What single systems need of a data list.


def train_system(name, datalist, out, *words):
    return ("train", name, "--datalist", datalist, "--out", out, "spatial_shape=[16,16,16]", *words)


@pytest.mark.parametrize("name", ["cvae", "icvae"])
def test_cases_without_the_class_that_a_system_is_told(refused, cases, tmp_path, name):
    error = refused(*train_system(name, cases, tmp_path / "out"), out=tmp_path / "out")
    assert f"{name} is told the class of a case, and 0 classes are known" in error
    assert "Give every case of the data list a 'class', or train a model without" in error


def test_one_case_without_the_class_that_a_system_is_told(refused, own_cases, tmp_path):
    def classed(content):
        for split in ("training", "validation", "testing"):
            for number, case in enumerate(content.get(split, [])):
                case["class"] = "ab"[number % 2]
        del content["training"][1]["class"]

    spoil(own_cases, classed)
    error = refused(*train_system("cvae", own_cases, tmp_path / "out"), out=tmp_path / "out")
    assert "have no class, such as ball_001" in error
    assert "give every case a 'class' of a, b" in error


def test_a_case_without_its_mask_for_a_system(refused, own_cases, tmp_path):
    damage(own_cases, "no label")
    error = refused(*train_system("vae", own_cases, tmp_path / "out"), out=tmp_path / "out")
    assert "has no label; training needs it. Add the file" in error


def test_more_codes_than_the_cases_have_places_for(refused, cases, tmp_path):
    words = train_system("vqvae", cases, tmp_path / "out", "network_def#codes=100000")
    error = refused(*words, out=tmp_path / "out")
    assert "100000 codes, and" in error
    assert "Set `network_def#codes` to" in error


def test_fewer_channels_than_the_weights_have(refused, trainable, own_cases, tmp_path):
    def first_alone(content):
        for split in ("training", "validation", "testing"):
            for case in content.get(split, []):
                case["image"] = case["image"][0]

    spoil(own_cases, first_alone)
    error = refused(*train(trainable, own_cases, tmp_path / "out"), out=tmp_path / "out")
    assert "case ball_000 has 1 channels; the model reads 2: PET, CT. List one file" in error
