r"""Distances to training cases in image, mask and latent space, and what they say of copies.

How near two real cases come says how near is too near: a case is flagged where its distance to the
nearest training case is below the 1st percentile of that of training cases to each other. Beside it
stands whether samples are nearer to training than to held-out cases,

.. math:: \rho = \exp \overline{\log \frac{d(s, T)}{d(s, R)}}, \qquad
          \pi = P\big[d(s, T) < d(s, R)\big] + \tfrac12 P\big[d(s, T) = d(s, R)\big]

for as many cases :math:`T` as :math:`R`, half of the smaller set, drawn again and again: among more
cases one is nearer by chance alone. A generator that has not memorised gives 1 and 1/2. One that
only copies gives a share of about 3/4 for sets of one size, as half of the originals are left out
of a draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from medvae3d.evaluation.cases import Cases, joined
from medvae3d.evaluation.intervals import CONFIDENCE
from medvae3d.evaluation.planted import posed
from medvae3d.evaluation.poses import FLIPS, Nearest, Search, all_pairs, nearest_of
from medvae3d.evaluation.sections import Measure
from medvae3d.seeding import derive_seed

Encode = Callable[[Cases], Tensor]
"""Cases to latents, ``(N, ...)``."""

PERCENT = 1.0
DRAWS = 500
SMALLEST_SET = 4
AT_ONCE = 8


@dataclass(frozen=True)
class Space:
    """Distances in one space; infinite where nothing can be compared.

    Attributes:
        train: Of each training case to the nearest other one.
        samples: Of each sample to the nearest training case.
        planted: Of each planted copy to the nearest training case.
        reference: Of each held-out case to the nearest training case; ``None`` without any.
        to_train: Of samples to all training cases, ``(N, T)``.
        to_reference: Of samples to all held-out cases, ``(N, R)``.
    """

    train: Nearest
    samples: Nearest
    planted: Nearest
    reference: Nearest | None
    to_train: Tensor
    to_reference: Tensor | None

    @property
    def limit(self) -> float | None:
        """Below this a case is flagged; ``None`` where training cases cannot be told apart."""
        known = self.train.distance[torch.isfinite(self.train.distance)].numpy()
        limit = float(np.percentile(known, PERCENT)) if len(known) >= 2 else 0.0
        return limit if limit > 1e-6 else None

    @property
    def smallest(self) -> float:
        """The smallest distance between two training cases."""
        return float(self.train.distance.min())

    def flagged(self, found: Nearest) -> Tensor:
        """Which cases are nearer than the limit, ``(N,)``."""
        return found.distance < (self.limit or 0.0)


def pose_space(
    kind: str,
    train: Cases,
    samples: Cases,
    planted: Cases,
    reference: Cases | None,
    search: Search,
    step: Callable[[], None],
) -> Space:
    """Distances of images or masks over flips and shifts.

    Args:
        kind: ``image`` or ``mask``.
        train: Training cases.
        samples: What is judged.
        planted: Copies of training cases.
        reference: Held-out cases.
        search: How poses are searched.
        step: Called after each of four comparisons.
    """
    own = nearest_of(train, train, all_pairs(train, train, kind, search), kind, search, same=True)
    step()
    both = joined([samples, planted])
    pairs = all_pairs(both, train, kind, search)
    found = nearest_of(both, train, pairs, kind, search)
    step()
    held = to_reference = None
    if reference is not None and len(reference):
        rough = all_pairs(reference, train, kind, search)
        held = nearest_of(reference, train, rough, kind, search)
        step()
        to_reference = all_pairs(samples, reference, kind, search).distance
        step()
    count = len(samples)
    return Space(
        own,
        _rows(found, slice(None, count)),
        _rows(found, slice(count, None)),
        held,
        pairs.distance[:count],
        to_reference,
    )


def latent_space(
    encode: Encode,
    train: Cases,
    samples: Cases,
    planted: Cases,
    reference: Cases | None,
    image: Space,
) -> Space:
    """Root mean squared distances of latents, each element by its deviation over training cases.

    A case is encoded as it is and in the pose in which its image is nearest to a training case, and
    counts by the nearer of the two.

    Args:
        encode: Cases to latents.
        train: Training cases.
        samples: What is judged.
        planted: Copies of training cases.
        reference: Held-out cases.
        image: What the search of poses found.
    """
    known = _encoded(encode, train)
    scale = known.std(0, unbiased=False)
    kept = scale > 1e-6 * scale.max()
    known = known[:, kept] / scale[kept]

    def plain(cases: Cases) -> Tensor:
        return _encoded(encode, cases)[:, kept] / scale[kept]

    def distances(x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x, y) / max(1, int(kept.sum())) ** 0.5

    def found(cases: Cases, poses: Nearest, same: bool = False) -> Nearest:
        turned = [
            posed(cases[[row]], FLIPS[int(poses.flip[row])], poses.shift[row].tolist())
            for row in range(len(cases))
        ]
        each = [distances(plain(x), known) for x in (cases, joined(turned))]
        distance = torch.minimum(*each)
        if same:
            distance.fill_diagonal_(torch.inf)
        values, index = distance.min(1)
        return Nearest(values, index, poses.flip, poses.shift)

    held = to_reference = None
    if reference is not None and image.reference is not None:
        held = found(reference, image.reference)
        to_reference = distances(plain(samples), plain(reference))
    return Space(
        found(train, image.train, same=True),
        found(samples, image.samples),
        found(planted, image.planted),
        held,
        distances(plain(samples), known),
        to_reference,
    )


def held_out_ratio(to_train: Tensor, to_reference: Tensor, seed: int) -> tuple[Measure, Measure]:
    """Distance to training over held-out cases, and the share of samples nearer to training.

    Each of 500 draws takes as many training as held-out cases, half of the smaller set, and as many
    samples as there are, with replacement. The value is the mean of the draws.

    Args:
        to_train: Distances of samples to training cases, ``(N, T)``.
        to_reference: Distances of samples to held-out cases, ``(N, R)``.
        seed: Seed of the draws.
    """
    first, second = to_train.numpy(), to_reference.numpy()
    able = np.isfinite(first).any(1) & np.isfinite(second).any(1)
    first, second = first[able], second[able]
    sizes = first.shape[1], second.shape[1]
    if min(*sizes, len(first)) < SMALLEST_SET:
        note = (
            f"{len(first)} samples can be compared with {sizes[0]} training and {sizes[1]} "
            f"held-out cases; each needs {SMALLEST_SET}"
        )
        return Measure(None, n=sizes, note=note), Measure(None, n=sizes, note=note)
    half = -(-min(sizes) // 2)
    rng = np.random.default_rng(derive_seed(seed, "held-out ratio"))
    ratios, shares = np.empty(DRAWS), np.empty(DRAWS)
    for draw in range(DRAWS):
        rows = rng.integers(0, len(first), len(first))
        near, far = (
            each[:, rng.choice(size, half, replace=False)].min(1)[rows]
            for each, size in zip((first, second), sizes, strict=True)
        )
        known = np.isfinite(near) & np.isfinite(far)
        near, far = np.maximum(near[known], 1e-6), np.maximum(far[known], 1e-6)
        ratios[draw] = np.exp(np.log(near / far).mean()) if len(near) else np.nan
        shares[draw] = ((near < far) + 0.5 * (near == far)).mean() if len(near) else np.nan
    return tuple(_drawn(values, sizes, chance) for values, chance in ((ratios, 1.0), (shares, 0.5)))  # type: ignore[return-value]


def share(flags: Tensor, note: str = "") -> Measure:
    """Share of flagged cases with Wilson's interval, which is not empty at 0."""
    count, n = int(flags.sum()), len(flags)
    if not n:
        return Measure(None, n=0, note=note or "no cases")
    found = stats.binomtest(count, n).proportion_ci(CONFIDENCE, method="wilson")
    return Measure(count / n, float(found.low), float(found.high), n, note=note)


