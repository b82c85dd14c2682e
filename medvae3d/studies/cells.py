"""Cells of a study: each is trained once, kept in its own file, and never done again.

A cell is one arm with a number of real cases, a ratio and a seed. Its result is written whole or
not at all, so that a study that was stopped goes on where it was. What a study says at the end is
read from these files alone; it does not matter in which order, process or run they were made.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medvae3d.data.locks import held_folder
from medvae3d.data.volumes import write_bytes
from medvae3d.errors import OutputError, SettingError
from medvae3d.files import load_json
from medvae3d.spreading import Engine, Here, OnRay, Processes, rank_and_world

SETTINGS_FILE = "settings.json"
CONTENTS = "sha256_of_the_cases"
"""Setting that is one hash of all real cases, so that a study does not go on with others."""
# Columns that differ between two runs of the same study.
TIMES = ("seconds",)

Work = Callable[["Cell"], Mapping[str, Any]]
"""A cell to its result: plain values, among them ``scores`` by subject and measure."""

Report = Callable[[int, int, str], None]
"""Told cells done, cells wanted, and a few words."""


@dataclass(frozen=True, order=True)
class Cell:
    """One training of a study.

    Attributes:
        n: Real training cases.
        ratio: Extra cases for each real one; 0 where an arm has none.
        arm: Name of the arm.
        seed: Seed of the weights, the batches and the extra cases.
    """

    n: int
    ratio: float
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its file: safe on every file system, and different for different cells."""
        arm = "".join(c if c.isalnum() or c in "-_." else "+" for c in self.arm)
        return f"n{self.n}_r{self.ratio:g}_{arm}_s{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def held_study(folder: Path) -> AbstractContextManager[None]:
    """Holds the folder of a study for this process and the other ranks of its job.

    Raises:
        OutputError: If another study is writing it, or it cannot be made.
    """
    rank, world = rank_and_world()
    # Other ranks may be writing already.
    return nullcontext() if rank else held_folder(folder, clear=world == 1)


def require_same_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Keeps the settings of a study beside its cells; refuses a folder of other settings.

    Args:
        folder: Folder of the study; made if it is not there.
        settings: What all cells have in common, not which cells there are: those may be added.

    Raises:
        SettingError: If the folder holds a study with other settings.
        OutputError: If it holds something else.
    """
    path = folder / SETTINGS_FILE
    content = json.dumps(settings, indent=1, sort_keys=True).encode() + b"\n"
    wanted = json.loads(content)
    if rank_and_world()[0]:  # the first rank says what the folder is
        wait_for([path])
    if path.is_file():
        found = read_object(path)
        # Studies of earlier versions do not say what was in their cases.
        known = {CONTENTS} - set(found)
        for key in sorted({*found, *wanted} - known):
            if found.get(key) != wanted.get(key):
                raise SettingError(
                    f"{folder} holds a study with {key} {json.dumps(found.get(key))}; now asked "
                    f"for is {json.dumps(wanted.get(key))}. Leave it as it was to go on with that "
                    f"study, or choose another folder for --out."
                )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            f"{folder} is neither empty nor the folder of a study (with {SETTINGS_FILE}). Choose a "
            f"new or empty folder for --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)


def cell_file(folder: Path, cell: Cell) -> Path:
    """Where the result of a cell is kept."""
    return folder / "cells" / f"{cell.name}.json"


def read_cell(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """The result of a cell; ``None`` if it has not been done."""
    path = cell_file(folder, cell)
    if not path.is_file():
        return None
    content = read_object(path)
    if not _is_result(content):
        raise OutputError(
            f"{path} does not hold the numbers of a cell (means, scores, seconds). Delete it, and "
            f"the cell is done again."
        )
    return content


def _is_result(content: Mapping[str, Any]) -> bool:
    """Whether what is added up over cells is there, and numbers."""
    scores, p = content.get("scores", {}), content.get("p", [])
    if not isinstance(scores, dict) or not isinstance(p, list):
        return False
    rows = [content.get("means"), *scores.values()]
    if not all(isinstance(row, dict) for row in rows):
        return False
    numbers = [content.get("seconds"), *p, *(each for row in rows for each in row.values())]
    return all(n is None or (isinstance(n, int | float) and math.isfinite(n)) for n in numbers)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object that a study has written.

    Raises:
        OutputError: If it is none.
    """
    try:
        content = load_json(path)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path} cannot be read as JSON: {error}. Delete it, and what it was of is done again."
        ) from error
    if not isinstance(content, dict):
        raise OutputError(
            f"{path} holds a {type(content).__name__} and is of no study. Delete it, and what it "
            f"was of is done again."
        )
    return content


