r"""How what was made for a lesion is put into a host without a visible join.

.. math:: x' = x + a \, (\hat x - o - x + g)

The weight :math:`a` is 1 inside the mask, falls off smoothly around it, and is exactly 0 beyond
its zone, where the host stays as it is. The offset :math:`o` is the smooth part of
:math:`\hat x - x` in a ring around the lesion, where both show the same tissue: taking it off does
what Poisson blending does, to the order that matters over so few voxels. The grain :math:`g` is the
finest part of the host itself, its noise, which a decoder's mean does not have.

A region that is made anew has no ramp, as voxels outside of it stay. There the offset is
`membrane_offset`, which is the difference itself on the border.

References:
    Perez, Gangnet and Blake, "Poisson image editing", SIGGRAPH 2003, for the membrane.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg

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
# Of the equation of a membrane, relative to what is known around it.
MEMBRANE_ERROR = 1e-5
# What is called noise: the host less its blur by this, up to so many of its own deviations.
GRAIN_DEVIATION, GRAIN_LIMIT = 1.0, 2.0


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


def membrane_offset(difference: Floats, region: Mask, known: Mask) -> Floats:
    r"""A difference that is known around a region, carried into it like a membrane.

    .. math:: \Delta o = 0 \text{ in the region}, \qquad o = d \text{ on known voxels beside it},

    and no slope towards voxels that are neither, such as beyond a scan. Taken off, it leaves what
    was made with the value of the scan where the region ends, and with its own detail inside.

    Args:
        difference: Made less scan, :math:`(C, I, J, K)`; read on known voxels alone.
        region: What is made, :math:`(I, J, K)`.
        known: Voxels of the scan that can be seen; none of the region.

    Returns:
        The offset, :math:`(C, I, J, K)`; 0 outside of the region, and in parts of it that touch
        nothing known.
    """
    count = int(region.sum())
    number = np.full(region.shape, -1)
    number[region] = np.arange(count)
    diagonal, sides = np.zeros(count), np.zeros((len(difference), count))
    joined: list[tuple[Any, Any]] = []
    for axis in range(3):
        low = (slice(None),) * axis + (slice(None, -1),)
        high = (slice(None),) * axis + (slice(1, None),)
        for here, there in ((low, high), (high, low)):
            inside = region[here]
            both, rim = inside & region[there], inside & known[there]
            at = number[here][rim]
            joined.append((number[here][both], number[there][both]))
            # Along one axis a voxel has one neighbour on each side, so that none counts twice.
            diagonal[number[here][both]] += 1
            diagonal[at] += 1
            sides[:, at] += difference[(slice(None), *there)][:, rim]
    rows, columns = (np.concatenate(each) for each in zip(*joined, strict=True))
    matrix = sparse.diags(diagonal) - sparse.coo_matrix(
        (np.ones(len(rows)), (rows, columns)), (count, count)
    )
    matrix = matrix.tocsr()
    offset = np.zeros_like(difference)
    for channel, side in zip(offset, sides, strict=True):
        channel[region] = cg(matrix, side, rtol=MEMBRANE_ERROR)[0]
    return offset


def noise_of(image: Floats, where: Mask) -> float:
    """Deviation of one channel's finest part in flat tissue.

    Args:
        image: One channel, :math:`(I, J, K)`.
        where: Tissue; only the flatter half of it counts, as edges are no noise.
    """
    smooth = ndimage.gaussian_filter(image, GRAIN_DEVIATION, mode="nearest")
    slope = sum(part**2 for part in np.gradient(smooth))
    flat = where & (slope <= np.median(slope[where]))
    return 1.4826 * float(np.median(np.abs((image - smooth)[flat])))


def grain_of(image: Floats, noise: Sequence[float]) -> Floats:
    """The host's own noise: its finest part, without edges.

    Args:
        image: The host, :math:`(C, I, J, K)`.
        noise: Of each channel, from `noise_of`.
    """
    grain = np.empty_like(image)
    for channel, values, deviation in zip(grain, image, noise, strict=True):
        fine = values - ndimage.gaussian_filter(values, GRAIN_DEVIATION, mode="nearest")
        limit = GRAIN_LIMIT * deviation
        channel[:] = fine.clip(-limit, limit)
    return grain


def gradient_at(
    image: Floats, places: NDArray[np.integer[Any]], spacing: Sequence[float]
) -> Floats:
    """Length of the gradient per mm at some voxels, by central differences.

    Args:
        image: One channel, :math:`(I, J, K)`.
        places: Voxel indices, :math:`(N, 3)`.
        spacing: Size of a voxel in mm.
    """
    square = np.zeros(len(places), np.float64)
    for axis, (size, count) in enumerate(zip(spacing, image.shape, strict=True)):
        before, after = places.copy(), places.copy()
        before[:, axis] = np.maximum(before[:, axis] - 1, 0)
        after[:, axis] = np.minimum(after[:, axis] + 1, count - 1)
        steps = np.maximum(after[:, axis] - before[:, axis], 1)
        rise = image[tuple(after.T)].astype(np.float64) - image[tuple(before.T)]
        square += (rise / (steps * size)) ** 2
    return np.sqrt(square).astype(np.float32)


def border_of(mask: Mask) -> Mask:
    """The voxels on both sides of the border of a mask."""
    border: Mask = ndimage.binary_dilation(mask, CUBE) & ~ndimage.binary_erosion(mask, CUBE)
    return border


def _blur(values: Floats) -> Floats:
    return np.asarray(ndimage.gaussian_filter(values, OFFSET_DEVIATION, mode="constant"))
