"""What is in a wheel: bundles and manifests are found when the package stands alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from small_bundles import BUNDLES, NAMES

ROOT = BUNDLES.parent
MANIFESTS = sorted(path.stem for path in (ROOT / "data_manifests").glob("*.json"))
LIGHT = ("LICENSE", "configs/inference.json", "configs/train.json", "docs/README.md")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what an installer would unpack; the source tree stays as it was."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
    command += ["build", "--build-base", str(folder / "build")]
    command += ["bdist_wheel", "--bdist-dir", str(folder / "bdist"), "--dist-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=200)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def ask(installed: Path, *words: str) -> str:
    """What the command of the installed package says in another folder."""
    code = "from medvae3d.apps.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "300"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=installed.parent,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.stdout


def test_bundles_and_manifests_are_listed_from_a_wheel(installed: Path) -> None:
    listed = ask(installed, "list")
    assert [name for name in NAMES if name not in listed] == []
    manifests = ask(installed, "data", "manifests")
    assert [name for name in MANIFESTS if name not in manifests] == []
    one = ask(installed, "data", "manifests", MANIFESTS[0])
    assert str(installed / "medvae3d" / "_data_manifests" / MANIFESTS[0]) in one


def test_a_wheel_holds_the_very_files(installed: Path) -> None:
    there = installed / "medvae3d"
    for name in MANIFESTS:
        source = ROOT / "data_manifests" / f"{name}.json"
        assert (there / "_data_manifests" / f"{name}.json").read_bytes() == source.read_bytes()
    for name in NAMES:
        for file in LIGHT:
            packed = there / "_bundles" / name / file
            assert packed.read_bytes() == (BUNDLES / name / file).read_bytes()
    assert (there / "py.typed").is_file()


def test_a_wheel_holds_no_output_of_a_training(installed: Path) -> None:
    packed = [path for path in (installed / "medvae3d" / "_bundles").rglob("*") if path.is_file()]
    assert {path.name for path in packed if path.suffix == ".pt"} <= {"model.pt"}
    assert not [path for path in packed if {"eval", "__pycache__"} & set(path.parts)]


def test_a_wheel_holds_what_the_package_reads(installed: Path) -> None:
    """Settings of the systems, styles and scripts of reports, the marker of types."""
    there, here = installed / "medvae3d", ROOT / "medvae3d"
    ignored = {".py", ".pyc"}
    read = [p for p in here.rglob("*") if p.is_file() and p.suffix not in ignored]
    assert {"base.json", "report.css", "py.typed"} <= {path.name for path in read}
    assert [p for p in read if not (there / p.relative_to(here)).is_file()] == []


def test_the_package_of_a_wheel_runs_as_a_module(installed: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "medvae3d", "list", "--json"],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert [name for name in (*NAMES, "hvae", "vqvae") if f'"{name}"' not in done.stdout] == []


@pytest.fixture(scope="module")
def source_distribution(installed: Path) -> Path:
    folder = installed.parent / "sdist"
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(installed.parent)]
    command += ["sdist", "--dist-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=200)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def test_a_package_index_takes_both_distributions_and_shows_the_readme(
    installed: Path, source_distribution: Path
) -> None:
    """``twine check`` renders the README as an index does; strict, a warning is a failure."""
    (wheel,) = installed.parent.glob("*.whl")
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source_distribution)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_a_source_distribution_holds_what_a_wheel_is_built_of(source_distribution: Path) -> None:
    with tarfile.open(source_distribution) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"}
    wanted |= {f"data_manifests/{name}.json" for name in MANIFESTS}
    wanted |= {f"bundles/{name}/{file}" for name in NAMES for file in LIGHT}
    wanted |= {f"bundles/{name}/models/model.pt" for name in NAMES}
    assert wanted - names == set()
