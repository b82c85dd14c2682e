"""What DICOM holds of a volume: 16 bits with a slope, and decimals of 16 letters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvae3d.apps.export_cases import read_channel
from medvae3d.data.nifti import scaling
from medvae3d.data.volumes import require_usable
from medvae3d.errors import GridError, SettingError
from medvae3d.geometry import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_SKEW = 1e-4


class StoredVolume:
    """A volume as 16 bits with slope and intercept.

    Attributes:
        pixels: Voxels :math:`(I, J, K)`, int16 or uint16.
        slope: What takes them to values, with ``intercept``.
        intercept: The value of 0.
        grid: Where they lie.
        rounding: Largest difference to the values of the file.
    """

    def __init__(
        self, pixels: NDArray[Any], slope: float, intercept: float, grid: Grid, rounding: float
    ) -> None:
        self.pixels, self.slope, self.intercept = pixels, slope, intercept
        self.grid, self.rounding = grid, rounding

    @classmethod
    def read(cls, path: Path) -> StoredVolume:
        """Reads a file, as it is stored if 16 bits hold that.

        Raises:
            DataListError: If it holds several channels.
            GridError: If its axes are not at right angles.
            IntensityError: If it holds NaN or infinities.
        """
        stored, header, grid = read_channel(path)
        _require_right_angles(grid, path)
        slope, intercept = scaling(header)
        low, high = stored.min(), stored.max()
        for dtype in (np.int16, np.uint16):
            limits = np.iinfo(dtype)
            is_whole = stored.dtype.kind in "iu" or bool((stored == np.rint(stored)).all())
            if is_whole and limits.min <= low and high <= limits.max:
                return cls(stored.astype(dtype), slope, intercept, grid, 0.0)
        values = stored * np.float64(slope) + intercept
        require_usable(values, f"image {path}", finite=True)
        largest = float(np.abs(values).max())
        step = float(decimal(largest / np.iinfo(np.int16).max, least=0))
        pixels = np.clip(np.rint(values / step), -32767, 32767).astype(np.int16)
        return cls(pixels, step, 0.0, grid, float(np.abs(pixels * step - values).max()))


def _require_right_angles(grid: Grid, path: Path) -> None:
    axes = grid.affine[:3, :3] / grid.spacing
    skew = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if skew > MOST_SKEW:
        raise GridError(
            f"image {path} has axes that are not at right angles (off by {skew:.2g}); DICOM slices "
            f"need them. Resample it onto a grid of right angles."
        )


def decimal(value: float, least: float = 1e-12) -> str:
    """A number in the 16 letters that DICOM has for one; what is smaller than ``least`` is 0.

    Example:
        >>> decimal(1 / 3), decimal(6e-17), decimal(6e-17, least=0)
        ('0.33333333333333', '0', '6e-17')
    """
    value = float(value) + 0.0
    for digits in range(15, 5, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return "0" if float(text) == 0 or abs(value) < least else text
    raise SettingError(f"{value} cannot be written as a DICOM decimal.")
