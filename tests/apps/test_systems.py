"""Claims about systems trained by name: every one becomes a bundle that makes samples."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from medvae3d.apps.bundle import load_bundle
from medvae3d.apps.systems import multiples, system_settings
from medvae3d.apps.training import train
from medvae3d.data import forms
from medvae3d.data.datalists import Case, DataList, read_datalist, write_datalist
from medvae3d.data.forms import read_form
from medvae3d.data.integrity import check
from medvae3d.data.volumes import write_volume
from medvae3d.errors import BundleError, LabelError
from medvae3d.geometry import Grid
from medvae3d.models.systems.files import laid_over, read_base, read_system, system_names

SCHEMA = Path(__file__).parents[1] / "data" / "bundle_schema.json"
# Small enough for a test, as far as a system has these settings.
SMALL = {
    "max_epochs": 1,
    "epoch_length": 2,
    "batch_size": 2,
    "prior_passes": 2,
    "val_interval": 1,
    "tensorboard": False,
    "warm_up_steps": 1,
    "flow_start": 0,
    "adversarial_start": 0,
}
NARROW = {
    "channels": [4, 8],
    "latent_channels": 2,
    "components": 2,
    "rank": 2,
    "codes": 8,
    "prior_width": 8,
    "prior_steps": 2,
}
# Untrained masks have many parts; how they look is not what is tested here.
LOOSE = {"max_attempts": 500, "max_components": 10**6, "allow_border": True}


def small(name: str) -> list[str]:
    """``KEY=VALUE`` texts that make a system small."""
    settings = system_settings(name)
    found = {key: value for key, value in SMALL.items() if key in settings}

    def visit(part: object, prefix: str) -> None:
        if isinstance(part, dict):
            for key, value in part.items():
                if key in NARROW and not str(value).startswith(("$", "@")):
                    found[f"{prefix}#{key}"] = NARROW[key]
                visit(value, f"{prefix}#{key}")

    visit(settings["network_def"], "network_def")
    if "discriminator" in settings:
        found["discriminator#channels"] = [4, 8]
    return [f"{key}={json.dumps(value)}" for key, value in found.items()]


@pytest.fixture(scope="module")
def classed(phantom_list, tmp_path_factory):
    """The list of phantoms, whose cases carry one of two classes in turn."""
    listed = read_datalist(phantom_list)
    cases = [
        replace(case, extra={**case.extra, "class": "large" if number % 2 else "small"})
        for number, case in enumerate(listed)
    ]
    path = tmp_path_factory.mktemp("classed") / "datalist.json"
    write_datalist(path, cases, listed.info)
    return path


def require_counterfactuals(cli, bundle, classed, folder):
    """A case and a draw are written as both classes, with pictures and a record."""
    case = list(read_datalist(classed))[0].name
    for given in (("--datalist", classed, "--cases", case), ("--classes", "small,large")):
        out = folder / given[0].strip("-")
        done = cli("explore", bundle, "classes", "--out", out, *given)
        assert done.code == 0, done.error
        record = json.loads((out / "record.json").read_text())
        assert sorted(record["steps"]) == ["large", "small"]
        assert 0 <= record["changes"][0]["dice"] <= 1
        assert len(list((out / "labels").glob("*.nii.gz"))) == 2
        assert (out / "path.gif").stat().st_size and (out / "path.png").stat().st_size


@pytest.mark.integration
@pytest.mark.parametrize("name", system_names())
def test_a_system_becomes_a_bundle_that_makes_samples(name, cli, classed, tmp_path):
    out = tmp_path / name
    outcome = train(name, classed, out, seed=3, changes=small(name))
    assert outcome.steps == outcome.of_steps == 2
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))
    assert (out / "LICENSE").is_file() and (out / "docs" / "README.md").is_file()
    history = (out / "eval" / "history.csv").read_text()
    assert "nan" not in history and "inf" not in history
    inference = out / "configs" / "inference.json"
    content = json.loads(inference.read_text())
    content["synthesis"] |= LOOSE
    inference.write_text(json.dumps(content))
    if name == "cvae_fill":  # it is told no volume, and untrained its masks are empty
        state = torch.load(out / "models" / "model.pt", weights_only=True)
        state["decoder.output.conv.bias"][2 * 8 :] = 0.0
        torch.save(state, out / "models" / "model.pt")
    bundle = load_bundle(out)  # strict: every tensor has its place
    (sample,) = bundle.generate(1, seed=1)
    shape = tuple(content["spatial_shape"])
    assert tuple(sample.image.shape) == (2, *shape)
    assert np.isfinite(np.asarray(sample.image)).all()
    assert set(np.unique(sample.label)) <= {0, 1}
    (again,) = bundle.generate(1, seed=1)
    assert np.array_equal(np.asarray(sample.image), np.asarray(again.image))
    if bundle.statistics.classes:
        require_counterfactuals(cli, out, classed, tmp_path)


@pytest.fixture(scope="module")
def lacking(classed, tmp_path_factory):
    """The same list, of which every third case lacks one of its two channels in turn."""
    listed = read_datalist(classed)
    cases = [
        replace(case, image=(case.image[number % 2],), missing=(1 - number % 2,))
        if number % 3 == 0
        else case
        for number, case in enumerate(listed)
    ]
    path = tmp_path_factory.mktemp("lacking") / "datalist.json"
    write_datalist(path, cases, listed.info)
    return path


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "hides"),
    [
        ("vae", True), ("hvae", True), ("dhvae", True), ("cvae", True), ("cvae_multiscale", True),
        ("rhvae", True), ("vqvae", True), ("vae_gan", True), ("soft_introvae", False),
        ("cvae_fill", False), ("pavae", False), ("dcgan", False),
    ],
)  # fmt: skip
def test_a_system_trains_on_cases_that_lack_a_channel(name, hides, lacking, tmp_path):
    out, told = tmp_path / name, []
    outcome = train(name, lacking, out, seed=3, changes=small(name), say=told.append)
    assert outcome.steps == 2
    assert any("training cases lack a channel" in line for line in told)
    history = (out / "eval" / "history.csv").read_text()
    assert "nan" not in history and "inf" not in history
    state = torch.load(out / "models" / "model.pt", weights_only=True)
    assert all(bool(t.isfinite().all()) for key, t in state.items() if "image_" in key)
    bundle = load_bundle(out)
    assert getattr(bundle.network, "channel_dropout", 0.0) == (0.25 if hides else 0.0)


@pytest.mark.integration
def test_monai_itself_runs_the_bundle_of_a_system(classed, tmp_path):
    from monai.bundle import ConfigWorkflow

    from medvae3d.apps import surroundings

    out = tmp_path / "vae"
    train("vae", classed, out, seed=3, changes=small("vae"))
    first = torch.load(out / "models" / "model.pt", weights_only=True)
    (out / "models" / "train_state.pt").unlink()
    given = {"bundle_root": str(out), "datalist": str(classed)}
    with surroundings.quiet(verbose=False):
        config = str(out / "configs" / "train.json")
        workflow = ConfigWorkflow(config, logging_file=False, **given)
        workflow.initialize()
        workflow.run()
    again = torch.load(out / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.integration
def test_a_system_takes_the_form_of_a_bundle(cli, cases, tmp_path):
    out = tmp_path / "mine"
    words = ("--like", "sts_petct_hvae", "spatial_shape=[16,16,16]", *small("vae"))
    done = cli("train", "vae", "--datalist", cases, "--out", out, *words)
    assert done.code == 0, done.error
    shipped = load_bundle("sts_petct_hvae").recipe
    mine = load_bundle(out).recipe
    assert mine.channels == shipped.channels
    assert (mine.labels, mine.spacing) == (shipped.labels, shipped.spacing)
    assert json.loads((out / "run.json").read_text())["like"] == "sts_petct_hvae"
    again = cli("train", "vae", "--datalist", cases, "--out", out, "--resume", *words)
    assert again.code == 0 and "nothing to resume" in again.error


# Names.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "hvea"), "Did you mean hvae?"),
        (("train", "sts_petct_hva"), "Did you mean sts_petct_hvae?"),
        (("train", "hippocampus_mri_hvae", "--like", "sts_petct_hvae"), "--like is for systems"),
        (("train", "vae", "--like", "nowhere"), "'nowhere' is neither a shipped bundle"),
        (("train", "vae", "network_def#latent_chanels=3"), "latent_channels"),
    ],
)
def test_what_cannot_be_trained_is_refused(refused, cases, tmp_path, words, said):
    name, *rest = words[1:]
    error = refused("train", name, "--datalist", cases, "--out", tmp_path / "out", *rest)
    assert said in error
    assert not (tmp_path / "out").exists()


def test_a_system_is_no_bundle(refused, tmp_path):
    error = refused("generate", "vae", "--count", 1, "--seed", 1, "--out", tmp_path / "out")
    assert "'vae' is a system, which has no weights until it is trained" in error
    assert "medvae3d train vae --datalist LIST --out DIR" in error


# Files of systems.


def test_identifiers_of_systems_lead_somewhere():
    for name in system_names():
        assert system_settings(name)["network_def"]["_target_"].startswith("medvae3d.models.zoo.")
        assert "_desc_#what" in read_system(name)


def test_a_setting_that_leads_nowhere_is_refused():
    with pytest.raises(BundleError, match="no place for 'train#playerz#0'"):
        laid_over(read_base(), {"train#playerz#0": 1})


def test_a_system_without_a_discriminator_has_no_settings_of_one():
    assert not [key for key in system_settings("vae") if "discriminator" in key]
    assert {"discriminator", "discriminator_optimizer"} <= set(system_settings("dhvae"))


def test_voxels_are_multiples_of_all_strides():
    network = {
        "channels": [4, 8, 8],
        "texture": {"channels": [4, 4, 4, 4], "strides": [2, 2, 2, [2, 1, 1]]},
    }
    assert multiples(network) == (16, 8, 8)


# The form of data.


def written(folder, shape, spacing, labels=(1,), offset=0.0, count=4, words=("",)):
    """A data list of random volumes in LPS order with cuboids as masks."""
    rng = np.random.default_rng(0)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    grid = Grid(tuple(shape), affine)
    cases = []
    for number in range(count):
        files = []
        for word in words:
            files.append(folder / f"case{number}{word}.nii.gz")
            image = rng.uniform(0, 1000, shape).astype(np.float32) + offset
            write_volume(files[-1], image, grid, slope=1)
        mask = np.zeros(shape, np.uint8)
        for value in labels:
            mask[2 + value : 4 + value, 3:6, 3:6] = value
        write_volume(folder / f"case{number}_label.nii.gz", mask, grid)
        label = folder / f"case{number}_label.nii.gz"
        cases.append(Case(tuple(files), label, f"case{number}", "training"))
    return DataList(tuple(cases), folder)


def form(listed, multiples=(8, 8, 8)):
    return read_form(listed, check(listed), multiples)


def test_the_form_is_read_off_the_cases(tmp_path):
    found = form(written(tmp_path, (20, 24, 12), (1.0, 1.0, 2.0)))
    assert found.spacing == (1.0, 1.0, 2.0)
    assert found.spatial_shape == (24, 24, 16)
    assert found.labels == {"background": 0, "lesion": 1}
    assert found.attributes == ("log_volume",)
    assert [channel["name"] for channel in found.channels] == ["MR"]
    assert found.channels[0]["intensity"]["kind"] == "percentile"
    assert (found.max_components, found.allow_border, found.classes) == (1, False, ())


def test_nearly_equal_sides_of_voxels_become_cubes(tmp_path):
    found = form(written(tmp_path, (20, 24, 12), (1.0, 1.0, 1.4)))
    assert found.spacing == (1.12, 1.12, 1.12)
    extents = (20 * 1.0, 24 * 1.0, 12 * 1.4)
    assert all(n * 1.12 >= e for n, e in zip(found.spatial_shape, extents, strict=True))


def test_every_label_has_its_volume_told_where_all_cases_have_it(tmp_path):
    listed = written(tmp_path, (16, 16, 16), (1.0,) * 3, labels=(1, 2))
    assert form(listed).attributes == ("log_volume:1", "log_volume:2")
    assert form(listed).labels == {"background": 0, "label_1": 1, "label_2": 2}
    named = replace(listed, info={"labels": {"0": "background", "1": "core", "2": "rim"}})
    assert form(named).labels == {"background": 0, "core": 1, "rim": 2}


def test_units_follow_names_and_signs(tmp_path):
    pair = written(tmp_path, (16, 16, 16), (1.0,) * 3, words=("_pet", "_t1"))
    pet, t1 = form(pair).channels
    assert (pet["name"], pet["unit"], pet["intensity"]["kind"]) == ("PET", "SUV", "power")
    assert (t1["name"], t1["intensity"]["kind"]) == ("T1", "percentile")
    folder = tmp_path / "ct"
    folder.mkdir()
    (ct,) = form(written(folder, (16, 16, 16), (1.0,) * 3, offset=-600)).channels
    assert (ct["unit"], ct["intensity"]["kind"], ct["dtype"]) == ("HU", "window", "int16")
    assert ct["intensity"]["low"] == pytest.approx(-595, abs=3)
    assert ct["intensity"]["high"] == pytest.approx(395, abs=3)


def test_volumes_too_large_to_train_on_become_coarser_and_that_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(forms, "MOST_VOXELS", 16**3)
    found = form(written(tmp_path, (32, 32, 32), (1.0,) * 3))
    assert math.prod(found.spatial_shape) <= 16**3
    assert found.spacing[0] > 1.9
    assert "are made coarser" in found.notes[0]


def test_labels_with_a_gap_are_refused(tmp_path):
    with pytest.raises(LabelError, match=r"label values \[0, 1, 3\].*Number them anew"):
        form(written(tmp_path, (16, 16, 16), (1.0,) * 3, labels=(1, 3)))


def test_the_files_are_installed_with_the_package(package):
    declared = (package.parent / "setup.cfg").read_text()
    assert "models/systems/*.json" in declared and "models/systems/bundle/*" in declared
