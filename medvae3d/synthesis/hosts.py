"""Real scans that lesions are put into: reading and checking them, and what stands in for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from medvae3d.data.phantom import CHANNELS as PHANTOM_CHANNELS
from medvae3d.data.phantom import case_seed, phantom_case
from medvae3d.data.volumes import Volume, encode, read_mask, read_volume, write_edited, write_volume
from medvae3d.errors import GridError, IntensityError, LabelError, SettingError
from medvae3d.geometry import Grid
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.synthesis.frames import Frame
from medvae3d.synthesis.placement import Site, find_brain
from medvae3d.synthesis.recipe import Channel, Recipe

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import DTypeLike, NDArray

    Floats = NDArray[np.float32]
    Mask = NDArray[np.bool_]
    Slices = tuple[slice, slice, slice]

PHANTOM_SHAPE = (96, 112, 96)
# Share of the patch, along each axis, that a host must have. Decoders take any size, and crops a
# little smaller than the patch were padded in training too; a slab of slices was not.
LEAST_ROOM = 0.6


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
        require_modality(volume, channel)
    there = np.zeros(first.grid.shape, np.uint8)
    if label is not None:
        known = read_mask(label, recipe.values, what="host label")
        first.grid.require_same(known.grid, this=str(paths[0]), that=str(label))
        there = known.array
    inside = _given_brain(volumes, brain, recipe) if brain else body_of(volumes, recipe)
    name = first.path.name.removesuffix(".gz").removesuffix(".nii")
    return HostScan(volumes, there, inside, name)


def host_in_memory(
    image: Floats,
    grid: Grid,
    recipe: Recipe,
    *,
    label: NDArray[np.integer[Any]] | None = None,
    brain: Mask | None = None,
) -> HostScan:
    """A scan in memory as a host; values stay floats, as no file says otherwise.

    Args:
        image: Native units, :math:`(C, I, J, K)`.
        grid: Where its voxels lie.
        recipe: What the weights expect.
        label: Lesions that are there already, :math:`(I, J, K)`.
        brain: Brain or body, :math:`(I, J, K)`; found in the image if not given.

    Raises:
        SettingError: If there are not as many channels as the weights need.
        GridError: If it is smaller than what a lesion is made in.
        IntensityError: If a channel is of another unit or modality, or constant.
    """
    names = ", ".join(channel.name for channel in recipe.channels)
    if len(image) != len(recipe.channels):
        raise SettingError(
            f"the host has {len(image)} channels; these weights need {len(recipe.channels)}: "
            f"{names}. Give one file a channel in this order, or one 4D file."
        )
    require_room(grid, recipe, name="the host")
    header = _header(grid, np.float32)
    volumes = tuple(
        Volume(array, grid, np.dtype(np.float32), header, Path(f"host_{channel.name}.nii"))
        for array, channel in zip(image, recipe.channels, strict=True)
    )
    for volume, channel in zip(volumes, recipe.channels, strict=True):
        require_modality(volume, channel)
    there = np.zeros(grid.shape, np.uint8) if label is None else label
    inside = body_of(volumes, recipe) if brain is None else brain
    return HostScan(volumes, there, inside, "host", False)


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
    header = _header(grid, channel.dtype)
    # Brightness goes up to about 1,000: a step of 1/10 is far below the noise.
    slope = channel.slope or (1.0 if np.dtype(channel.dtype).kind == "f" else 0.1)
    header["scl_slope"], header["scl_inter"] = slope, 0
    stored = encode(image[kind], header, name="phantom", clip=True)
    array = (stored * np.float64(slope)).astype(np.float32)
    path = Path(f"phantom_{index:06d}_{channel.name}.nii.gz")
    return Volume(array, grid, stored.dtype, header, path)


def _header(grid: Grid, dtype: DTypeLike) -> Any:
    header: Any = nib.Nifti1Header()
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    header.set_qform(grid.affine, 1)
    header.set_sform(grid.affine, 1)
    return header


def require_room(grid: Grid, recipe: Recipe, *, name: str) -> None:
    """Refuses a scan that is much smaller than the volume that a lesion is made in.

    Raises:
        GridError: If it is.
    """
    have, need = Frame.of(grid, recipe.spacing).shape, recipe.spatial_shape
    if any(n < LEAST_ROOM * wanted for n, wanted in zip(have, need, strict=True)):
        mm = " x ".join(f"{s:g}" for s in recipe.spacing)
        raise GridError(
            f"{name} is {' x '.join(map(str, have))} voxels of {mm} mm (right, anterior, "
            f"superior); these weights need {' x '.join(map(str, need))} or more, of which an axis "
            f"may lack {100 * (1 - LEAST_ROOM):.0f} %. Give a scan of the whole organ, not a slice "
            f"or a small crop."
        )


def require_modality(volume: Volume, channel: Channel) -> None:
    """Refuses a channel that is constant, or clearly of another unit or modality.

    Raises:
        IntensityError: If it is.
    """
    what = f"{volume.path} ({channel.name})"
    low, high = float(volume.array.min()), float(volume.array.max())
    if not low < high:
        raise IntensityError(
            f"{what} is {low:g} in all of its voxels; a lesion needs surroundings. "
            f"Check the file with `medvae3d data check`."
        )
    try:
        channel.intensity.check(torch.from_numpy(volume.array), what)
    except IntensityError as error:
        if str(volume.path) in str(error):
            raise
        raise IntensityError(f"{what}: {error}") from error


def anatomy_channel(recipe: Recipe) -> tuple[int, bool]:
    """The channel in which a body is told from air: MR, or else CT, or else the first; and if MR.

    Only MR of a head has a skull to leave out and CSF to tell from tissue; CT and PET are taken as
    whole bodies.
    """
    kinds = [channel.intensity.kind for channel in recipe.channels]
    lead = next((kinds.index(kind) for kind in ("percentile", "window") if kind in kinds), 0)
    return lead, kinds[lead] == "percentile"


def body_of(volumes: Sequence[Volume], recipe: Recipe) -> Mask:
    """Finds the brain in an MR host, and the body in any other, on the host's own voxels."""
    lead, is_mr = anatomy_channel(recipe)
    volume = volumes[lead]
    axes = Frame.of(volume.grid, volume.grid.spacing)
    inside = find_brain(axes.reorient(volume.array), axes.host_spacing, has_skull=is_mr)
    return np.ascontiguousarray(axes.restore(inside))


