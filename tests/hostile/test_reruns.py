"""Claims about files of options, and about folders of earlier runs in which a file is damaged."""

from __future__ import annotations

import json
import shutil

import pytest
import small_bundles as small
from hostile import make_settings

EVERY = 7


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """A folder that is there if something was executed."""
    return tmp_path_factory.mktemp("executed") / "trace"


# -- options --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(trace, tmp_path_factory):
    return make_settings.make_options(tmp_path_factory.mktemp("options") / "files", trace)


def faults_of_options(runner, good, chosen, out):
    """Options are read before anything else: what is asked for would do."""
    faults = {}
    for path in chosen:
        words = ["generate", good.joint, "--out", out / "o", "--config", path]
        if path.is_file() and b"count" not in path.read_bytes():
            words += ["--count", 1]
        faults[path.name] = runner.faults(words, out)
    return {name: found for name, found in faults.items() if found}


def test_some_hostile_options_are_refused(runner, good, files, trace, tmp_path):
    assert faults_of_options(runner, good, files[::EVERY], tmp_path) == {}
    assert not trace.exists()


@pytest.mark.slow
def test_all_hostile_options_are_refused(runner, good, files, trace, tmp_path):
    assert len(files) >= 60
    assert faults_of_options(runner, good, files, tmp_path) == {}
    assert not trace.exists()


@pytest.mark.slow
def test_every_command_refuses_a_bomb_of_options(runner, files, tmp_path):
    import typer
    from hostile.test_corpus import leaves

    from medvae3d.apps.cli import app

    chosen = [path for path in files if path.name in ("aliases.yaml", "deep.json", "pipe.yaml")]
    faults = {
        (name, path.name): runner.faults([*name.split(), "--config", path], tmp_path)
        for name, _ in leaves(typer.main.get_command(app))
        for path in chosen
    }
    assert len(faults) > 60
    assert {name: found for name, found in faults.items() if found} == {}


# -- a training to go on with ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(runner, tmp_path_factory):
    """A training that stopped after two of four steps, and the command that goes on with it."""
    from medvae3d.training.players import ModelPlayer

    root = tmp_path_factory.mktemp("stopped")
    source = small.small_copy("hippocampus_mri_hvae", root / "source")
    small.quick_training(source)
    cases = small.write_cases(root / "cases", small.read(source / "configs" / "train.json"))
    words = ["train", source, "--datalist", cases, "--out"]
    update = ModelPlayer._update

    def broken(self, loss, turn):
        update(self, loss * float("nan") if turn.step == 2 else loss, turn)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelPlayer, "_update", broken)
        done = runner.run([*words, root / "run"])
    assert done.code == 2 and "gradient" in done.error, done
    return root / "run", words


def damaged(stopped, where):
    """Contents that a file of the run may have, by the name of the file."""
    folder, _ = stopped
    content = (folder / "models" / "train_state.pt").read_bytes()
    kinds = {"models/train_state.pt": lambda trace: make_settings.states(content, trace)}
    for name in ("run.json", "cases.json", "configs/train.json", "eval/validation.jsonl",
                 "eval/history.csv"):  # fmt: skip
        kinds[name] = make_settings.no_json
    return kinds[where]


# What a run does not stand on, or has of earlier versions, or what it begins anew.
HARMLESS = {
    ("cases.json", "whole_4"), ("cases.json", "whole_5"), ("eval/history.csv", "empty"),
    ("eval/validation.jsonl", "empty"),
}  # fmt: skip


def faults_of_run(runner, stopped, where, trace, tmp_path, every=1):
    folder, words = stopped
    faults = {}
    for name, content in list(damaged(stopped, where)(trace))[::every]:
        out = shutil.copytree(folder, tmp_path / "run")
        (out / where).write_bytes(content)
        if (where, name) in HARMLESS:
            done = runner.run([*words, out, "--resume"])
            faults[name] = [] if (done.code, done.raised) == (0, None) else [repr(done)[:900]]
        else:
            faults[name] = runner.faults([*words, out, "--resume"], out)
        shutil.rmtree(out)
    assert not trace.exists()
    return {name: found for name, found in faults.items() if found}


FILES_OF_RUN = (
    "models/train_state.pt", "run.json", "cases.json", "configs/train.json", "eval/history.csv",
    "eval/validation.jsonl",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("where", FILES_OF_RUN)
def test_a_damaged_training_is_refused_and_stays_as_it_is(runner, stopped, where, trace, tmp_path):
    assert faults_of_run(runner, stopped, where, trace, tmp_path) == {}


# -- other folders that a command goes on with ----------------------------------------------------


@pytest.fixture(scope="module")
def begun(runner, good, tmp_path_factory):
    """Folders of commands that have ended, with what would run them again."""
    root = tmp_path_factory.mktemp("begun")
    loose = shutil.copytree(good.joint, root / "loose")  # what it makes is noise
    config = loose / "configs" / "inference.json"
    content = small.read(config)
    content["synthesis"] |= {"max_attempts": 200, "max_components": 10**6, "allow_border": True}
    config.write_text(json.dumps(content))
    words = {
        "generate": ["generate", loose, "--count", 2],
        "study": [
            "study", "segmentation", "--datalist", good.datalist, "--bundle", good.joint,
            "--arms", "real", "--steps", 1, "--seeds", 1,
        ],
        "evaluate": [
            "evaluate", "--real", good.datalist, "--synthetic", good.datalist, "--sections",
            "masks", "--viewer-cases", 0,
        ],
    }  # fmt: skip
    for name, each in words.items():
        done = runner.run([*each, "--out", root / name])
        assert (done.code, done.raised) == (0, None), done
    return root, words


# The files of a folder, by a pattern, and whether damaged ones are made again.
FILES_OF_FOLDER = {
    "generate": {"records/*.json": False, "dataset.json": True, "imagesTr/*.nii.gz": True},
    "study": {"settings.json": False, "cells/*.json": False, "cells.csv": True},
    "evaluate": {"report.json": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("command", FILES_OF_FOLDER)
def test_a_damaged_folder_is_refused_or_mended(runner, begun, command, trace, tmp_path):
    root, words = begun
    faults = {}
    for pattern, is_mended in FILES_OF_FOLDER[command].items():
        file = sorted((root / command).glob(pattern))[0].relative_to(root / command)
        whole = (root / command / file).read_bytes()
        for name, content in make_settings.no_json(trace):
            out = shutil.copytree(root / command, tmp_path / "out")
            (out / file).write_bytes(content)
            if is_mended:
                done = runner.run([*words[command], "--out", out])
                fault = [] if (done.code, done.raised) == (0, None) else [repr(done)[:900]]
                if file.suffix != ".html" and (out / file).read_bytes() != whole:
                    fault.append("it is another file")
            else:
                fault = runner.faults([*words[command], "--out", out], out)
            faults[str(file), name] = fault
            shutil.rmtree(out)
    assert not trace.exists()
    assert {key: found for key, found in faults.items() if found} == {}
