r"""Real scans that lesions are put into: reading, checking, and going to the weights' own axes.

A host keeps its grid. Networks see it in a frame of their own, axes right, anterior, superior at
the voxel size of training. Along an axis of the right voxel size that is a transpose and a flip and
nothing is interpolated; along any other it is linear interpolation, widened to an average where
voxels get larger:

.. math:: y_m = \frac{\sum_h w\big((m s + o - h) / \max(1, s)\big)\, x_h}{\sum_h w(\cdot)}, \qquad
   w(t) = \max(0, 1 - |t|)

with :math:`s` source voxels per target voxel. The frame turns with the host: an oblique scan is
not resampled for being oblique.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from medvae3d.data.phantom import CHANNELS as PHANTOM_CHANNELS
from medvae3d.data.phantom import case_seed, phantom_case
from medvae3d.data.volumes import Volume, encode, read_mask, read_volume, write_edited, write_volume
from medvae3d.errors import GridError, IntensityError, LabelError, SettingError
from medvae3d.geometry import Grid, Triple, TripleMM
from medvae3d.synthesis.placement import find_brain
from medvae3d.synthesis.recipe import Channel, Recipe

if TYPE_CHECKING:
    from os import PathLike

    Floats = NDArray[np.float32]
    Mask = NDArray[np.bool_]
    Slices = tuple[slice, slice, slice]

# Voxel sizes that differ by less than this are one: over a lesion of 30 voxels it makes 0.3.
SAME_SPACING = 0.01
PHANTOM_SHAPE = (96, 112, 96)


@dataclass(frozen=True, eq=False)
class HostScan:
    """A scan to put lesions into.

    Attributes:
        volumes: One volume a channel; its header says how the host stores its voxels.
        label: Label map of what is there already, :math:`(I, J, K)`.
        brain: Brain or body, :math:`(I, J, K)`.
        name: What to call it in records.
        is_file: Whether the volumes were read from files, whose stored voxels can be kept.
    """

    volumes: tuple[Volume, ...]
    label: NDArray[np.integer[Any]] = field(repr=False)
    brain: Mask = field(repr=False)
    name: str
    is_file: bool = True

    @property
    def grid(self) -> Grid:
        """Where its voxels lie."""
        return self.volumes[0].grid

    @property
    def image(self) -> Floats:
        """Native units, :math:`(C, I, J, K)`."""
        return np.stack([volume.array for volume in self.volumes])

    def as_stored(self, channel: int, values: Floats) -> Floats:
        """What values become when the host stores them: its steps, within its range."""
        volume = self.volumes[channel]
        stored = encode(values, volume.header, name=str(volume.path), clip=True)
        slope, inter = volume.scaling
        return (stored * np.float64(slope) + inter).astype(np.float32)

    def write_channel(
        self, channel: int, path: str | PathLike[str], array: Floats, where: Mask
    ) -> None:
        """Writes a channel with some voxels replaced and all others as they were, bit for bit."""
        volume = self.volumes[channel]
        if self.is_file:
            write_edited(path, volume, array, where)
        else:
            write_volume(path, array, self.grid, header=volume.header, clip=True)


def read_host(
    images: Sequence[str | PathLike[str]],
    label: str | PathLike[str] | None,
    recipe: Recipe,
    *,
    brain: str | PathLike[str] | None = None,
) -> HostScan:
    """Reads a host and checks that the weights can be used on it.

    Args:
        images: One file a channel, in the order of the recipe, on one grid.
        label: Label map of lesions that are there already, if any.
        recipe: What the weights expect.
        brain: Mask of brain or body; found in the image if not given.

    Raises:
        UnreadableFileError: If a file is missing or broken.
        SettingError: If there are not as many files as channels.
        GridError: If a file is not 3D, or the scan is smaller than what a lesion is made in.
        GridMismatchError: If the files do not lie on one grid.
        IntensityError: If a channel holds NaN, or is of another unit or modality.
        LabelError: If the label or brain mask cannot be one.
    """
    paths = [Path(path) for path in images]
    names = ", ".join(channel.name for channel in recipe.channels)
    if len(paths) != len(recipe.channels):
        raise SettingError(
            f"the host has {len(paths)} image files; these weights need {len(recipe.channels)}: "
            f"{names}. Give one file a channel, in this order."
        )
    volumes = tuple(
        read_volume(path, what=f"host {channel.name}")
        for path, channel in zip(paths, recipe.channels, strict=True)
    )
    first = volumes[0]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        first.grid.require_same(volume.grid, this=str(paths[0]), that=str(path))
    require_room(first.grid, recipe, name=str(paths[0]))
    for volume, channel in zip(volumes, recipe.channels, strict=True):
        what = f"{volume.path} ({channel.name})"
        channel.intensity.check(torch.from_numpy(volume.array), what)
        require_contrast(volume, what)
    there = np.zeros(first.grid.shape, np.uint8)
    if label is not None:
        known = read_mask(label, recipe.values, what="host label")
        first.grid.require_same(known.grid, this=str(paths[0]), that=str(label))
        there = known.array
    inside = _brain(first, brain, recipe.channels[0])
    if not (inside & (first.array > 0)).any() and recipe.channels[0].intensity.kind == "percentile":
        raise LabelError(
            f"{brain or paths[0]}: the brain mask meets no voxel of the image above 0. Give the "
            f"brain mask of this very scan."
        )
    return HostScan(volumes, there, inside, first.path.name.removesuffix(".gz").removesuffix(".nii"))


def phantom_host(recipe: Recipe, seed: int, index: int) -> HostScan:
    """Draws a procedural head without lesions, as a host where no scan is at hand.

    ``phantom_shape`` and ``phantom_spacing`` under ``synthesis`` set its grid. A channel whose name
    says T1 gets the T1-like brightness, any other the FLAIR-like one.
    """
    options = recipe.synthesis.options
    shape = options.get("phantom_shape", PHANTOM_SHAPE)
    spacing = options.get("phantom_spacing", recipe.spacing)
    case = phantom_case(case_seed(seed, index), shape, spacing, lesions=(0, 0))
    volumes = tuple(_phantom_volume(case.image, case.grid, each, index) for each in recipe.channels)
    require_room(case.grid, recipe, name="the phantom")
    label = np.zeros(case.grid.shape, np.uint8)
    return HostScan(volumes, label, case.brain > 0, f"phantom_{seed}_{index:06d}", False)


def _phantom_volume(image: Floats, grid: Grid, channel: Channel, index: int) -> Volume:
    kind = next((k for k, name in enumerate(PHANTOM_CHANNELS) if name in channel.name.lower()), 0)
    header: Any = nib.Nifti1Header()
    header.set_data_dtype(np.dtype(channel.dtype))
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    header.set_qform(grid.affine, 1)
    header.set_sform(grid.affine, 1)
    # Brightness goes up to about 1,000: a step of 1/10 is far below the noise.
    slope = channel.slope or (1.0 if np.dtype(channel.dtype).kind == "f" else 0.1)
    header["scl_slope"], header["scl_inter"] = slope, 0
    stored = encode(image[kind], header, name="phantom", clip=True)
    array = (stored * np.float64(slope)).astype(np.float32)
    path = Path(f"phantom_{index:06d}_{channel.name}.nii.gz")
    return Volume(array, grid, stored.dtype, header, path)


def require_room(grid: Grid, recipe: Recipe, *, name: str) -> None:
    """Refuses a scan that is smaller than the volume that a lesion is made in.

    Raises:
        GridError: If it is.
    """
    frame = Frame.of(grid, recipe.spacing)
    if any(n < wanted for n, wanted in zip(frame.shape, recipe.spatial_shape, strict=True)):
        have, need = ("{} x {} x {}".format(*s) for s in (frame.shape, recipe.spatial_shape))
        mm = " x ".join(f"{s:g}" for s in recipe.spacing)
        raise GridError(
            f"{name} is {have} voxels of {mm} mm (right, anterior, superior); these weights need "
            f"{need} or more. Give a scan of the whole organ, not a slice or a crop."
        )


def require_contrast(volume: Volume, what: str) -> None:
    """Refuses a constant channel.

    Raises:
        IntensityError: If it is.
    """
    low, high = float(volume.array.min()), float(volume.array.max())
    if not low < high:
        raise IntensityError(
            f"{what} is {low:g} in all of its voxels; a lesion needs surroundings. "
            f"Check the file with `medvae3d data check`."
        )


def _brain(first: Volume, path: str | PathLike[str] | None, channel: Channel) -> Mask:
    if path is not None:
        given = read_mask(path, what="brain mask")
        first.grid.require_same(given.grid, this=str(first.path), that=str(path))
        if not given.array.any():
            raise LabelError(f"{path} is empty; a brain mask needs voxels. Leave it out, or fix it.")
        return given.array > 0
    axes = Frame.of(first.grid, first.grid.spacing)
    image = axes.reorient(first.array)
    spacing = axes.host_spacing
    # Only MR of a head has a skull to leave out; CT and PET are taken as whole bodies.
    inside = find_brain(image, spacing, has_skull=channel.intensity.kind == "percentile")
    return np.ascontiguousarray(axes.restore(inside))


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
        return array[(..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))]

    def restore(self, array: NDArray[Any]) -> NDArray[Any]:
        """Undoes `reorient`, a view."""
        array = array[(..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))]
        lead = array.ndim - 3
        back = np.argsort(self.order)
        return array.transpose(*range(lead), *(lead + int(axis) for axis in back))

    def to_frame(self, array: NDArray[Any]) -> Floats:
        """Brings a host volume :math:`(..., I, J, K)` into the frame; the border goes on outside."""
        moved = self.reorient(array).astype(np.float32)
        for axis, (step, offset) in enumerate(zip(self.steps, self.offsets, strict=True)):
            if step != 1.0:
                places = np.arange(self.shape[axis]) * step + offset
                weights = _weights(places, self.host_shape[axis], max(1.0, step), extend=True)
                moved = _along(moved, weights, axis - 3)
        return np.ascontiguousarray(moved)

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
            first, count = int(start[axis]), moved.shape[axis - 3]
            reach = 0.0 if step == 1.0 else max(1.0, step)
            low = int(np.ceil(first * step + offset - reach))
            high = int(np.floor((first + count - 1) * step + offset + reach)) + 1
            low, high = max(low, 0), min(high, self.host_shape[axis])
            high = max(low, high)
            if step == 1.0:
                kept = [slice(None)] * 3
                kept[axis] = slice(low - first, high - first)
                moved = moved[(..., *kept)]
            else:
                places = (np.arange(low, high) - offset) / step - first
                weights = _weights(places, count, max(1.0, 1 / step), extend=False)
                moved = _along(moved, weights, axis - 3)
            if self.flips[axis]:
                low, high = self.host_shape[axis] - high, self.host_shape[axis] - low
            sides.append(slice(low, high))
        inside = [sides[int(axis)] for axis in np.argsort(self.order)]
        return np.ascontiguousarray(self.restore(moved)), (inside[0], inside[1], inside[2])


def _weights(places: NDArray[np.float64], count: int, width: float, extend: bool) -> Floats:
    """Share of each source voxel in each target voxel, ``(targets, sources)``."""
    beyond = max(-places.min(), places.max() - count + 1, 0.0) if len(places) else 0.0
    pad = int(np.ceil(width + beyond)) + 1
    sources = np.arange(-pad, count + pad)
    shares = np.maximum(1 - np.abs(places[:, None] - sources) / width, 0)
    shares /= shares.sum(1, keepdims=True)
    inner = shares[:, pad : pad + count].copy()
    if extend:
        inner[:, 0] += shares[:, :pad].sum(1)
        inner[:, -1] += shares[:, pad + count :].sum(1)
    return inner.astype(np.float32)


def _along(array: Floats, weights: Floats, axis: int) -> Floats:
    moved = np.tensordot(array, weights, (axis, 1))
    return np.moveaxis(moved, -1, axis)
