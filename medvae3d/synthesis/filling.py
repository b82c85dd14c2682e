r"""A region of a real scan made anew from what surrounds it, also without the lesion in it.

.. math:: z \sim p(z \mid c), \qquad x' = (1 - w)\, x + w\, (\hat x(z, c) - o + g)

with the region :math:`w`, what is left of the scan as the condition :math:`c`, the offset :math:`o`
of what was made from what is there, carried from the border of the region into it, and the grain
:math:`g`.
All voxels outside of the region stay as they are, bit for bit; nothing of what was in it is left,
not even what is finer than the voxels of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from medvae3d.data.preparation import FILL
from medvae3d.errors import LabelError, SettingError
from medvae3d.models.latent import LatentModel
from medvae3d.networks.regions import RegionContext
from medvae3d.synthesis.blending import membrane_offset
from medvae3d.synthesis.frames import Frame
from medvae3d.synthesis.hosts import HostScan
from medvae3d.synthesis.makers import exact_float32, prepare
from medvae3d.synthesis.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Mask = NDArray[np.bool_]


# Of the region in a voxel of the frame: above it, the voxel is hidden and made.
SMALLEST_SHARE = 1e-4
# Voxels that the border of the frame goes on for, as one of the host may lie half beyond it.
BEYOND = 2


@dataclass(frozen=True, eq=False)
class Filled:
    """A scan with a region made anew.

    Attributes:
        image: Native units, :math:`(C, I, J, K)`, on the scan's own voxels.
        label: Label map, :math:`(I, J, K)`.
        region: What was made, :math:`(I, J, K)`.
    """

    image: Floats = field(repr=False)
    label: NDArray[np.integer] = field(repr=False)
    region: Mask = field(repr=False)


def fill_region(
    network: nn.Module,
    recipe: Recipe,
    host: HostScan,
    region: Mask,
    generators: Sequence[torch.Generator],
    *,
    wanted: NDArray[np.integer] | None = None,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> list[Filled]:
    """Fills a region of a scan, once for each generator.

    Args:
        network: A model that is told what is left of a volume, such as `cvae_fill`.
        recipe: How its volumes are normalised, and on which grid.
        host: The scan, in any orientation.
        region: Which voxels are made, :math:`(I, J, K)`, on the scan's voxels.
        generators: Noise of each filling.
        wanted: Labels that the whole volume is to have; zeros for none, ``None`` to leave it open.
        temperature: Scales the deviation of latents.
        device: Where to compute.

    Raises:
        SettingError: If the network fills no regions, or the region is larger than it can make.
        LabelError: If the region is empty, or is all of the scan.
    """
    model = _filler(network, recipe)
    if not region.any() or region.all():
        raise LabelError(
            f"the region has {int(region.sum())} of {region.size} voxels; a part of the scan has "
            f"to be in it, and a part outside. Give another region."
        )
    prepare(model, device)
    frame = Frame.of(host.grid, recipe.spacing)
    image = frame.to_frame(host.image)
    inside = frame.to_frame(region) > SMALLEST_SHARE
    rows, params = [], []
    for channel, values in zip(recipe.channels, torch.from_numpy(image), strict=True):
        row, pair = channel.intensity.normalize_with(values)
        rows.append(row)
        params.append(pair)
    normalised = torch.stack(rows)
    box = _box_around(inside, recipe)
    shown, valid = cut_box(normalised, box, recipe.spatial_shape)
    hole, _ = cut_box(
        torch.from_numpy(inside[None].astype(np.float32)), box, recipe.spatial_shape, 0
    )
    batch = {"image": shown[None], "valid": valid[None], "region": hole[None], "mask": hole[None]}
    if wanted is not None:
        labels = labels_to_frame(frame, wanted, recipe)
        told, _ = cut_box(torch.from_numpy(labels[None]).float(), box, recipe.spatial_shape, 0)
        batch["wanted"] = told[None]
    count = len(generators)
    batch = {name: v.to(device).expand(count, *v.shape[1:]) for name, v in batch.items()}
    with torch.inference_mode(), exact_float32():
        condition = model.condition(batch)
        z = model.sample_latent(count, None, generators, temperature, condition)
        heads = model.decode(z, condition)
        images, masks = heads["image"].mode().float().cpu(), heads["mask"].mode().cpu()
    found = []
    for made, mask, generator in zip(images, masks, generators, strict=True):
        fitted = _fitted(made, shown, hole[0].numpy() > 0, valid[0].numpy() > 0)
        if model.grain is not None and model.grain.is_fitted and temperature:
            fitted = fitted + temperature * model.grain.draw(fitted, generator)
        native = torch.stack(
            [
                channel.intensity.denormalize(values, pair)
                for channel, values, pair in zip(recipe.channels, fitted, params, strict=True)
            ]
        )
        whole = _put_into(image, native.numpy(), inside, box)
        found.append(_onto_host(host, frame, region, whole, box, mask[0], recipe))
    return found


def _filler(network: nn.Module, recipe: Recipe) -> LatentModel:
    if not isinstance(network, LatentModel) or not isinstance(network.context, RegionContext):
        raise SettingError(
            f"{type(network).__name__} is not told what surrounds a region, so it cannot fill one. "
            f"Take a bundle of the system cvae_fill: `medvae3d train cvae_fill --datalist LIST "
            f"--out DIR`."
        )
    if network.image_channels != len(recipe.channels):
        raise SettingError(
            f"the weights make {network.image_channels} channels, the configuration says "
            f"{len(recipe.channels)}. Make `channels` agree with network_def."
        )
    return network


def _box_around(inside: Mask, recipe: Recipe) -> tuple[int, int, int]:
    """First voxel, in the frame, of a box of the weights' size with the region in its middle."""
    start = []
    for axis, size in enumerate(recipe.spatial_shape):
        rows = np.flatnonzero(inside.any(tuple(a for a in range(3) if a != axis)))
        low, high = int(rows[0]), int(rows[-1]) + 1
        if high - low > size:
            raise SettingError(
                f"the region is {high - low} voxels of {recipe.spacing[axis]:g} mm along axis "
                f"{axis}; these weights make {size}. Give a smaller region, or fill it in parts."
            )
        start.append((low + high - size) // 2)
    return start[0], start[1], start[2]


def cut_box(
    x: Tensor, start: Sequence[int], shape: Sequence[int], fill: float = FILL
) -> tuple[Tensor, Tensor]:
    """A box of a volume, and where it lies in it; beyond its border is ``fill``."""
    made = x.new_full((len(x), *shape), fill)
    valid = x.new_zeros((1, *shape))
    here, there = [slice(None)], [slice(None)]
    for first, size, limit in zip(start, shape, x.shape[1:], strict=True):
        low, high = max(first, 0), min(first + size, limit)
        here.append(slice(low - first, high - first))
        there.append(slice(low, high))
    made[tuple(here)] = x[tuple(there)]
    valid[tuple(here)] = 1
    return made, valid


def labels_to_frame(frame: Frame, label: NDArray[np.integer], recipe: Recipe) -> NDArray[np.int64]:
    """A label map in the frame: each value as a map of its own, of which the largest wins."""
    shares = np.stack([frame.to_frame(label == value) for value in recipe.values])
    return np.asarray(recipe.values)[shares.argmax(0)]


def _fitted(made: Tensor, shown: Tensor, hole: Mask, valid: Mask) -> Tensor:
    """What was made, less its difference to the scan on the border of the region."""
    offset = membrane_offset((made - shown).numpy(), hole, valid & ~hole)
    return made - torch.from_numpy(offset)


def _common(
    start: Sequence[int], size: Sequence[int], shape: Sequence[int]
) -> tuple[list[slice], list[slice]]:
    """What a box and a volume have in common, in voxels of the box and of the volume."""
    here, there = [], []
    for first, length, limit in zip(start, size, shape, strict=True):
        low, high = max(first, 0), min(first + length, limit)
        here.append(slice(low - first, high - first))
        there.append(slice(low, high))
    return here, there


def _put_into(image: Floats, native: Floats, inside: Mask, start: Sequence[int]) -> Floats:
    """The scan in the frame, with what was made in place of the region."""
    here, there = _common(start, native.shape[1:], image.shape[1:])
    whole = image.copy()
    part = (slice(None), *there)
    whole[part] = np.where(inside[tuple(there)], native[(slice(None), *here)], whole[part])
    return whole


def _onto_host(
    host: HostScan,
    frame: Frame,
    region: Mask,
    whole: Floats,
    start: Sequence[int],
    mask: Tensor,
    recipe: Recipe,
) -> Filled:
    """Brings a filled volume back onto the scan; voxels outside of the region stay.

    A change added to the scan would leave what is too fine for the frame in place, and with it the
    outline of what was taken out.
    """
    here, there = _common(start, mask.shape, whole.shape[1:])
    at = [each.start for each in there]
    wide = np.pad(whole, ((0, 0), *[(BEYOND, BEYOND)] * 3), mode="edge")
    moved, sides = frame.to_host(wide, [-BEYOND] * 3)
    result = host.image.copy()
    kept = (slice(None), *sides)
    result[kept] = np.where(region[sides], moved, result[kept])
    result = np.where(
        region, np.stack([host.as_stored(c, x) for c, x in enumerate(result)]), result
    )
    label = host.label.astype(np.uint8).copy()
    shares = np.stack([(mask.numpy()[tuple(here)] == value) for value in recipe.values])
    carried, box = frame.to_host(shares.astype(np.float32), at)
    values = np.asarray(recipe.values, np.uint8)[carried.argmax(0)]
    label[box] = np.where(region[box], values, label[box])
    return Filled(np.ascontiguousarray(result, np.float32), label, region)
