"""Cases that were read once, uncompressed in a folder of the disk, for training that visits them.

Reading a compressed volume is nearly all of the work of taking patches from it. Where the cases do
not fit into memory, their loaded form may lie on a disk: it is mapped, not read, so only what a
patch covers is fetched, and the system keeps in memory what it has room for.

The folder is the user's only, lies where it is told, and goes with the loader that made it or with
the process. A process that is killed leaves it behind, which is why nothing is unpacked unless
asked for; the copies are as private as the images themselves.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from medvae3d.errors import SettingError


class Unpacked:
    """A folder of loaded cases, each a file of plain tensors, numbers and names.

    Several processes may use one folder: a case appears in it whole or not at all.

    Args:
        parent: Folder in which to make it; that of temporary files by default.
        limit_bytes: What this process writes at most.

    Raises:
        SettingError: If the folder cannot be made.
    """

    def __init__(self, parent: str | os.PathLike[str] | None, limit_bytes: float) -> None:
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="medvae3d-cases-", dir=parent))
        except OSError as error:
            raise SettingError(
                f"disk_cache_dir {parent}: {error.strerror}. Name a folder that exists and may be "
                f"written, or leave disk_cache_mb at 0."
            ) from error
        self.left = limit_bytes
        self._owner = os.getpid()

    def get(self, index: int) -> dict[str, Any] | None:
        """A case, its tensors mapped from the disk, or ``None`` if it is not there."""
        path = self._path(index)
        if not path.exists():
            return None
        found: dict[str, Any] = torch.load(path, mmap=True, weights_only=True)
        return found

    def keep(self, index: int, case: dict[str, Any], size: int) -> None:
        """Writes a case if there is room; a full disk ends the writing, not the training."""
        if size > self.left or self._path(index).exists():
            return
        part = self._path(index).with_suffix(f".{os.getpid()}.part")
        try:
            torch.save(case, part)
            os.replace(part, self._path(index))
            self.left -= size
        except (OSError, RuntimeError) as error:  # the latter is how torch says that a disk is full
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            self.left = 0
            warnings.warn(
                f"cases are no longer kept in {self.folder}: {error}. They are read anew at each "
                f"visit, which is slower; lower disk_cache_mb or name another disk_cache_dir.",
                stacklevel=2,
            )

    def remove(self) -> None:
        """Deletes the folder, if this process made it."""
        if os.getpid() == self._owner:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index}.pt"
