"""Claims about the commands: what they make, what they say, and how they leave."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from medvae3d.apps import catalogue
from medvae3d.apps import cli as command_line
from medvae3d.apps.console import duration, parse_range, parse_triple
from medvae3d.apps.generate_command import rejections
from medvae3d.data.volumes import write_volume
from medvae3d.geometry import Grid

REPOSITORY = Path(__file__).parents[2]
HEAVY = {"torch", "monai", "numpy", "nibabel", "matplotlib"}


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# What every command has in common.


def test_the_version_is_that_of_the_package(cli):
    import medvae3d

    assert cli("--version").out == f"medvae3d {medvae3d.__version__}\n"


def test_no_command_at_all_shows_the_help(cli):
    done = cli()
    assert "generate" in done.out + done.error


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["list", "--json"]])
def test_help_and_list_load_nothing_heavy(words):
    code = (
        f"import sys; from medvae3d.apps.cli import app\n"
        f"try: app({words!r})\nexcept SystemExit: pass\n"
        f"print(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stderr.split() == []


def test_listing_takes_less_than_half_a_second():
    """Processor time, which does not depend on what else the machine does."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run(
        [sys.executable, "-m", "medvae3d", "list", "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.5


def broken(error):
    app = typer.Typer(cls=command_line.Commands, pretty_exceptions_enable=False)

    @app.command()
    def first() -> None:
        raise error

    @app.command()
    def second() -> None:
        """A second one, so that there is a group."""

    return CliRunner().invoke(app, ["first"])


def test_a_fault_of_ours_keeps_its_traceback():
    fault = ZeroDivisionError("ours")
    done = broken(fault)
    assert done.exit_code == 1
    assert done.exception is fault


def test_an_interruption_leaves_with_130():
    done = broken(KeyboardInterrupt())
    assert done.exit_code == 130
    assert done.stderr == "interrupted\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.21, "3.2 s"), (99.9, "99.9 s"), (720, "12 min"), (7500, "2 h 05 min")],
)
def test_spans_of_time_are_said_in_large_units(seconds, words):
    assert duration(seconds) == words


def test_ranges_and_places_are_read():
    assert parse_range("2:3.5", "--volume-ml", float) == (2, 3.5)
    assert parse_range("3:3", "--lesions", int) == (3, 3)
    assert parse_triple("-1,2.5,0", "--at", float) == (-1, 2.5, 0)


# Bundles.


def test_list_tells_of_every_bundle(cli, shelf, bundles):
    found = json.loads(cli("list", "--json").out)["bundles"]
    assert [entry["name"] for entry in found] == ["balls", "stages"]
    assert found[0]["version"] == "1.2.0"
    assert found[0]["licence"] == "Apache License Version 2.0, January 2004"
    assert found[0]["weights"] is True
    assert Path(found[0]["path"]) == bundles / "balls"
    assert "stages" in cli("list").out


def test_list_tells_of_every_system_with_paper_and_state(cli, shelf):
    from medvae3d.models.registry import STATES, SYSTEMS
    from medvae3d.models.systems.files import system_names

    found = json.loads(cli("list", "--json").out)
    assert [entry["name"] for entry in found["systems"]] == list(SYSTEMS)
    trainable = {entry["name"] for entry in found["systems"] if entry["trainable"]}
    assert trainable == set(system_names()) & set(SYSTEMS)
    assert all(entry["papers"][0]["bibtex"].startswith("@") for entry in found["systems"])
    assert {entry["state"] for entry in found["systems"]} <= set(STATES)
    assert "geometric" in [entry["name"] for entry in found["priors"]]
    shown = " ".join(cli("list").out.split())
    assert "Kebaili 2023" in shown and "experimental" in shown


def test_generate_writes_a_data_set_and_says_where(cli, bundles, tmp_path):
    out = tmp_path / "out"
    done = cli("generate", bundles / "balls", "--count", 3, "--seed", 5, "--out", out)
    assert done.code == 0
    assert done.error == ""
    assert "3 cases from balls 1.2.0 in" in done.out
    assert "draws (" in done.out
    assert str(out / "dataset.json") in done.out
    assert len(json.loads((out / "dataset.json").read_text())["training"]) == 3
    assert (out / "preview.png").stat().st_size > 1000


