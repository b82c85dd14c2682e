"""Volumes and masks: read with all checks, written so that equal input gives equal bytes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from medvae3d.data.nifti import (
    enough_memory,
    grid_of,
    pack,
    read_stored,
    scaling,
    write_bytes,
    write_stored,
)
from medvae3d.errors import GridError, GridMismatchError, IntensityError, LabelError
from medvae3d.geometry import Grid

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

# Activities reach 1e9 Bq; sums of squares of larger numbers than this leave float32.
LARGEST_VALUE = 1e12

__all__ = [
    "Volume",
    "encode",
    "label_values",
    "pack",
    "read_mask",
    "read_volume",
    "require_usable",
    "write_bytes",
    "write_edited",
    "write_volume",
]


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume as read from a file.

    Attributes:
        array: Voxels :math:`(I, J, K)`, or :math:`(C, I, J, K)` if read with ``channels``.
        grid: Where they lie.
        dtype: Type of the voxels in the file, before scaling.
        header: NIfTI header of the file with its ``scl_slope`` and ``scl_inter``.
        path: The file.
    """

    array: NDArray[Any] = field(repr=False)
    grid: Grid
    dtype: np.dtype[Any]
    header: Any = field(repr=False)
    path: Path

    @property
    def scaling(self) -> tuple[float, float]:
        """Slope and intercept that take stored values to values."""
        return scaling(self.header)


def read_volume(
    path: str | os.PathLike[str],
    *,
    what: str = "image",
    channels: bool = False,
    finite: bool = True,
    dtype: DTypeLike = np.float32,
) -> Volume:
    """Reads a NIfTI volume, with the scaling of its header applied.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.
        what: What the file is, for messages.
        channels: Whether a fourth axis is a channel axis; the array then is
            :math:`(C, I, J, K)`. Otherwise only a fourth axis of length 1 is let through.
        finite: Whether NaN and infinities are refused.
        dtype: Type of the array.

    Raises:
        UnreadableFileError: If the file is missing, truncated, or not what its name promises.
        GridError: If it is not three-dimensional, or its spacing or affine cannot be used.
        IntensityError: If it holds NaN or infinities and ``finite`` is set.
    """
    path = Path(path)
    name = f"{what} {path}"
    with enough_memory(name):
        array, grid, header = _read_scaled(path, name, channels)
        require_usable(array, name, finite)
        array = array.astype(dtype, order="C")
    return Volume(array, grid, header.get_data_dtype().newbyteorder("="), header, path)


def read_mask(
    path: str | os.PathLike[str],
    values: Sequence[int] | None = None,
    *,
    what: str = "label",
) -> Volume:
    """Reads a label map as integers.

    Whole numbers stored as floats are read; anything between them is not.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.
        values: The label values that may occur; any whole number from 0 on if not given.
        what: What the file is, for messages.

    Raises:
        LabelError: If a voxel is not a whole number, is negative, or is not among ``values``.
    """
    path = Path(path)
    name = f"{what} {path}"
    with enough_memory(name):
        array, grid, header = _read_scaled(path, name, channels=False)
        return _as_mask(array, grid, header, path, name, values)


def _as_mask(
    array: NDArray[Any],
    grid: Grid,
    header: Any,
    path: Path,
    name: str,
    values: Sequence[int] | None,
) -> Volume:
    low, high = float(array.min()), float(array.max())
    if not abs(low) + abs(high) <= np.iinfo(np.int32).max:
        raise LabelError(
            f"{name} holds values from {low:g} to {high:g}; a mask holds {_allowed(values)} only. "
            f"Check that this file is a mask and not an image."
        )
    # The range comes first: 300 would come back as 44 in eight bits.
    mask = array.astype(np.uint8 if low >= 0 and high <= 255 else np.int32, order="C")
    if array.dtype.kind == "f" and (broken := mask != array).any():
        raise LabelError(
            f"{name} holds {int(broken.sum())} voxels that are no whole numbers, such as "
            f"{float(array[broken][0]):g}; a mask holds {_allowed(values)} only. If it was "
            f"resampled with linear interpolation, resample it again with nearest neighbour; if "
            f"it is a probability map, threshold it."
        )
    found = label_values(mask)
    unknown = [v for v in found if (v < 0 if values is None else v not in values)]
    if unknown:
        raise LabelError(
            f"{name} holds the label values {unknown[:8]}; allowed are {_allowed(values)}. "
            f"Map them to known values, or name them in the settings of the data set."
        )
    return Volume(mask, grid, header.get_data_dtype().newbyteorder("="), header, path)


