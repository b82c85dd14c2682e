"""Locks on folders that end with the process that holds them, however it ends.

A lock is one of the system (``flock``) on the open folder: it leaves no file behind, and a process
that was killed holds nothing. Where the system or the file system has no locks, nothing is held.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medvae3d.errors import OutputError

# What a file is written to before it takes its name; see `medvae3d.data.nifti.write_bytes`.
PART = re.compile(r"\..+\.\d+-\d+\.tmp")
ANOTHER_FOLDER = "choose another folder for --out"

_open: set[int] = set()


def _forget() -> None:
    """A forked worker inherits the handles, and would keep the locks of a parent that died."""
    for handle in _open:
        with suppress(OSError):
            os.close(handle)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A handle to lock a folder or file by; closed, and so unlocked, at the end."""
    handle = os.open(path, flags, 0o666)
    _open.add(handle)
    try:
        yield handle
    finally:
        _open.discard(handle)
        os.close(handle)


def take(handle: int, *, wait: bool = False) -> bool | None:
    """Takes a lock; ``False`` if another has it, ``None`` where there are no locks.

    Args:
        handle: From `opened`.
        wait: Whether to wait for another to let go of it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


@contextmanager
def sole_writer(
    folder: Path, *, clear: bool = True, advice: str = ANOTHER_FOLDER
) -> Iterator[None]:
    """Holds a folder for this process.

    Args:
        folder: A folder that exists.
        clear: Whether to take away files that killed processes were writing in it.
        advice: What to do if another process holds it, other than waiting.

    Raises:
        OutputError: If another process holds it.
    """
    with opened(folder) as handle:
        is_mine = take(handle)
        if is_mine is False:
            raise busy(folder, advice)
        for path in folder.rglob(".*.tmp") if is_mine and clear else ():
            if PART.fullmatch(path.name):
                path.unlink(missing_ok=True)
        yield


@contextmanager
def in_turn(folder: Path) -> Iterator[bool]:
    """Holds a folder for a moment, after whoever holds it now; yields whether there are locks."""
    with opened(folder) as handle:
        yield bool(take(handle, wait=True))


@contextmanager
def held_folder(
    folder: Path, *, clear: bool = True, advice: str = ANOTHER_FOLDER
) -> Iterator[None]:
    """Makes a folder if needed and holds it; what was made goes again if it stays empty.

    Args:
        folder: The folder.
        clear: See `sole_writer`.
        advice: See `sole_writer`.

    Raises:
        OutputError: If it cannot be made, or another process holds it.
    """
    made = missing(folder)
    try:
        make(folder)
        with sole_writer(folder, clear=clear, advice=advice):
            yield
    finally:
        remove_empty(made)


def busy(folder: Path, advice: str = ANOTHER_FOLDER) -> OutputError:
    """What is said when another process writes a folder."""
    return OutputError(
        f"{folder} is being written by another process. Wait until it has ended, or {advice}."
    )


def make(folder: Path) -> None:
    """Makes a folder.

    Raises:
        OutputError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be made: {error.strerror}. Choose another folder for --out."
        ) from error


def missing(folder: Path) -> list[Path]:
    """The folders that would have to be made for this one, itself first."""
    return [each for each in (folder, *folder.parents) if not each.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Removes folders from the innermost on, up to the first that holds something."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return
