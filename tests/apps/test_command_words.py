"""Claims about the words of the commands: their help, their completion, values that cannot be."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from medvae3d.apps import cli as command_line

REPOSITORY = Path(__file__).parents[2]
HEAVY = {"torch", "monai", "numpy", "nibabel", "matplotlib"}


def leaves(group, *names):
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, *names, name)
        else:
            yield (*names, name), command


COMMAND_LINE = typer.main.get_command(command_line.app)
COMMANDS = dict(leaves(COMMAND_LINE))
RUN_OPTIONS = {"--config", "--report", "--quiet", "--trust", "--help", "-h"}


@pytest.mark.parametrize("words", [(), ("data",), ("study",), *COMMANDS], ids=" ".join)
def test_every_command_has_help_with_an_example_that_is_understood(cli, words):
    done = cli(*words, "--help")
    assert done.code == 0
    shown = " ".join(done.out.split())
    examples = re.findall(r"Example: medvae3d ((?:(?! Example: |[╭│]| Exit codes).)+)", shown)
    assert examples and all(each.startswith(" ".join(words)) for each in examples)
    for example in examples:
        line = shlex.split(example.partition(" > ")[0])
        command, context = COMMAND_LINE, None
        while hasattr(command, "commands"):
            context = command.make_context(line[0], list(line), parent=context)
            command = command.commands[line.pop(0)]
        command.make_context("example", list(line), parent=context)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_page_of_the_commands_names_every_option(words):
    page = (REPOSITORY / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## ([a-z -]+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    options = {max(each.opts, key=len) for each in COMMANDS[words].params if each.opts[0][0] == "-"}
    told = set(re.findall(r"--[a-z][a-z0-9-]*", parts[" ".join(words)]))
    assert options - RUN_OPTIONS - {"--json", "--device"} <= told
    assert told <= options | RUN_OPTIONS


def test_a_name_in_brackets_is_not_swallowed_by_the_help(cli):
    assert "medvae3d[ray]." in cli("generate", "--help").out


def completed(monkeypatch, line):
    """What a shell is told when the tabulator key is pressed at the end of a line."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    for name, value in {**words, "_MEDVAE3D_COMPLETE": "complete_bash"}.items():
        monkeypatch.setenv(name, value)
    return CliRunner().invoke(command_line.app, [], prog_name="medvae3d").stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("medvae3d gen", ["generate"]),
        ("medvae3d generate ba", ["balls"]),
        ("medvae3d bench ba", ["balls"]),
        ("medvae3d train soft", ["soft_introvae"]),
        ("medvae3d train vae --like st", ["stages"]),
        ("medvae3d cite soft", ["soft_introvae"]),
        ("medvae3d evaluate --bundle ba", ["balls"]),
        ("medvae3d study segmentation --bundle ba", ["balls"]),
        ("medvae3d explore balls v", ["volume"]),
        ("medvae3d generate balls --host-b", ["--host-brain"]),
        ("medvae3d data manifests hip", ["hippocampus"]),
    ],
)
def test_words_are_completed_in_a_shell(shelf, monkeypatch, line, offered):
    assert completed(monkeypatch, line) == offered


def test_values_that_a_shell_offers_are_those_that_are_allowed(monkeypatch):
    from medvae3d.apps.data_export import FORMATS
    from medvae3d.apps.evaluate_cases import INTENSITIES
    from medvae3d.apps.model_export import SUFFIXES
    from medvae3d.data.aligning import MODES
    from medvae3d.data.importing.layouts import FORMATS as SOURCES
    from medvae3d.studies.classification.presets import PRESETS
    from medvae3d.studies.classification.sources import TASKS
    from medvae3d.synthesis.exploring import WAYS

    allowed = {
        "export a --format": SUFFIXES,
        "data import a --format": SOURCES,
        "data export a --format": FORMATS,
        "data align a --mode": MODES,
        "evaluate --intensity": INTENSITIES,
        "explore a interpolation --way": WAYS,
        "study classification --task": TASKS,
        "study classification --preset": PRESETS,
    }
    for line, names in allowed.items():
        assert set(completed(monkeypatch, f"medvae3d {line} ")) == set(names), line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(cli, monkeypatch, shell):
    """Which shell it is, typer finds among the parents of the process: there may be none."""
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    assert "_MEDVAE3D_COMPLETE" in cli("--show-completion").out


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "balls", "--count", 1, "--temperature", "hot"),
        ("generate", "balls", "--count", 1, "--temperature", "-1"),
        ("fill", "balls", "--image", "a.nii.gz", "--healthy", "--label", "l.nii.gz",
         "--temperature", "inf"),
        ("study", "segmentation", "--datalist", "l", "--bundle", "balls", "--real-share", "2"),
        ("bench", "balls", "--rounds", "0"),
        ("generate", "balls", "--count", 1, "--device", "tpu"),
        ("export", "balls", "--format", "tf"),
        ("evaluate", "--real", "l", "--synthetic", "l", "--sections", "foo"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_with_what_is_allowed_and_what_to_do(
    refused, shelf, tmp_path, words
):
    out = () if words[0] == "bench" else ("--out", tmp_path / "out")
    told = refused(*words, *out)
    assert str(words[-1]) in told and "allowed are" in told
    assert re.search(r"(Write it like|Name (one|some) of them)", told)
    assert not (tmp_path / "out").exists()
