"""Claims about bad input: a message that says what to do, exit code 2, nothing half-written."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from small_files import stored

from medvae3d.data.volumes import write_volume
from medvae3d.geometry import Grid


def generate(*words, count=1, seed=1):
    return ("generate", *words, "--count", count, "--seed", seed)


def hosts(scan, pet=None, ct=None):
    return ("--host", pet or scan / "pet.nii.gz", "--host", ct or scan / "ct.nii.gz")


def changed_header(source, target, **fields):
    """A copy of a file with other header fields, as no writer of ours would write them."""
    content = bytearray(gzip.decompress(Path(source).read_bytes()))
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    Path(target).write_bytes(gzip.compress(bytes(content)))
    return target


# Options.


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--count", "0", "from 1 on"),
        ("--count", "many", "from 1 on"),
        ("--seed", "abc", "from 0 on"),
        ("--seed", "-1", "from 0 on"),
        ("--start", "1.5", "from 0 on"),
    ],
)
def test_a_number_that_is_none(refused, bundles, tmp_path, option, value, allowed):
    words = generate(bundles / "balls", "--out", tmp_path / "out")
    error = refused(*words, option, value, out=tmp_path)
    assert f"{option} is {value!r}; allowed are whole numbers {allowed}" in error


def test_a_training_seed_that_is_no_number(refused, bundles, tmp_path):
    words = ("train", bundles / "balls", "--datalist", "list.json", "--out", tmp_path / "out")
    assert "--seed is 'abc'" in refused(*words, "--seed", "abc", out=tmp_path)


@pytest.mark.parametrize(
    "text", ["20-200", "20", "20:", "a:b", "200:20", "1:2:3", "nan:5", "1:inf"]
)
def test_a_range_of_another_form(refused, bundles, tmp_path, text):
    words = generate(bundles / "balls", "--out", tmp_path / "out", "--volume-ml", text)
    error = refused(*words, out=tmp_path)
    assert f"--volume-ml is {text!r}" in error
    assert "LOW:HIGH" in error


def test_a_range_of_lesions_that_is_not_whole(refused, bundles, tmp_path):
    words = generate(bundles / "stages", "--out", tmp_path / "out", "--lesions", "1.5:3")
    assert "allowed are two whole numbers as LOW:HIGH" in refused(*words, out=tmp_path)


@pytest.mark.parametrize("text", ["1,2", "1,2,x", "1 2 3", "1,2,inf"])
def test_a_place_of_another_form(refused, bundles, tmp_path, text):
    words = generate(bundles / "stages", "--out", tmp_path / "out", "--at", text)
    error = refused(*words, out=tmp_path)
    assert f"--at is {text!r}; allowed are three numbers" in error


def test_volumes_asked_for_in_two_ways(refused, bundles, tmp_path):
    volumes = ("--volume-ml", "1:2", "--volume-ml", "tumour=1:2")
    words = generate(bundles / "balls", "--out", tmp_path / "out", *volumes)
    assert "LABEL=LOW:HIGH" in refused(*words, out=tmp_path)


def test_an_unknown_device(refused, bundles, tmp_path):
    words = generate(bundles / "balls", "--out", tmp_path / "out", "--device", "quantum")
    assert "device 'quantum' cannot be used" in refused(*words, out=tmp_path)


def test_an_option_that_does_not_exist(refused, bundles, tmp_path):
    words = generate(bundles / "balls", "--out", tmp_path / "out", "--volume", "1:2")
    assert "No such option: --volume" in refused(*words, out=tmp_path)


# Requests that the weights cannot meet.


def test_a_volume_outside_of_the_training_range(refused, bundles, tmp_path):
    words = generate(bundles / "balls", "--out", tmp_path / "out", "--volume-ml", "500:600")
    error = refused(*words, out=tmp_path)
    assert "trained on" in error
    assert "--extrapolate" in error


def test_a_class_that_the_weights_are_not_told(refused, bundles, tmp_path):
    words = generate(bundles / "balls", "--out", tmp_path / "out", "--class", "large")
    error = refused(*words, out=tmp_path)
    assert "told no class. Leave it out" in error


def test_a_volume_of_a_label_that_is_not_there(refused, bundles, tmp_path):
    words = generate(bundles / "balls", "--out", tmp_path / "out", "--volume-ml", "middle=1:2")
    error = refused(*words, out=tmp_path)
    assert "middle" in error
    assert "tumour" in error


def test_a_host_for_a_joint_model(refused, bundles, scan, tmp_path):
    words = generate(bundles / "balls", "--out", tmp_path / "out", *hosts(scan))
    assert "use a two-stage bundle" in refused(*words, out=tmp_path)


def test_lesions_without_a_host(refused, bundles, tmp_path):
    words = generate(bundles / "stages", "--out", tmp_path / "out", "--lesions", "1:3")
    assert "Give a --host" in refused(*words, out=tmp_path)


def test_a_place_outside_of_the_host(refused, bundles, scan, tmp_path):
    words = generate(bundles / "stages", "--out", tmp_path / "out", *hosts(scan), "--at", "900,0,0")
    assert "900" in refused(*words, out=tmp_path / "out")


# Bundles.


def test_an_unknown_bundle(refused, tmp_path):
    words = generate("no_such_bundle", "--out", tmp_path / "out")
    error = refused(*words, out=tmp_path)
    assert "'no_such_bundle' is neither a shipped bundle nor the folder of one" in error
    assert "Shipped are" in error


@pytest.fixture
def copy(bundles, tmp_path):
    return shutil.copytree(bundles / "balls", tmp_path / "copy")


def test_weights_that_are_missing(refused, copy, tmp_path):
    (copy / "models" / "model.pt").unlink()
    error = refused(*generate(copy, "--out", tmp_path / "out"), out=tmp_path / "out")
    assert "model.pt does not exist" in error
    assert "Train" in error


def test_weights_of_another_network(refused, copy, bundles, tmp_path):
    shutil.copyfile(bundles / "stages" / "models" / "model.pt", copy / "models" / "model.pt")
    error = refused(*generate(copy, "--out", tmp_path / "out"), out=tmp_path / "out")
    assert "holds the weights of another network" in error


@pytest.mark.parametrize("content", [b"", b"no weights at all", None])
def test_weights_that_are_damaged(refused, copy, tmp_path, content):
    path = copy / "models" / "model.pt"
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    error = refused(*generate(copy, "--out", tmp_path / "out"), out=tmp_path / "out")
    assert "cannot be read as weights" in error


def test_weights_that_hold_code(refused, copy, tmp_path):
    torch.save({"network": torch.nn.Linear(1, 1)}, copy / "models" / "model.pt")
    error = refused(*generate(copy, "--out", tmp_path / "out"), out=tmp_path / "out")
    assert "cannot be read as weights" in error


def test_a_configuration_that_is_not_json(refused, copy, tmp_path):
    (copy / "configs" / "inference.json").write_text("{")
    error = refused(*generate(copy, "--out", tmp_path / "out"), out=tmp_path / "out")
    assert "inference.json cannot be read as JSON" in error


# The output folder.


def test_a_folder_with_cases_of_another_run(cli, refused, bundles, tmp_path):
    out = tmp_path / "out"
    assert cli(*generate(bundles / "balls", "--out", out)).code == 0
    for other in (
        generate(bundles / "balls", "--out", out, seed=2),
        generate(bundles / "balls", "--out", out, "--volume-ml", "5:6"),
        generate(bundles / "stages", "--out", out),
    ):
        error = refused(*other, out=out)
        assert "another run" in error
        assert "Choose an empty folder" in error


def test_a_folder_that_is_a_file(refused, bundles, tmp_path):
    (tmp_path / "out").write_text("mine")
    error = refused(*generate(bundles / "balls", "--out", tmp_path / "out"), out=tmp_path)
    assert "is a file" in error


# Files.


@pytest.fixture
def bad(request, scan, tmp_path):
    """A file that cannot be a host's PET, of each kind that there is."""
    path = tmp_path / "bad_pet.nii.gz"
    pet = scan / "pet.nii.gz"
    array = np.ones((28, 28, 28), np.float32)
    if request.param == "missing":
        return path
    if request.param == "not NIfTI":
        path.write_bytes(b"no image")
    elif request.param == "truncated":
        path.write_bytes(pet.read_bytes()[:-2000])
    elif request.param == "2D":
        stored(path, array[0])
    elif request.param == "5D":
        stored(path, np.ones((28, 28, 28, 1, 2), np.float32))
    elif request.param == "zero spacing":
        changed_header(pet, path, pixdim=[1, 4, 0, 4, 0, 0, 0, 0])
    elif request.param == "negative spacing":
        changed_header(pet, path, pixdim=[1, 4, -4, 4, 0, 0, 0, 0])
    elif request.param == "singular":
        changed_header(pet, path, srow_y=[0, 4, 4, 0], srow_z=[0, 0, 0, 0], qform_code=0)
    elif request.param == "NaN":
        array[3, 3, 3] = np.nan
        stored(path, array)
    elif request.param == "other grid":
        stored(path, array, np.diag([4.0, 4, 5, 1]))
    elif request.param == "other shape":
        stored(path, array[:-1])
    return path


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("missing", "cannot be read"),
        ("not NIfTI", "not be NIfTI at all"),
        ("truncated", "truncated"),
        ("2D", "three axes"),
        ("5D", "three axes"),
        ("zero spacing", "above 0"),
        ("negative spacing", "above 0"),
        ("singular", "singular"),
        ("NaN", "1 NaN or infinite"),
        ("other grid", "mm"),
        ("other shape", "shape"),
    ],
    indirect=["bad"],
)
def test_a_host_that_cannot_be_used(refused, bundles, scan, tmp_path, bad, words):
    out = tmp_path / "out"
    error = refused(*generate(bundles / "stages", "--out", out, *hosts(scan, pet=bad)), out=out)
    assert words in error
    assert bad.name in error


