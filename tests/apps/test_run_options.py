"""Options that every command has: a file of options, a report of the run, silence."""

from __future__ import annotations

import json

import nibabel as nib
import pytest
import typer

from medvae3d.apps.cli import app

PHANTOMS = ("data", "phantom", "--shape", "8,8,8", "--spacing", "20,20,20")


@pytest.mark.parametrize("name", ["options.json", "options.yaml"])
def test_options_of_a_file_are_those_of_the_command_line(cli, tmp_path, name):
    file = tmp_path / name
    options = {"count": 2, "shape": "8,8,8", "spacing": "20,20,20", "lesions": "1:1"}
    file.write_text(json.dumps(options))  # JSON is YAML
    assert cli("data", "phantom", "--config", file, "--out", tmp_path / "a").code == 0
    told = cli(*PHANTOMS, "--count", 2, "--lesions", "1:1", "--out", tmp_path / "b")
    assert told.code == 0
    for path in sorted((tmp_path / "a").rglob("*.nii.gz")):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()


def test_the_command_line_comes_before_the_file(cli, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("count: 5\n")
    done = cli(*PHANTOMS, "--config", file, "--count", 1, "--out", tmp_path / "made")
    assert done.out.startswith("1 phantoms")


def test_a_folder_is_made_again_from_the_options_in_it(cli, tmp_path):
    cli(*PHANTOMS, "--count", 1, "--seed", 7, "--out", tmp_path / "a")
    left = tmp_path / "a" / "options.json"
    assert json.loads(left.read_text())["options"]["seed"] == "7"
    cli("data", "phantom", "--config", left, "--out", tmp_path / "b")
    first, second = (sorted((tmp_path / name).rglob("*.nii.gz")) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("counts: 3\n", "no option 'counts'. Did you mean count?"),
        ("- 3\n", "holds list; allowed is a mapping"),
        ("count: [1\n", "is no YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(refused, tmp_path, text, words):
    file = tmp_path / "options.yaml"
    file.write_text(text)
    out = tmp_path / "made"
    assert words in refused("data", "phantom", "--config", file, "--out", out, out=out)


def test_an_option_that_takes_several_values_takes_one_from_a_file(refused, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("volume-ml: 9:3\ncount: 1\n")
    out = tmp_path / "made"
    told = refused("generate", "sts_petct_hvae", "--config", file, "--out", out, out=out)
    assert "--volume-ml is '9:3'" in told


def test_settings_below_a_name_are_numbers_in_yaml_as_in_json(tmp_path):
    from medvae3d.apps.run_options import read_config

    wanted = {"max_epochs": 3, "network_def#channels": [8, 16], "labels": {"lesion": 1}}
    (tmp_path / "a.json").write_text(json.dumps({"settings": wanted, "out": "x"}))
    (tmp_path / "a.yaml").write_text(
        "out: x\nsettings:\n  max_epochs: 3\n  network_def#channels: [8, 16]\n"
        "  labels:\n    lesion: 1\n"
    )
    command = typer.main.get_command(app).commands["train"]
    read = [read_config(tmp_path / name, command) for name in ("a.json", "a.yaml")]
    assert read[0] == read[1]
    assert "network_def#channels=[8, 16]" in read[0]["settings"]


def test_a_folder_with_findings_has_its_options_too(cli, tmp_path):
    done = cli(*PHANTOMS, "--count", 3, "--out", tmp_path / "made")
    listed = tmp_path / "made" / "datalist.json"
    content = json.loads(listed.read_text())
    mask = tmp_path / "made" / content["training"][0]["label"]
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(image.get_fdata().astype("uint8") * 0, image.affine), mask)
    done = cli("data", "import", listed, "--out", tmp_path / "in")
    assert done.code == 1
    options = json.loads((tmp_path / "in" / "options.json").read_text())["options"]
    assert options["source"] == str(listed)
    (tmp_path / "in.yaml").write_text(f"source: {listed}\nout: {tmp_path / 'again'}\n")
    assert cli("data", "import", "--config", tmp_path / "in.yaml").code == 1


def test_a_report_says_what_was_run_and_how_it_ended(cli, tmp_path):
    report = tmp_path / "run.json"
    out = tmp_path / "made"
    cli(*PHANTOMS, "--count", 1, "--out", out, "--report", report)
    found = json.loads(report.read_text())
    assert found["command"].endswith("data phantom")
    assert found["options"]["count"] == "1"
    assert found["exit_code"] == 0
    assert found["error"] is None
    assert found["outputs"] == [str(out)]
    assert {"python", "medvae3d", "torch"} <= set(found["versions"])
    cli(*PHANTOMS, "--count", 1, "--out", out, "--report", report)
    again = json.loads(report.read_text())
    assert again["exit_code"] == 2
    assert str(out) in again["error"]


def test_a_report_into_no_folder_is_refused_before_anything_is_made(refused, tmp_path):
    out = tmp_path / "made"
    report = tmp_path / "nowhere" / "run.json"
    told = refused(*PHANTOMS, "--count", 1, "--out", out, "--report", report, out=out)
    assert "whose folder does not exist" in told


def test_quiet_prints_nothing_but_errors(cli, tmp_path):
    done = cli(*PHANTOMS, "--count", 1, "--out", tmp_path / "made", "--quiet")
    assert (done.code, done.out, done.error) == (0, "", "")
    found = cli("data", "check", tmp_path / "made" / "datalist.json", "--json", "-", "--quiet")
    assert json.loads(found.out)["summary"]["cases"] == 1 and found.error == ""
    again = cli(*PHANTOMS, "--count", 1, "--out", tmp_path / "made", "--quiet")
    assert again.code == 2
    assert again.error.startswith("error: ")
