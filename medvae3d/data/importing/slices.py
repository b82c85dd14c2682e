"""Slices of DICOM series, one a file, read through GDCM as SimpleITK has it.

A series is a volume only if its slices have one size, one orientation and one distance. GDCM stacks
whatever it is given, so this is checked here before a voxel is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from medvae3d.data.importing.common import LPS_TO_RAS, some
from medvae3d.data.importing.elements import require_whole
from medvae3d.data.nifti import LARGEST_GZIP_RATIO, require_plausible
from medvae3d.data.volumes import require_usable
from medvae3d.errors import GridError, UnreadableFileError
from medvae3d.geometry import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

TAGS = {
    "series": "0020|000e",
    "study": "0020|000d",
    "patient": "0010|0020",
    "modality": "0008|0060",
    "description": "0008|103e",
    "frame of reference": "0020|0052",
    "position": "0020|0032",
    "orientation": "0020|0037",
    "spacing": "0028|0030",
    "rows": "0028|0010",
    "columns": "0028|0011",
    "frames": "0028|0008",
}
# What GDCM decodes: plain, deflated, JPEG, JPEG-LS, JPEG 2000, RLE. Given any other, it does not
# always fail: it takes the encoded bytes of high-throughput JPEG 2000 for voxels.
DECODED = {
    "1.2.840.10008.1.2" + end
    for end in ("", ".1", ".2", ".1.99", ".5")
    + tuple(f".4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91))
}
# Elements of the group 0002, little endian.
SOP_CLASS, TRANSFER_SYNTAX = b"\x02\x00", b"\x10\x00"
COUNTS = {"position": 3, "orientation": 6, "spacing": 2, "rows": 1, "columns": 1}
NEEDED = ("position", "orientation", "spacing")
# Positions are rounded to 0.01 mm and more by scanners; a missing slice is off by a whole distance.
LARGEST_UNEVENNESS = 0.1
LARGEST_TILT_DEGREES = 0.1


@dataclass(frozen=True)
class Slice:
    """A file of a series with what its header says, lengths in mm, axes as in DICOM (LPS)."""

    path: Path
    facts: Mapping[str, str]

    def numbers(self, name: str) -> tuple[float, ...]:
        """The numbers of a field.

        Raises:
            GridError: If they are none, or not as many as the field has.
        """
        text = self.facts.get(name, "")
        try:
            found = tuple(float(part) for part in text.split("\\"))
        except ValueError:
            found = ()
        if len(found) != COUNTS[name] or not all(map(math.isfinite, found)):
            raise GridError(
                f"{self.path} has the {name} {text!r} in its header; allowed are {COUNTS[name]} "
                f"numbers. Export the series again."
            )
        return found


def is_dicom(path: Path) -> bool:
    """Whether a file has the mark of DICOM after its preamble.

    Raises:
        UnreadableFileError: If it cannot be looked at.
    """
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise UnreadableFileError(
            f"{path} cannot be read: {error.strerror or error}. Make it readable, or take it out "
            f"of the folder."
        ) from error


def sort_slices(slices: Sequence[Slice], name: str) -> list[Slice]:
    """Puts slices in the order of their place, once it is sure that they make a volume.

    Raises:
        GridError: If sizes, orientations or distances differ, or slices are missing or double.
    """
    for each in slices:
        if each.facts.get("frames", "1").strip() not in ("0", "1"):
            raise GridError(
                f"{each.path} holds {each.facts['frames'].strip()[:20]} frames; allowed is one "
                f"slice a file. Convert it, for example with dcm2niix, and import the NIfTI files."
            )
        if lacking := [key for key in NEEDED if key not in each.facts]:
            raise GridError(
                f"{each.path} has no {some(lacking)} in its header, so its place is not known. "
                f"Take it out of the folder if it is a localiser or a picture of a report."
            )
    _require_alike(slices, name)
    if len(slices) < 2:
        raise GridError(f"{name} has one slice; a volume has two or more. Export all slices.")
    normal = np.cross(*np.array(slices[0].numbers("orientation")).reshape(2, 3))
    places = np.array([each.numbers("position") for each in slices])
    order = np.argsort(places @ normal, kind="stable")
    _require_even(places[order], normal, [slices[i].path.name for i in order], name)
    return [slices[i] for i in order]


def _require_alike(slices: Sequence[Slice], name: str) -> None:
    """Checks that slices are of one patient and space, and have one size and direction."""
    for what in ("patient", "frame of reference"):
        said = [each.facts.get(what, "") for each in slices]
        odd_one = next((i for i, value in enumerate(said) if value != said[0]), None)
        if odd_one is not None:
            raise GridError(
                f"{name} has slices of more than one {what} ({slices[0].path.name}, "
                f"{slices[odd_one].path.name}); a volume has one. Put the slices of each into a "
                f"folder of its own."
            )
    for what, keys in (
        ("pixel spacings", ("spacing",)),
        ("sizes", ("rows", "columns")),
        ("orientations", ("orientation",)),
    ):
        values = np.array([[n for key in keys for n in each.numbers(key)] for each in slices])
        odd = np.flatnonzero(np.abs(values - values[0]).max(axis=1) > 1e-3)
        if odd.size:
            shown = " and ".join(_numbers(values[i]) for i in (0, odd[0]))
            raise GridError(
                f"{name} has mixed {what}: {shown} ({slices[0].path.name}, "
                f"{slices[odd[0]].path.name}); a volume has one. Put the slices of each into a "
                f"folder of its own, or export the series again."
            )


def read_series(files: Sequence[Path]) -> tuple[NDArray[Any], Grid]:
    """Reads the slices of a series, in the order in which they lie.

    Each slice is taken to values by its own slope, as slices of PET have different ones.

    Shape:
        - output: :math:`(I, J, K)`, int16 if all values are such, else float32

    Raises:
        UnreadableFileError: If a slice cannot be decoded.
    """
    planes = []
    for path in files:
        try:
            plane = sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat32))
        except RuntimeError as error:
            raise _undecodable(path) from error
        planes.append(plane.reshape(plane.shape[-2:]).T)
    array = np.stack(planes, axis=-1)
    require_usable(array, f"series of {files[0]}", finite=False)
    limits = np.iinfo(np.int16)
    if limits.min <= array.min() and array.max() <= limits.max and (array == np.rint(array)).all():
        array = array.astype(np.int16)
    return array, grid_of_slices([read_header(path) for path in files])


def grid_of_slices(slices: Sequence[Slice]) -> Grid:
    """The grid of slices in the order in which they lie."""
    first, last = slices[0], slices[-1]
    along_i, along_j = np.array(first.numbers("orientation")).reshape(2, 3)
    row_distance, column_distance = first.numbers("spacing")
    origin = np.array(first.numbers("position"))
    affine = np.eye(4)
    affine[:3, 0] = along_i * column_distance
    affine[:3, 1] = along_j * row_distance
    affine[:3, 2] = (np.array(last.numbers("position")) - origin) / (len(slices) - 1)
    affine[:3, 3] = origin
    i, j = (int(first.numbers(name)[0]) for name in ("columns", "rows"))
    grid = Grid((i, j, len(slices)), LPS_TO_RAS @ affine)
    return require_plausible(grid, f"series of {first.path}")


def transfer_syntax(path: Path) -> str:
    """How the pixels of a file are encoded, by UID; read here as GDCM does not say it."""
    return meta_element(path, TRANSFER_SYNTAX)


def meta_element(path: Path, element: bytes) -> str:
    """A UID of the group 0002, which comes before all else in a file."""
    with open(path, "rb") as file:
        block = file.read(4096)
    at = 132
    # The group 0002 is always explicit and little endian.
    while block[at : at + 2] == b"\x02\x00" and at + 12 <= len(block):
        is_long = block[at + 4 : at + 6] in (b"OB", b"UN")
        head = 12 if is_long else 8
        length = int.from_bytes(block[at + (8 if is_long else 6) : at + head], "little")
        if block[at + 2 : at + 4] == element:
            return block[at + head : at + head + length].decode("ascii", "replace").strip("\0 ")
        at += head + length
    return "unknown"


def read_header(path: Path) -> Slice:
    """A slice with what its header says.

    Raises:
        UnreadableFileError: If its pixels cannot be decoded.
    """
    syntax = transfer_syntax(path)
    if syntax not in DECODED:
        raise _undecodable(path)
    try:
        require_whole(path, syntax)
    except (OSError, ValueError) as error:
        raise UnreadableFileError(
            f"{path} is no whole slice: {error}. Export it again, or take it out of the folder if "
            f"it is no image."
        ) from error
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _undecodable(path) from error
    if math.prod(reader.GetSize()) > path.stat().st_size * LARGEST_GZIP_RATIO:
        raise _undecodable(path)
    facts = {n: reader.GetMetaData(tag) for n, tag in TAGS.items() if reader.HasMetaDataKey(tag)}
    return Slice(path, {name: text.strip(" \0") for name, text in facts.items() if text.strip()})


def _undecodable(path: Path) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path} cannot be decoded: its transfer syntax is {transfer_syntax(path)}, for which "
        f"there is no decoder here, or it is truncated. Decompress it, for example with "
        f"'gdcmconv --raw' or 'dcmdjpeg', or export it uncompressed."
    )


def _require_even(
    places: NDArray[np.float64], normal: NDArray[np.float64], names: Sequence[str], name: str
) -> None:
    """Checks that slices follow each other at one distance, straight above each other."""
    steps = np.diff(places @ normal)
    usual = float(np.median(steps))
    same = np.flatnonzero(steps < 1e-3)
    if same.size:
        i = int(same[0])
        raise GridError(
            f"{name}: {names[i]} and {names[i + 1]} lie at the same place; a volume has one slice "
            f"there. Export each phase or time of the series into a folder of its own."
        )
    # Where half of the slices were lost, the smallest distance is the true one.
    base = float(steps.min())
    wide = np.flatnonzero(steps > base * (1 + LARGEST_UNEVENNESS))
    if wide.size:
        i = int(wide[0])
        lost = int(np.rint(steps / base - 1).sum())
        what = f"about {lost:.6g} slices are missing" if lost else "slices have mixed distances"
        raise GridError(
            f"{name}: {what}: between {names[i]} and {names[i + 1]} lie {steps[i]:.4g} mm, "
            f"usual are {usual:.4g} mm. Export the series again, whole; or resample it to one "
            f"distance on purpose and import that."
        )
    course = places[-1] - places[0]
    cosine = float(course @ normal) / float(np.linalg.norm(course))
    tilt = float(np.degrees(np.arccos(min(1.0, cosine))))
    if tilt > LARGEST_TILT_DEGREES:
        raise GridError(
            f"{name}: the gantry was tilted by {tilt:.3g} degrees, so the axes are not at right "
            f"angles (allowed: {LARGEST_TILT_DEGREES} degrees). Resample it upright, for example "
            f"with dcm2niix, and import that."
        )


def _numbers(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
