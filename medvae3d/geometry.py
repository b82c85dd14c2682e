r"""Where the voxels of a volume lie in the patient.

A grid is a shape and an affine :math:`A` that takes a voxel index to world coordinates in mm,

.. math:: (x, y, z, 1)^\top = A \, (i, j, k, 1)^\top ,

with the axes of the world pointing right, anterior and superior, as in NIfTI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import nibabel as nib
import numpy as np

from medvae3d.errors import GridError, GridMismatchError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Triple = tuple[int, int, int]
TripleMM = tuple[float, float, float]

# One axis of an affine counts as squashed onto the others below this share of a right angle's
# volume; the most oblique gantry in use (30 degrees) leaves 0.87.
SMALLEST_SKEW_DETERMINANT = 1e-4


@dataclass(frozen=True, eq=False)
class Grid:
    """The shape of a volume and the place of its voxels.

    Attributes:
        shape: Voxels along :math:`(I, J, K)`.
        affine: Voxel index to world coordinates in mm, :math:`(4, 4)`, RAS+ as in NIfTI; kept as
            a read-only float64 array.

    Raises:
        GridError: If an axis is empty, or the affine is not finite or is singular.

    Example:
        >>> grid = Grid((4, 4, 2), np.diag([1.0, 1.0, 3.0, 1.0]))
        >>> grid.spacing, grid.extent, grid.axcodes
        ((1.0, 1.0, 3.0), (4.0, 4.0, 6.0), 'RAS')
    """

    shape: Triple
    affine: NDArray[np.float64] = field(repr=False)

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GridError(
                f"a grid needs three axes of at least one voxel; found shape {shape}. "
                f"Pass the three spatial axes only, without batch or channel."
            )
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GridError(
                f"an affine is a finite 4 x 4 matrix; found shape {affine.shape} with "
                f"{int((~np.isfinite(affine)).sum())} non-finite entries. "
                f"Repair the header, for example by copying that of the image it belongs to."
            )
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if spacing.min() <= 0:
            raise GridError(
                f"the affine gives a voxel size of {_mm(spacing)} mm; all three must be above 0. "
                f"Repair the header: write the true voxel size into it."
            )
        if abs(np.linalg.det(affine[:3, :3] / spacing)) < SMALLEST_SKEW_DETERMINANT:
            raise GridError(
                f"the affine is singular: its axes lie in one plane (voxel size {_mm(spacing)} "
                f"mm). Repair the header: its three axes must point in three directions."
            )
        if not np.allclose(affine[3], (0, 0, 0, 1)):
            raise GridError(
                f"the last row of an affine is 0 0 0 1; found {affine[3].tolist()}. "
                f"Repair the header."
            )
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def centred(cls, shape: Sequence[int], spacing: Sequence[float]) -> Grid:
        """Makes an RAS grid whose centre lies at 0 mm."""
        if len(spacing) != 3 or not all(0 < s < float("inf") for s in spacing):
            raise GridError(
                f"a voxel size is three numbers in mm above 0; found {tuple(spacing)}. "
                f"Give it along right, anterior and superior."
            )
        affine = np.diag([*map(float, spacing), 1.0])
        affine[:3, 3] = [-s * (n - 1) / 2 for n, s in zip(shape, spacing, strict=True)]
        return cls(cast(Triple, tuple(shape)), affine)

    @classmethod
    def from_image(cls, image: Any) -> Grid:
        """Takes the grid of a nibabel image; further axes (time, channels) are dropped."""
        shape = tuple(image.shape[:3])
        if image.affine is None:
            raise GridError("the image has no affine. Save it as NIfTI with one.")
        return cls(cast(Triple, shape), image.affine)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape == other.shape and bool(np.array_equal(self.affine, other.affine))

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @property
    def spacing(self) -> TripleMM:
        """Size of a voxel in mm along :math:`(I, J, K)`."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        return cast(TripleMM, tuple(float(s) for s in sizes))

    @property
    def extent(self) -> TripleMM:
        """Size of the volume in mm along :math:`(I, J, K)`, outer face to outer face."""
        return cast(TripleMM, tuple(n * s for n, s in zip(self.shape, self.spacing, strict=True)))

    @property
    def axcodes(self) -> str:
        """Where the three axes point to, as in ``RAS``."""
        return "".join(nib.aff2axcodes(self.affine))

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in ml, also for skewed axes."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def corners(self) -> NDArray[np.float64]:
        """World coordinates of the eight corner voxels in mm, :math:`(8, 3)`."""
        return self.to_world(list(product(*[(0, n - 1) for n in self.shape])))

    def to_world(self, index: ArrayLike) -> NDArray[np.float64]:
        """Takes voxel indices :math:`(..., 3)` to world coordinates in mm."""
        return np.asarray(nib.affines.apply_affine(self.affine, np.asarray(index, float)))

    def to_index(self, point_mm: ArrayLike) -> NDArray[np.float64]:
        """Takes world coordinates in mm :math:`(..., 3)` to fractional voxel indices."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(nib.affines.apply_affine(inverse, np.asarray(point_mm, float)))

    def crop(self, start: Sequence[int], shape: Sequence[int]) -> Grid:
        """Makes the grid of a box of this one; a negative start or a larger shape pads."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(start)
        return Grid(cast(Triple, tuple(shape)), affine)

    def worst_corner_mm(self, other: Grid) -> float:
        """Largest distance in mm between the same corner of both grids."""
        return float(np.linalg.norm(self.corners - other.corners, axis=1).max())

    def require_same(
        self, other: Grid, *, this: str, that: str, tolerance_mm: float = 1e-2
    ) -> None:
        """Checks that two volumes lie voxel on voxel.

        Corners are compared rather than matrix entries: a rotation of 1e-3 rad is nothing at
        the origin and half a voxel at the far end of a long field of view.

        Args:
            other: The grid to compare with.
            this: What this grid is of, for the message.
            that: What the other grid is of, for the message.
            tolerance_mm: Largest distance between the same corner of both grids.

        Raises:
            GridMismatchError: If the shapes differ or a corner is further off.

        Example:
            >>> grid = Grid((4, 4, 4), np.diag([1.0, 1.0, 3.0, 1.0]))
            >>> grid.require_same(grid, this="image", that="mask")
        """
        if self.shape != other.shape:
            raise GridMismatchError(
                f"{that} has shape {other.shape}, {this} has {self.shape}; they must be equal. "
                f"Resample {that} onto the grid of {this}."
            )
        worst = self.worst_corner_mm(other)
        if worst > tolerance_mm:
            raise GridMismatchError(
                f"{that} lies {worst:.2f} mm off {this} at the worst corner "
                f"(allowed: {tolerance_mm} mm). {this} is {self.axcodes} at "
                f"{_mm(self.spacing)} mm, {that} is {other.axcodes} at {_mm(other.spacing)} mm. "
                f"Resample {that} onto the grid of {this}; if only the header is wrong, copy "
                f"that of {this}."
            )


def _mm(sizes: Sequence[float] | NDArray[np.float64]) -> str:
    return " x ".join(f"{float(s):.4g}" for s in sizes)
