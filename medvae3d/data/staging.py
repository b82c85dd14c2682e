"""A folder that appears whole or not at all: written beside its place, then moved there."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medvae3d.errors import OutputError


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
def sole_writer(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; the lock leaves no file and ends with the process.

    Args:
        folder: A folder that exists. Where the system cannot lock folders, nothing is held.

    Raises:
        OutputError: If another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{folder} is being written by another process. Wait until it has ended, or choose "
                f"another folder for --out."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


@contextmanager
def staged_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a folder to write into that takes the name ``out`` if all goes well.

    It lies beside ``out``, so that relative paths from one are those from the other. After an
    error or an interruption nothing of it is left.

    Raises:
        OutputError: If ``out`` holds something already, or cannot be written.
    """
    out = require_new_folder(out).absolute()
    made = [folder for folder in (out.parent, *out.parent.parents) if not folder.exists()]
    staged = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        staged.mkdir(parents=True)
        yield staged
        os.replace(staged, require_new_folder(out))
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            if type(error).__module__ != "builtins":
                raise  # one of ours, with its own advice
            raise OutputError(
                f"{out} cannot be written: {error.strerror or error}. "
                f"Choose a folder with room that you may write to."
            ) from error
        raise
