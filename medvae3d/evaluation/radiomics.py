r"""Radiomic features as the Image Biomarker Standardisation Initiative (IBSI) defines them.

Intensities are those of a region; grey levels :math:`g = \lfloor x / w \rfloor + 1` have a fixed
bin size :math:`w`. The co-occurrence matrix counts pairs of neighbouring grey levels over all 13
directions of a voxel's neighbours at distance 1, symmetric, merged over directions:

.. math:: p_{ij} = \frac{N_{ij} + N_{ji}}{\sum_{kl} N_{kl} + N_{lk}}

They are written here because mirp, the library that is kept up, needs the full ITK and Python 3.11,
and seconds for one region of one channel of 48 voxels a side, against 0.02 s. Left out are features
that repeat another (difference average is dissimilarity, sum variance is cluster tendency) and
those of a surface mesh. Every feature here is tested against the values that IBSI has published for
its digital phantom.

References:
    - Zwanenburg et al., The Image Biomarker Standardization Initiative, Radiology 295 (2020);
      definitions in arXiv:1612.07003.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Levels: TypeAlias = NDArray[np.int64]

STEPS = tuple(s for s in itertools.product((-1, 0, 1), repeat=3) if s > (0, 0, 0))


def intensity_statistics(x: Floats) -> dict[str, float]:
    """Intensity-based statistics of the voxels of a region.

    Args:
        x: Intensities, one a voxel; at least one.
    """
    mean = float(x.mean())
    centred = x - mean
    squared = centred * centred
    variance = float(squared.mean())
    p10, p25, median, p75, p90 = (float(v) for v in np.percentile(x, (10, 25, 50, 75, 90)))
    # By definition 0 where nothing varies; below this, what varies is rounding.
    flat = variance <= 1e-12 * max(1.0, mean**2)
    kept = x[(x >= p10) & (x <= p90)]
    energy = float(x @ x)
    return {
        "mean": mean,
        "variance": variance,
        "skewness": 0.0 if flat else float((squared * centred).mean()) / variance**1.5,
        "kurtosis": 0.0 if flat else float((squared * squared).mean()) / variance**2 - 3,
        "median": median,
        "minimum": float(x.min()),
        "10th percentile": p10,
        "90th percentile": p90,
        "maximum": float(x.max()),
        "interquartile range": p75 - p25,
        "range": float(x.max() - x.min()),
        "mean absolute deviation": float(np.abs(centred).mean()),
        "robust mean absolute deviation": float(np.abs(kept - kept.mean()).mean()),
        "median absolute deviation": float(np.abs(x - median).mean()),
        "energy": energy,
        "root mean square": (energy / len(x)) ** 0.5,
    }


def grey_levels(x: Floats, width: float, most: int) -> Levels:
    """Grey levels from 1 on, of fixed bin size; what lies above the last one counts to it."""
    return np.clip(np.floor(x / width).astype(np.int64) + 1, 1, most)


def histogram_features(levels: Levels) -> dict[str, float]:
    """Features of the intensity histogram of a region's grey levels."""
    counts = np.bincount(levels.ravel())
    share = counts[counts > 0] / counts.sum()
    modes = np.flatnonzero(counts == counts.max())
    return {
        "entropy": float(-(share * np.log2(share)).sum()),
        "uniformity": float((share**2).sum()),
        # Of several modes, the one closest to the mean.
        "mode": float(modes[np.abs(modes - levels.mean()).argmin()]),
    }


def cooccurrence(levels: Levels) -> Floats:
    """Symmetric co-occurrence matrix, merged over directions; sums to one.

    A region without a pair of neighbours counts as one of a single grey level.

    Args:
        levels: Grey levels from 1 on; 0 is outside of the region.

    Shape:
        - ``levels``: :math:`(I, J, K)`
        - output: :math:`(G, G)` for the largest grey level :math:`G`
    """
    size = int(levels.max()) + 1
    counts = np.zeros(size * size)
    for step in STEPS:
        here = tuple(
            slice(max(0, -s), n - max(0, s)) for s, n in zip(step, levels.shape, strict=True)
        )
        there = tuple(
            slice(max(0, s), n - max(0, -s)) for s, n in zip(step, levels.shape, strict=True)
        )
        code = levels[here] * size + levels[there]
        counts += np.bincount(code.ravel(), minlength=size * size)
    pairs: Floats = counts.reshape(size, size)[1:, 1:]
    if not pairs.any():
        pairs = np.diag(np.bincount(levels.ravel(), minlength=size)[1:].astype(np.float64))
    pairs = pairs + pairs.T
    return pairs / pairs.sum()