def run_cells(
    cells: Sequence[Cell],
    make_work: Callable[[], Work],
    folder: Path,
    *,
    workers: int = 1,
    threads: int = 1,
    ray_address: str | None = None,
    report: Report | None = None,
) -> None:
    """Does every cell that has not been done; under ``torchrun``, every ``WORLD_SIZE``-th of them.

    Args:
        cells: All cells of the study, in a fixed order.
        make_work: Called once in each process; must be picklable if there are several workers.
        folder: Folder of the study.
        workers: Processes beside each other.
        threads: Threads of each process.
        ray_address: Address of a Ray cluster to use, ``local`` for one on this machine; its workers
            must see the folder.
        report: Told how far it is, with the time left.

    Raises:
        MedvaeError: What a cell raised; those that were done stay done.
    """
    rank, world = rank_and_world()
    mine = list(cells)[rank::world]
    left = [cell for cell in mine if not cell_file(folder, cell).is_file()]
    tell = _Clock(len(mine), len(mine) - len(left), report)
    where: Engine = Here(threads) if workers == 1 else Processes(workers, threads)
    if ray_address is not None:
        where = OnRay(workers, ray_address, threads)
    where.run(_Begin(make_work, folder.resolve()), left, lambda cell, _: tell(cell))


def wait_for(paths: Iterable[Path], report: Callable[[str], None] = lambda text: None) -> None:
    """Waits until other ranks have written some files; returns at once if they are there."""
    for path in paths:
        if not path.exists():
            report(f"waiting for another rank to write {path}")
        while not path.exists():
            time.sleep(0.5)


def cells_csv(folder: Path, cells: Sequence[Cell], columns: Sequence[str]) -> list[Cell]:
    """Writes ``cells.csv``, one line a cell that has been done; returns these.

    Args:
        folder: Folder of the study.
        cells: All cells, in a fixed order.
        columns: Measures; a cell's result has their means under ``means``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("arm", "n", "ratio", "seed", *columns, *TIMES))
    done = []
    for cell in cells:
        result = read_cell(folder, cell)
        if result is None:
            continue
        done.append(cell)
        means = result["means"]
        values = [means.get(column) for column in columns]
        shown = ["" if value is None else f"{value:.6g}" for value in values]
        row = (cell.arm, cell.n, f"{cell.ratio:g}", cell.seed, *shown, f"{result['seconds']:.1f}")
        writer.writerow(row)
    write_bytes(folder / "cells.csv", text.getvalue().encode())
    return done


def _do(cell: Cell, work: Work, folder: Path) -> None:
    start = time.perf_counter()
    result = dict(work(cell))
    seconds = round(time.perf_counter() - start, 2)
    content = {"cell": cell.to_dict(), **result, "seconds": seconds}
    path = cell_file(folder, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


@dataclass(frozen=True)
class _Begin:
    """What a worker begins with; the cells are then written where all can read them."""

    make_work: Callable[[], Work]
    folder: Path

    def __call__(self) -> Callable[[Cell], None]:
        return partial(_do, work=self.make_work(), folder=self.folder)


class _Clock:
    """Says how many cells are done and how long the others will take."""

    def __init__(self, wanted: int, done: int, report: Report | None) -> None:
        self.wanted, self.done, self.report = wanted, done, report
        self.first, self.start = done, time.perf_counter()
        if report is not None and done:
            report(done, wanted, "done before")

    def __call__(self, cell: Cell) -> None:
        self.done += 1
        if self.report is None:
            return
        seconds = (time.perf_counter() - self.start) / (self.done - self.first)
        left = round(seconds * (self.wanted - self.done))
        self.report(self.done, self.wanted, f"{cell.name}, about {_span(left)} left")


def _span(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60}:{rest % 60:02d} min"
