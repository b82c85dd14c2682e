"""Headers of NRRD and MetaImage files, looked at before ITK claims memory for their voxels.

Such a header may name any other file as that of its voxels, and any size for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import SimpleITK as sitk

from medvae3d.data.nifti import LARGEST_GZIP_RATIO
from medvae3d.errors import UnreadableFileError
from medvae3d.files import require_regular

LARGEST_HEADER = 1 << 20
# The field that names the file of voxels, which ends a header of MetaImage.
NAMES = re.compile(r"(?:data ?file:|ElementDataFile\s*=)\s*(.*)", re.IGNORECASE)
INSIDE = ("LOCAL", "")


def require_sound(path: Path, what: str) -> None:
    """Checks that the voxels of a file lie in it or beside it, and can be as many as it says.

    Raises:
        UnreadableFileError: If not.
    """
    try:
        require_regular(path)
        with open(path, "rb") as file:
            text = file.read(LARGEST_HEADER).decode("latin-1")
    except OSError as error:
        raise UnreadableFileError(f"{what} {path} cannot be read: {error.strerror}.") from error
    named = list(_named(text.splitlines()))
    for name in named:
        parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
        if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
            raise UnreadableFileError(
                f"{what} {path} takes its voxels from {name!r}; allowed are files in its own "
                f"folder. Put the file there, and correct its header."
            )
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UnreadableFileError(
            f"{what} {path} has a header that cannot be read: {last_line(error)}. Export it again."
        ) from error
    count = prod(reader.GetSize()) * reader.GetNumberOfComponents()
    files = [each for each in path.parent.iterdir() if each.is_file()] if named else [path]
    held = sum(each.stat().st_size for each in files)
    if count > held * LARGEST_GZIP_RATIO:
        raise UnreadableFileError(
            f"{what} {path} promises {count} voxels, which files of {held} bytes cannot hold. "
            f"Copy it again."
        )


def last_line(error: BaseException) -> str:
    """What ITK has to say at the end of its long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def _named(lines: list[str]) -> Iterator[str]:
    """The names of other files that hold the voxels."""
    for number, line in enumerate(lines):
        if not line.strip() and lines[0].startswith("NRRD"):
            return  # voxels follow
        found = NAMES.match(line.strip())
        if found is None:
            continue
        if found[1].upper().startswith("LIST"):
            yield from (each.strip() for each in lines[number + 1 :] if each.strip())
        elif found[1] not in INSIDE:
            yield found[1]
        return
