"""Claims about malformed and hostile files: a sentence, never a traceback or half an output.

The quick tests take every tenth file to each command, another tenth to each; the slow ones take
all files to all commands.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import typer
from hostile import commands, make_corpus
from hostile.running import LONGEST_S, MOST_BYTES

EVERY = 10
LIST_CALLS, VOLUME_CALLS = commands.list_calls(), commands.volume_calls()


def leaves(group, names=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*names, name))
        else:
            yield " ".join((*names, name)), command


def test_every_parameter_of_every_command_is_tried_or_reads_nothing():
    from medvae3d.apps.cli import app

    found = {
        (name, parameter)
        for name, command in leaves(typer.main.get_command(app))
        for parameter in inspect.signature(command.callback).parameters
    }
    known = commands.WRITES | commands.PLAIN
    reading = {(name, parameter) for name, parameter in found if parameter not in known}
    # A name may be plain in one command and read in another.
    reading |= {each for each in found if each in commands.READS}
    assert reading == set(commands.READS)


def test_every_reading_parameter_has_a_call():
    named = {
        commands.LIST: LIST_CALLS,
        commands.VOLUME: VOLUME_CALLS,
        commands.BUNDLE: commands.bundle_calls(),
        commands.WEIGHTS: commands.weights_calls(),
    }
    for (command, parameter), kind in commands.READS.items():
        calls = [*named.get(kind, ()), "data import", "cite", "evaluate medicalnet --lpips"]
        assert any(each.startswith(command) for each in calls), (command, parameter)


def test_the_corpus_has_at_least_two_hundred_files(corpus):
    assert len(corpus) >= 200
    assert len({path.name for path in corpus}) == len(corpus)


def faults_of_list(runner, name, path, out, good):
    words = LIST_CALLS[name](path, out, good)
    is_list = path.parent.name == "lists"
    # What is wrong with a list may be the file that it names.
    # What is not lacking a channel is not read by `impute`.
    what = "" if is_list or name == "impute" else path.name.removesuffix(".json")
    if name == "data check" and not is_list:
        return faults_of_check(runner, words, out, what)
    return runner.faults(words, out, what)


def faults_of_check(runner, words, out, what):
    """A check answers: 2 with a cause if a file cannot be read, else 1 with what was found."""
    done = runner.run(words)
    if done.code == 2:
        return runner.faults(words, out, what)
    causes = [line for line in done.out.splitlines() if "]: " in line and what in line]
    if done.raised is None and done.code == 1 and causes and done.error == "":
        return [] if done.seconds <= LONGEST_S else [f"{done.seconds:.1f} s"]
    return [repr(done)[:300]]


@pytest.mark.parametrize("name", LIST_CALLS)
def test_some_hostile_lists_and_volumes_are_refused(runner, corpus, good, tmp_path, name):
    number = list(LIST_CALLS).index(name)
    chosen = corpus[number % EVERY :: EVERY * 3]
    faults = {p.name: faults_of_list(runner, name, p, tmp_path, good) for p in chosen}
    assert {key: found for key, found in faults.items() if found} == {}


@pytest.mark.parametrize("name", VOLUME_CALLS)
def test_some_hostile_volumes_are_refused(runner, corpus, good, tmp_path, name):
    files = sorted((corpus[0].parents[1] / "volumes").iterdir())
    number = list(VOLUME_CALLS).index(name)
    faults = {
        path.name: runner.faults(VOLUME_CALLS[name](path, tmp_path, good), tmp_path, path.name)
        for path in files[number::60]
    }
    assert {key: found for key, found in faults.items() if found} == {}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", LIST_CALLS)
def test_every_hostile_list_and_volume_is_refused(runner, corpus, good, tmp_path, name):
    faults = {p.name: faults_of_list(runner, name, p, tmp_path, good) for p in corpus}
    assert {key: found for key, found in faults.items() if found} == {}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", VOLUME_CALLS)
def test_every_hostile_volume_is_refused(runner, corpus, good, tmp_path, name):
    faults = {
        path.name: runner.faults(VOLUME_CALLS[name](path, tmp_path, good), tmp_path, path.name)
        for path in sorted((corpus[0].parents[1] / "volumes").iterdir())
    }
    assert {key: found for key, found in faults.items() if found} == {}


ODD = {name: (content, values) for name, content, values in make_corpus.odd_volumes()}


@pytest.mark.parametrize("name", ODD)
def test_unusual_volumes_are_read_right(tmp_path, name):
    from medvae3d.data.volumes import read_volume

    (tmp_path / name).write_bytes(ODD[name][0])
    volume = read_volume(tmp_path / name)
    assert np.array_equal(volume.array, ODD[name][1])
    assert np.array_equal(volume.grid.affine, make_corpus.affine())


def test_unusual_volumes_are_imported_right(runner, tmp_path):
    from medvae3d.data.datalists import read_datalist
    from medvae3d.data.volumes import read_volume

    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "in"
    elsewhere.mkdir()
    folder.mkdir()
    for name, (content, _) in ODD.items():
        (elsewhere / name).write_bytes(content)
    entries = []
    for number, name in enumerate(ODD):
        # A link out of the folder of the list is read like any file.
        link = folder / f"{number:02d}_{name}"
        link.symlink_to(elsewhere / name)
        entries.append({"image": link.name, "case": f"c{number:02d}"})
    path = folder / "list.json"
    path.write_text(json.dumps({"training": entries}))
    done = runner.run(["data", "import", path, "--out", tmp_path / "out"])
    assert done.raised is None, done
    assert done.code == 1, done.error  # copies of one volume are a finding
    cases = read_datalist(tmp_path / "out" / "datalist.json").cases
    assert len(cases) == len(ODD)
    for case, (_, values) in zip(cases, ODD.values(), strict=True):
        assert np.array_equal(read_volume(case.image[0]).array, values), case


def test_names_that_are_not_utf8_are_refused(runner, good, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    bad = bytes(folder) + b"/\xe9_image.nii"
    with open(bad, "wb") as file:
        file.write(make_corpus.whole())
    import os

    text = os.fsdecode(bad)
    for words in (
        ["data", "import", folder, "--out", out / "o"],
        ["data", "check", text],
        ["generate", good.stages, "--count", 1, "--host", text, "--host", text, "--out", out / "o"],
    ):
        assert runner.faults(words, out, "\\udce9") == []


@pytest.mark.integration
@pytest.mark.parametrize("name", ["lists/pipe.json", "claims_3x30000.nii.json"])
def test_a_process_of_its_own_refuses_too(corpus, tmp_path, name):
    import resource

    path = corpus[0].parents[1] / name

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))

    words = [sys.executable, "-m", "medvae3d", "data", "import", path, "--out", tmp_path / "o"]
    done = subprocess.run(words, preexec_fn=limit, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
