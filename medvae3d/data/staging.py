"""A folder that appears whole or not at all: written beside its place, then moved there."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medvae3d.data.locks import busy, missing, opened, remove_empty, take
from medvae3d.errors import MedvaeError, OutputError


class ScratchFolder:
    """A folder for files in between, which goes when nothing refers to the object any more.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="medvae3d-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def require_new_folder(out: str | os.PathLike[str]) -> Path:
    """Checks that a folder is new or empty.

    Raises:
        OutputError: If it is a file or holds something.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(
            f"{out} is not an empty folder; allowed is a new or empty one, so that no files of "
            f"another run are mixed in. Choose another folder or remove what is there."
        )
    return out


@contextmanager
def staged_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a folder to write into that takes the name ``out`` if all goes well.

    It lies beside ``out``, so that relative paths from one are those from the other. After an
    error or an interruption nothing of it is left; what a killed process left is taken away.

    Raises:
        OutputError: If ``out`` holds something already, cannot be written, or is being written by
            another process.
    """
    out = require_new_folder(out).absolute()
    made = missing(out.parent)
    staged = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    is_ours = False
    try:
        _require_alone(out, None)
        staged.mkdir(parents=True)
        is_ours = True
        with opened(staged) as handle:
            take(handle)
            # Two that begin in the same moment see each other now: the first by name goes on.
            _require_alone(out, staged)
            yield staged
            os.replace(staged, require_new_folder(out))
    except BaseException as error:
        if is_ours:
            shutil.rmtree(staged, ignore_errors=True)
        remove_empty(made)
        if isinstance(error, OSError) and not isinstance(error, MedvaeError):
            raise OutputError(
                f"{out} cannot be written: {error.strerror or error}. "
                f"Choose a folder with room that you may write to."
            ) from error
        raise


def _require_alone(out: Path, own: Path | None) -> None:
    """Refuses to write a folder beside another process; removes what a killed one left."""
    for path in sorted(out.parent.glob(f".{glob.escape(out.name)}.*.tmp")):
        if path == own:
            continue
        try:
            with opened(path) as handle:
                is_mine = take(handle)
        except OSError:  # it has taken its name, or is gone
            continue
        if is_mine is False and (own is None or path < own):
            raise busy(out)
        if is_mine and not _is_alive(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(staged: Path) -> bool:
    """Whether the process that a folder is named after runs: it may not have locked it yet."""
    try:
        number = int(staged.name.split(".")[-2])
        if number == os.getpid():  # of one before this, which had the same number
            return False
        os.kill(number, 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:  # of another user
        return True
    return True