def test_a_second_host_is_looked_at_before_the_first_is_used(refused, bundles, scan, tmp_path):
    bad = stored(tmp_path / "bad_pet.nii.gz", np.ones((28, 28), np.float32))
    words = (*hosts(scan), *hosts(scan, pet=bad))
    command = generate(bundles / "stages", "--out", tmp_path / "out", *words, count=2)
    assert "three axes" in refused(*command, out=tmp_path)


def test_a_host_smaller_than_what_a_lesion_is_made_in(refused, bundles, scan, tmp_path):
    rng = np.random.default_rng(0)
    pet = stored(tmp_path / "pet.nii.gz", rng.random((6, 6, 6), np.float32))
    ct = stored(tmp_path / "ct.nii.gz", 90 * rng.random((6, 6, 6), np.float32))
    words = generate(bundles / "stages", "--out", tmp_path / "out", *hosts(scan, pet, ct))
    error = refused(*words, out=tmp_path)
    assert "6 x 6 x 6" in error
    assert "need 16 x 16 x 16 or more" in error


def test_a_host_in_another_unit(refused, bundles, scan, tmp_path):
    pet = nib.load(scan / "pet.nii.gz")
    becquerel = stored(tmp_path / "pet.nii.gz", pet.get_fdata(dtype=np.float32) * 5e3, pet.affine)
    words = generate(bundles / "stages", "--out", tmp_path / "out", *hosts(scan, pet=becquerel))
    error = refused(*words, out=tmp_path)
    assert "SUV" in error
    assert "Convert" in error