def cooccurrence_features(p: Floats) -> dict[str, float]:
    """Features of a co-occurrence matrix, ``(G, G)``, symmetric with sum one."""
    grey = np.arange(1, len(p) + 1, dtype=np.float64)
    i, j = grey[:, None], grey[None, :]
    marginal = p.sum(0)
    mean = float((grey * marginal).sum())
    variance = float(((grey - mean) ** 2 * marginal).sum())
    apart = np.abs(np.subtract.outer(np.arange(len(p)), np.arange(len(p))))
    together = np.add.outer(np.arange(len(p)), np.arange(len(p)))
    difference: Floats = np.bincount(apart.ravel(), p.ravel()).astype(np.float64)
    total: Floats = np.bincount(together.ravel(), p.ravel()).astype(np.float64)
    dissimilarity = float((np.arange(len(difference)) * difference).sum())
    cluster = i + j - 2 * mean
    entropy, own = _entropy(p), _entropy(marginal)
    # Entropy of independent pairs: against the matrix, and of itself, which is twice `own`.
    outer = np.outer(marginal, marginal)
    cross = float(-(p[p > 0] * np.log2(outer[p > 0])).sum())
    return {
        "joint maximum": float(p.max()),
        "joint average": mean,
        "joint variance": variance,
        "joint entropy": entropy,
        "difference variance": float(
            ((np.arange(len(difference)) - dissimilarity) ** 2 * difference).sum()
        ),
        "difference entropy": _entropy(difference),
        "sum entropy": _entropy(total),
        "angular second moment": float((p**2).sum()),
        "contrast": float(((i - j) ** 2 * p).sum()),
        "dissimilarity": dissimilarity,
        "inverse difference": float((p / (1 + apart)).sum()),
        "inverse difference moment": float((p / (1 + apart**2)).sum()),
        # A region of one grey level is fully correlated and says nothing of a neighbour.
        "correlation": float(((i - mean) * (j - mean) * p).sum()) / variance if variance else 1.0,
        "cluster tendency": float((cluster**2 * p).sum()),
        "cluster shade": float((cluster**3 * p).sum()),
        "cluster prominence": float((cluster**4 * p).sum()),
        "information correlation 1": (entropy - cross) / own if own else 0.0,
        "information correlation 2": float(
            np.sqrt(max(0.0, 1 - np.exp(-2 * max(0.0, 2 * own - entropy))))
        ),
    }


def _entropy(share: Floats) -> float:
    held = share[share > 0]
    return float(-(held * np.log2(held)).sum())


def shape_features(inside: NDArray[np.bool_], spacing_mm: Sequence[float]) -> dict[str, float]:
    """Morphological features that need no surface mesh; lengths in mm.

    Args:
        inside: The region; at least one voxel.
        spacing_mm: Size of a voxel along (I, J, K).

    Shape:
        - ``inside``: :math:`(I, J, K)`
    """
    points = np.argwhere(inside) * np.asarray(spacing_mm, dtype=np.float64)
    centred = points - points.mean(0)
    spread = np.linalg.eigvalsh(centred.T @ centred / max(len(points) - 1, 1)).clip(0)
    least, minor, major = (float(4 * v) for v in np.sqrt(spread))
    return {
        "volume": float(len(points) * np.prod(spacing_mm)),
        "major axis length": major,
        "minor axis length": minor,
        "least axis length": least,
        "elongation": minor / major if major else 1.0,
        "flatness": least / major if major else 1.0,
    }


def centre_of_mass_shift(
    image: Floats, inside: NDArray[np.bool_], spacing_mm: Sequence[float]
) -> float:
    """Distance in mm from the middle of a region to its centre weighted by intensity.

    Args:
        image: Intensities from 0 on, :math:`(I, J, K)`.
        inside: The region.
        spacing_mm: Size of a voxel along (I, J, K).
    """
    points = np.argwhere(inside) * np.asarray(spacing_mm, dtype=np.float64)
    weight = image[inside]
    if weight.sum() <= 0:
        return 0.0
    return float(np.linalg.norm(points.mean(0) - weight @ points / weight.sum()))


def region_features(
    image: Floats, inside: NDArray[np.bool_], width: float, most: int
) -> dict[str, float]:
    """Intensity, histogram and co-occurrence features of one region of one channel.

    Args:
        image: Intensities from 0 on.
        inside: The region; at least one voxel.
        width: Size of a bin.
        most: Most grey levels.

    Shape:
        - ``image`` and ``inside``: :math:`(I, J, K)`
    """
    box = bounding_box(inside)
    image, inside = image[box], inside[box]
    levels = np.where(inside, grey_levels(image, width, most), 0)
    families = {
        "statistics": intensity_statistics(image[inside]),
        "histogram": histogram_features(levels[inside]),
        "co-occurrence": cooccurrence_features(cooccurrence(levels)),
    }
    return {
        f"{family}: {name}": value
        for family, values in families.items()
        for name, value in values.items()
    }


def bounding_box(inside: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """Smallest box round a region of at least one voxel."""
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hit = np.flatnonzero(inside.any(axis=others))
        sides.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return sides[0], sides[1], sides[2]
