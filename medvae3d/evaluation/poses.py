r"""The nearest case of a set when a copy may have been mirrored and moved.

For flips :math:`f` and whole-voxel shifts :math:`s` of up to a few voxels along each axis:

.. math::
    d_\text{image}(a, b)^2 = \min_{f, s}
        \frac{\sum_v \big(a_{fs}(v) - b(v)\big)^2}{\sum_v 1}, \qquad
    d_\text{mask}(a, b) = \min_{f, s} \; 1 - \mathrm{Dice}(a_{fs}, b)

Images are on :math:`(x + 1) / 2`, and sums run over the voxels and channels observed in both; at
least a quarter of the smaller one has to lie in both. All pairs are compared on volumes averaged
down to at most 16 voxels a side, where every pose is one product of matrices. The few nearest of
each case, with their flips, and those that are most alike whatever the shift
(`medvae3d.evaluation.signatures`), are then compared at full size over all shifts at once: the sum
above, taken apart, is a correlation, and a product after a Fourier transform.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from medvae3d.errors import GridMismatchError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.signatures import likely, signatures
from medvae3d.evaluation.voxelwise import unit

KINDS = "image", "mask"
FLIPS = [axes for n in range(4) for axes in itertools.combinations((1, 2, 3), n)]
LEAST_SHARED = 0.25
CACHE_BYTES = 512 * 2**20
AT_ONCE = 8


@dataclass(frozen=True)
class Search:
    """How poses are searched.

    Attributes:
        size: Most voxels a side of the volumes on which all pairs are compared.
        reach: Largest shift along each axis in voxels of the full volume.
        refined: How many of the nearest, each with its flip, are compared at full size.
        alike: How many of those most alike whatever the shift, each with two flips, are as well.
    """

    size: int = 16
    reach: int = 2
    refined: int = 8
    alike: int = 3

    def factor(self, shape: Sequence[int]) -> int:
        """Voxels that are averaged to one along each axis."""
        return -(-max(shape) // self.size)


@dataclass(frozen=True)
class Pairs:
    """Distances of all pairs on the small volumes.

    Attributes:
        by_flip: Smallest over all shifts for each entry of `FLIPS`, ``(8, N, M)``; infinite where
            nothing can be compared.
    """

    by_flip: Tensor = field(repr=False)

    @property
    def distance(self) -> Tensor:
        """Smallest over all poses, ``(N, M)``."""
        return self.by_flip.amin(0).double()


@dataclass(frozen=True)
class Nearest:
    """The nearest case of each case, at full size.

    Attributes:
        distance: ``(N,)``; infinite where nothing can be compared.
        index: Row of the nearest case, ``(N,)``.
        flip: Entry of `FLIPS` that brings the case onto it, ``(N,)``.
        shift: Voxels that it then has to be moved by, ``(N, 3)``.
    """

    distance: Tensor
    index: Tensor
    flip: Tensor
    shift: Tensor


def all_pairs(cases: Cases, others: Cases, kind: str, search: Search | None = None) -> Pairs:
    """Compares every case of one set with every case of another on small volumes.

    Args:
        cases: What is flipped and moved, ``N`` of them.
        others: What it is compared with, ``M`` of them.
        kind: ``image`` or ``mask``.
        search: How.

    Raises:
        GridMismatchError: If the sets have other channels or shapes.
    """
    search = search or Search()
    _require_alike(cases, others)
    factor = search.factor(cases.image.shape[2:])
    steps = -(-search.reach // factor)
    y = _small(others, kind, (), factor)
    # Where blocks fill the volume, mirroring their averages is enough.
    is_even = not any(n % factor for n in cases.image.shape[2:])
    plain = _small(cases, kind, (), factor) if is_even else None
    best = torch.full((len(FLIPS), len(cases), len(others)), torch.inf)
    for axes, found in zip(FLIPS, best, strict=True):
        x = plain.flipped(axes) if plain is not None else _small(cases, kind, axes, factor)
        for shift in itertools.product(range(-steps, steps + 1), repeat=3):
            torch.minimum(found, _products(x, y, shift, kind), out=found)
    return Pairs(best)


def nearest_of(
    cases: Cases,
    others: Cases,
    pairs: Pairs,
    kind: str,
    search: Search | None = None,
    *,
    same: bool = False,
) -> Nearest:
    """Compares each case with the nearest few at full size, over all shifts.

    Args:
        cases: As for `all_pairs`.
        others: As for `all_pairs`.
        pairs: What that found.
        kind: ``image`` or ``mask``.
        search: How.
        same: Whether both sets are the same: then a case is not compared with itself.
    """
    search = search or Search()
    count = len(cases)
    chosen = _chosen(cases, others, pairs, kind, search, same)
    here, there = _spectra(cases, kind, search.reach), _spectra(others, kind, search.reach)
    distance = torch.full((count,), torch.inf, dtype=torch.float64)
    index, flip = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
    shift = torch.zeros(count, 3, dtype=torch.long)
    for row, number, column in chosen:
        found = shifted_distances(here(row, number), there(column, 0), search.reach)
        side = found.shape[0]
        at = [int(i) - search.reach for i in torch.unravel_index(found.argmin(), (side,) * 3)]
        # The transforms are of single precision: the distance itself is computed again.
        exact = _exact(cases, row, number, at, others, column, kind)
        if exact < distance[row]:
            distance[row], index[row], flip[row] = exact, column, number
            shift[row] = torch.tensor(at)
    return Nearest(distance, index, flip, shift)


def _chosen(
    cases: Cases, others: Cases, pairs: Pairs, kind: str, search: Search, same: bool
) -> list[tuple[int, int, int]]:
    """Row, flip and column of what is compared at full size, each once."""
    rough = pairs.by_flip.permute(1, 0, 2).clone()
    count, _, columns = rough.shape
    if same:
        rough[torch.arange(count), :, torch.arange(count)] = torch.inf
    values, poses = rough.flatten(1).topk(
        min(search.refined, len(FLIPS) * columns), dim=1, largest=False
    )
    chosen = {
        (row, *divmod(int(poses[row, place]), columns))
        for row, place in torch.isfinite(values).nonzero().tolist()
    }
    if search.alike:
        mine = signatures(partial(_content, cases, kind), count)
        other = mine if others is cases else signatures(partial(_content, others, kind), columns)
        near = likely(mine, other, search.alike, same=same)
        chosen |= {
            (row, flip, column)
            for row, found in enumerate(near.tolist())
            for flip, column in found
            if torch.isfinite(rough[row, flip, column])
        }
    return sorted(chosen)


def _content(cases: Cases, kind: str, row: int) -> Tensor:
    """What is compared of a case, 0 where it was not observed."""
    content, observed = _case(cases, row, 0, kind)
    return content if observed is None else content * observed


def moved(x: Tensor, shift: Sequence[int], fill: float = 0.0) -> Tensor:
    """Moves volumes along their last three axes; what comes in from beyond is ``fill``."""
    if not any(shift):
        return x
    made = torch.full_like(x, fill)
    sides = list(zip(shift, x.shape[-3:], strict=True))
    target = [slice(max(0, s), n + min(0, s)) for s, n in sides]
    source = [slice(max(0, -s), n - max(0, s)) for s, n in sides]
    i, j, k = source
    made[..., target[0], target[1], target[2]] = x[..., i, j, k]
    return made


@dataclass(frozen=True)
class Spectrum:
    """Fourier transforms of one case, padded so that shifts within reach do not wrap.

    Attributes:
        content: Of each channel, 0 where not observed.
        square: Of the sum of squares over channels; ``None`` for a mask.
        observed: Of where it was observed; ``None`` for a mask.
        total: Voxels of the mask, or observed voxels.
        padded: Shape that was transformed.
    """

    content: Tensor
    square: Tensor | None
    observed: Tensor | None
    total: float
    padded: tuple[int, int, int]


def spectrum_of(content: Tensor, observed: Tensor | None, reach: int) -> Spectrum:
    """Transforms one case.

    Args:
        content: Channels, or a mask of zeros and ones, :math:`(C, I, J, K)`.
        observed: Where it was observed, :math:`(1, I, J, K)`; ``None`` for a mask.
        reach: Largest shift in voxels.
    """
    i, j, k = (next_fast_len(n + reach, real=True) for n in content.shape[1:])
    padded = (i, j, k)

    def transformed(x: Tensor) -> Tensor:
        return torch.fft.rfftn(x, s=padded, dim=(-3, -2, -1))

    if observed is None:
        return Spectrum(transformed(content), None, None, float(content.sum()), padded)
    content = content * observed
    square = transformed(content.square().sum(0))
    total = float(observed.sum())
    if total == observed.numel():
        everywhere = _everywhere(tuple(observed.shape[1:]), padded)
        return Spectrum(transformed(content), square, everywhere, total, padded)
    return Spectrum(transformed(content), square, transformed(observed[0]), total, padded)


@lru_cache(maxsize=2)
def _everywhere(shape: tuple[int, ...], padded: tuple[int, int, int]) -> Tensor:
    """The transform of a volume that was observed everywhere, which most are."""
    return torch.fft.rfftn(torch.ones(shape), s=padded, dim=(-3, -2, -1))


def shifted_distances(a: Spectrum, b: Spectrum, reach: int) -> Tensor:
    """Distance of one case, moved, to another, at all shifts, ``(2R + 1, 2R + 1, 2R + 1)``.

    Args:
        a: What is moved.
        b: What stays.
        reach: Largest shift :math:`R` in voxels; entry 0 is a shift by :math:`-R`.
    """

    def correlated(product: Tensor) -> Tensor:
        whole = torch.fft.irfftn(product, s=a.padded, dim=(-3, -2, -1))
        # Shifts to the left stand at the end: turned round, all of them stand together.
        near = slice(0, 2 * reach + 1)
        return whole.roll((reach,) * 3, (0, 1, 2))[near, near, near]

    shared = (a.content.conj() * b.content).sum(0)
    if a.square is None or b.square is None or a.observed is None or b.observed is None:
        both = a.total + b.total
        found = 1 - 2 * correlated(shared) / both if both else torch.inf
        return torch.as_tensor(found).expand((2 * reach + 1,) * 3)
    squared = correlated(
        a.square.conj() * b.observed + a.observed.conj() * b.square - 2 * shared
    ).clamp_min(0)
    count = correlated(a.observed.conj() * b.observed).round()
    least = max(1.0, LEAST_SHARED * min(a.total, b.total))
    mean = squared / (count.clamp_min(1) * len(a.content))
    return torch.where(count >= least, mean.sqrt(), torch.inf)


def _spectra(cases: Cases, kind: str, reach: int) -> Callable[[int, int], Spectrum]:
    """Transforms of cases and flips, as many of them kept as fit into the cache."""
    voxels = cases.image[0, 0].numel()
    each = 4 * voxels * (cases.image.shape[1] + 2 if kind == "image" else 1)

    @lru_cache(maxsize=max(2, CACHE_BYTES // (2 * each)))
    def spectrum(row: int, flip: int) -> Spectrum:
        content, observed = _case(cases, row, flip, kind)
        return spectrum_of(content, observed, reach)

    return spectrum


def _case(cases: Cases, row: int, flip: int, kind: str) -> tuple[Tensor, Tensor | None]:
    axes = FLIPS[flip]
    if kind == "mask":
        return (cases.mask[row] > 0).float().flip(axes), None
    return unit(cases.image[row]).flip(axes), (cases.valid[row] > 0).float().flip(axes)


def _exact(
    cases: Cases, row: int, flip: int, shift: list[int], others: Cases, column: int, kind: str
) -> float:
    """Distance in one pose, in double precision."""
    x, here = _case(cases, row, flip, kind)
    y, there = _case(others, column, 0, kind)
    if here is None or there is None:
        both = float(x.sum() + y.sum())
        return 1 - 2 * float((moved(x, shift) * y).sum()) / both if both else float("inf")
    shared = moved(here, shift) * there
    least = max(1.0, LEAST_SHARED * min(float(here.sum()), float(there.sum())))
    if shared.sum() < least:
        return float("inf")
    squared = ((moved(x, shift) - y) * shared).double().square().sum() / (shared.sum() * len(x))
    return float(squared.sqrt())


@dataclass(frozen=True)
class _Small:
    """Averages of blocks, ``(N, C, ...)``, sums of their squares, and where they were observed."""

    content: Tensor
    square: Tensor
    observed: Tensor

    def flipped(self, axes: tuple[int, ...]) -> _Small:
        sides = [axis + 1 for axis in axes]
        return _Small(*(x.flip(sides) for x in (self.content, self.square, self.observed)))


def _small(cases: Cases, kind: str, axes: tuple[int, ...], factor: int) -> _Small:
    sides = [axis + 1 for axis in axes]
    contents, observed = [], []
    for part in cases.batches(AT_ONCE):
        if kind == "mask":
            x, valid = (part.mask > 0).float(), torch.ones_like(part.mask)
        else:
            valid = (part.valid > 0).float()
            x = unit(part.image) * valid
        x, valid = (_averaged(each.flip(sides), factor) for each in (x, valid))
        seen = (valid >= 0.5).float()
        contents.append(x if kind == "mask" else x / valid.clamp_min(1e-6) * seen)
        observed.append(seen)
    content, where = torch.cat(contents), torch.cat(observed)
    # One row stands for all where all are alike, which spares most of the products.
    is_one = bool((where == where[:1]).all())
    return _Small(content, content.square().sum(1, keepdim=True), where[:1] if is_one else where)


def _averaged(x: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return x
    rest = [(-n) % factor for n in reversed(x.shape[2:])]
    return F.avg_pool3d(F.pad(x, [side for r in rest for side in (0, r)]), factor)


def _products(x: _Small, y: _Small, shift: Sequence[int], kind: str) -> Tensor:
    """Distances of all pairs in one pose, ``(N, M)``."""
    cross = moved(x.content, shift).flatten(1) @ y.content.flatten(1).T
    power = y.square.flatten(1)
    if kind == "mask":
        both = x.square.flatten(1).sum(1)[:, None] + power.sum(1)
        return torch.where(both > 0, 1 - 2 * cross / both.clamp_min(1e-9), torch.inf)
    seen, known = moved(x.observed, shift).flatten(1), y.observed.flatten(1)
    squared = moved(x.square, shift).flatten(1) @ known.T + seen @ power.T
    count = seen @ known.T
    least = LEAST_SHARED * torch.minimum(x.observed.flatten(1).sum(1)[:, None], known.sum(1))
    mean = (squared - 2 * cross).clamp_min(0) / (count.clamp_min(1) * x.content.shape[1])
    return torch.where((count > 0) & (count >= least), mean.sqrt(), torch.inf)


def _require_alike(cases: Cases, others: Cases) -> None:
    if cases.image.shape[1:] != others.image.shape[1:]:
        raise GridMismatchError(
            f"one set has volumes (C, I, J, K) of {tuple(cases.image.shape[1:])}, the other of "
            f"{tuple(others.image.shape[1:])}. Both must have the same channels on the same grid: "
            f"prepare both with the same settings."
        )
