"""JSON, tables and other text files from anywhere, read without surprises.

Python takes the last of two equal keys, waits for ever at a pipe and reads what has no end. Here
such a file is refused, before memory is claimed for it. Needs no other package.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A list of a million cases has about 300 MB.
LARGEST_BYTES = 1 << 30
# All of C0 and C1 but tab and end of line.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def load_json(path: str | os.PathLike[str], largest: int = LARGEST_BYTES) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        largest: Most bytes that it may have.

    Raises:
        OSError: If it cannot be read, or is no regular file; ``strerror`` says why.
        ValueError: If it is too large, is not UTF-8, is not JSON, or has a key twice.
    """
    return parse_json(load_text(path, largest))


def load_text(path: str | os.PathLike[str], largest: int = LARGEST_BYTES) -> str:
    """Reads a text in UTF-8; raises as `load_json` does."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    require_regular(path, status)
    if status.st_size > largest:
        raise ValueError(
            f"it has {status.st_size / 1e6:.0f} MB, and {largest / 1e6:.0f} MB are allowed"
        )
    return Path(path).read_text(encoding="utf-8")


def read_numbers(path: str | os.PathLike[str]) -> tuple[list[str], list[dict[str, float]]]:
    """Reads a table of numbers (CSV): names of its columns, and its rows without empty cells.

    Raises:
        OSError: As `load_json`.
        ValueError: If a cell is no number, or there is more in a row than there are columns.
    """
    table = csv.DictReader(io.StringIO(load_text(path)))
    try:
        rows = [{name: float(cell) for name, cell in row.items() if cell} for row in table]
    except (TypeError, csv.Error) as error:  # the former where a row is longer than the names
        raise ValueError(str(error)) from error
    return list(table.fieldnames or ()), rows


def parse_json(text: str) -> Any:
    """Reads JSON in which every key of an object occurs once.

    Raises:
        ValueError: If it is not that.

    Example:
        >>> parse_json('{"a": [1, 2]}')
        {'a': [1, 2]}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
            ...
        ValueError: the key 'a' occurs twice in one object
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def require_regular(
    path: str | os.PathLike[str], status: os.stat_result | None = None
) -> os.stat_result:
    """Checks that a path, or what a link leads to, is a regular file; a pipe would wait for ever.

    Raises:
        OSError: If it is another kind of file, or cannot be looked at.
    """
    status = os.stat(path) if status is None else status
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a folder, not a file", str(path))
    return status


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_bytes(content: Any, indent: int = 1) -> bytes:
    """JSON as UTF-8; what cannot be in UTF-8, as parts of file names, stands as an escape."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def is_plain(text: str) -> bool:
    """Whether a text, such as the name of a file, is UTF-8 without control characters."""
    return printable(text) == text and not set(text) & {"\n", "\t"}


def printable(text: str) -> str:
    r"""The text with escapes for what UTF-8 cannot hold and for what steers a terminal.

    Example:
        >>> print(printable("a\x1b[31m\udce9"))
        a\x1b[31m\udce9
    """
    kept = text.encode("utf-8", "backslashreplace").decode()
    return CONTROLS.sub(lambda found: f"\\x{ord(found.group()):02x}", kept)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return found
