"""Whether files are still those that a training began with.

Cases that do not fit into memory are read again and again while a model trains. A file that was
replaced meanwhile would be learned from in silence, and the run could not be repeated. The same
goes for a file that was replaced before a run goes on: for that, what was in each file is written
down when the run begins.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from medvae3d.data.datalists import Case
from medvae3d.errors import UnreadableFileError
from medvae3d.files import sha256_of

Contents: TypeAlias = dict[str, list[Any]]
"""Size in bytes, time of the last change in nanoseconds and SHA-256, by path from a folder."""

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


def changed_files(before: Stamps) -> dict[Path, int | None]:
    """Files that have another size or time of change than they had: size now, ``None`` if gone."""
    found: dict[Path, int | None] = {}
    for path, stamp in before.items():
        try:
            now = path.stat()
        except OSError:
            found[path] = None
            continue
        if (now.st_size, now.st_mtime_ns) != stamp:
            found[path] = now.st_size
    return found


def require_unchanged(before: Stamps) -> None:
    """Refuses files that are no longer what they were.

    Raises:
        UnreadableFileError: If one has another size or time of change, or is gone.
    """
    for path, size in changed_files(before).items():
        if size is None:
            raise UnreadableFileError(
                f"{path} was there when the training began, and is gone. Put it back and add "
                f"--resume, or train anew on the cases that there are."
            )
        raise UnreadableFileError(
            f"{path} has changed since the training began: it had {before[path][0]} bytes and has "
            f"{size}, written at another time. Put the old file back and add --resume, or train "
            f"anew in another folder."
        )


def contents_of(cases: Iterable[Case], root: Path) -> Contents:
    """What is in the files of cases, by their paths from a folder.

    Args:
        cases: The cases; all their files exist.
        root: The folder.
    """
    found: Contents = {}
    for case in cases:
        for path, (size, changed) in stamps_of(case).items():
            found[os.path.relpath(path, root)] = [size, changed, sha256_of(path)]
    return found


def digest_of(cases: Iterable[Case]) -> str:
    """One SHA-256 of what is in all files of cases, in their order, whatever their names."""
    digest = hashlib.sha256()
    for case in cases:
        for path in stamps_of(case):
            digest.update(sha256_of(path).encode())
    return digest.hexdigest()


def require_same_contents(before: Mapping[str, Any], cases: Iterable[Case], root: Path) -> None:
    """Refuses files that hold something else than they did; of each, as little is read as needed.

    A file of the same size and time of change is taken to be the same. One of another time is read
    and compared by its hash, so that copies and files that were only touched are let through.

    Args:
        before: What `contents_of` said, perhaps read from a file.
        cases: The cases as they are now; files that were not among those before are let through.
        root: The folder that paths start from.

    Raises:
        UnreadableFileError: If a file has changed.
    """
    for case in cases:
        for path, (size, changed) in stamps_of(case).items():
            known = before.get(os.path.relpath(path, root))
            if not isinstance(known, list) or len(known) != 3 or known[:2] == [size, changed]:
                continue
            if known[0] != size or known[2] != sha256_of(path):
                raise UnreadableFileError(
                    f"{path} is not what it was when the run began: it had {known[0]} bytes with "
                    f"the SHA-256 {str(known[2])[:16]}..., and has {size} others. Put the old file "
                    f"back to go on, or train anew in another folder."
                )


def _files(case: Case | Mapping[str, Any]) -> Iterator[Path]:
    for key in KEYS:
        value = case.get(key) if isinstance(case, Mapping) else getattr(case, key, None)
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, (str, os.PathLike)):
                yield Path(each)
