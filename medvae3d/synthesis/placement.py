"""Where in a host a lesion may go: brain, tissue, the training set's places, and free room.

A place is good if nearly all of the mask lies in the brain, most of it in tissue rather than in
CSF, and none of it on or beside another lesion. Places are drawn by the location map of the
training set, spread over the bounding box of the host's own brain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from medvae3d.data.location import bounding_box, location_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Mask = NDArray[np.bool_]

# Share of a mask that may leave the brain; more, and the place is rejected.
MOST_OUTSIDE = 0.05
# Share of a mask that must lie in tissue; lesions touch ventricles, but do not fill them.
LEAST_TISSUE = 0.6
# Tissue, in shares of the brain's median brightness: CSF is dark in FLAIR and T1, bright in T2.
TISSUE_RANGE = (0.45, 2.0)
# Places tried for one shape before another shape is drawn.
PLACES = 100

# An adult's head in mm^3; what is measured in mm inside a head is scaled to its size.
ADULT_HEAD = 3.0e6
# Voxel size in mm for an adult head at which the brain is looked for: 1.5 s at 182 x 218 x 182.
COARSE_MM = 2.5
# Depths in mm below the scalp between which brightness is taken, in the upper part of a head.
SHELLS_MM = (0, 2, 4, 6, 8, 10, 12, 15)
VAULT_MM = 85.0
# Darkest layer over brightest layer above it. Measured: 0.19 to 0.44 in heads with a skull
# (phantoms), 0.71 to 1.2 in extracted brains (FLAIR, T1, T1 post, T2; template).
SKULL_RATIO = 0.58
# Depth in mm that is surely brain, depth that is surely not, and the thinnest neck kept.
DEEP_MM, SCALP_MM, NECK_MM = 38.0, 3.0, 4.0


@dataclass(eq=False)
class Site:
    """What is known of a host for placing lesions, in the frame of the weights.

    Attributes:
        brain: Brain or body, :math:`(I, J, K)`.
        tissue: Brain without CSF.
        weights: How likely each voxel is to be the centre of a lesion, relative to others.
        taken: Lesions that are there, old and new.
        keep_apart: Whether lesions in ``taken`` may not be met or touched.
        refused: Places refused so far, by reason.
    """

    brain: Mask = field(repr=False)
    tissue: Mask = field(repr=False)
    weights: Floats = field(repr=False)
    taken: Mask = field(repr=False)
    keep_apart: bool = True
    refused: Counter[str] = field(default_factory=Counter)
    _voxels: NDArray[np.int64] = field(init=False, repr=False)
    _edges: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        flat = self.weights.ravel()
        self._voxels = np.flatnonzero(flat)
        self._edges = np.cumsum(flat[self._voxels], dtype=np.float64)

    @classmethod
    def of(
        cls, image: Floats, brain: Mask, taken: Mask, location_map: Tensor, *, finds_tissue: bool
    ) -> Site:
        """Works out where lesions may go.

        Args:
            image: The channel in which tissue is told from CSF, native units, :math:`(I, J, K)`.
            brain: Brain or body.
            taken: Lesions that are there.
            location_map: Of the training set; all 0 for none.
            finds_tissue: Whether CSF can be told by its brightness; otherwise all brain counts.
        """
        tissue = find_tissue(image, brain) | (taken & brain) if finds_tissue else brain
        weights = location_weights(location_map, brain) * tissue
        if not weights.any():
            weights = tissue.astype(np.float32)
        return cls(brain, tissue, weights, taken)

    def draw(self, mask: Mask, generator: torch.Generator) -> tuple[int, int, int] | None:
        """Draws a place for a mask: the voxel where its box starts, or ``None`` if none is found.

        Args:
            mask: The lesion in its bounding box.
            generator: Source of the places.
        """
        middle = centre_of(mask)
        drawn = torch.rand(PLACES, generator=generator, dtype=torch.float64).numpy()
        picks = np.searchsorted(self._edges, drawn * self._edges[-1], side="right")
        picks = self._voxels[np.minimum(picks, len(self._voxels) - 1)]
        for centre in np.stack(np.unravel_index(picks, self.brain.shape), axis=1):
            start = tuple(int(c - m) for c, m in zip(centre, middle, strict=True))
            reason = self.fault(mask, start)
            if reason is None:
                return start[0], start[1], start[2]
            self.refused[reason] += 1
        return None

    def fault(self, mask: Mask, start: Sequence[int], *, in_tissue: bool = True) -> str | None:
        """Why a mask may not lie at a place, in a few words; ``None`` if it may.

        Args:
            mask: The lesion in its bounding box.
            start: Voxel where the box starts.
            in_tissue: Whether most of it must lie in tissue.
        """
        stop = [a + n for a, n in zip(start, mask.shape, strict=True)]
        # One voxel more all around: what touches is one lesion.
        wide = [slice(a - 1, b + 1) for a, b in zip(start, stop, strict=True)]
        shape = self.brain.shape
        if any(side.start < 0 or side.stop > n for side, n in zip(wide, shape, strict=True)):
            return "beyond the border"
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        count = int(mask.sum())
        if int((mask & ~self.brain[box]).sum()) > MOST_OUTSIDE * count:
            return "outside of the brain"
        if in_tissue and int((mask & self.tissue[box]).sum()) < LEAST_TISSUE * count:
            return "mostly in CSF"
        if self.keep_apart:
            near = ndimage.binary_dilation(np.pad(mask, 1), np.ones((3, 3, 3)))
            if (near & self.taken[tuple(wide)]).any():
                return "on or beside another lesion"
        return None

    def take(self, mask: Mask, start: Sequence[int]) -> None:
        """Marks a lesion as placed."""
        box = tuple(slice(a, a + n) for a, n in zip(start, mask.shape, strict=True))
        self.taken[box] |= mask


def centre_of(mask: Mask) -> tuple[int, int, int]:
    """The voxel nearest to the centre of mass of a mask."""
    i, j, k = (int(np.rint(c)) for c in ndimage.center_of_mass(mask))
    return i, j, k


def find_tissue(image: Floats, brain: Mask) -> Mask:
    """Brain without CSF, by brightness; values up to 0 are air that a rough mask includes."""
    seen = image[brain & (image > 0)]
    middle = float(np.median(seen)) if seen.size else 0.0
    low, high = (share * middle for share in TISSUE_RANGE)
    tissue: Mask = brain & (image > low) & (image < high)
    return tissue


def find_brain(image: Floats, spacing: Sequence[float], *, has_skull: bool = True) -> Mask:
    """Finds the brain in an MR image of a head, or the body in any other image.

    The filled head is taken first. A head with its skull has a dark layer below a bright one; if
    there is none, the brain was extracted already and the head is the brain. Otherwise a watershed
    from the depth of the head and from the scalp meets in that dark layer. Good enough for placing
    lesions and for percentiles, not for measuring: on phantoms with skull the Dice is 0.83 to 0.92,
    on extracted brains 0.98. Voxels above 4 mm are too coarse to show the skull.

    Args:
        image: Any channel, axes right, anterior, superior, :math:`(I, J, K)`.
        spacing: Voxel size in mm.
        has_skull: Whether to look for a skull at all.
    """
    low = float(image.min())
    size = 1.0
    for _ in range(2):  # the second time at a voxel size that suits the size of the head
        steps = [max(1, round(COARSE_MM * size / float(s))) for s in spacing]
        coarse = _block_means(image - low, steps)
        voxel = np.array(spacing, dtype=float) * steps
        head = _head(coarse, voxel)
        size = float(np.cbrt(head.sum() * voxel.prod() / ADULT_HEAD))
    brain = head
    if has_skull:
        depth = _depth(head, voxel) - voxel.min() / 2
        if _shell_ratio(coarse, head, depth, voxel, size) < SKULL_RATIO:
            brain = _inside_skull(coarse, head, depth, voxel, size)
    return _refined(brain, steps, image.shape)


def _block_means(image: Floats, steps: Sequence[int]) -> Floats:
    """Means of blocks; the border is repeated to fill the last ones."""
    pads = [(0, -n % step) for n, step in zip(image.shape, steps, strict=True)]
    whole = np.pad(image, pads, mode="edge")
    parts = [part for n, s in zip(whole.shape, steps, strict=True) for part in (n // s, s)]
    return np.asarray(whole.reshape(parts).mean(axis=(1, 3, 5), dtype=np.float32))


def _refined(mask: Mask, steps: Sequence[int], shape: Sequence[int]) -> Mask:
    """Undoes `_block_means` for a mask, with a smooth border."""
    size = [n * step for n, step in zip(mask.shape, steps, strict=True)]
    share = torch.from_numpy(mask.astype(np.float32))[None, None]
    fine = F.interpolate(share, size, mode="trilinear", align_corners=False)[0, 0].numpy()
    inside: Mask = fine[tuple(slice(n) for n in shape)] > 0.5
    return inside


def _head(image: Floats, spacing: NDArray[np.float64]) -> Mask:
    """All that is not air, in one piece and filled."""
    # Half of Otsu's threshold: it parts bright from dark tissue, and air is far darker than either.
    head = _largest(image > 0.5 * _otsu(image))
    # Bone is as dark as air, and a head is cut open at the neck: slices are closed and filled.
    reach = 5 * float(np.cbrt(head.sum() * spacing.prod() / ADULT_HEAD))
    pads = [int(np.ceil(reach / s)) + 1 for s in spacing]
    wide = np.pad(head, [(p, p) for p in pads])
    wide = ndimage.distance_transform_edt(~wide, sampling=spacing) <= reach
    wide = ndimage.distance_transform_edt(wide, sampling=spacing) > reach
    closed: Mask = (
        wide[tuple(slice(p, p + n) for p, n in zip(pads, head.shape, strict=True))] | head
    )
    return _fill_slices(closed)


def _shell_ratio(
    image: Floats, head: Mask, depth: Floats, spacing: NDArray[np.float64], size: float
) -> float:
    """Brightness of the darkest layer under the surface, over the brightest above it."""
    top = bounding_box(head)[2].stop
    vault = head.copy()
    vault[:, :, : max(0, int(top - VAULT_MM * size / spacing[2]))] = False
    middles = []
    for near, far in zip(SHELLS_MM, SHELLS_MM[1:], strict=False):
        layer = image[vault & (depth > near * size) & (depth <= far * size)]
        if layer.size:
            middles.append((near, float(np.median(layer))))
    deeper = [k for k, (near, _) in enumerate(middles) if near >= 4 and k > 0]
    if not deeper:
        return 1.0
    darkest = min(deeper, key=lambda k: middles[k][1])
    brightest = max(value for _, value in middles[:darkest])
    return middles[darkest][1] / brightest if brightest > 0 else 1.0


def _inside_skull(
    image: Floats, head: Mask, depth: Floats, spacing: NDArray[np.float64], size: float
) -> Mask:
    """What a watershed from the depth of a head reaches before one from its scalp."""
    smooth = ndimage.gaussian_filter(image, size / spacing)
    brightness = np.clip(smooth / np.percentile(smooth[head], 90), 0, 1)
    markers = np.zeros(head.shape, np.uint8)
    markers[depth < max(SCALP_MM * size, 0.6 * spacing.min())] = 2
    markers[depth > min(DEEP_MM * size, 0.6 * depth.max())] = 1
    height = sitk.GetImageFromArray(np.rint(255 * (1 - brightness)).astype(np.uint8))
    basins = sitk.MorphologicalWatershedFromMarkers(height, sitk.GetImageFromArray(markers), False)
    inner = sitk.GetArrayFromImage(basins) == 1
    core = _depth(inner, spacing) > NECK_MM * size
    if not core.any():
        return head
    reach = ndimage.distance_transform_edt(~_largest(core), sampling=spacing) <= NECK_MM * size
    return _fill_slices(inner & reach)


def _depth(inside: Mask, spacing: NDArray[np.float64]) -> Floats:
    depth = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=spacing)
    return np.asarray(depth[1:-1, 1:-1, 1:-1], np.float32)


def _largest(mask: Mask) -> Mask:
    numbered, found = ndimage.label(mask)
    if found < 2:
        return mask
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    largest: Mask = numbered == sizes.argmax()
    return largest


def _fill_slices(mask: Mask) -> Mask:
    """Fills holes slice by slice along each axis: bowls that are open to one side count too."""
    filled = mask.copy()
    for axis in range(3):
        for part in np.moveaxis(filled, axis, 0):
            if part.any():
                part[:] = ndimage.binary_fill_holes(part)
    return filled


def _otsu(values: Any) -> float:
    """The threshold that parts values into two classes with the largest variance between them."""
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    counts, edges = np.histogram(values.clip(low, max(high, low + 1e-6)), 256)
    middles = (edges[1:] + edges[:-1]) / 2
    below = counts.cumsum()
    above = counts.sum() - below
    sums = (counts * middles).cumsum()
    gap = sums / np.maximum(below, 1) - (sums[-1] - sums) / np.maximum(above, 1)
    return float(middles[(below * above * gap**2).argmax()])
