r"""New pairs out of two labelled ones, without a model: copies, pasted lesions and CarveMix.

A host :math:`A` gets a region :math:`M` of a donor :math:`B`, image and label alike:

.. math:: X = A (1 - M) + B M

CarveMix takes :math:`M` from the signed distance :math:`d` (mm, negative inside) of the donor's
lesion. With :math:`c` uniform on [-1, 1], :math:`M = \{d < t\}` where

.. math:: t = \begin{cases} c \min(d) / 2 & c > 0 \text{: less than the lesion} \\
                            c \min(d) & c \le 0 \text{: the lesion with a margin} \end{cases}

References:
    Zhang et al., "CarveMix: a simple data augmentation method for brain lesion segmentation", 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medvae3d.data.lesions import NEIGHBOURS
from medvae3d.errors import LabelError
from medvae3d.evaluation.cases import MIN_VOXELS, Cases
from medvae3d.seeding import derive_seed

# Voxels at or under this normalised intensity in every channel are air.
AIR = -0.9
# Places tried for a pasted lesion before it stays at its own.
ATTEMPTS = 30
# Share of a pasted lesion that may lie on air.
MOST_AIR = 0.05


@dataclass(frozen=True, eq=False)
class Pair:
    """An image with its mask.

    Attributes:
        image: Normalised, :math:`(C, I, J, K)`.
        mask: Label map, :math:`(1, I, J, K)`.
        valid: 1 where both were observed, :math:`(1, I, J, K)`.
    """

    image: Tensor
    mask: Tensor
    valid: Tensor

    @classmethod
    def of(cls, cases: Cases, row: int) -> Pair:
        """One of several cases."""
        return cls(cases.image[row], cases.mask[row], cases.valid[row])


Mix = Callable[[Pair, Pair, np.random.Generator], Pair]
"""Host, donor and random numbers to a new pair."""


def mixed_cases(cases: Cases, count: int, mix: Mix, seed: int, name: str) -> Cases:
    """Makes new cases out of pairs of others; case *i* depends on the seed and on *i* alone.

    Host and donor are two different cases where there are two, and the donor has a lesion.

    Args:
        cases: Hosts and donors.
        count: How many.
        mix: Makes one.
        seed: Seed of all of them.
        name: What the new cases are called.

    Raises:
        LabelError: If no mask has a lesion.
    """
    donors = with_lesion(cases)
    made = []
    for index in range(count):
        rng = np.random.default_rng(derive_seed(seed, name, index))
        donor = int(rng.choice(donors))
        hosts = [row for row in range(len(cases)) if row != donor] or [donor]
        made.append(mix(Pair.of(cases, int(rng.choice(hosts))), Pair.of(cases, donor), rng))
    return as_cases(made, name)


def with_lesion(cases: Cases) -> list[int]:
    """Rows whose mask is not empty.

    Raises:
        LabelError: If all are empty.
    """
    rows = [int(row) for row in torch.nonzero((cases.mask > 0).flatten(1).any(1)).flatten()]
    if not rows:
        raise LabelError(
            f"the masks of all {len(cases)} training cases are empty; there is nothing to mix or "
            f"to learn. Check the masks with `medvae3d data check`."
        )
    return rows


def as_cases(pairs: Sequence[Pair], name: str) -> Cases:
    """Stacks pairs as cases, numbered."""
    masks = torch.stack([pair.mask for pair in pairs])
    return Cases(
        torch.stack([pair.image for pair in pairs]),
        masks,
        torch.stack([pair.valid for pair in pairs]),
        (masks > 0).float(),
        tuple(f"{name} {index:05d}" for index in range(len(pairs))),
    )


def copied_cases(cases: Cases, count: int, seed: int) -> Cases:
    """Copies of random cases; copy *i* depends on the seed and on *i* alone."""
    rows = [derive_seed(seed, "copies", index) % len(cases) for index in range(count)]
    return cases[rows]


def signed_distance(lesion: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Distance to the border of a lesion in mm, negative inside, never 0; ``(I, J, K)``."""
    outside = ndimage.distance_transform_edt(~lesion, sampling=spacing_mm)
    inside = ndimage.distance_transform_edt(lesion, sampling=spacing_mm)
    distance: NDArray[np.float64] = outside - inside
    return distance


