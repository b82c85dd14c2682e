r"""Where in a brain lesions lie, told apart from how large that brain is.

A voxel at index :math:`i` of a volume whose brain fills the indices :math:`[a, b)` has the relative
place :math:`u = (i + 1/2 - a) / (b - a)` along each axis, from 0 to 1, right, anterior and
superior. On a coarse grid over :math:`u`, the map holds how much denser lesions lie in a place than
brain does,

.. math::
    p(u) = \frac{\sum_n G * h(m_n) / |m_n|}{\sum_n G * h(b_n) / |b_n|}

with histograms :math:`h` of the masks :math:`m_n` and brains :math:`b_n`, both smoothed by a
Gaussian :math:`G`. Every case counts the same, whatever its lesion load: one patient with 50 ml of
confluent lesions would otherwise outweigh ten with 1 ml.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from medvae3d.errors import GridMismatchError, LabelError, SettingError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Box = tuple[slice, slice, slice]
# Share of an average cell's brain below which a place counts as outside of the brain; the tail of
# the smoothing would otherwise divide nothing by nothing.
LEAST_BRAIN = 0.02


def bounding_box(inside: ArrayLike) -> Box:
    """Smallest box that holds all voxels other than 0.

    Raises:
        LabelError: If there are none.
    """
    array = np.asarray(inside) != 0
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(array.any(axis=others))
        if not hit.size:
            raise LabelError(
                "a mask without any voxel has no bounding box; at least one voxel must be set. "
                "Check the brain or lesion mask with `medvae3d data check`."
            )
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return box[0], box[1], box[2]


def fit_location_map(
    pairs: Iterable[tuple[ArrayLike, ArrayLike]],
    size: int = 24,
    smoothing: float = 1.0,
    is_symmetric: bool = True,
) -> Tensor:
    """Fits the map on the lesions of a training set.

    Masks that were registered to one space may share one brain. Cases without lesions are passed
    over; without any lesion at all the map is 0, which placement reads as "anywhere in tissue".

    Args:
        pairs: Lesion mask and brain mask of each case, on one grid with axes right, anterior,
            superior.
        size: Cells along each axis.
        smoothing: Standard deviation of the smoothing in cells; 0 for none.
        is_symmetric: Whether left and right are averaged, which doubles few cases.

    Shape:
        - masks: :math:`(I, J, K)` or :math:`(1, I, J, K)`, other than 0 inside
        - output: :math:`(N, N, N)` for :math:`N` cells, float32, with a largest value of 1

    Raises:
        SettingError: If there are less than two cells or a negative smoothing.
        GridMismatchError: If a mask and its brain differ in shape.
        LabelError: If a brain is empty.
    """
    if size < 2 or smoothing < 0:
        raise SettingError(
            f"a location map of {size} cells a side, smoothed by {smoothing}; allowed are 2 cells "
            f"or more and a smoothing of 0 or more."
        )
    lesions, brains = np.zeros((2, size, size, size))
    for case, (mask, brain) in enumerate(pairs):
        inside, where = _volume(mask), _volume(brain)
        if inside.shape != where.shape:
            raise GridMismatchError(
                f"case {case}: the lesion mask has shape {inside.shape}, its brain {where.shape}; "
                f"they must be equal. Resample one onto the grid of the other."
            )
        box = bounding_box(where)
        if inside[box].any():
            lesions += _histogram(inside[box], size)
            brains += _histogram(where[box], size)
    for counts in (lesions, brains):
        if is_symmetric:
            counts += counts[::-1].copy()
        if smoothing:
            counts[:] = ndimage.gaussian_filter(counts, smoothing, mode="constant")
    density = np.zeros_like(lesions)
    np.divide(lesions, brains, out=density, where=brains > LEAST_BRAIN * brains.mean())
    return torch.from_numpy(density / max(density.max(), np.finfo(float).tiny)).float()


def location_weights(location_map: Tensor, brain: ArrayLike) -> NDArray[np.float32]:
    """Spreads a map over the brain of a host, for drawing places.

    Args:
        location_map: As from :func:`fit_location_map`; all 0, or empty, for no preference.
        brain: Brain or body of the host, axes right, anterior, superior, :math:`(I, J, K)`.

    Returns:
        How likely each voxel is to be in a lesion, relative to the others; 0 outside of the brain,
        :math:`(I, J, K)`.

    Raises:
        LabelError: If the brain is empty.
    """
    inside = _volume(brain)
    box = bounding_box(inside)
    weights = inside.astype(np.float32)
    if location_map.numel() and bool((location_map > 0).any()):
        coarse = location_map.detach().float().cpu()[None, None]
        shape = [part.stop - part.start for part in box]
        # Half-pixel coordinates, as in the histogram: a cell's value belongs to its middle.
        fine = F.interpolate(coarse, shape, mode="trilinear", align_corners=False)[0, 0].numpy()
        if (fine * weights[box]).any():
            weights[box] *= fine
    return weights


def _volume(mask: Any) -> NDArray[np.bool_]:
    array = np.asarray(mask) != 0
    return array[0] if array.ndim == 4 and len(array) == 1 else array


def _histogram(inside: NDArray[np.bool_], size: int) -> NDArray[np.float64]:
    """Share of the voxels of a box in each cell, ``(N, N, N)``.

    A voxel is spread over the cells that it covers, so that boxes smaller than the map leave no
    gaps in it.
    """
    shares: Any = inside.astype(np.float64)
    for axis, count in enumerate(inside.shape):
        edges = np.linspace(0, count, size + 1)
        voxels = np.arange(count)[:, None]
        overlap = np.minimum(voxels + 1, edges[1:]) - np.maximum(voxels, edges[:-1])
        shares = np.moveaxis(np.tensordot(shares, overlap.clip(0), (axis, 0)), -1, axis)
    return np.asarray(shares / shares.sum())
