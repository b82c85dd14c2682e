"""Claims about bundles as objects."""

from __future__ import annotations

import hashlib
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import tiny_bundles as tiny
import torch

import medvae3d
from medvae3d.apps import catalogue
from medvae3d.apps.bundle import Bundle, load_bundle
from medvae3d.data.volumes import write_volume
from medvae3d.errors import (
    BundleError,
    OutputError,
    RangeError,
    SettingError,
    UnreadableFileError,
)
from medvae3d.geometry import Grid


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write_bundle(tmp_path_factory.mktemp("bundles") / "balls")


@pytest.fixture(scope="module")
def two_stage(tmp_path_factory):
    return tiny.write_bundle(tmp_path_factory.mktemp("bundles") / "stages", tiny.TWO_STAGE)


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / "copy")


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_package_offers_it(root):
    bundle = medvae3d.load_bundle(root)
    assert isinstance(bundle, Bundle)
    assert len(list(bundle.generate(count=2, seed=20))) == 2


def test_it_knows_where_it_comes_from(root):
    bundle = load_bundle(root)
    assert (bundle.name, bundle.version) == ("balls", "1.2.0")
    weights = (root / "models" / "model.pt").read_bytes()
    assert bundle.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert bundle.licence == {
        "weights": "Apache License Version 2.0, January 2004",
        "data": ["1. Balls: public domain"],
    }
    assert bundle.cite == ("A. Author, 2020",)
    assert not bundle.network.training


def test_metadata_may_state_the_licences(copy):
    stated = {"version": "2", "license": "CC-BY-4.0", "data_license": "one: CC0"}
    (copy / "configs" / "metadata.json").write_text(json.dumps(stated))
    assert load_bundle(copy).licence == {"weights": "CC-BY-4.0", "data": ["one: CC0"]}


def test_written_and_yielded_samples_are_the_same(root, tmp_path):
    bundle = load_bundle(root)
    out = bundle.write(tmp_path / "out", 3, 7)
    for sample in bundle.generate(3, 7):
        record = json.loads((out / "records" / f"{sample.record['case']}.json").read_text())
        assert record == sample.record


@pytest.mark.parametrize("kind", ["root", "two_stage"])
def test_the_same_seed_gives_the_same_bytes(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    for name in ("a", "b"):
        load_bundle(folder).write(tmp_path / name, 3, 5)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_ranges_merge_to_the_bytes_of_one_run(root, tmp_path):
    whole = load_bundle(root).write(tmp_path / "whole", 10, 5)
    load_bundle(root).write(tmp_path / "parts", 4, 5, start=6)
    parts = load_bundle(root).write(tmp_path / "parts", 6, 5)
    assert files(whole) == files(parts)


def test_where_the_bundle_stands_changes_no_byte(root, tmp_path):
    shutil.copytree(root, tmp_path / "elsewhere" / "balls")
    here = load_bundle(root).write(tmp_path / "a", 1, 5)
    there = load_bundle(tmp_path / "elsewhere" / "balls").write(tmp_path / "b", 1, 5)
    assert files(here) == files(there)


def test_names_of_shipped_bundles_are_found(root, monkeypatch):
    monkeypatch.setattr(catalogue, "SHIPPED", (root.parent,))
    assert catalogue.shipped_bundles() == {"balls": root}
    assert load_bundle("balls").root == root


def test_an_unknown_name_lists_those_that_there_are(root, monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "SHIPPED", (root.parent,))
    with pytest.raises(BundleError, match=r"'cubes' is neither .* Shipped are: balls"):
        load_bundle("cubes")
    with pytest.raises(BundleError, match="Shipped are: balls"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["inference.json", "metadata.json"])
@pytest.mark.parametrize(
    ("content", "said"), [(None, "does not exist"), ("{", "as JSON"), ("[]", "names with values")]
)
def test_broken_configurations_are_named(name, content, said, copy):
    path = copy / "configs" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(BundleError, match=rf"{name}.*{said}"):
        load_bundle(copy)


def edit(folder, **changed):
    path = folder / "configs" / "inference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"network_def": None}, "no network under `network_def`"),
        ({"network_def": {"_target_": "medvae3d.models.zoo.nothing"}}, "`network_def` cannot be"),
        ({"network_def": {**tiny.JOINT, "chanels": 3}}, "chanels"),
        ({"labels": None}, "lacks labels"),
        ({"spacing": "@nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_made_is_named(changed, said, copy):
    edit(copy, **changed)
    with pytest.raises(BundleError, match=said):
        load_bundle(copy)


def test_expressions_and_references_are_resolved(copy):
    definition = {
        **tiny.JOINT,
        "spatial_shape": "@spatial_shape",
        "image_channels": "$len(@channels)",
    }
    edit(copy, network_def=definition)
    assert len(list(load_bundle(copy).generate(1))) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("decoder.stem.0.bias"), r"lacks decoder\.stem\.0\.bias"),
        (lambda state: state.update(other=torch.ones(1)), "has no place for other"),
        (
            lambda state: state.update({"latent_scale": torch.ones(2)}),
            r"other sizes latent_scale \(2,\) instead of \(\)",
        ),
        (lambda state: state.clear(), r"lacks .* and \d+ more"),
    ],
)
def test_foreign_weights_are_refused(change, said, copy):
    path = copy / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(BundleError, match=said):
        load_bundle(copy)


