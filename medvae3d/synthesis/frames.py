r"""The axes and voxel size that the weights know, laid over a host that keeps its own.

Networks see a host with axes right, anterior, superior, at the voxel size of training. Along an
axis of the right voxel size that is a transpose and a flip, and nothing is interpolated. Along any
other, a voxel of the result is linearly interpolated where it is the smaller one, and the average
over what it covers where it is the larger one:

.. math:: y_m = \frac{\sum_h w(m s + o - h)\, x_h}{\sum_h w(m s + o - h)}, \qquad
   w(t) = \begin{cases} \max(0, 1 - |t|) & s < 1 \\
   \big|[t - \tfrac s2, t + \tfrac s2] \cap [-\tfrac12, \tfrac12]\big| & s > 1 \end{cases}

with :math:`s` source voxels per target voxel. The frame turns with the host: an oblique scan is not
resampled for being oblique.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import nibabel as nib
import numpy as np

from medvae3d.geometry import Grid, Triple, TripleMM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Slices = tuple[slice, slice, slice]

# Voxel sizes that differ by less than this are one: over a lesion of 30 voxels it makes 0.3.
SAME_SPACING = 0.01


@dataclass(frozen=True)
class Frame:
    """The axes of a host in the order right, anterior, superior, at the weights' voxel size.

    Attributes:
        host: The host's own grid.
        order: Which axis of the host is the first, second and third of the frame.
        flips: Which axes of the frame run against the host's.
        steps: Voxels of the host per voxel of the frame, along the frame's axes; exactly 1 where
            nothing is interpolated.
        shape: Voxels of the frame.
    """

    host: Grid
    order: Triple
    flips: tuple[bool, bool, bool]
    steps: TripleMM
    shape: Triple

    @classmethod
    def of(cls, host: Grid, spacing: Sequence[float]) -> Frame:
        """Lays a frame over a host; centre on centre.

        Args:
            host: The host's grid.
            spacing: Voxel size of the weights in mm along right, anterior, superior.
        """
        axes = nib.io_orientation(host.affine)
        order = tuple(int(np.flatnonzero(axes[:, 0] == axis)[0]) for axis in range(3))
        flips = tuple(bool(axes[axis, 1] < 0) for axis in order)
        steps, shape = [], []
        for axis, wanted in zip(order, spacing, strict=True):
            step = float(wanted) / host.spacing[axis]
            step = 1.0 if abs(step - 1) <= SAME_SPACING else step
            steps.append(step)
            shape.append(max(1, int(np.ceil(host.shape[axis] / step - 1e-6))))
        return cls(
            host,
            cast(Triple, order),
            cast("tuple[bool, bool, bool]", flips),
            cast(TripleMM, tuple(steps)),
            cast(Triple, tuple(shape)),
        )

    @property
    def is_exact(self) -> bool:
        """Whether frame and host have the same voxels, in another order at most."""
        return self.steps == (1.0, 1.0, 1.0)

    @property
    def host_shape(self) -> Triple:
        """Voxels of the host along the frame's axes."""
        i, j, k = (self.host.shape[axis] for axis in self.order)
        return i, j, k

    @property
    def host_spacing(self) -> TripleMM:
        """Voxel size of the host in mm along the frame's axes."""
        i, j, k = (self.host.spacing[axis] for axis in self.order)
        return i, j, k

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel of the frame in ml."""
        return self.host.voxel_volume_ml * float(np.prod(self.steps))

    @property
    def offsets(self) -> TripleMM:
        """Where the frame's first voxel lies, in voxels of the host along the frame's axes."""
        sizes = zip(self.host_shape, self.shape, self.steps, strict=True)
        i, j, k = ((n - 1) / 2 - step * (m - 1) / 2 for n, m, step in sizes)
        return i, j, k

    def to_index(self, point_mm: Sequence[float]) -> NDArray[np.float64]:
        """Takes a point in mm to fractional voxels of the frame."""
        index = self.host.to_index(point_mm)[list(self.order)]
        index = np.where(self.flips, np.array(self.host_shape) - 1 - index, index)
        return np.asarray((index - self.offsets) / self.steps)

    def reorient(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turns host axes into those of the frame, a view; leading axes stay."""
        lead = array.ndim - 3
        array = array.transpose(*range(lead), *(lead + axis for axis in self.order))
        return self._flipped(array)

    def restore(self, array: NDArray[Any]) -> NDArray[Any]:
        """Undoes `reorient`, a view."""
        lead = array.ndim - 3
        back = np.argsort(self.order)
        return self._flipped(array).transpose(*range(lead), *(lead + int(axis) for axis in back))

    def _flipped(self, array: NDArray[Any]) -> NDArray[Any]:
        axes = [axis - 3 for axis, flip in enumerate(self.flips) if flip]
        return np.flip(array, tuple(axes))

    def to_frame(self, array: NDArray[Any]) -> Floats:
        """Brings a host volume :math:`(..., I, J, K)` into the frame; its border goes on."""
        moved = self.reorient(array).astype(np.float32)
        for axis, (step, offset) in enumerate(zip(self.steps, self.offsets, strict=True)):
            if step != 1.0:
                places = np.arange(self.shape[axis]) * step + offset
                weights = _weights(places, self.host_shape[axis], step, extend=True)
                moved = _along(moved, weights, axis - 3)
        return np.ascontiguousarray(moved)

    def box_to_frame(
        self, box: NDArray[Any], sides: Sequence[slice]
    ) -> tuple[Floats, tuple[int, int, int]]:
        """Brings a box of the host, 0 outside of it, into the frame.

        Args:
            box: Values, :math:`(..., i, j, k)`, in the host's axes.
            sides: Which box of the host it is.

        Returns:
            Values on a box of the frame, and where that starts.
        """
        moved = self.reorient(box).astype(np.float32)
        start = []
        for axis, (step, offset) in enumerate(zip(self.steps, self.offsets, strict=True)):
            side, count = sides[self.order[axis]], self.host_shape[axis]
            first = count - side.stop if self.flips[axis] else side.start
            moved, low = _carry(moved, axis, first, step, offset, self.shape[axis])
            start.append(low)
        return np.ascontiguousarray(moved), (start[0], start[1], start[2])

    def to_host(self, box: NDArray[Any], start: Sequence[int]) -> tuple[Floats, Slices]:
        """Brings a box of the frame, 0 outside of it, back onto the host.

        Args:
            box: Values, :math:`(..., i, j, k)`.
            start: First voxel of the box in the frame; the box may reach over the border.

        Returns:
            Values on a box of the host, in its own axes, and which box that is.
        """
        moved = np.asarray(box, np.float32)
        sides = []
        for axis, (step, offset) in enumerate(zip(self.steps, self.offsets, strict=True)):
            limit = self.host_shape[axis]
            moved, low = _carry(moved, axis, int(start[axis]), 1 / step, -offset / step, limit)
            high = low + moved.shape[axis - 3]
            sides.append(slice(limit - high, limit - low) if self.flips[axis] else slice(low, high))
        inside = [sides[int(axis)] for axis in np.argsort(self.order)]
        return np.ascontiguousarray(self.restore(moved)), (inside[0], inside[1], inside[2])