def test_generate_sums_up_as_json(cli, bundles, tmp_path):
    out = tmp_path / "out"
    done = cli("generate", bundles / "balls", "--count", 2, "--seed", 5, "--out", out, "--json")
    found = json.loads(done.out)
    assert (found["bundle"], found["cases"]) == ("balls 1.2.0", 2)
    records = [json.loads(path.read_text()) for path in (out / "records").glob("*.json")]
    assert len(records) == 2
    assert Path(found["dataset"]).is_file() and Path(found["picture"]).is_file()
    assert all(count > 0 for count in found["rejected"].values()) and found["seconds"] > 0


def test_generate_makes_the_bytes_that_python_makes(cli, bundles, tmp_path):
    import medvae3d

    words = ("generate", bundles / "balls", "--count", 2, "--seed", 3, "--volume-ml", "4:8")
    cli(*words, "--device", "cpu", "--out", tmp_path / "shell")
    bundle = medvae3d.load_bundle(bundles / "balls")
    bundle.write(tmp_path / "python", 2, 3, volume_ml=(4.0, 8.0))
    assert files(tmp_path / "shell") == files(tmp_path / "python")


def test_ranges_made_apart_are_the_whole(cli, bundles, tmp_path):
    words = ("generate", bundles / "balls", "--seed", 3)
    cli(*words, "--count", 3, "--out", tmp_path / "whole")
    cli(*words, "--count", 1, "--start", 2, "--out", tmp_path / "parts")
    cli(*words, "--count", 2, "--out", tmp_path / "parts")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_a_wanted_volume_is_met(cli, bundles, tmp_path):
    words = ("--count", 2, "--volume-ml", "tumour=5:5", "--out", tmp_path / "out")
    assert cli("generate", bundles / "balls", *words).code == 0
    for path in (tmp_path / "out" / "records").iterdir():
        assert json.loads(path.read_text())["checks"]["volume_ml"] == pytest.approx(5, rel=0.1)


def test_lesions_are_put_into_hosts(cli, bundles, scan, tmp_path):
    out = tmp_path / "out"
    hosts = ("--host", scan / "pet.nii.gz", "--host", scan / "ct.nii.gz")
    label = ("--host-label", scan / "label.nii.gz")
    words = ("--count", 1, "--lesions", "1:2", "--seed", 2, "--out", out)
    done = cli("generate", bundles / "stages", *hosts, *label, *words)
    assert done.code == 0, done.error
    made = np.asarray(nib.load(next((out / "labelsTr").iterdir())).dataobj)
    known = np.asarray(nib.load(scan / "label.nii.gz").dataobj)
    assert (made >= known).all()
    assert made.sum() > known.sum()


