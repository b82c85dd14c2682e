"""Intensities around lesions: only boxes of a head are decoded, to the numbers of the whole.

The intensity network is local: a voxel depends on a bounded neighbourhood of latents and maps. A
box is decoded together with that much of its surroundings, and equals what decoding the whole head
would give there. Latents are drawn for the whole head, so that boxes do not depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from medvae3d.data.location import bounding_box
from medvae3d.models.latent import Condition, LatentModel
from medvae3d.networks.conditioning import LesionContext
from medvae3d.numerics import standard_normal
from medvae3d.seeding import derive_generator
from medvae3d.synthesis import blending
from medvae3d.synthesis.hosts import Scan
from medvae3d.synthesis.recipe import Recipe
from medvae3d.synthesis.shapes import Lesion
from medvae3d.synthesis.tiling import Slices, Tile, decode_pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# Most voxels decoded at once, halo included: about 1 GB with (32, 64) channels.
LARGEST_WINDOW = 4_000_000
# Boxes are not cut below this side, where halos would be most of the work.
SMALLEST_PART = 16
# Latents drawn from a fitted prior to learn the mean and scale of its channels.
PRIOR_DRAWS = 64


def paint_lesions(
    texture: LatentModel,
    recipe: Recipe,
    scan: Scan,
    lesions: Sequence[Lesion],
    generator: torch.Generator,
    temperature: float,
) -> tuple[Floats, Floats]:
    """Makes the intensities of lesions and of what surrounds them.

    ``texture_temperature`` and ``grain`` under ``synthesis`` change how.

    Args:
        texture: Makes images from mask and context.
        recipe: What it makes.
        scan: The host.
        lesions: In their places.
        generator: Source of the latents.
        temperature: Scales their deviation.

    Returns:
        What to add to the host, native units, :math:`(C, I, J, K)`, and the weight with which each
        voxel was blended, :math:`(I, J, K)`, both on the host's own voxels.
    """
    frame, shape = scan.frame, scan.frame.shape
    options = recipe.synthesis.options
    new = np.zeros(shape, bool)
    weights = np.zeros(shape, np.float32)
    boxes = []
    context = cast("LesionContext | None", texture.context)
    gap = context.dilation if context is not None else 0
    margin = max(blending.REACH, gap + blending.RING_WIDTH)
    for lesion in lesions:
        new[_box(lesion.start, lesion.mask.shape)] |= lesion.mask
        around, box = _blend(lesion, shape)
        weights[box] = np.maximum(weights[box], around)
        boxes.append(grown(_box(lesion.start, lesion.mask.shape), margin, shape))
    if scan.is_extracted:
        # The network never saw a skull; it is the host's business.
        weights *= scan.site.brain | new
    stride = texture.decoder.stride
    bottom = [-(-n // step) for n, step in zip(shape, stride, strict=True)]
    z = draw_latents(
        texture, bottom, generator, float(options.get("texture_temperature", temperature))
    )
    clusters = join_overlapping(boxes)
    mask = torch.from_numpy(new.astype(np.float32))[None, None]
    change = np.zeros((len(recipe.channels), *scan.host.grid.shape), np.float32)
    weight = np.zeros(scan.host.grid.shape, np.float32)
    noise = _noise(scan) if options.get("grain", True) else None
    # Old lesions say nothing of what surrounds a new one, nor does what is not brain.
    allowed = scan.site.brain & ~(scan.site.taken | new)
    groups = group_boxes(clusters, texture.decoder.radius, shape)
    for group, made in paint_boxes(texture, scan.normalised, mask, z, groups):
        native = _native(made, scan, recipe)
        for box in clusters:
            if not _overlap(box, group):
                continue
            host = scan.image[(slice(None), *box)]
            within = _relative(box, group)
            difference = native[(slice(None), *within)] - host
            ring = blending.ring_around(new[box], gap, allowed[box])
            difference -= blending.smooth_offset(difference, ring)
            if noise is not None:
                difference += blending.grain_of(host, noise)
            start = [side.start for side in box]
            added, there = frame.to_host(weights[box] * difference, start)
            change[(slice(None), *there)] += added
            weight[there] += frame.to_host(weights[box], start)[0]
    return change, weight


def _noise(scan: Scan) -> list[float]:
    box = bounding_box(scan.site.tissue)
    tissue = scan.site.tissue[box]
    return [blending.noise_of(channel[box], tissue) for channel in scan.image]


def _native(made: Tensor, scan: Scan, recipe: Recipe) -> Floats:
    """Network values in the host's own units."""
    rows = []
    for channel, values, pair in zip(recipe.channels, made, scan.params, strict=True):
        top = 1.0 + 2 * float(getattr(channel.intensity, "headroom", 0.0))
        rows.append(channel.intensity.denormalize(values.clamp(-1, top), pair))
    return np.asarray(torch.stack(rows).numpy(), np.float32)


