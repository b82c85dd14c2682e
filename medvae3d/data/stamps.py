"""Whether files are still those that a training began with.

Cases that do not fit into memory are read again and again while a model trains. A file that was
replaced meanwhile would be learned from in silence, and the run could not be repeated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from medvae3d.data.datalists import Case
from medvae3d.errors import UnreadableFileError

Stamps: TypeAlias = dict[Path, tuple[int, int]]
"""Size in bytes and time of the last change in nanoseconds, by file; absent files are left out."""

KEYS = ("image", "label", "mask", "weights")


def stamps_of(case: Case | Mapping[str, Any]) -> Stamps:
    """What the file system says of the files of a case now."""
    found = {}
    for path in _files(case):
        try:
            known = path.stat()
        except OSError:
            continue
        found[path] = (known.st_size, known.st_mtime_ns)
    return found


def require_unchanged(before: Stamps) -> None:
    """Refuses files that are no longer what they were.

    Raises:
        UnreadableFileError: If one has another size or time of change, or is gone.
    """
    for path, (size, changed) in before.items():
        try:
            now = path.stat()
        except OSError:
            raise UnreadableFileError(
                f"{path} was there when the training began, and is gone. Put it back and add "
                f"--resume, or train anew on the cases that there are."
            ) from None
        if (now.st_size, now.st_mtime_ns) != (size, changed):
            raise UnreadableFileError(
                f"{path} has changed since the training began: it had {size} bytes and has "
                f"{now.st_size}, written at another time. Put the old file back and add --resume, "
                f"or train anew in another folder."
            )


def _files(case: Case | Mapping[str, Any]) -> Iterator[Path]:
    for key in KEYS:
        value = case.get(key) if isinstance(case, Mapping) else getattr(case, key, None)
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, (str, os.PathLike)):
                yield Path(each)
