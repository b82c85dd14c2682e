"""``medvae3d doctor`` finds what is wrong, and says what to do."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from medvae3d.apps import doctor


def test_a_working_installation_passes_and_names_what_it_stands_on(cli):
    done = cli("doctor", "--json")
    found = {each["name"]: each for each in json.loads(done.out)}
    assert done.code == 0
    assert {"Python", "torch", "monai", "bfloat16", "NIfTI by nibabel", "disk"} <= set(found)
    assert found["torch"]["found"] == metadata.version("torch")
    assert found["sts_petct_hvae"]["state"] == "ok"


def test_a_package_out_of_range_or_missing_is_wrong_and_leaves_with_1(cli, monkeypatch):
    wanted = ["torch>=99", "no-such-package>=1", "monai>=1.5; extra == 'other'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    found = {each.name: each for each in doctor._packages(Path("."))}
    assert found["torch"].state == "wrong"
    assert found["torch"].advice == "pip install 'torch>=99'"
    assert found["no-such-package"].found == "missing"
    assert "monai" not in found
    monkeypatch.setattr(doctor, "CHECKS", (doctor._packages,))
    assert cli("doctor").code == 1


def test_the_disk_of_a_folder_to_come_is_that_of_the_folder_above(tmp_path):
    found = {each.name: each for each in doctor._room(tmp_path / "to" / "come")}
    assert found["folder"].state == "note"
    assert found["disk"].found.endswith(str(tmp_path))


def test_a_full_disk_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: type("", (), {"free": 1e9}))
    found = {each.name: each for each in doctor._room(tmp_path)}
    assert found["disk"].state == "note"
    assert "another disk" in found["disk"].advice
