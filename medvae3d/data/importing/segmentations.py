"""DICOM segmentations as label maps on the grid of the series that they refer to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvae3d.data.importing.common import LPS_TO_RAS, some
from medvae3d.data.importing.slices import TRANSFER_SYNTAX, meta_element
from medvae3d.errors import GridMismatchError, LabelError, SettingError, UnreadableFileError
from medvae3d.files import require_regular
from medvae3d.geometry import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
# Share of a voxel by which a frame may lie beside a slice.
MOST_OFF = 0.1


def read_segmentation(path: Path) -> Any:
    """Reads a segmentation with pydicom.

    Raises:
        SettingError: If pydicom is not installed.
        UnreadableFileError: If the file is broken.
    """
    try:
        import pydicom
    except ImportError as error:
        raise SettingError(
            f"{path} is a DICOM segmentation; reading it needs pydicom, which comes with "
            f"pip install 'medvae3d[dicom]'."
        ) from error
    try:
        require_regular(path)
        found: Any = pydicom.dcmread(path)
        found.decoded = found.pixel_array.reshape(-1, int(found.Rows), int(found.Columns))
        # What is read later on has to be there.
        names_of(found), series_of(found), found.SegmentationType
        if len(found.PerFrameFunctionalGroupsSequence) != len(found.decoded):
            raise ValueError("it describes another number of frames than it has")
    except Exception as error:  # pydicom raises many kinds for broken files
        cause = " ".join(str(error).split()).rstrip(".")
        raise UnreadableFileError(
            f"{path} cannot be read as a DICOM segmentation (its transfer syntax is "
            f"{meta_element(path, TRANSFER_SYNTAX)}): {cause}. Export it again, uncompressed."
        ) from error
    return found


def series_of(segmentation: Any) -> str:
    """The series that a segmentation refers to, by UID; empty if it does not say."""
    referred = segmentation.get("ReferencedSeriesSequence") or []
    return str(referred[0].SeriesInstanceUID) if referred else ""


def names_of(segmentation: Any) -> dict[str, str]:
    """Number and name of each segment."""
    return {str(s.SegmentNumber): str(s.SegmentLabel) for s in segmentation.SegmentSequence}


def label_map(segmentation: Any, grid: Grid, path: Path) -> NDArray[np.uint8]:
    """The segments on the grid of their series, by number.

    Raises:
        LabelError: If it is fractional, or segments overlap.
        GridMismatchError: If a frame lies on no slice of the series.
    """
    if segmentation.SegmentationType not in ("BINARY", "LABELMAP"):
        raise LabelError(
            f"{path} is a {segmentation.SegmentationType} segmentation; allowed are BINARY and "
            f"LABELMAP ones. Threshold it first."
        )
    lps = LPS_TO_RAS @ grid.affine
    shared = segmentation.get("SharedFunctionalGroupsSequence") or [{}]
    mask = np.zeros(grid.shape, np.uint8)
    for number, groups in enumerate(segmentation.PerFrameFunctionalGroupsSequence):
        plane = segmentation.decoded[number].T
        position = _value(groups, shared[0], "PlanePositionSequence", "ImagePositionPatient")
        direction = _value(groups, shared[0], "PlaneOrientationSequence", "ImageOrientationPatient")
        try:
            index = np.linalg.solve(lps, [*map(float, position), 1])[:3]
            axes = np.array(direction, float).reshape(2, 3) @ (lps[:3, :3] / grid.spacing)
        except (TypeError, ValueError, np.linalg.LinAlgError):
            index, axes = np.full(3, np.inf), np.zeros((2, 3))
        k = -1 if not np.isfinite(index).all() else int(np.rint(index[2]))
        is_there = np.abs(index - (0, 0, k)).max() <= MOST_OFF and 0 <= k < grid.shape[2]
        if (
            not is_there
            or plane.shape != grid.shape[:2]
            or not np.allclose(axes, np.eye(3)[:2], atol=1e-3)
        ):
            raise GridMismatchError(
                f"frame {number + 1} of {path} lies on no slice of the series that it refers to. "
                f"Resample it onto the series, for example in 3D Slicer, and export it again."
            )
        if segmentation.SegmentationType == "LABELMAP":
            values = plane.astype(np.uint8)
        else:
            segment = _value(groups, shared[0], "SegmentIdentificationSequence",
                             "ReferencedSegmentNumber")  # fmt: skip
            if not 0 < int(segment) <= 255:
                raise LabelError(
                    f"{path} has a segment of number {segment}; allowed are 1 to 255. Export it "
                    f"with fewer segments."
                )
            values = (plane > 0).astype(np.uint8) * np.uint8(segment)
        met = (mask[:, :, k] > 0) & (values > 0) & (mask[:, :, k] != values)
        if met.any():
            names = names_of(segmentation)
            raise LabelError(
                f"{path} has segments that overlap in {int(met.sum())} voxels of frame "
                f"{number + 1} ({some(names.values())}); allowed is one label a voxel. Part them, "
                f"for example in 3D Slicer."
            )
        mask[:, :, k] = np.maximum(mask[:, :, k], values)
    return mask


def _value(groups: Any, shared: Any, sequence: str, keyword: str) -> Any:
    """A value of a frame, or of all frames."""
    found: Any = groups.get(sequence) or shared.get(sequence)
    try:
        return getattr(found[0], keyword)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise LabelError(
            f"a frame of a segmentation has no {keyword} in its {sequence}; its place or its "
            f"segment is not known. Export it again."
        ) from error
