"""Cells: done once, whole or not at all, by any number of processes or ranks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from medvae3d.errors import OutputError, SettingError
from medvae3d.studies.cells import (
    Cell,
    cell_file,
    cells_csv,
    read_cell,
    require_same_settings,
    run_cells,
)

CELLS = [Cell(n, ratio, arm, 0) for n in (5, 10) for ratio in (0.5, 2) for arm in ("a", "b:c")]


@dataclass(frozen=True)
class Counted:
    """Work that leaves a line each time that it is done; can be sent to other processes."""

    log: Path
    fails_at: str = ""

    def begin(self):
        return self

    def __call__(self, cell):
        if cell.name == self.fails_at:
            raise OutputError(f"{cell.name} fails.")
        with self.log.open("a") as file:
            file.write(f"{cell.name}\n")
        value = cell.n + cell.ratio + len(cell.arm)
        return {"means": {"dice": value}, "scores": {"s": {"dice": value}}}


def table(folder):
    """cells.csv without the times."""
    cells_csv(folder, CELLS, ["dice"])
    lines = (folder / "cells.csv").read_text().splitlines()
    return [line.rpartition(",")[0] for line in lines]


def test_going_on_equals_never_having_stopped(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_cells(CELLS, Counted(tmp_path / "log").begin, whole)
    with pytest.raises(OutputError):
        run_cells(CELLS, Counted(tmp_path / "first", CELLS[4].name).begin, parts)
    assert len(list((parts / "cells").iterdir())) == 4
    run_cells(CELLS, Counted(tmp_path / "second").begin, parts)
    assert table(parts) == table(whole)
    assert len(table(whole)) == 1 + len(CELLS)
    first, second = (tmp_path / name for name in ("first", "second"))
    assert first.read_text() + second.read_text() == (tmp_path / "log").read_text()


def test_a_cell_that_was_done_is_not_done_again(tmp_path):
    for _ in range(2):
        run_cells(CELLS, Counted(tmp_path / "log").begin, tmp_path)
    assert (tmp_path / "log").read_text().splitlines() == [cell.name for cell in CELLS]


def test_ranks_share_the_cells_and_leave_none(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        run_cells(CELLS, Counted(tmp_path / f"log{rank}").begin, tmp_path)
        mine = (tmp_path / f"log{rank}").read_text().splitlines()
        assert mine == [cell.name for cell in CELLS[rank::3]]
    assert all(read_cell(tmp_path, cell) is not None for cell in CELLS)


@pytest.mark.integration
def test_workers_find_what_one_process_finds(tmp_path):
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    run_cells(CELLS, Counted(tmp_path / "log").begin, alone)
    run_cells(CELLS, Counted(tmp_path / "log").begin, beside, workers=2)
    assert table(beside) == table(alone)


def test_a_cell_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(OutputError):
        run_cells(CELLS[:1], Counted(tmp_path / "log", CELLS[0].name).begin, tmp_path)
    assert not (tmp_path / "cells").exists()


def test_progress_counts_what_was_done_before(tmp_path):
    told = []
    run_cells(CELLS[:3], Counted(tmp_path / "log").begin, tmp_path)
    run_cells(
        CELLS, Counted(tmp_path / "log").begin, tmp_path, report=lambda *words: told.append(words)
    )
    assert [(done, wanted) for done, wanted, _ in told] == [(i, 8) for i in range(3, 9)]
    assert all("left" in words for _, _, words in told[1:])


def test_cells_have_files_of_their_own_with_names_for_every_system():
    names = {cell_file(Path(), cell).name for cell in CELLS}
    assert len(names) == len(CELLS)
    assert not any(set(name) & set(':*?"<>| ') for name in names)


def test_other_settings_are_refused_and_named(tmp_path):
    folder = tmp_path / "study"
    require_same_settings(folder, {"steps": 20, "split": "testing"})
    require_same_settings(folder, {"split": "testing", "steps": 20})
    with pytest.raises(SettingError, match="steps 20; now asked for is 30"):
        require_same_settings(folder, {"steps": 30, "split": "testing"})
    assert json.loads((folder / "settings.json").read_text())["steps"] == 20


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("much work")
    with pytest.raises(OutputError, match="neither empty nor"):
        require_same_settings(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