def _blend(lesion: Lesion, shape: Sequence[int]) -> tuple[Floats, Slices]:
    """Blending weights of a lesion, and the box of the frame that they fill."""
    whole = _box(lesion.start, lesion.mask.shape)
    box = grown(whole, blending.REACH, shape)
    pads = [(s.start - b.start, b.stop - s.stop) for s, b in zip(whole, box, strict=True)]
    return blending.blend_weights(np.pad(lesion.mask, pads)), box


def _box(start: Sequence[int], shape: Sequence[int]) -> Slices:
    i, j, k = (slice(a, a + n) for a, n in zip(start, shape, strict=True))
    return i, j, k


def grown(box: Sequence[slice], voxels: int, shape: Sequence[int]) -> Slices:
    """A box with so many voxels more on each side, within a volume."""
    i, j, k = (
        slice(max(0, side.start - voxels), min(n, side.stop + voxels))
        for side, n in zip(box, shape, strict=True)
    )
    return i, j, k


def draw_latents(
    model: LatentModel, shape: Sequence[int], generator: torch.Generator, temperature: float
) -> Tensor:
    """Draws a latent map for a volume of any size, :math:`(1, L, i, j, k)`.

    A prior that was fitted on patches says how channels are centred and spread, whatever the place;
    what it knows of the correlation between places belongs to the size of a patch and is left out.

    Args:
        model: Its latent is a map.
        shape: Voxels of the latent along (I, J, K).
        generator: Source of the noise.
        temperature: Scales the deviation.
    """
    noise = temperature * standard_normal((1, model.latent_shape[0], *shape), generator)
    prior = model.sampling_prior
    if prior is None or prior.is_standard:
        return noise / model.latent_scale.cpu()
    draws = [derive_generator(0, "texture prior", k) for k in range(PRIOR_DRAWS)]
    known = model.sample_latent(PRIOR_DRAWS, None, draws).cpu().transpose(0, 1).flatten(1)
    mean, scale = known.mean(1), known.std(1)
    return mean.reshape(1, -1, 1, 1, 1) + scale.reshape(1, -1, 1, 1, 1) * noise


def join_overlapping(boxes: Sequence[Slices]) -> list[Slices]:
    """Joins boxes until no two overlap."""
    return _joined(boxes, _overlap)


def group_boxes(boxes: Sequence[Slices], halo: Sequence[int], shape: Sequence[int]) -> list[Slices]:
    """Joins boxes where one decoding is cheaper than two.

    Args:
        boxes: Around lesions, within the volume; no two overlap.
        halo: Voxels that are decoded around a box in addition, along (I, J, K).
        shape: Voxels of the volume.

    Returns:
        Fewer boxes, each of which holds some of the old ones whole; no two overlap.
    """

    def cost(box: Slices) -> int:
        return sum(_window(part, halo, shape) for part in _cut(box, halo, shape))

    def is_cheaper(a: Slices, b: Slices) -> bool:
        return _overlap(a, b) or cost(_join(a, b)) <= cost(a) + cost(b)

    return _joined(boxes, is_cheaper)