def test_a_host_of_another_modality(refused, bundles, scan, tmp_path):
    """PET and CT in the wrong order."""
    words = hosts(scan, scan / "ct.nii.gz", scan / "pet.nii.gz")
    error = refused(*generate(bundles / "stages", "--out", tmp_path / "out", *words), out=tmp_path)
    assert "right order" in error


def test_a_host_that_lacks_a_channel(refused, bundles, scan, tmp_path):
    words = generate(bundles / "stages", "--out", tmp_path / "out", "--host", scan / "pet.nii.gz")
    error = refused(*words, out=tmp_path)
    assert "1 host files were given" in error
    assert "PET, CT" in error


def test_a_host_label_with_unknown_values(refused, bundles, scan, tmp_path):
    label = nib.load(scan / "label.nii.gz")
    odd = stored(tmp_path / "label.nii.gz", np.asarray(label.dataobj) * 7, label.affine)
    words = ("--out", tmp_path / "out", *hosts(scan), "--host-label", odd)
    error = refused(*generate(bundles / "stages", *words), out=tmp_path)
    assert "holds the label values [7]; allowed are" in error


def test_a_host_label_between_whole_numbers(refused, bundles, scan, tmp_path):
    label = nib.load(scan / "label.nii.gz")
    array = np.asarray(label.dataobj, np.float32) * np.float32(0.4)
    soft = stored(tmp_path / "label.nii.gz", array, label.affine)
    words = ("--out", tmp_path / "out", *hosts(scan), "--host-label", soft)
    error = refused(*generate(bundles / "stages", *words), out=tmp_path)
    assert "no whole numbers, such as 0.4" in error


