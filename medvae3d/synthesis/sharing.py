"""Several processes on one folder of samples, each on indices of its own.

A process holds its range of indices by a file in the hidden folder ``.writing`` with a lock of the
system on it. The lock ends with the process, however it ends, so that what a killed process left
behind can be told from what a living one is writing: the first is cleared away, the second is left
alone, and a range that overlaps with it is refused. What is about several samples is written in
turn, by one process after the other, so that the last one has seen all records.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from medvae3d.data.locks import PART, in_turn, make, missing, opened, remove_empty, take
from medvae3d.errors import OutputError

IMAGES, LABELS, RECORDS = "imagesTr", "labelsTr", "records"
WRITING = ".writing"
HELD = re.compile(r"(\d+)-(\d+)\.lock")
# What files are written to before they take their names, which tell of which case they are.
PART_OF_CASE = re.compile(r"\..+_s\d+_(\d{6,})(_\d{4})?\.(nii\.gz|json)\.\d+-\d+\.tmp")


@contextmanager
def held_range(folder: Path, indices: range) -> Iterator[None]:
    """Holds some indices of a folder for this process.

    Args:
        folder: The folder; made if needed, and taken away again if it stays empty.
        indices: Which samples this process writes.

    Raises:
        OutputError: If another process is writing one of them, or the folder cannot be written.
    """
    records = folder / RECORDS
    made = [folder / IMAGES, folder / LABELS, *missing(records)]
    own = folder / WRITING / f"{indices.start}-{indices.stop}.lock"
    try:
        make(records)
        with ExitStack() as stack:
            with turn(folder) as has_locks:
                if has_locks:
                    _hold(folder, indices, own, stack)
            try:
                yield
            finally:
                with turn(folder):
                    own.unlink(missing_ok=True)
                    remove_empty([own.parent])
    finally:
        remove_empty(made)


@contextmanager
def turn(folder: Path) -> Iterator[bool]:
    """Waits for the turn of this process to write what is about several samples."""
    with in_turn(folder / RECORDS) as has_locks:
        yield has_locks


def clear(folder: Path, asked: range | None = None) -> None:
    """Takes away what killed processes left; call it in turn.

    Files are looked for where there is a lock of a killed process alone: folders may be large.

    Raises:
        OutputError: If a living process holds one of the indices that are asked for.
    """
    dead: list[range] = []
    for path in sorted((folder / WRITING).glob("*.lock")):
        found = HELD.fullmatch(path.name)
        if found is None:
            continue
        theirs = range(int(found[1]), int(found[2]))
        with opened(path, os.O_RDWR) as handle:
            if take(handle):
                dead.append(theirs)
                path.unlink()
            elif asked and theirs.start < asked.stop and asked.start < theirs.stop:
                raise OutputError(
                    f"{folder}: cases {theirs.start} to {theirs.stop - 1} are being written by "
                    f"another process; asked for are {asked.start} to {asked.stop - 1}. Wait "
                    f"until it has ended, ask for others with --start, or choose another folder."
                )
    for part in (IMAGES, LABELS, RECORDS) if dead else ():
        for path in sorted((folder / part).glob(".*.tmp")):
            case = PART_OF_CASE.fullmatch(path.name)
            if case is not None and any(int(case[1]) in each for each in dead):
                path.unlink()
    for path in sorted(folder.glob(".*.tmp")):  # written in turn, and it is ours now
        if PART.fullmatch(path.name) and not path.name.startswith(".options.json"):
            path.unlink()
    remove_empty([folder / WRITING])


def _hold(folder: Path, indices: range, own: Path, stack: ExitStack) -> None:
    try:
        clear(folder, indices)
        with suppress(FileExistsError):
            own.parent.mkdir()
        take(stack.enter_context(opened(own, os.O_CREAT | os.O_RDWR)))
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}. Choose a "
            f"folder with room that you may write to."
        ) from error