def carved(lesion: NDArray[np.bool_], c: float, spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
    """The region that CarveMix carves round a lesion; exactly the lesion for ``c = 0``.

    Args:
        lesion: All foreground of the donor, :math:`(I, J, K)`.
        c: From -1, a margin as wide as the lesion is deep, to 1, its inner half.
        spacing_mm: Size of a voxel along (I, J, K).
    """
    distance = signed_distance(lesion, spacing_mm)
    threshold = c * distance.min() / (2 if c > 0 else 1)
    region: NDArray[np.bool_] = distance < threshold
    return region


def carve_mix(spacing_mm: Sequence[float], c: float | None = None) -> Mix:
    """CarveMix as a `Mix`.

    Args:
        spacing_mm: Size of a voxel along (I, J, K).
        c: Fixed, for checks; drawn for each pair if not given.
    """

    def mix(host: Pair, donor: Pair, rng: np.random.Generator) -> Pair:
        drawn = float(rng.uniform(-1, 1))
        region = carved(donor.mask[0].numpy() > 0, drawn if c is None else c, spacing_mm)
        return exchanged(host, donor, torch.from_numpy(region)[None])

    return mix


def exchanged(host: Pair, donor: Pair, region: Tensor) -> Pair:
    """The host with a region ``(1, I, J, K)`` of the donor; nothing else changes."""
    return Pair(
        torch.where(region, donor.image, host.image),
        torch.where(region, donor.mask, host.mask),
        torch.where(region, donor.valid, host.valid),
    )


def copy_paste(in_place: bool) -> Mix:
    """A lesion of the donor pasted into the host, without a margin, as a `Mix`.

    One lesion is taken. It goes to a random place of the host's body that no lesion of the host
    touches; if there is none, or for organs, it stays at its own place.

    Args:
        in_place: Whether it always stays at its own place, as an organ has to.
    """

    def mix(host: Pair, donor: Pair, rng: np.random.Generator) -> Pair:
        lesion = _one_lesion(donor.mask[0].numpy() > 0, rng)
        shift = (0, 0, 0) if in_place else _place(lesion, host, rng)
        moved = Pair(*(_rolled(x, shift) for x in (donor.image, donor.mask, donor.valid)))
        return exchanged(host, moved, _rolled(torch.from_numpy(lesion)[None], shift))

    return mix


def _one_lesion(foreground: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random lesion of a mask, by its component; the largest if all are specks."""
    numbered, _ = ndimage.label(foreground, NEIGHBOURS)
    sizes = np.bincount(numbered.ravel())[1:]
    found = np.flatnonzero(sizes >= MIN_VOXELS)
    chosen = int(rng.choice(found)) if len(found) else int(sizes.argmax())
    lesion: NDArray[np.bool_] = numbered == chosen + 1
    return lesion


def _place(lesion: NDArray[np.bool_], host: Pair, rng: np.random.Generator) -> tuple[int, int, int]:
    """A shift by which a lesion stays within the volume, and the host's body has room for it."""
    where = np.argwhere(lesion)
    low, high = where.min(0), np.array(lesion.shape) - 1 - where.max(0)
    tissue = body(host.image)
    taken = host.mask[0].numpy() > 0
    for _ in range(ATTEMPTS):
        shift = rng.integers(-low, high + 1)
        i, j, k = (where + shift).T
        if not taken[i, j, k].any() and tissue[i, j, k].mean() >= 1 - MOST_AIR:
            return int(shift[0]), int(shift[1]), int(shift[2])
    return 0, 0, 0


def body(image: Tensor) -> NDArray[np.bool_]:
    """Where a normalised image ``(C, I, J, K)`` is not air: its largest part, without holes."""
    tissue = (image > AIR).any(0).numpy()
    numbered, count = ndimage.label(tissue)
    if count == 0:
        return tissue
    largest = int(np.bincount(numbered.ravel())[1:].argmax()) + 1
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(numbered == largest)
    return filled


def _rolled(x: Tensor, shift: Sequence[int]) -> Tensor:
    return torch.roll(x, tuple(shift), (1, 2, 3)) if any(shift) else x