def label_values(mask: NDArray[Any]) -> tuple[int, ...]:
    """Lists the integers that occur, in order; by counting, as sorting is ten times slower."""
    low = int(mask.min())
    if int(mask.max()) - low > 1 << 16:
        return tuple(int(v) for v in np.unique(mask))
    flat = mask.ravel(order="K")
    counts = np.bincount(flat - low if low else flat)
    return tuple(int(v) + low for v in np.flatnonzero(counts))


def write_volume(
    path: str | os.PathLike[str],
    array: NDArray[Any],
    grid: Grid,
    *,
    slope: float | None = None,
    dtype: DTypeLike | None = None,
    header: Any = None,
    clip: bool = False,
) -> None:
    """Writes a volume so that equal input gives equal bytes.

    Without a header: integers keep their type (64 bits become 32), bool becomes uint8, floats
    become float32, or int16 in steps of ``slope``. With the header of another file (a host):
    its type, scaling, codes, units, description and, if ``grid`` is its own, its very affine
    entries are kept.

    Args:
        path: Where to; ``.nii`` or ``.nii.gz``.
        array: Voxels :math:`(I, J, K)`.
        grid: Where they lie.
        slope: Value of one step of an integer type.
        dtype: Type of the voxels in the file.
        header: NIfTI header to keep, as in :attr:`Volume.header`.
        clip: Whether values that an integer type cannot hold are cut to its range.

    Raises:
        GridMismatchError: If array and grid differ in shape.
        IntensityError: If an integer type cannot hold a value and ``clip`` is not set.
        OutputError: If the file cannot be written.
    """
    path = Path(path)
    if tuple(array.shape) != grid.shape:
        raise GridMismatchError(
            f"{path}: the array has shape {tuple(array.shape)}, its grid {grid.shape}; they must "
            f"be equal. Write one file a channel."
        )
    if header is None:
        header = _fresh_header(_stored_type(array, slope, dtype), slope, grid)
    else:
        header = header.copy()
        if dtype is not None:
            header.set_data_dtype(np.dtype(dtype))
        if slope is not None:
            header["scl_slope"], header["scl_inter"] = slope, 0
    stored = encode(array, header, name=str(path), clip=clip)
    write_stored(path, stored, grid, header)


def write_edited(
    path: str | os.PathLike[str],
    host: Volume,
    array: NDArray[Any],
    where: NDArray[np.bool_],
    *,
    clip: bool = True,
) -> None:
    """Writes a host volume with some voxels replaced, all others as they were, bit for bit.

    Args:
        path: Where to.
        host: The volume to edit; its stored voxels are read again from its file.
        array: New values :math:`(I, J, K)`, used inside ``where`` only.
        where: The voxels to replace.
        clip: Whether values that the type of the host cannot hold are cut to its range.
    """
    stored, header = read_stored(host.path, f"host {host.path}")
    stored = stored.copy(order="F")
    voxels = stored.reshape(host.grid.shape, order="F")  # a view, also of a fourth axis of 1
    voxels[where] = encode(array[where], header, name=str(path), clip=clip)
    write_stored(Path(path), stored, host.grid, header)