def test_a_mask_that_is_empty(refused, bundles, tmp_path):
    empty = stored(tmp_path / "mask.nii.gz", np.zeros((16, 16, 16), np.uint8))
    words = generate(bundles / "stages", "--out", tmp_path / "out", "--mask", empty)
    error = refused(*words, out=tmp_path)
    assert "not background alone" in error


def test_a_mask_for_a_host_on_another_grid(refused, bundles, scan, tmp_path):
    grid = Grid.centred((20, 20, 20), (4, 4, 4))
    mask = np.zeros(grid.shape, np.uint8)
    mask[9:12, 9:12, 9:12] = 1
    write_volume(tmp_path / "mask.nii.gz", mask, grid)
    words = (*hosts(scan), "--mask", tmp_path / "mask.nii.gz", "--out", tmp_path / "out")
    error = refused(*generate(bundles / "stages", *words), out=tmp_path)
    assert "(20, 20, 20)" in error


# Data lists and phantoms.


def test_a_data_list_that_is_missing(refused, tmp_path):
    assert "Check the path" in refused("data", "check", tmp_path / "list.json", out=tmp_path)


def test_a_data_list_of_another_form(refused, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"cases": []}))
    error = refused("data", "check", tmp_path / "list.json", out=tmp_path)
    assert "training, validation, testing" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--count", 0), "--count is '0'; allowed are whole numbers from 1 on"),
        (("--count", 1, "--shape", "4,4,4"), "allowed are 8 or more"),
        (("--count", 1, "--shape", "16,16"), "--shape is '16,16'; allowed are three whole numbers"),
        (("--count", 1, "--spacing", "3,0,3"), "--spacing is '3,0,3'; allowed are three numbers"),
        (("--count", 1, "--lesions", "5:2"), "--lesions is '5:2'"),
    ],
)
def test_a_phantom_that_cannot_be_drawn(refused, tmp_path, words, message):
    assert message in refused("data", "phantom", *words, "--out", tmp_path / "out", out=tmp_path)


def test_phantoms_into_a_folder_with_files(refused, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    error = refused("data", "phantom", "--count", 1, "--out", tmp_path, out=tmp_path)
    assert "not an empty folder" in error


def test_a_manifest_that_is_not_there(refused):
    error = refused("data", "manifests", "nothing")
    assert "there is no manifest 'nothing'" in error
    assert "hippocampus" in error