def paint_boxes(
    model: LatentModel, image: Tensor, mask: Tensor, z: Tensor, boxes: Sequence[Slices]
) -> Iterator[tuple[Slices, Tensor]]:
    """Decodes boxes of a volume, to the same numbers as all of it.

    Args:
        model: Its latent is a map, and it is told mask and context.
        image: The host in network values.
        mask: All new lesions.
        z: Latents of the whole volume, drawn by `draw_latents`.
        boxes: What to decode; large ones are decoded in parts.

    Shape:
        - ``image``: :math:`(1, C, I, J, K)`; ``mask``: :math:`(1, 1, I, J, K)`
        - ``z``: :math:`(1, L, i, j, k)`, volume over stride, rounded up
        - each result: :math:`(C, I, J, K)` of its box, network values
    """
    stride = model.decoder.stride
    reach = [_up(r, s) for r, s in zip(model.decoder.radius, stride, strict=True)]
    device = next(model.parameters()).device
    lesions = ndimage.find_objects(ndimage.label(mask[0, 0].numpy())[0])
    for box in boxes:
        made = torch.empty(image.shape[1], *(side.stop - side.start for side in box))
        for part in _cut(box, reach, image.shape[2:]):
            fine, coarse = [], []
            for axis, side in enumerate(part):
                step, wide = stride[axis], reach[axis]
                start = max(0, side.start // step * step - wide)
                stop = min(z.shape[2 + axis] * step, _up(side.stop, step) + wide)
                fine.append(slice(start, stop))
                coarse.append(slice(start // step, stop // step))
            tile = _relative(part, fine)
            here = Tile(*zip(*((side.start, side.stop) for side in tile), strict=True))
            context = cast("LesionContext | None", model.context)
            maps = _maps(context, image, mask, fine, lesions) if context else None
            condition = Condition(None, None if maps is None else maps.to(device))
            latent = z[(slice(None), slice(None), *coarse)].to(device)
            ((_, heads),) = decode_pieces(model, latent, condition, [here])
            made[(slice(None), *_relative(part, box))] = heads["image"].mode()[0].float().cpu()
        yield box, made


def _maps(
    context: LesionContext,
    image: Tensor,
    mask: Tensor,
    window: Sequence[slice],
    lesions: Sequence[Slices],
) -> Tensor:
    """The condition maps of a window, as those of the whole volume are there.

    Far from lesions all maps of the mask are 0 and the image is known, so the blurs, which take as
    long as the decoder, are computed near lesions alone.
    """
    maps = image.new_zeros(1, context.channels, *(side.stop - side.start for side in window))
    maps[:, 3:-1] = _padded_crop(image, window, -1.0)
    maps[:, -1] = 1
    border = [max(side.stop, n) for side, n in zip(window, image.shape[2:], strict=True)]
    for lesion in lesions:
        near = _common(grown(lesion, context.radius, border), window)
        if near is None:
            continue
        wide = grown(near, context.radius, border)
        told = context(_padded_crop(mask, wide, 0.0), _padded_crop(image, wide, -1.0))
        inner = [
            slice(n.start - w.start, n.stop - w.start) for n, w in zip(near, wide, strict=True)
        ]
        there = [
            slice(n.start - w.start, n.stop - w.start) for n, w in zip(near, window, strict=True)
        ]
        maps[(slice(None), slice(None), *there)] = told[(slice(None), slice(None), *inner)]
    return maps


def _padded_crop(x: Tensor, box: Sequence[slice], fill: float) -> Tensor:
    """A box that may reach beyond the far border, where there is nothing."""
    crop = x[(slice(None), slice(None), *box)]
    pads = [side.stop - side.start - n for side, n in zip(box, crop.shape[2:], strict=True)]
    return F.pad(crop, [p for extra in reversed(pads) for p in (0, extra)], value=fill)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _join(a: Slices, b: Slices) -> Slices:
    i, j, k = (slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return i, j, k


def _overlap(a: Slices, b: Slices) -> bool:
    return all(p.start < q.stop and q.start < p.stop for p, q in zip(a, b, strict=True))


def _relative(box: Sequence[slice], whole: Sequence[slice]) -> list[slice]:
    return [slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, whole, strict=True)]


def _common(a: Sequence[slice], b: Sequence[slice]) -> Slices | None:
    i, j, k = (slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return (i, j, k) if all(side.start < side.stop for side in (i, j, k)) else None


def _joined(boxes: Sequence[Slices], wanted: Callable[[Slices, Slices], bool]) -> list[Slices]:
    """Joins pairs of boxes for as long as any should be."""
    groups = list(boxes)
    found = True
    while found:
        found = False
        for a in range(len(groups)):
            for b in range(len(groups) - 1, a, -1):
                if wanted(groups[a], groups[b]):
                    groups[a] = _join(groups[a], groups[b])
                    del groups[b]
                    found = True
    return groups


def _window(box: Slices, halo: Sequence[int], shape: Sequence[int]) -> int:
    """Voxels that are decoded for a box."""
    sides = zip(box, halo, shape, strict=True)
    return math.prod(min(s.stop + h, n) - max(s.start - h, 0) for s, h, n in sides)


def _cut(box: Slices, halo: Sequence[int], shape: Sequence[int]) -> list[Slices]:
    """A box in parts of which none takes more than `LARGEST_WINDOW` to decode, where possible."""
    parts = [box]
    while True:
        large = next((p for p in parts if _window(p, halo, shape) > LARGEST_WINDOW), None)
        if large is None:
            return parts
        axis = max(range(3), key=lambda a: large[a].stop - large[a].start)
        side = large[axis]
        middle = (side.start + side.stop) // 2
        if side.stop - side.start <= SMALLEST_PART:
            return parts
        at = parts.index(large)
        halves = []
        for piece in (slice(side.start, middle), slice(middle, side.stop)):
            sides = list(large)
            sides[axis] = piece
            halves.append((sides[0], sides[1], sides[2]))
        parts[at : at + 1] = halves
