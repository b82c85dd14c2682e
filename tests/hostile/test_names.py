"""Claims about names in data lists that would lead elsewhere: nothing is written but in --out."""

from __future__ import annotations

import json
import shutil
import tarfile

import numpy as np
import pytest
from hostile.commands import list_calls
from hostile.running import state

from medvae3d.data.volumes import read_volume, write_volume

# Names of cases, patients, channels, labels and of the list itself.
NAMES = (
    "../../up", "../../../../../../../../tmp/up", "/tmp/medvae3d_absolute", "a/../../../up", "..",
    ".", "..\\..\\up", "~root", "-rf", "$(touch up)", "x" * 300, "CON", "a:b|c?*", " ",
)  # fmt: skip
WRITING = [name for name in list_calls() if name.startswith(("data export", "data import",
                                                            "data align", "impute"))]  # fmt: skip


@pytest.fixture
def listed(good, tmp_path):
    """Writes a data list beside good files, in which everything that is a name is given."""
    folder = tmp_path / "in" / "a" / "b"
    folder.mkdir(parents=True)
    for path in good.datalist.parent.glob("*.nii.gz"):
        shutil.copyfile(path, folder / path.name)
    for n in range(2):
        scan = read_volume(good.datalist.parent / f"training_{n}_i.nii.gz")
        write_volume(folder / f"pet_{n}.nii.gz", np.abs(scan.array) / 20, scan.grid)

    def write(name, channels):
        entries = [
            {
                "image": [f"training_{n}_i.nii.gz"] if channels == 1 else [f"pet_{n}.nii.gz", None],
                **({"label": f"training_{n}_l.nii.gz"} if channels == 1 else {}),
                "case": f"{name}{n or ''}",
                "subject": f"{name}{n or ''}",
                "class": name,
            }
            for n in range(2)
        ]
        labels = {"0": "background", "1": name, "2": f"{name}2"}
        content = {"name": name, "licence": name, "labels": labels, "training": entries}
        (folder / "list.json").write_text(json.dumps(content))
        return folder / "list.json"

    return write


@pytest.mark.parametrize("call", WRITING)
def test_names_do_not_become_paths(runner, good, listed, tmp_path, call):
    out, wrote = tmp_path / "out" / "a" / "b", 0
    for name in NAMES:
        out.mkdir(parents=True)
        path = listed(name, 2 if call == "impute" else 1)
        before = state(tmp_path)
        done = runner.run(list_calls()[call](path, out, good))
        assert done.raised is None and done.code in (0, 1, 2), (name, done)
        made = set(state(tmp_path)) - set(before)
        assert all(each.startswith(f"{out / 'o'}") for each in made), (name, made)
        assert done.code != 2 or not made, (name, done, made)
        wrote += bool(made)
        for archive in (out / "o").rglob("*.tar"):
            with tarfile.open(archive) as tar:
                assert not any("/" in each.name or "\\" in each.name for each in tar), name
        for each in (out / "o").rglob("*"):
            assert not each.is_symlink() and each.name not in ("..", ".") and "\\" not in each.name
        shutil.rmtree(tmp_path / "out")
    assert wrote >= len(NAMES) // 2, done
