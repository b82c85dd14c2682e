"""Claims about training as a command: a bundle comes out, and an interruption leaves no trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import tiny_bundles as tiny
import torch
from PIL import Image

from medvae3d.apps import surroundings, training
from medvae3d.apps.settings import parse_changes, read_settings, recipes
from medvae3d.apps.training import train
from medvae3d.training.trouble import LatentWatch, TrainingWatch

REPOSITORY = Path(__file__).parents[2]


def command(bundle, cases, out, *words):
    return ("train", bundle, "--datalist", cases, "--out", out, "--recipe", "small", *words)


@pytest.fixture(scope="module")
def trained(cli, trainable, cases, tmp_path_factory):
    """Folder of a small training that was not interrupted, and what the command said."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    done = cli(*command(trainable, cases, out, "--seed", 7, "prior_passes=3"))
    assert done.code == 0, done.error
    return out, done


def weights(folder):
    return torch.load(folder / "models" / "model.pt", weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_training_leaves_a_bundle(trained):
    out, done = trained
    assert {path.name for path in out.iterdir()} == {
        "LICENSE", "cases.json", "configs", "docs", "eval", "models", "run.json"
    }  # fmt: skip
    assert (out / "models" / "model.pt").is_file()
    assert (out / "eval" / "history.csv").is_file()
    assert len((out / "eval" / "validation.jsonl").read_text().splitlines()) == 2
    with Image.open(out / "eval" / "curves.png") as picture:
        assert min(picture.size) > 200 and len(picture.getcolors(1 << 20)) > 50
    assert str(out / "models" / "model.pt") in done.out
    assert f"medvae3d generate {out}" in done.out


def test_progress_is_told_with_the_time_left(trained):
    _, done = trained
    assert "epoch 1/2, step 2/4, loss" in done.error
    assert "s left" in done.error
    assert f"to watch it: {trained[0] / 'eval'}/history.csv" in done.error
    assert f"{trained[0] / 'eval' / 'grids'}" in done.error
    assert "Traceback" not in done.error
    assert "Warning" not in done.error


def test_the_settings_are_kept_with_the_weights(trained):
    out, _ = trained
    settings = json.loads((out / "configs" / "train.json").read_text())
    assert settings["max_epochs"] == 2
    assert settings["prior_passes"] == 3
    assert settings["seed"] == 7
    assert settings["bundle_root"] == "."
    run = json.loads((out / "run.json").read_text())
    assert run["bundle"] == "pair"
    assert run["recipe"] == "small"
    assert run["settings"] == {"prior_passes": 3}
    assert run["cases"] == {"training": 4, "validation": 2, "testing": 0}
    assert run["finished"] is True


def test_no_path_of_this_machine_is_kept(trained, cases):
    out, _ = trained
    texts = [path for path in out.rglob("*") if path.suffix in {".json", ".md", ".txt"}]
    assert not [path for path in texts if str(cases.parent) in path.read_text()]


def test_the_network_is_the_same_in_all_configurations(trained):
    out, _ = trained
    train, inference = (
        json.loads((out / "configs" / name).read_text())
        for name in ("train.json", "inference.json")
    )
    assert inference["network_def"] == train["network_def"]
    assert inference["network_def"]["channels"] == [4, 8]
    assert inference["spatial_shape"] == train["spatial_shape"] == [16, 16, 16]


def test_the_card_tells_of_these_cases_and_not_of_the_shipped_ones(trained):
    out, _ = trained
    card = (out / "docs" / "README.md").read_text()
    assert card.startswith("# mine\n")
    assert "balls: CC0-1.0, https://example.org/cc0" in card
    assert "`prior_passes` = `3`" in card
    terms = (out / "docs" / "data_license.txt").read_text()
    assert terms == "1. balls: CC0-1.0, https://example.org/cc0\n"
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert metadata["data_source"] == "balls"
    assert metadata["image_classes"] == "PET in SUV, CT in HU"
    assert metadata["references"] == ["Of the method, 2020"]
    assert metadata["network_data_format"] == {
        "inputs": {
            "image": {
                "num_channels": 2,
                "spatial_shape": [16, 16, 16],
                "channel_def": {"0": "PET", "1": "CT"},
            }
        },
        "outputs": {
            "pred": {
                "num_channels": 3,
                "spatial_shape": [16, 16, 16],
                "channel_def": {"0": "background", "1": "tumour"},
            }
        },
    }
    licence = (out / "LICENSE").read_text()
    assert licence.startswith("Apache License")


def test_the_folder_generates(cli, trained, tmp_path):
    out, _ = trained
    done = cli("generate", out, "--count", 2, "--seed", 1, "--out", tmp_path / "made")
    assert done.code == 0, done.error
    record = json.loads(next((tmp_path / "made" / "records").iterdir()).read_text())
    assert record["bundle"] == "mine 0.1.0"
    assert record["licence"]["data"] == ["balls: CC0-1.0, https://example.org/cc0"]


def test_the_folder_can_be_trained_again(cli, trained, cases, tmp_path):
    out, _ = trained
    again = cli("train", out, "--datalist", cases, "--out", tmp_path / "again")
    assert again.code == 0, again.error
    assert same(weights(tmp_path / "again"), weights(out))


def test_monai_itself_trains_from_the_folder(trained, cases, tmp_path):
    """The folder is a bundle for `python -m monai.bundle run` as well."""
    from monai.bundle import ConfigWorkflow

    out, _ = trained
    folder = shutil.copytree(out, tmp_path / "copy")
    (folder / "models" / "train_state.pt").unlink()
    config = str(folder / "configs" / "train.json")
    given = {"bundle_root": str(folder), "datalist": str(cases)}
    with surroundings.quiet(verbose=False):
        workflow = ConfigWorkflow(config, logging_file=False, **given)
        workflow.initialize()
        workflow.run()
    assert same(weights(folder), weights(out))


def test_a_folder_with_a_run_is_left_alone(refused, trained, trainable, cases):
    out, _ = trained
    error = refused(*command(trainable, cases, out), out=out)
    assert "holds a training run of pair already. Add --resume" in error


def test_a_finished_run_is_not_begun_again(cli, trained, trainable, cases):
    out, _ = trained
    before = (out / "models" / "model.pt").read_bytes()
    done = cli(*command(trainable, cases, out, "--resume"))
    assert done.code == 0
    assert "nothing to resume" in done.error
    assert (out / "models" / "model.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", 8), "holds a run with seed 7; now asked for is 8"),
        (("prior_passes=4",), "settings"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(
    refused, trained, trainable, cases, words, message
):
    out, _ = trained
    error = refused(*command(trainable, cases, out, "--resume", *words), out=out)
    assert message in error
    assert "train anew in another folder" in error


def test_a_run_goes_on_with_its_own_cases_only(refused, trained, trainable, cases, tmp_path):
    out, _ = trained
    folder = shutil.copytree(cases.parent, tmp_path / "data")
    content = json.loads((folder / "datalist.json").read_text())
    content["training"].pop()
    (folder / "datalist.json").write_text(json.dumps(content))
    words = command(trainable, folder / "datalist.json", out, "--resume")
    assert "holds a run on other cases" in refused(*words, out=out)


@pytest.fixture
def stop_after(monkeypatch):
    """Sends this process a signal when a training has taken some steps."""

    def at(wanted, number=signal.SIGINT):
        told = surroundings.Reporter._step

        def step(self, engine):
            told(self, engine)
            if engine.state.iteration == wanted:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(surroundings.Reporter, "_step", step)

    # Not Python's own where a shell began the tests in the background.
    before = signal.getsignal(signal.SIGINT)
    yield at
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_interrupted_training_ends_with_the_same_weights(
    cli, trained, trainable, cases, tmp_path, stop_after, monkeypatch, steps
):
    out = tmp_path / "mine"
    stop_after(steps)
    done = cli(*command(trainable, cases, out, "--seed", 7, "prior_passes=3"))
    assert done.code == 130
    assert f"stopped after step {steps} of 4, state saved" in done.error
    assert not (out / "models" / "model.pt").exists()
    monkeypatch.undo()
    done = cli(*command(trainable, cases, out, "--resume"))
    assert done.code == 0, done.error
    assert f"going on after step {steps} of 4" in done.error
    assert same(weights(out), weights(trained[0]))
    curves = [(folder / "eval" / "validation.jsonl").read_text() for folder in (out, trained[0])]
    assert curves[0] == curves[1]


def test_a_request_to_terminate_saves_as_well(cli, trainable, cases, tmp_path, stop_after):
    stop_after(1, signal.SIGTERM)
    done = cli(*command(trainable, cases, tmp_path / "out"))
    assert done.code == 128 + signal.SIGTERM
    assert (tmp_path / "out" / "models" / "train_state.pt").is_file()


def test_an_interruption_before_the_first_step_leaves_nothing(
    cli, trainable, cases, tmp_path, monkeypatch
):
    def interrupted(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "ConfigWorkflow", interrupted)
    done = cli(*command(trainable, cases, tmp_path / "out"))
    assert done.code == 130
    assert not (tmp_path / "out").exists()


def test_resume_begins_where_there_is_nothing_to_resume(cli, trained, trainable, cases, tmp_path):
    words = ("--resume", "--seed", 7, "prior_passes=3")
    assert cli(*command(trainable, cases, tmp_path / "out", *words)).code == 0
    assert same(weights(tmp_path / "out"), weights(trained[0]))


def test_another_seed_makes_other_weights(cli, trained, trainable, cases, tmp_path):
    words = ("--seed", 8, "prior_passes=3")
    assert cli(*command(trainable, cases, tmp_path / "out", *words)).code == 0
    assert not same(weights(tmp_path / "out"), weights(trained[0]))


def test_training_leaves_the_generators_of_its_caller_alone(trained, trainable, cases, tmp_path):
    """Deterministic algorithms are switched on for the run only."""
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_list_without_validation_cases_is_trained_on(trainable, cases, tmp_path):
    folder = shutil.copytree(cases.parent, tmp_path / "data")
    content = json.loads((folder / "datalist.json").read_text())
    content["validation"] = []
    (folder / "datalist.json").write_text(json.dumps(content))
    said = []
    outcome = train(
        trainable, folder / "datalist.json", tmp_path / "out", recipe="small", say=said.append
    )
    assert (outcome.steps, outcome.signal) == (4, None)
    assert "no validation cases: nothing will be validated" in said
    assert not (tmp_path / "out" / "eval" / "validation.jsonl").exists()


def test_a_training_that_goes_wrong_says_so(trainable, cases, tmp_path, monkeypatch):
    """Limits that everything is beyond; what is told where is the claim."""
    monkeypatch.setattr(LatentWatch, "nats", float("inf"))
    monkeypatch.setattr(LatentWatch, "active_share", 2.0)
    monkeypatch.setattr(TrainingWatch, "orders", -1e9)
    said = []
    train(
        trainable, cases, tmp_path / "out", recipe="small", say=said.append,
        changes=["train#handlers#11#every_steps=1"],
    )  # fmt: skip
    warned = [line for line in said if line.startswith("warning: ")]
    assert sum("the latent of model has collapsed" in line for line in warned) == 1
    assert sum("model diverges" in line for line in warned) == 1


def test_a_subject_in_two_splits_is_told_and_let_through(cases):
    from medvae3d.apps.data_for_training import require_trainable
    from medvae3d.data.datalists import read_datalist

    listed = read_datalist(cases)
    settings = {"labels": {"background": 0, "tumour": 1}, "channels": [], "train": {}}
    assert require_trainable(listed, settings) == []
    twice = [
        type(case)(case.image, case.label, "one", case.split, case.extra) for case in listed.cases
    ]
    notes = require_trainable(type(listed)(tuple(twice), listed.root, {}, listed.path), settings)
    assert len(notes) == 1
    assert "subject one is in training and in validation" in notes[0]


# Settings.


def test_values_are_read_as_json_or_text(trainable):
    settings = read_settings(trainable)
    texts = [
        "max_epochs=3",
        "learning_rate=1e-4",
        "tensorboard=False",
        "precision=float32",
        "network_def::dropout=0.2",
        "channels#0#name=SUV",
        "rate=$1.0",
        "early_stop=0",
    ]
    assert parse_changes(texts, settings) == {
        "max_epochs": 3,
        "learning_rate": 1e-4,
        "tensorboard": False,
        "precision": "float32",
        "network_def#dropout": 0.2,
        "channels#0#name": "SUV",
        "rate": "$1.0",
        "early_stop": 0,
    }


def test_a_recipe_lies_over_the_full_training(trainable):
    assert recipes(trainable) == ["small"]
    assert read_settings(trainable, "small")["max_epochs"] == 2
    assert read_settings(trainable)["max_epochs"] > 2
    assert read_settings(trainable, "small")["network_def"]["channels"] == [4, 8]


# The two-stage family: one command trains both stages.

SHORT = ["max_epochs=1", "epoch_length=3", "warm_up_steps=2", "adversarial_start=1",
         "prior_passes=2", "val_interval=1", "tensorboard=false", "discriminator#channels=[4,8]",
         "network_def#shape#channels=[4,8]", "network_def#shape#components=2",
         "network_def#shape#rank=2", "network_def#texture#channels=[4,8]"]  # fmt: skip
BOTH_STAGES = {
    "sts_petct_pavae": ["spatial_shape=[16,16,16]", "network_def#texture#components=2",
                        "network_def#texture#rank=2"],
    "brain_mri_ms_pavae": ["spatial_shape=[12,12,12]", "spacing=[4,4,4]", "batch_size=2",
                           "train#patches#patches#jitter=2"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BOTH_STAGES))
def test_both_stages_are_trained_and_resumed(cli, cases, tmp_path, name, stop_after, monkeypatch):
    source = REPOSITORY / "bundles" / name
    words = ("train", source, "--datalist", cases)
    settings = [*SHORT, *BOTH_STAGES[name]]
    whole = cli(*words, "--out", tmp_path / "whole", *settings)
    assert whole.code == 0, whole.error
    stop_after(2)
    assert cli(*words, "--out", tmp_path / "parts", *settings).code == 130
    monkeypatch.undo()
    assert cli(*words, "--out", tmp_path / "parts", "--resume").code == 0
    found = weights(tmp_path / "whole")
    assert {key.partition(".")[0] for key in found} >= {"shape", "texture"}
    assert same(found, weights(tmp_path / "parts"))


@pytest.mark.slow
def test_patches_of_cases_that_lack_channels_are_trained_on_and_resumed(
    cli, cases, tmp_path, stop_after, monkeypatch
):
    name = "brain_mri_ms_pavae"
    folder = shutil.copytree(cases.parent, tmp_path / "data")
    content = json.loads((folder / "datalist.json").read_text())
    content["training"][0]["image"][1] = content["training"][1]["image"][0] = None
    content["validation"][0]["image"][0] = None
    (folder / "datalist.json").write_text(json.dumps(content))
    words = ("train", REPOSITORY / "bundles" / name, "--datalist", folder / "datalist.json")
    channels = json.dumps(tiny.CHANNELS)
    settings = [*SHORT, *BOTH_STAGES[name], "epoch_length=2", "prior_passes=1",
                "train#patches#patches#samples_per_case=4",
                "validate#dataloader#loaders#patches#patches#samples_per_case=8",
                f"channels={channels}"]  # fmt: skip
    whole = cli(*words, "--out", tmp_path / "whole", *settings)
    assert whole.code == 0, whole.error
    (row,) = (tmp_path / "whole" / "eval" / "validation.jsonl").read_text().splitlines()
    assert 0 < json.loads(row)["texture/nmse"] < 10
    stop_after(1)
    assert cli(*words, "--out", tmp_path / "parts", *settings).code == 130
    monkeypatch.undo()
    assert cli(*words, "--out", tmp_path / "parts", "--resume").code == 0
    found = weights(tmp_path / "whole")
    assert same(found, weights(tmp_path / "parts"))
    assert found["statistics.image_high"].tolist() == [10.0, 300.0]
    assert all(value.isfinite().all() for value in found.values())
