"""What all formats of a data set have in common: cases that were found, and their volumes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from medvae3d.data.importing.itk_headers import last_line, require_sound
from medvae3d.data.nifti import require_plausible
from medvae3d.data.volumes import require_usable
from medvae3d.errors import DataListError, GridError, LabelError, UnreadableFileError
from medvae3d.geometry import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

NIFTI_SUFFIXES = (".nii.gz", ".nii")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".nhdr", ".mha", ".mhd")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class FoundCase:
    """A case of a data set that is to be imported.

    Attributes:
        name: Its name, which its files get.
        subject: The patient.
        images: Files of each channel: one volume, or the slices of a DICOM series in order.
        label: File of the mask, if there is one.
        is_test: Whether the data set itself keeps the case for testing.
        split: The split that the data set gives it, if it gives one besides.
        missing: Numbers of the channels that the case lacks; all others are files of one channel.
        one_grid: Whether further channels and the mask may lie on grids of their own, from which
            they are brought onto that of the first channel.
    """

    name: str
    subject: str
    images: tuple[tuple[Path, ...], ...]
    label: Path | None = None
    is_test: bool = False
    split: str = ""
    missing: tuple[int, ...] = ()
    one_grid: bool = False


@dataclass(frozen=True)
class Layout:
    """What was found in a data set.

    Attributes:
        format: ``pairs``, ``dicom``, ``bids``, ``nnunet``, ``msd``, ``monai``, ``webdataset`` or
            ``torchio``.
        root: Its folder.
        cases: Its cases, in order.
        channels: Names of the channels, in order; none if the data set does not tell.
        labels: Value and name of each label, as MONAI writes them; none if it does not tell.
        has_splits: Whether the data set says itself what is for training and what for testing.
        info: What else the data list should hold, such as the licence.
        held: What has to live as long as the files, such as a folder that they were unpacked to.
    """

    format: str
    root: Path
    cases: tuple[FoundCase, ...]
    channels: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    has_splits: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    held: object = field(default=None, repr=False)


def stem_of(path: Path) -> str:
    """The name of a volume without its ending."""
    for suffix in VOLUME_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def is_volume(path: Path) -> bool:
    """Whether a name is that of a volume; hidden files (``._x.nii.gz``) are none."""
    return path.name.lower().endswith(VOLUME_SUFFIXES) and not path.name.startswith(".")


def safe(name: str) -> str:
    """A name of letters, digits, lines and dots."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "case"


def some(names: Iterable[object], most: int = 5) -> str:
    """The first of many names, for a message."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if listed[most:] else "")


def require_channels(found: Sequence[str], wanted: Sequence[str] | None, source: object) -> None:
    """Checks the names of channels that a data set has against those that are wanted.

    Raises:
        DataListError: If they differ.
    """
    if wanted is not None and list(found) != list(wanted):
        raise DataListError(
            f"{source} has the channels {some(found) or 'none'}; --channels says {some(wanted)}. "
            f"Give the names as the data set has them, in the same order, or leave the option out."
        )


def require_there(found: Sequence[str], wanted: Sequence[str], source: object) -> None:
    """Checks that all channels that are wanted are among those of a data set.

    Raises:
        DataListError: If one is not.
    """
    if not set(wanted) <= set(found):
        require_channels(found, wanted, source)


def require_all_labelled(cases: Sequence[FoundCase], source: object) -> None:
    """Checks that of the cases for training either all have a mask or none has.

    Raises:
        DataListError: If some lack it.
    """
    training = [case for case in cases if not case.is_test]
    bare = [case.name for case in training if case.label is None]
    if bare and len(bare) < len(training):
        raise DataListError(
            f"{source}: {len(bare)} of {len(training)} cases have no mask: {some(bare)}; allowed "
            f"is a mask for every case, or for none. Add their masks, all zero where there is no "
            f"lesion, or take the cases out."
        )


def require_unique(cases: Sequence[FoundCase], source: object) -> None:
    """Checks that no two cases get the same name.

    Raises:
        DataListError: If two do.
    """
    seen: dict[str, FoundCase] = {}
    for case in cases:
        other = seen.setdefault(case.name.lower(), case)
        if other is not case:
            raise DataListError(
                f"{source}: {other.images[0][0]} and {case.images[0][0]} both make a case named "
                f"{case.name}; names of cases must differ. Rename one of the files."
            )


def read_itk(path: Path, what: str = "image") -> tuple[NDArray[Any], Grid]:
    """Reads a volume through SimpleITK.

    Shape:
        - output: :math:`(C, I, J, K)`, in the type of the file

    Raises:
        UnreadableFileError: If it is missing or no volume of its format.
        GridError: If it is not three-dimensional, or does not say where its axes point.
    """
    require_sound(path, what)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UnreadableFileError(
            f"{what} {path} cannot be read: {last_line(error)}. It may be truncated, or its file "
            f"of voxels may be missing; copy it again."
        ) from error
    if image.GetDimension() != 3:
        raise GridError(
            f"{what} {path} has {image.GetDimension()} axes; allowed are three, and several "
            f"values a voxel for channels. Save one volume a file."
        )
    if path.suffix.lower() in (".nrrd", ".nhdr") and not image.HasMetaDataKey("NRRD_space"):
        raise GridError(
            f"{what} {path} does not say where its axes point (it has no field 'space'); without "
            f"it left and right cannot be told. Export it again, for example from 3D Slicer."
        )
    array = np.asarray(sitk.GetArrayFromImage(image))
    if array.dtype.kind not in "iuf":
        raise UnreadableFileError(
            f"{what} {path} holds voxels of type {array.dtype}; allowed are real numbers. Save the "
            f"channel that you need."
        )
    require_usable(array, f"{what} {path}", finite=False)
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    grid = require_plausible(itk_grid(image), f"{what} {path}")
    return np.ascontiguousarray(array.transpose(3, 2, 1, 0)), grid


def itk_grid(image: Any) -> Grid:
    """The grid of a SimpleITK image, whose world points left, posterior and superior."""
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = directions * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    with np.errstate(all="ignore"):
        return Grid(image.GetSize(), LPS_TO_RAS @ affine)


def as_labels(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Checks that an array is a label map, and gives it the smallest of two integer types.

    Raises:
        LabelError: If it holds fractions or negative numbers.
    """
    low, high = float(array.min()), float(array.max())
    is_whole = array.dtype.kind in "iub" or bool((array == np.rint(array)).all())
    if not is_whole or not 0 <= low <= high <= np.iinfo(np.int32).max:
        raise LabelError(
            f"{name} holds values from {low:g} to {high:g}{'' if is_whole else ', with fractions'}"
            f"; a mask holds whole numbers from 0 on. Check that it is a mask and not an image; a "
            f"probability map has to be thresholded first."
        )
    return array.astype(np.uint8 if high <= 255 else np.int32)