def test_lesions_stay_in_the_brain_that_is_given(cli, bundles, scan, tmp_path):
    out, ct = tmp_path / "out", nib.load(scan / "ct.nii.gz")
    brain = np.zeros(ct.shape, np.uint8)
    brain[: ct.shape[0] // 2] = 1
    write_volume(tmp_path / "brain.nii.gz", brain, Grid.from_image(ct))
    hosts = ("--host", scan / "pet.nii.gz", "--host", scan / "ct.nii.gz")
    words = ("--host-brain", tmp_path / "brain.nii.gz", "--count", 3, "--lesions", "1:1")
    done = cli("generate", bundles / "stages", *hosts, *words, "--out", out)
    assert done.code == 0, done.error
    for path in (out / "labelsTr").iterdir():
        made = np.asarray(nib.load(path).dataobj) > 0
        assert brain[made].mean() > 0.9


def test_a_lesion_goes_where_it_is_wanted(cli, bundles, scan, tmp_path):
    """The first number is negative, and yet no option."""
    out = tmp_path / "out"
    hosts = ("--host", scan / "pet.nii.gz", "--host", scan / "ct.nii.gz")
    words = ("--at", "-10,0,6", "--count", 1, "--out", out)
    done = cli("generate", bundles / "stages", *hosts, *words)
    assert done.code == 0, done.error
    label = nib.load(next((out / "labelsTr").iterdir()))
    centre = np.argwhere(np.asarray(label.dataobj)).mean(0)
    place = nib.affines.apply_affine(label.affine, centre)
    assert place == pytest.approx((-10, 0, 6), abs=6)


def test_a_mask_is_filled(cli, bundles, tmp_path):
    grid = Grid.centred((20, 20, 20), (4, 4, 4))
    drawn = np.zeros(grid.shape, np.uint8)
    drawn[8:12, 7:13, 9:14] = 1
    mask = tmp_path / "mask.nii.gz"
    write_volume(mask, drawn, grid)
    words = ("--mask", mask, "--count", 1, "--out", tmp_path / "out")
    assert cli("generate", bundles / "stages", *words).code == 0
    made = nib.load(next((tmp_path / "out" / "labelsTr").iterdir()))
    # In its place, though the volume around it is smaller.
    first = nib.affines.apply_affine(made.affine, np.argwhere(np.asarray(made.dataobj)))
    np.testing.assert_allclose(first, grid.to_world(np.argwhere(drawn)), atol=1e-4)


def test_the_rejection_rate_counts_draws():
    assert rejections(9, {"border": 1}) == "rejected 1 of 10 draws (10.0 %): border 1"
    assert rejections(4, {}) == "rejected 0 of 4 draws (0.0 %)"


def test_figures_are_printed_as_tables(cli, bundles, monkeypatch, tmp_path):
    from medvae3d.apps import figures

    seen = {}

    def report(bundle, datalist, split, out, **options):
        seen.update(options, bundle=bundle, split=split, out=out)
        return {"reconstruction": {"rows": {"model": {"psnr": {"mean": 31.25}}}}, "cases": 4}

    monkeypatch.setattr(figures, "report", report)
    words = ("--datalist", "list.json", "--split", "testing", "--section", "evidence")
    done = cli("figures", bundles / "balls", *words, "--twin", "equal time=twin.pt")
    assert done.code == 0
    assert "## Reconstruction" in done.out
    assert "| model | 31.25 |" in done.out
    assert seen["twin"] == {"equal time": "twin.pt"}
    assert seen["split"] == "testing"
    assert seen["sections"] == ["evidence"]
    done = cli("figures", bundles / "balls", *words, "--json")
    assert json.loads(done.out)["reconstruction"]["rows"]["model"]["psnr"]["mean"] == 31.25


# The demonstration.


@pytest.mark.slow
def test_the_demonstration_shows_every_bundle(cli, bundles, tmp_path, monkeypatch):
    import tiny_bundles as tiny

    shelf = tmp_path / "shelf"
    shutil.copytree(bundles / "balls", shelf / "balls")
    shutil.copytree(bundles / "stages", shelf / "putting")
    path = shelf / "putting" / "configs" / "inference.json"
    size = {"phantom_shape": [44, 52, 44], "phantom_spacing": [4, 4, 4]}
    channels = [
        {"name": name, "unit": "a.u.", "intensity": {"kind": "percentile"}}
        for name in ("FLAIR", "T1")
    ]
    content = tiny.config(tiny.TWO_STAGE, kind="insertion", max_attempts=50, **size)
    path.write_text(json.dumps(content | {"channels": channels}))
    monkeypatch.setattr(catalogue, "SHIPPED", (shelf,))
    done = cli("demo", "--out", tmp_path / "demo")
    assert done.code == 0, done.error
    for part, count in (("balls", 4), ("putting", 4), ("putting_into_phantom", 1)):
        folder = tmp_path / "demo" / part
        assert len(list((folder / "labelsTr").iterdir())) == count
        assert (folder / "preview.png").is_file()
        assert str(folder / "preview.png") in done.out
    assert cli("demo", "--out", tmp_path / "demo").code == 0  # once more, over itself


def test_the_demonstration_names_a_bundle_without_weights(refused, bundles, tmp_path, monkeypatch):
    shutil.copytree(bundles / "balls", tmp_path / "shelf" / "bare")
    (tmp_path / "shelf" / "bare" / "models" / "model.pt").unlink()
    monkeypatch.setattr(catalogue, "SHIPPED", (tmp_path / "shelf",))
    error = refused("demo", "--out", tmp_path / "demo", out=tmp_path / "demo")
    assert "bundle bare has no weights" in error


def test_the_demonstration_needs_bundles(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "SHIPPED", (tmp_path,))
    assert "there is no bundle to show" in refused("demo", "--out", tmp_path / "demo")


# Data.


def test_a_clean_list_leaves_with_0(cli, phantom_list):
    done = cli("data", "check", phantom_list)
    assert done.code == 0
    assert "10 cases, no findings" in done.out
    assert "phantom_0009" in done.out


def test_findings_leave_with_1_and_are_told(cli, cases, tmp_path):
    folder = shutil.copytree(cases.parent, tmp_path / "data")
    label = next(path for path in sorted((folder / "labels").iterdir()))
    image = nib.load(label)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 0, image.affine), label)
    done = cli("data", "check", folder / "datalist.json", "--json", tmp_path / "report.json")
    assert done.code == 1
    assert "ball_000 [label]:" in done.out
    assert "1 findings (label 1) in 6 cases" in done.out
    assert json.loads((tmp_path / "report.json").read_text())["exit_code"] == 1