def _carry(
    box: Floats, axis: int, first: int, ratio: float, shift: float, limit: int
) -> tuple[Floats, int]:
    """Interpolates a box along one axis; returns it with its new first voxel.

    A voxel :math:`t` of the result lies at :math:`t r + s` of the source, in which the box starts
    at ``first``.
    """
    count = box.shape[axis - 3]
    if ratio == 1.0:
        low, high = max(first, 0), min(first + count, limit)
        kept = [slice(None)] * box.ndim
        kept[axis - 3] = slice(low - first, max(low, high) - first)
        return box[tuple(kept)], low
    reach = _reach(ratio)
    low = int(np.ceil((first - reach - shift) / ratio))
    high = int(np.floor((first + count - 1 + reach - shift) / ratio)) + 1
    low = min(max(low, 0), limit)
    high = max(low, min(high, limit))
    places = np.arange(low, high) * ratio + shift - first
    return _along(box, _weights(places, count, ratio, extend=False), axis - 3), low


def _reach(ratio: float) -> float:
    """How far, in source voxels, a target voxel sees."""
    return 1.0 if ratio < 1 else (ratio + 1) / 2


def _weights(places: NDArray[np.floating[Any]], count: int, ratio: float, extend: bool) -> Floats:
    """Share of each source voxel in each target voxel, ``(targets, sources)``.

    Args:
        places: Where target voxels lie, in source voxels.
        count: Number of source voxels.
        ratio: Source voxels per target voxel.
        extend: Whether the outermost source voxels go on beyond the border; otherwise it is 0.
    """
    beyond = max(-places.min(), places.max() - count + 1, 0.0) if len(places) else 0.0
    pad = int(np.ceil(_reach(ratio) + beyond)) + 1
    offsets = places[:, None] - np.arange(-pad, count + pad)
    if ratio < 1:
        shares = np.maximum(1 - np.abs(offsets), 0)
    else:
        edges = np.minimum(offsets + ratio / 2, 0.5) - np.maximum(offsets - ratio / 2, -0.5)
        shares = np.maximum(edges, 0)
    shares /= shares.sum(1, keepdims=True)
    inner = shares[:, pad : pad + count].copy()
    if extend:
        inner[:, 0] += shares[:, :pad].sum(1)
        inner[:, -1] += shares[:, pad + count :].sum(1)
    return inner.astype(np.float32)


def _along(array: Floats, weights: Floats, axis: int) -> Floats:
    moved = np.tensordot(array, weights, (axis, 1))
    return np.moveaxis(moved, -1, axis)