def encode(array: NDArray[Any], header: Any, *, name: str, clip: bool = False) -> NDArray[Any]:
    """Takes values to what the header stores: its type after its slope and intercept."""
    dtype = header.get_data_dtype()
    slope, inter = scaling(header)
    steps = array if (slope, inter) == (1.0, 0.0) else (array.astype(np.float64) - inter) / slope
    if dtype.kind == "f" or np.can_cast(steps.dtype, dtype):
        return steps.astype(dtype)
    if steps.dtype.kind == "f":
        if not np.isfinite(steps).all():
            raise IntensityError(
                f"{name}: {int((~np.isfinite(steps)).sum())} NaN or infinite voxels cannot be "
                f"written as {dtype}; allowed are finite values. Find the step that made them."
            )
        steps = np.rint(steps)
    limits = np.iinfo(dtype)
    low, high = (steps.min(), steps.max()) if steps.size else (0, 0)
    if low < limits.min or high > limits.max:
        if not clip:
            raise IntensityError(
                f"{name}: values from {low * slope + inter:g} to {high * slope + inter:g} do not "
                f"fit {dtype} in steps of {slope:g} ({limits.min * slope + inter:g} to "
                f"{limits.max * slope + inter:g}). Use a larger slope or another dtype."
            )
        steps = np.clip(steps, limits.min, limits.max)
    return steps.astype(dtype)


def _read_scaled(path: Path, name: str, channels: bool) -> tuple[NDArray[Any], Grid, Any]:
    """Reads voxels with their scaling: as stored if there is none, float64 otherwise."""
    stored, header = read_stored(path, name)
    grid = grid_of(header, name)
    if channels:
        stored = np.moveaxis(stored.reshape(*grid.shape, -1, order="F"), -1, 0)
    elif stored.size != np.prod(grid.shape):
        raise GridError(
            f"{name} has shape {stored.shape}; allowed here is one volume a file. "
            f"Split its fourth axis into one file a channel."
        )
    else:
        stored = stored.reshape(grid.shape, order="F")
    slope, inter = scaling(header)
    if (slope, inter) != (1.0, 0.0):
        with np.errstate(all="ignore"):
            stored = stored * np.float64(slope) + inter
    return stored, grid, header


def require_usable(array: NDArray[Any], name: str, finite: bool) -> None:
    """Refuses values that no image has: not finite, or so large that their squares are not.

    Args:
        array: Values, of any shape.
        name: What holds them, for messages.
        finite: Whether NaN and infinities are refused.

    Raises:
        IntensityError: If there are such values.
    """
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        kept = array[np.isfinite(array)]
        if finite:
            raise IntensityError(
                f"{name} holds {array.size - kept.size} NaN or infinite voxels of {array.size}; "
                f"allowed are finite values only. Replace them, for example by the background "
                f"value, and save again."
            )
        low, high = (float(kept.min()), float(kept.max())) if kept.size else (0.0, 0.0)
    if max(-low, high) > LARGEST_VALUE:
        raise IntensityError(
            f"{name} holds values from {low:g} to {high:g}; allowed is up to {LARGEST_VALUE:g} "
            f"either way. Look at its scl_slope and scl_inter, and convert it again."
        )


def _stored_type(
    array: NDArray[Any], slope: float | None, dtype: DTypeLike | None
) -> np.dtype[Any]:
    if dtype is not None:
        return np.dtype(dtype)
    if slope is not None:
        return np.dtype(np.int16)
    if array.dtype == bool:
        return np.dtype(np.uint8)
    if array.dtype.kind == "f":
        return np.dtype(np.float32)
    return np.dtype(np.int32) if array.dtype.itemsize == 8 else array.dtype


def _fresh_header(dtype: np.dtype[Any], slope: float | None, grid: Grid) -> Any:
    header: Any = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    header.set_qform(grid.affine, 1)
    header.set_sform(grid.affine, 1)
    header["scl_slope"], header["scl_inter"] = (slope or 1.0), 0
    return header


def _allowed(values: Sequence[int] | None) -> str:
    return "whole numbers from 0 on" if values is None else f"the values {list(values)}"