def test_unreadable_files_leave_with_2_and_the_rest_is_checked(cli, cases, tmp_path):
    folder = shutil.copytree(cases.parent, tmp_path / "data")
    (folder / "images" / "ball_000_pet.nii.gz").write_bytes(b"no image")
    done = cli("data", "check", folder / "datalist.json")
    assert done.code == 2
    assert "ball_000 [unreadable]:" in done.out
    assert "ball_005" in done.out


def test_the_report_can_be_piped(cli, phantom_list):
    report = json.loads(cli("data", "check", phantom_list, "--json", "-").out)
    assert report["summary"]["cases"] == 10


def test_phantoms_are_a_function_of_the_seed(cli, tmp_path):
    words = ("--count", 2, "--shape", "16,18,16", "--spacing", "9,9,9.5", "--lesions", "1:2")
    for name, seed in (("one", 4), ("two", 4), ("three", 5)):
        done = cli("data", "phantom", *words, "--seed", seed, "--out", tmp_path / name)
        assert str(tmp_path / name / "datalist.json") in done.out
    volumes = {
        name: {k: v for k, v in files(tmp_path / name).items() if k.endswith(".gz")}
        for name in ("one", "two", "three")
    }
    assert volumes["one"] == volumes["two"]
    assert volumes["one"] != volumes["three"]
    image = nib.load(tmp_path / "one" / "images" / "phantom_0000_flair.nii.gz")
    assert image.shape == (16, 18, 16)
    assert image.header.get_zooms() == (9, 9, 9.5)


def test_manifests_are_listed_and_shown(cli):
    listed = json.loads(cli("data", "manifests", "--json").out)
    names = [entry["name"] for entry in listed]
    assert {"sts_petct", "hecktor_2022", "mslesseg"} <= set(names)
    assert names == sorted(path.stem for path in (REPOSITORY / "data_manifests").glob("*.json"))
    assert "CC-BY-3.0" in cli("data", "manifests").out
    assert "how to get it" in cli("data", "manifests", "sts_petct").out
    assert json.loads(cli("data", "manifests", "open_ms", "--json").out)["name"] == "open_ms"


# The command as it is installed.


@pytest.mark.integration
def test_the_installed_command_answers_fast_and_runs(bundles, tmp_path):
    script = Path(sys.executable).with_name("medvae3d")
    command = [str(script)] if script.is_file() else [sys.executable, "-m", "medvae3d"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def run(*words):
        return subprocess.run(
            [*command, *map(str, words)], env=environment, capture_output=True, text=True
        )

    taken = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 1  # seconds of processor time, whatever else the machine does
    made = run("generate", bundles / "balls", "--count", 1, "--out", tmp_path / "out")
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    wrong = run("generate", "nothing", "--count", 1, "--out", tmp_path / "other")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: 'nothing' is neither a shipped bundle")
    assert wrong.stdout == ""
