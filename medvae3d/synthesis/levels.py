r"""Masks of a wanted volume, by choosing the level of a mask field.

A decoder says of each voxel how much it speaks for the lesion, :math:`f`. Its level sets
:math:`\{f > t\}` are nested, so the volume of the mask falls as :math:`t` rises, and the level that
gives the volume :math:`V` is found by bisection on the ranks of :math:`f`. What is counted is the
final mask, after stray components went and holes were filled:

.. math:: t^* = \arg\min_t \big|\, |\mathrm{fill}(\mathrm{largest}(\{f > t\}))| - V \,\big|

With several labels, a level on the margin of the best label over background bounds them all, and
within that bound a level on the margin between labels parts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from medvae3d.errors import SettingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Box = tuple[slice, slice, slice]

NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
FACES = ndimage.generate_binary_structure(3, 1)
# What a requested volume may be missed by, besides one layer of voxels.
TOLERANCE = 0.02
# The search goes on until it is this close: 1 to 3 labellings instead of 10 for the last voxel.
AIM = 0.0025
# A component left out is held against a mask from this share of its largest component on: below,
# it is a speck; above, the image most likely shows a second lesion there.
SPECK = 0.1


@dataclass(frozen=True, eq=False)
class Tidied:
    """A mask without stray components and holes.

    Attributes:
        mask: What is left, :math:`(I, J, K)`.
        voxels: How many.
        components: Components found before, in the 26-neighbourhood.
        dropped: Voxels of the largest component left out.
        largest: Voxels of the largest component, before holes were filled.
    """

    mask: Mask = field(repr=False)
    voxels: int
    components: int
    dropped: int
    largest: int


@dataclass(frozen=True, eq=False)
class Levelled:
    """Labels cut out of a mask field.

    Attributes:
        label: Label values, uint8, :math:`(I, J, K)`.
        level: Level of the field above which a voxel is foreground.
        tidied: The foreground and what was left out of it.
        splits: Level of each label value on its margin over the labels after it.
    """

    label: NDArray[np.uint8] = field(repr=False)
    level: float
    tidied: Tidied
    splits: Mapping[int, float] = field(default_factory=dict)


def bounding_box(mask: Mask) -> Box | None:
    """The smallest box that holds a mask; ``None`` if the mask is empty."""
    box = []
    for axis in range(3):
        hit = np.atleast_1d(mask.any(axis=tuple({0, 1, 2} - {axis})))
        if not hit.any():
            return None
        box.append(slice(int(hit.argmax()), len(hit) - int(hit[::-1].argmax())))
    return box[0], box[1], box[2]


def tidy(mask: Mask, keep: int = 1) -> Tidied:
    """Keeps the largest components of a mask (26-neighbourhood) and fills their holes."""
    box = bounding_box(mask)
    if box is None:
        return Tidied(mask, 0, 0, 0, 0)
    crop = mask[box]
    numbered, found = ndimage.label(crop, NEIGHBOURS)
    largest, dropped = 0, 0
    if found > 1:
        sizes = np.bincount(numbered.ravel())[1:]
        order = np.argsort(-sizes, kind="stable")
        largest = int(sizes[order[0]])
        if found > keep:
            dropped = int(sizes[order[keep]])
            kept = np.zeros(found + 1, dtype=bool)
            kept[order[:keep] + 1] = True
            crop = kept[numbered]
    else:
        largest = int(crop.sum())
    crop = fill_holes(crop)
    whole = np.zeros_like(mask)
    whole[box] = crop
    return Tidied(whole, int(crop.sum()), found, dropped, largest)


def fill_holes(mask: Mask) -> Mask:
    """Fills what no path over voxel faces joins with the outside.

    Twenty times faster than ``scipy.ndimage.binary_fill_holes``, which grows the outside voxel by
    voxel.
    """
    numbered, found = ndimage.label(~np.pad(mask, 1), FACES)
    if found == 1:
        return mask
    inner: Mask = (numbered != numbered[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return inner


def layer_voxels(mask: Mask) -> int:
    """Voxels of the outermost layer of a mask: those with a face to the outside."""
    box = bounding_box(mask)
    if box is None:
        return 0
    crop = np.pad(mask[box], 1)
    inner = crop.copy()
    for axis in range(3):
        inner &= np.roll(crop, 1, axis) & np.roll(crop, -1, axis)
    return int(crop.sum()) - int(inner.sum())


def allowed_error(mask: Mask, wanted: float) -> float:
    """Voxels by which a mask may miss what was wanted: 2 %, or one layer if that is more."""
    return max(TOLERANCE * wanted, float(layer_voxels(mask)))


def mask_at_level(field: NDArray[Any], level: float = 0.0, keep: int = 1) -> Levelled:
    """The tidied mask above a level."""
    tidied = tidy(field > level, keep)
    return Levelled(tidied.mask.astype(np.uint8), level, tidied)


def mask_at_volume(
    field: NDArray[Any],
    voxels: float | None = None,
    *,
    volume_ml: float | None = None,
    voxel_ml: float | None = None,
    keep: int = 1,
) -> Levelled:
    """The tidied mask whose volume is nearest to the one wanted.

    Where two hills of the field meet at one level, volumes between apart and joined do not exist;
    then the nearer of the two is returned, and `missed` finds it.

    Args:
        field: Mask field, higher inside, :math:`(I, J, K)`.
        voxels: Wanted volume in voxels; or give the next two.
        volume_ml: Wanted volume in ml.
        voxel_ml: Volume of a voxel in ml.
        keep: Components that the mask may have.

    Raises:
        SettingError: If no volume is given, or none above 0.
    """
    if voxels is None:
        if volume_ml is None or not voxel_ml:
            raise SettingError("give the wanted volume in voxels, or in ml with that of a voxel.")
        voxels = volume_ml / voxel_ml
    if not voxels > 0:
        raise SettingError(f"the wanted volume is {voxels:g} voxels; allowed is more than 0.")
    wanted = min(max(1, round(voxels)), field.size - 1)
    ranks = _Ranks(field)
    low, high, rank = 0, field.size - 1, wanted
    best = made = mask_at_level(field, ranks.level(rank), keep)
    for turn in range(40):
        off = made.tidied.voxels - wanted
        if abs(off) < abs(best.tidied.voxels - wanted):
            best = made
        if abs(off) <= AIM * wanted:
            break
        low, high = (rank, high) if off < 0 else (low, rank)
        if high - low <= 1:
            break
        # As many voxels as are missing, while that is quick; halves of the range after that.
        rank = rank - off if turn < 6 and low < rank - off < high else (low + high) // 2
        made = mask_at_level(field, ranks.level(rank), keep)
    return best


class _Ranks:
    """The levels above which a given number of voxels lie, sorted no further than needed."""

    def __init__(self, field: NDArray[Any]) -> None:
        self.flat = field.ravel()
        self.top = self.flat[:0]

    def level(self, rank: int) -> float:
        """A level that at most ``rank`` voxels exceed; exactly so many where there are no ties."""
        if rank >= len(self.top):
            size = min(len(self.flat), 2 * rank + 64)
            top = self.flat
            if size < len(self.flat):
                top = np.partition(self.flat, len(self.flat) - size)[-size:]
            self.top = np.sort(top)[::-1]
        return float(self.top[rank])


def labels_at_volumes(
    logits: NDArray[Any],
    values: Sequence[int],
    voxels: Mapping[int, float] | float | None,
    *,
    keep: int = 1,
) -> Levelled:
    """Labels whose volumes are nearest to those wanted.

    Args:
        logits: One map a label value, :math:`(N, I, J, K)`, that of background first.
        values: The label values, background first.
        voxels: Wanted voxels of each label value; or of all together; or ``None`` for the
            likeliest labels.
        keep: Components that the foreground may have.
    """
    inner = logits[1:]
    field = inner.max(0) - logits[0]
    if voxels is None:
        bound = mask_at_level(field, 0.0, keep)
    else:
        total = sum(voxels.values()) if isinstance(voxels, Mapping) else voxels
        bound = mask_at_volume(field, total, keep=keep)
    if isinstance(voxels, Mapping):
        wanted = [voxels.get(value, 0.0) for value in values[1:]]
        return _split(inner, values[1:], wanted, bound)
    table = np.array(values[1:], dtype=np.uint8)
    label = np.where(bound.tidied.mask, table[inner.argmax(0)], np.uint8(0))
    return Levelled(label, bound.level, bound.tidied)


def _split(
    logits: NDArray[Any], values: Sequence[int], wanted: Sequence[float], bound: Levelled
) -> Levelled:
    """Parts the foreground: each label takes its share by its margin over the labels after it."""
    label = np.zeros(bound.label.shape, dtype=np.uint8)
    box = bounding_box(bound.tidied.mask)
    splits: dict[int, float] = {}
    if box is None:
        return bound
    rest = bound.tidied.mask[box].copy()
    part = label[box]
    for index, value in enumerate(values):
        if index == len(values) - 1:
            part[rest] = value
            break
        margin = logits[index][box] - logits[index + 1 :, box[0], box[1], box[2]].max(0)
        share = wanted[index] / max(sum(wanted[index:]), 1e-9)
        taken, splits[value] = _part(margin, rest, share * rest.sum())
        part[taken] = value
        rest &= ~taken
    return Levelled(label, bound.level, bound.tidied, splits)


def _part(margin: NDArray[Any], inside: Mask, wanted: float) -> tuple[Mask, float]:
    """The part of a mask with the largest margin and the wanted volume, without islands."""
    heights = np.sort(margin[inside])[::-1]
    most = len(heights) - 1
    rank = min(max(1, round(wanted)), most)
    best, best_level = inside & False, 0.0
    for _ in range(8):
        level = float(heights[rank])
        taken = _without_islands(inside & (margin > level), inside)
        off = int(taken.sum()) - round(wanted)
        if not best.any() or abs(off) < abs(int(best.sum()) - round(wanted)):
            best, best_level = taken, level
        if off == 0:
            break
        # Islands that changed sides are asked for once more, or once less.
        rank = min(max(1, rank - off), most)
    return best, best_level


def _without_islands(part: Mask, inside: Mask) -> Mask:
    """Gives islands of either side to the other."""
    part = tidy(part).mask
    other = inside & ~part
    return inside & ~tidy(other).mask if other.any() else part


def missed(levelled: Levelled, voxels: Mapping[int, float] | float) -> bool:
    """Whether a volume is further off than 2 % and than one layer of voxels."""
    if not isinstance(voxels, Mapping):
        mask = levelled.tidied.mask
        return abs(levelled.tidied.voxels - voxels) > allowed_error(mask, voxels)
    for value, wanted in voxels.items():
        mask = levelled.label == value
        if abs(int(mask.sum()) - wanted) > allowed_error(mask, wanted):
            return True
    return False


def fault(
    levelled: Levelled,
    *,
    asked: Mapping[int, float] | float | None = None,
    allowed: tuple[float, float] | None = None,
    values: Sequence[int] = (0, 1),
    allow_border: bool = False,
) -> str | None:
    """Why a mask is implausible, in a few words; ``None`` if it is not.

    Args:
        levelled: The mask.
        asked: Voxels that were asked for, of each label value or in all.
        allowed: Fewest and most voxels that a mask may have; used where nothing was asked.
        values: Label values that must occur, background first.
        allow_border: Whether the mask may touch the border of the volume.
    """
    tidied = levelled.tidied
    if not tidied.voxels:
        return "empty"
    if len(values) > 2 and any(not (levelled.label == v).any() for v in values[1:]):
        return "a label is empty"
    if not allow_border and touches_border(tidied.mask):
        return "touches the border"
    if tidied.dropped > SPECK * tidied.largest:
        return "more components than allowed"
    if asked is not None:
        return "volume missed" if missed(levelled, asked) else None
    if allowed is not None and not allowed[0] <= tidied.voxels <= allowed[1]:
        return "volume outside of the training range"
    return None


def touches_border(mask: Mask) -> bool:
    """Whether a mask reaches the outermost voxels of its volume."""
    box = bounding_box(mask)
    return box is not None and any(
        side.start == 0 or side.stop == n for side, n in zip(box, mask.shape, strict=True)
    )