def by_chance(count: int, train: int) -> int:
    """Most cases that chance flags in 39 of 40 sets of this size.

    The limit is itself a distance of one of few training cases, and the share of new cases below it
    follows a beta distribution. Two cases that are nearest to each other have one distance, so that
    the training cases count as half as many.

    Args:
        count: Cases that are judged.
        train: Training cases.
    """
    rank = PERCENT / 100 * (train - 1) + 1
    spread = stats.betabinom(count, rank / 2, (train + 1 - rank) / 2)
    return int(spread.ppf(0.5 + CONFIDENCE / 2)) if count else 0


def _drawn(values: np.ndarray, sizes: tuple[int, int], chance: float) -> Measure:
    tail = 50 * (1 - CONFIDENCE)
    low, high = (float(v) for v in np.nanpercentile(values, (tail, 100 - tail)))
    return Measure(float(np.nanmean(values)), low, high, sizes, chance)


def _encoded(encode: Encode, cases: Cases) -> Tensor:
    with torch.no_grad():
        parts = [encode(part).detach().cpu().flatten(1).double() for part in cases.batches(AT_ONCE)]
    return torch.cat(parts)


def _rows(found: Nearest, rows: slice) -> Nearest:
    return Nearest(found.distance[rows], found.index[rows], found.flip[rows], found.shift[rows])
