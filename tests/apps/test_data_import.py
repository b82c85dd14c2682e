"""Claims about ``medvae3d data import`` and ``align``: how they leave, and what is left behind."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from medvae3d.data.importing import find_layout
from medvae3d.data.volumes import write_volume
from medvae3d.errors import UnreadableFileError
from medvae3d.geometry import Grid


def write_pair(folder, name, shift=0.0):
    grid = Grid.centred((5, 6, 4), (1.0, 1.0, 2.0))
    affine = grid.affine.copy()
    affine[0, 3] += shift
    image = np.random.default_rng(len(name)).normal(size=grid.shape).astype(np.float32)
    mask = np.zeros(grid.shape, np.uint8)
    mask[: len(name), 2, 2] = 1
    write_volume(folder / f"{name}_ct.nii.gz", image, grid)
    write_volume(folder / f"{name}_mask.nii.gz", mask, Grid(grid.shape, affine))


def test_an_import_leaves_a_list_that_the_check_passes(cli, tmp_path):
    write_pair(tmp_path / "in", "a")
    write_pair(tmp_path / "in", "bb")
    done = cli("data", "import", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    assert done.code == 0 and "2 cases, no findings" in done.out
    listed = tmp_path / "out" / "datalist.json"
    assert cli("data", "check", str(listed)).code == 0
    assert json.loads(listed.read_text())["channels"] == ["ct"]


def test_findings_of_the_check_leave_with_1(cli, tmp_path):
    write_pair(tmp_path / "in", "a", shift=3.0)
    done = cli("data", "import", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    assert done.code == 1 and "3.00 mm off" in done.out


def test_aligning_mends_what_the_check_found(cli, tmp_path):
    write_pair(tmp_path / "in", "aaa", shift=1.0)
    cli("data", "import", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    listed = str(tmp_path / "out" / "datalist.json")
    assert cli("data", "check", listed).code == 1
    done = cli("data", "align", listed, "--out", str(tmp_path / "mended"))
    assert done.code == 0 and "resampled" in done.out and "kept" in done.out
    assert cli("data", "check", str(tmp_path / "mended" / "datalist.json")).code == 0
    again = cli("data", "align", listed, "--out", str(tmp_path / "mended"))
    assert again.code == 2 and "not an empty folder" in again.error


@contextmanager
def nobody():
    """Gives up the rights of root, who may read everything."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


@pytest.mark.parametrize("what", ["b", "notes.txt"])
def test_what_may_not_be_read_is_named_and_not_passed_over(what):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_pair(root / "in" / "a", "a")
        write_pair(root / "in" / "b", "b")
        (root / "in" / "notes.txt").write_text("what is this?")
        for folder in (root, root / "in"):
            folder.chmod(0o755)
        (root / "in" / what).chmod(0)
        with pytest.raises(UnreadableFileError, match=f"in/{what} cannot be read: Perm"), nobody():
            find_layout(root / "in")
        (root / "in" / what).chmod(0o755)


def test_what_cannot_be_imported_leaves_with_2_and_nothing(cli, tmp_path):
    write_pair(tmp_path / "in", "a")
    where = (str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    for words in (("--format", "zip"), ("--split", "a,b"), ("--split", "1,1"),
                  ("--channels", "t1"), ("--format", "nnunet")):  # fmt: skip
        done = cli("data", "import", *where, *words)
        assert done.code == 2 and done.error.startswith("error: ")
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
