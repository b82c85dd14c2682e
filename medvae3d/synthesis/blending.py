r"""What is made around a lesion, and how it is put into a host without a visible join.

The intensity network is local: a voxel depends on a bounded neighbourhood of latents and maps. So
only boxes around lesions are decoded, each with its halo, and they equal what decoding the whole
head would give.

.. math:: x' = x + a \, (\hat x - o - x + g)

The weight :math:`a` is 1 inside the mask, falls off smoothly around it, and is exactly 0 beyond its
zone, where the host stays as it is. The offset :math:`o` is the smooth part of :math:`\hat x - x` in
a ring around the lesion, where both show the same tissue: taking it off does what Poisson blending
does, to the order that matters over so few voxels. The grain :math:`g` is the finest part of the
host itself, its noise, which a decoder's mean does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from medvae3d.models.latent import Condition, LatentModel
from medvae3d.numerics import standard_normal
from medvae3d.seeding import derive_generator
from medvae3d.synthesis.tiling import Slices, Tile, decode_pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Mask = NDArray[np.bool_]

CUBE = np.ones((3, 3, 3), dtype=bool)
# The ramp: the mask grown by one voxel, then a Gaussian of one voxel, cut at three.
GROWTH, DEVIATION, CUT = 1, 1.0, 3
REACH = GROWTH + CUT
# Weights below this become 0, and the rest follows, so that the zone does not end in a step.
LEAST_WEIGHT = 0.01
# The ring in which the offset is read: from the first voxel that the decoder was shown, outwards.
RING_WIDTH = 4
OFFSET_DEVIATION = 3.0
# Share of the ring's mean in the offset; takes over deep inside of large lesions.
MEAN_SHARE = 1e-3
# What is called noise: the host less its blur by this, up to so many of its own deviations.
GRAIN_DEVIATION, GRAIN_LIMIT = 1.0, 2.5
# Largest box decoded at once, without its halo: 1.2 GB with 64 channels at half resolution.
LARGEST_BOX = 96
# Latents drawn from a fitted prior to learn the mean and scale of its channels.
PRIOR_DRAWS = 64


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


def group_boxes(boxes: Sequence[Slices], halo: Sequence[int], shape: Sequence[int]) -> list[Slices]:
    """Joins boxes where one decoding is cheaper than two, or where they overlap; cuts large ones.

    Args:
        boxes: Around lesions, within the volume.
        halo: Voxels that are decoded around a box in addition, along (I, J, K).
        shape: Voxels of the volume.
    """

    def cost(box: Slices) -> int:
        sides = zip(box, halo, shape, strict=True)
        return int(np.prod([min(s.stop + h, n) - max(s.start - h, 0) for s, h, n in sides]))

    groups = list(boxes)
    joined = True
    while joined:
        joined = False
        for a in range(len(groups)):
            for b in range(len(groups) - 1, a, -1):
                both = _join(groups[a], groups[b])
                apart = cost(groups[a]) + cost(groups[b])
                if _overlap(groups[a], groups[b]) or cost(both) <= apart:
                    groups[a] = both
                    del groups[b]
                    joined = True
    return [part for box in groups for part in _cut(box)]


def paint_boxes(
    model: LatentModel, image: Tensor, mask: Tensor, z: Tensor, boxes: Sequence[Slices]
) -> Iterator[tuple[Slices, Tensor]]:
    """Decodes boxes of a volume, to the same numbers as all of it.

    Args:
        model: Its latent is a map, and it is told mask and context.
        image: The host in network values.
        mask: All new lesions.
        z: Latents of the whole volume, drawn by `draw_latents`.
        boxes: What to decode.

    Shape:
        - ``image``: :math:`(1, C, I, J, K)`; ``mask``: :math:`(1, 1, I, J, K)`
        - ``z``: :math:`(1, L, i, j, k)`, volume over stride, rounded up
        - each result: :math:`(C, I, J, K)` of its box, network values
    """
    stride = model.decoder.stride
    reach = [_up(r, s) for r, s in zip(model.decoder.radius, stride, strict=True)]
    seen = model.context.radius if model.context is not None else 0
    device = next(model.parameters()).device
    for box in boxes:
        fine, coarse, tile = [], [], []
        for axis, side in enumerate(box):
            step, wide = stride[axis], reach[axis] + _up(seen, stride[axis])
            start = max(0, side.start // step * step - wide)
            stop = min(z.shape[2 + axis] * step, _up(side.stop, step) + wide)
            fine.append(slice(start, stop))
            coarse.append(slice(start // step, stop // step))
            tile.append((side.start - start, side.stop - start))
        here = Tile(*zip(*tile, strict=True))  # type: ignore[arg-type]
        batch = {
            "mask": _padded_crop(mask, fine, 0.0).to(device),
            "context": _padded_crop(image, fine, -1.0).to(device),
        }
        condition = model.condition(batch)
        latent = z[(..., *coarse)].to(device)
        ((_, heads),) = decode_pieces(model, latent, Condition(None, condition.maps), [here])
        yield box, heads["image"].mode()[0].float().cpu()


def _padded_crop(x: Tensor, box: Sequence[slice], fill: float) -> Tensor:
    """A box that may reach beyond the far border, where there is nothing."""
    crop = x[(..., *box)]
    pads = [side.stop - side.start - n for side, n in zip(box, crop.shape[2:], strict=True)]
    return F.pad(crop, [p for extra in reversed(pads) for p in (0, extra)], value=fill)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _join(a: Slices, b: Slices) -> Slices:
    i, j, k = (
        slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True)
    )
    return i, j, k


def _overlap(a: Slices, b: Slices) -> bool:
    return all(p.start < q.stop and q.start < p.stop for p, q in zip(a, b, strict=True))


def _cut(box: Slices) -> list[Slices]:
    """A box in parts no longer than `LARGEST_BOX`."""
    parts: list[tuple[slice, ...]] = [()]
    for side in box:
        count = -(-(side.stop - side.start) // LARGEST_BOX)
        edges = np.linspace(side.start, side.stop, count + 1).astype(int).tolist()
        pieces = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
        parts = [(*part, piece) for part in parts for piece in pieces]
    return [(part[0], part[1], part[2]) for part in parts]


def blend_weights(mask: Mask) -> Floats:
    """Weights of a lesion around its mask: 1 inside, 0 beyond `REACH` voxels.

    Args:
        mask: With at least `REACH` empty voxels around it, :math:`(I, J, K)`.
    """
    grown = ndimage.binary_dilation(mask, CUBE, GROWTH).astype(np.float32)
    soft = ndimage.gaussian_filter(grown, DEVIATION, mode="constant", truncate=CUT / DEVIATION)
    soft = np.clip((soft - LEAST_WEIGHT) / (1 - LEAST_WEIGHT), 0, 1)
    return np.where(mask, np.float32(1), soft)


def ring_around(mask: Mask, gap: int, allowed: Mask) -> Mask:
    """The voxels in which the offset is read.

    Args:
        mask: All lesions.
        gap: Voxels around them that the decoder was not shown.
        allowed: Where a voxel may count, such as the brain without other lesions.
    """
    near = ndimage.binary_dilation(mask, CUBE, gap) if gap else mask
    far = ndimage.binary_dilation(near, CUBE, RING_WIDTH)
    ring: Mask = far & ~near & allowed
    return ring


def smooth_offset(difference: Floats, ring: Mask) -> Floats:
    """The smooth part of a difference that is known in a ring alone, carried on everywhere.

    Args:
        difference: Made less host, :math:`(C, I, J, K)`.
        ring: Where it counts, :math:`(I, J, K)`.
    """
    offset = np.zeros_like(difference)
    if not ring.any():
        return offset
    share = ring.astype(np.float32)
    weight = _blur(share)
    for channel, values in zip(offset, difference, strict=True):
        # Without the tails: a vessel or a rim of CSF must not tilt the whole lesion.
        low, high = np.percentile(values[ring], (5, 95))
        known = np.where(ring, values.clip(low, high), 0).astype(np.float32)
        mean = known.sum(dtype=np.float64) / share.sum(dtype=np.float64)
        channel[:] = (_blur(known) + MEAN_SHARE * mean) / (weight + MEAN_SHARE)
    return offset


def grain_of(image: Floats, where: Mask) -> Floats:
    """The host's own noise: its finest part, without edges.

    Args:
        image: The host, :math:`(C, I, J, K)`.
        where: Tissue from which to tell how strong noise is.
    """
    grain = np.empty_like(image)
    for channel, values in zip(grain, image, strict=True):
        fine = values - ndimage.gaussian_filter(values, GRAIN_DEVIATION, mode="nearest")
        inside = fine[where] if where.any() else fine.ravel()
        limit = GRAIN_LIMIT * 1.4826 * float(np.median(np.abs(inside)))
        channel[:] = fine.clip(-limit, limit)
    return grain


def gradient_magnitude(image: NDArray[Any], spacing: tuple[float, ...]) -> Floats:
    """Length of the gradient per mm, by central differences."""
    parts = np.gradient(np.asarray(image, np.float32), *spacing)
    return np.asarray(np.sqrt(sum(part**2 for part in parts)), np.float32)


def border_of(mask: Mask) -> Mask:
    """The voxels on both sides of the border of a mask."""
    border: Mask = ndimage.binary_dilation(mask, CUBE) & ~ndimage.binary_erosion(mask, CUBE)
    return border


def _blur(values: Floats) -> Floats:
    return np.asarray(ndimage.gaussian_filter(values, OFFSET_DEVIATION, mode="constant"))