def _given_brain(volumes: Sequence[Volume], path: str | PathLike[str], recipe: Recipe) -> Mask:
    lead, is_mr = anatomy_channel(recipe)
    given = read_mask(path, what="brain mask")
    volumes[0].grid.require_same(given.grid, this=str(volumes[0].path), that=str(path))
    inside: Mask = given.array > 0
    if not inside.any():
        raise LabelError(f"{path} is empty; a brain mask needs voxels. Leave it out, or fix it.")
    if is_mr and not (inside & (volumes[lead].array > 0)).any():
        raise LabelError(
            f"{path}: the brain mask meets no voxel of the image above 0. Give the brain mask of "
            f"this very scan."
        )
    return inside


@dataclass(eq=False)
class Scan:
    """A host, and the same in the frame of the weights.

    Attributes:
        host: The scan.
        frame: The weights' axes and voxel size, laid over it.
        image: Native units in the frame, :math:`(C, I, J, K)`.
        normalised: Network values in the frame, :math:`(1, C, I, J, K)`.
        params: What normalised each channel, to undo it.
        site: Where lesions may go, in the frame.
        added: New lesions, on the host's own voxels.
        is_extracted: Whether the weights only know brains without their skull.
    """

    host: HostScan
    frame: Frame
    image: Floats
    normalised: Tensor
    params: list[Any]
    site: Site
    added: Mask
    is_extracted: bool

    @classmethod
    def of(cls, host: HostScan, model: TwoStageModel, recipe: Recipe, allow_overlap: bool) -> Scan:
        """Brings a host into the frame and works out where lesions may go.

        Raises:
            LabelError: If no brain is left at the voxel size of the weights.
        """
        frame = Frame.of(host.grid, recipe.spacing)
        image = frame.to_frame(host.image)
        brain = frame.to_frame(host.brain) > 0.5
        # Any share counts: half of a voxel of lesion is lesion to keep away from.
        taken = frame.to_frame(host.label > 0) > 0.01
        if not brain.any():
            raise LabelError(
                f"{host.name} has no brain at the voxel size of the weights. Give a brain mask."
            )
        location_map = model.statistics.location_map
        lead, is_mr = anatomy_channel(recipe)
        site = Site.of(image[lead], brain, taken, location_map, finds_tissue=is_mr)
        site.keep_apart = not allow_overlap
        tensor = torch.from_numpy(image)
        inside = torch.from_numpy(brain)
        rows, params = [], []
        for channel, values in zip(recipe.channels, tensor, strict=True):
            # As in training, where percentiles were taken over what is not air.
            row, pair = channel.intensity.normalize_with(values, inside & (values > 0))
            rows.append(row)
            params.append(pair)
        normalised = torch.stack(rows)[None]
        extracted = bool(recipe.synthesis.options.get("brain_extracted", False))
        if extracted:
            normalised = torch.where(inside, normalised, -1.0)
        added = np.zeros(host.grid.shape, bool)
        return cls(host, frame, image, normalised, params, site, added, extracted)

    def inside_host(self, host_mask: Mask, box: Slices) -> str | None:
        """Why a mask may not lie there on the host's own voxels; ``None`` if it may."""
        if not self.site.keep_apart:
            return None
        grid = self.host.grid.shape
        wide = tuple(
            slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, grid, strict=True)
        )
        pads = [(s.start - w.start, w.stop - s.stop) for s, w in zip(box, wide, strict=True)]
        near = ndimage.binary_dilation(np.pad(host_mask, pads), np.ones((3, 3, 3)))
        met = near & ((self.host.label[wide] > 0) | self.added[wide])
        return "on or beside another lesion" if met.any() else None