@pytest.mark.parametrize("content", [None, b"", b"not weights at all"])
def test_missing_and_damaged_weights_are_refused(content, copy):
    path = copy / "models" / "model.pt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.pt"):
        load_bundle(copy)


def test_other_weights_may_be_named(root, copy, tmp_path):
    other = tmp_path / "better.pt"
    shutil.move(copy / "models" / "model.pt", other)
    bundle = load_bundle(copy, weights=other)
    assert bundle.weights_sha256 == load_bundle(root).weights_sha256


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "tpu"])
def test_devices_that_are_not_there_are_refused(device, root):
    with pytest.raises(SettingError, match="cannot be used"):
        load_bundle(root, device)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"count": 0}, SettingError, "count is 0"),
        ({"volume_ml": (1e3, 2e3)}, RangeError, r"trained on .* ml"),
        ({"lesions": (1, 2)}, SettingError, "--lesions"),
        ({"at_mm": (0, 0, 0)}, SettingError, "--at"),
        ({"lesions": (3, 2)}, SettingError, "lesions are 3 to 2"),
        ({"hosts": ["a.nii.gz"]}, SettingError, "needs 2 for each"),
        ({"hosts": ["a.nii.gz", "b.nii.gz"]}, SettingError, "cannot put lesions into"),
        ({"hosts": [["a", "b"]], "host_labels": ["x", "y"]}, SettingError, "2 host labels for 1"),
        ({"mask": "no.nii.gz"}, UnreadableFileError, r"no\.nii\.gz"),
        ({"threads": 0}, SettingError, "threads is 0"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(options, error, said, root, tmp_path):
    with pytest.raises(error, match=said):
        load_bundle(root).write(tmp_path / "out", **{"count": 1, **options})
    assert not (tmp_path / "out").exists()


def test_requests_are_checked_when_they_are_made_not_when_samples_are_taken(root):
    with pytest.raises(SettingError, match="count is 0"):
        load_bundle(root).generate(0)


def test_options_tell_runs_apart(root, tmp_path):
    load_bundle(root).write(tmp_path / "out", 1, 5, preview=False)
    with pytest.raises(OutputError, match="options"):
        load_bundle(root).write(tmp_path / "out", 1, 5, start=1, temperature=0.5)


# -- lesions put into hosts -------------------------------------------------------------------


@pytest.fixture(scope="module")
def inserting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "inserts"
    phantom = {"phantom_shape": [40, 46, 40], "phantom_spacing": [4, 4, 4]}
    return load_bundle(tiny.write_bundle(folder, tiny.TWO_STAGE, kind="insertion", **phantom))


OPTIONS = {"volume_ml": (4.0, 8.0), "lesions": (1, 2)}


def test_without_a_host_phantoms_are_drawn(inserting, tmp_path):
    out = inserting.write(tmp_path / "out", 2, 3, **OPTIONS)
    for sample in inserting.generate(2, 3, **OPTIONS):
        record = json.loads((out / "records" / f"{sample.record['case']}.json").read_text())
        assert record == sample.record
        assert record["kind"] == "insertion" and record["host"]["is_phantom"]
        assert sample.image.shape == (2, 40, 46, 40) and sample.label.any()


def test_ranges_of_insertions_merge_to_the_bytes_of_one_run(inserting, tmp_path):
    whole = inserting.write(tmp_path / "whole", 3, 3, **OPTIONS)
    inserting.write(tmp_path / "parts", 1, 3, start=2, **OPTIONS)
    parts = inserting.write(tmp_path / "parts", 2, 3, **OPTIONS)
    assert files(whole) == files(parts)


def test_hosts_are_used_in_turn_and_keep_what_is_not_blended(inserting, tmp_path):
    made = inserting.write(tmp_path / "made", 2, 3, **OPTIONS)
    images, labels = (sorted((made / part).iterdir()) for part in ("imagesTr", "labelsTr"))
    out = inserting.write(
        tmp_path / "out", 3, 4, hosts=images, host_labels=labels, preview=False, **OPTIONS
    )
    names = []
    for index, sample in enumerate(
        inserting.generate(3, 4, hosts=images, host_labels=labels, **OPTIONS)
    ):
        names.append(sample.record["host"]["files"])
        case, turn = sample.record["case"], index % 2
        before, after = (
            nib.load(path) for path in (images[2 * turn], out / f"imagesTr/{case}_0000.nii.gz")
        )
        assert before.header == after.header
        changed = np.asarray(before.dataobj.get_unscaled()) != after.dataobj.get_unscaled()
        assert changed.any() and not (changed & ~sample.inserted.zone).any()
        old, new = (nib.load(p) for p in (labels[turn], out / f"labelsTr/{case}.nii.gz"))
        assert (new.get_fdata() >= old.get_fdata()).all()
        assert new.get_fdata().sum() > old.get_fdata().sum()
        assert (new.affine == old.affine).all()
    assert names[0] == names[2] != names[1]


def test_hosts_that_do_not_exist_are_named(two_stage, tmp_path):
    with pytest.raises(UnreadableFileError, match=r"gone\.nii\.gz"):
        load_bundle(two_stage).generate(1, hosts=[[tmp_path / "gone.nii.gz", "b.nii.gz"]])


def test_volumes_by_label_are_not_for_lesions_in_hosts(two_stage, tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    hosts = [[tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]]
    with pytest.raises(SettingError, match="one volume each"):
        load_bundle(two_stage).generate(1, hosts=hosts, volume_ml={"tumour": (1.0, 2.0)})


def test_a_brain_mask_says_where_lesions_may_go(inserting, tmp_path):
    made = inserting.write(tmp_path / "made", 1, 3, **OPTIONS)
    images = sorted((made / "imagesTr").iterdir())
    grid = Grid.from_image(nib.load(images[0]))
    brain = np.zeros(grid.shape, np.uint8)
    brain[: grid.shape[0] // 2, 8:38, 8:34] = 1
    write_volume(tmp_path / "brain.nii.gz", brain, grid)
    wanted = {"hosts": [images], "host_brains": [tmp_path / "brain.nii.gz"], "lesions": (2, 2)}
    (sample,) = inserting.generate(1, 4, volume_ml=(4.0, 8.0), **wanted)
    assert brain[sample.inserted.added].mean() > 0.95
    assert sample.record["options"]["host_brains"][0]["file"] == "brain.nii.gz"
    with pytest.raises(SettingError, match="2 host brain masks for 1 hosts"):
        inserting.generate(1, 4, hosts=[images], host_brains=["a.nii.gz", "b.nii.gz"])
    with pytest.raises(SettingError, match="a place was given for one"):
        inserting.generate(1, 4, hosts=[images], at_mm=(0, 0, 0), lesions=(2, 3))
