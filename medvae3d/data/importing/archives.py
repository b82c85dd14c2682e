"""Tar files from anywhere, read member by member within bounds.

Nothing is unpacked by its own name: what is taken out is written under names made here, so that
``..``, absolute paths, links and devices lead nowhere. A few kilobytes cannot become a full disk.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvae3d.errors import MedvaeError, UnreadableFileError
from medvae3d.files import require_regular

# Images of whole heads unpack to 3 times their size, masks to 50 times and more.
MOST_TIMES, SMALL_BYTES = 200, 1 << 28
MOST_MEMBERS = 50_000
# Of one read; names and comments that a header announces are far smaller.
LARGEST_READ = 1 << 24


@contextmanager
def members_of(path: Path) -> Iterator[Iterator[tuple[str, Any]]]:
    """Yields the names of plain files in a tar file, and a function that writes one elsewhere.

    Args:
        path: The file, plain or compressed with gzip.

    Raises:
        UnreadableFileError: If it ends early, is damaged, or unpacks to far more than it is.
    """
    try:
        size = require_regular(path).st_size
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        opener: Any = gzip.open if zipped else open
        most = max(SMALL_BYTES, MOST_TIMES * size) if zipped else size
        with opener(path, "rb") as raw:
            stream: Any = _Bounded(raw, most)
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                yield _members(archive)
                # One that was cut off between two members reads as a whole one but for its end.
                stream.seek(archive.offset)
                if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise EOFError("it has no end mark")
                while stream.read(1 << 20):  # the check sum comes after the padding
                    pass
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        if isinstance(error, MedvaeError):
            raise
        raise UnreadableFileError(
            f"{path} cannot be read to its end ({error}): it was cut off or is damaged. Copy it "
            f"again."
        ) from error


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, Any]]:
    for number, member in enumerate(archive):
        if member.size < 0 or number >= MOST_MEMBERS:
            raise tarfile.ReadError(f"it has members of no size, or more than {MOST_MEMBERS}")
        # A sparse file is mostly holes, which take no room in the archive.
        if not member.isfile() or member.issparse():
            continue

        def write(place: Path, member: tarfile.TarInfo = member) -> None:
            content: Any = archive.extractfile(member)
            with open(place, "wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
            if place.stat().st_size != member.size:
                raise EOFError(f"{member.name} is cut off")

        yield member.name, write


class _Bounded:
    """A stream that is read no further than a bound, and not much of it at once."""

    def __init__(self, stream: Any, most: int) -> None:
        self.stream, self.most = stream, most

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_READ:
            raise tarfile.ReadError(f"a header announces {size} bytes")
        data: bytes = self.stream.read(size)
        self._within(self.stream.tell())
        return data

    def seek(self, place: int, whence: int = 0) -> int:
        self._within(place)
        return int(self.stream.seek(place, whence))

    def tell(self) -> int:
        return int(self.stream.tell())

    def _within(self, place: int) -> None:
        if not 0 <= place <= self.most:
            raise tarfile.ReadError(f"it goes on to byte {place}, and {self.most} are allowed")
