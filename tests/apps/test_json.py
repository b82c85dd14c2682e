"""Every command gives its results as JSON when asked: nothing else is on the standard output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from medvae3d.apps.cli import app
from medvae3d.apps.console import say_json

# Asked for as `--json FILE`, which is the whole report; `--json -` prints it.
INTO_A_FILE = {"data check"}


def leaves(group, name=""):
    """Commands by their whole names."""
    for key, command in group.commands.items():
        whole = f"{name} {key}".strip()
        if hasattr(command, "commands"):
            yield from leaves(command, whole)
        else:
            yield whole, command


COMMANDS = dict(leaves(typer.main.get_command(app)))


def test_all_commands_are_looked_at():
    assert {"generate", "train", "data check", "study zoo", "study classification"} <= set(COMMANDS)
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json_when_asked(name):
    options = {flag: each for each in COMMANDS[name].params for flag in each.opts}
    assert options["--json"].is_flag == (name not in INTO_A_FILE)


@pytest.fixture(scope="module")
def phantoms(cli, tmp_path_factory):
    out = tmp_path_factory.mktemp("json") / "phantoms"
    words = ("--shape", "8,8,8", "--spacing", "20,20,20", "--count", 3, "--out", out, "--json")
    found = json.loads(cli("data", "phantom", *words).out)
    assert found["cases"] == 3
    return Path(found["datalist"])


def test_data_commands_say_in_json_what_they_wrote(cli, phantoms, tmp_path):
    words = (phantoms, "--out", tmp_path / "aligned", "--axes", "LPS", "--json")
    aligned = json.loads(cli("data", "align", *words).out)
    assert {each["what"] for each in aligned["files"]} == {"reordered"}
    words = (aligned["datalist"], "--out", tmp_path / "imported", "--json")
    done = cli("data", "import", *words)
    imported = json.loads(done.out)
    assert len(imported["report"]["cases"]) == 3 and Path(imported["datalist"]).is_file()
    words = (phantoms, "--out", tmp_path / "raw", "--format", "nnunet", "--json")
    assert Path(json.loads(cli("data", "export", *words).out)["written"]).exists()


def test_an_application_for_label_says_in_json_how_to_start_it(cli, tmp_path):
    done = cli("label-app", "--out", tmp_path / "app", "--json")
    found = json.loads(done.out)
    assert Path(found["application"]).is_dir() and found["application"] in found["start"]


def test_json_holds_no_number_that_json_does_not_have(capsys):
    say_json({"a": float("nan"), "b": [1.5, float("inf")], "c": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, None], "c": "x"}
