r"""How far two sets of cases lie apart, from their features :math:`x_i` (real), :math:`y_j` (made).

.. math::
    \mathrm{Fr\acute echet} &= \|\mu_x - \mu_y\|^2
        + \mathrm{tr}\big(\Sigma_x + \Sigma_y - 2 (\Sigma_x \Sigma_y)^{1/2}\big) \\
    \mathrm{MMD}^2 &= \overline{k(x_i, x_{i'})}^{\,i \ne i'}
        + \overline{k(y_j, y_{j'})}^{\,j \ne j'} - 2\, \overline{k(x_i, y_j)} \\
    \mathrm{score} &= \exp \overline{\mathrm{KL}\big(p(c | y_j) \,\|\, \overline{p(c | y)}\big)}

with :math:`k = (x^\top y / D + 1)^3` or :math:`\exp(-\|x - y\|^2 / 2 m^2)` for the median distance
:math:`m` of real cases, and clusters :math:`c` of real features, as there is no classifier. With
:math:`r_k(x)`, the distance of a case to the :math:`k`-th nearest of its own set:

.. math::
    \mathrm{precision} &= P\big[\exists i: \|y_j - x_i\| \le r_k(x_i)\big], \qquad
    \mathrm{recall} = P\big[\exists j: \|y_j - x_i\| \le r_k(y_j)\big] \\
    \mathrm{density} &= \overline{\#\{i: \|y_j - x_i\| \le r_k(x_i)\}} \,/\, k, \qquad
    \mathrm{coverage} = P\big[\exists j: \|y_j - x_i\| \le r_k(x_i)\big]

References:
    - Heusel et al., NeurIPS 2017 (Fréchet); Binkowski et al., ICLR 2018 (kernel distance);
      Salimans et al., NeurIPS 2016 (inception score).
    - Kynkäänniemi et al., NeurIPS 2019 (precision, recall); Naeem et al., ICML 2020 (density,
      coverage).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from medvae3d.evaluation.intervals import CONFIDENCE

Rows: TypeAlias = NDArray[np.float64]

NEIGHBOURS = 5
MOST_CLUSTERS = 10
CLUSTER_DIMS = 8
# A Fréchet distance takes 0.02 s at this size; an interval takes a hundred of them.
MOST_DIMS = 256
# Standard deviations of real: a feature in which one case is an outlier must not be all there is.
FARTHEST = 10.0


@dataclass(frozen=True)
class Standard:
    """Brings features to mean 0 and deviation 1 of the real set, within 10 deviations.

    Beyond 256 columns, these are the leading principal axes of the real set and, in the last one,
    the length of what they leave over, so that nothing leaves unseen.

    Attributes:
        mean: Of each feature.
        scale: Standard deviation of each.
        kept: Columns that vary at all.
        axes: Principal axes, if there are too many columns.
    """

    mean: Rows
    scale: Rows
    kept: NDArray[np.bool_]
    axes: Rows | None = None

    @classmethod
    def fit(cls, real: Rows, other: Rows) -> Standard:
        """Fits to the real set; a column that is constant there is scaled by both sets."""
        scale = real.std(0)
        tiny = 1e-9 * (1 + np.abs(real).max(0))
        scale = np.where(scale > tiny, scale, np.concatenate([real, other]).std(0))
        kept = scale > tiny
        standard = cls(real.mean(0), np.where(kept, scale, 1.0), kept)
        if kept.sum() > MOST_DIMS:
            count = min(MOST_DIMS - 1, len(real) - 1)
            pca = PCA(count, svd_solver="full").fit(standard(real))
            standard = cls(standard.mean, standard.scale, kept, pca.components_)
        return standard

    def __call__(self, rows: Rows) -> Rows:
        z: Rows = ((rows - self.mean) / self.scale)[:, self.kept]
        z = np.clip(z, -FARTHEST, FARTHEST)
        if self.axes is None:
            return z
        along = z @ self.axes.T
        left = np.linalg.norm(z - along @ self.axes, axis=1, keepdims=True)
        return np.concatenate([along, left], axis=1)


def frechet(x: Rows, y: Rows, shrink: bool = False) -> float:
    """Fréchet distance of the Gaussians that fit two sets best.

    The trace of the root is taken from the eigenvalues of a symmetric matrix. MONAI's function,
    with which it agrees, takes the root of a product that is not symmetric: that becomes complex
    where cases are few, and scipy withdraws the argument that MONAI passes.

    Args:
        x: Features of a set, ``(N, D)``.
        y: Features of another, ``(M, D)``.
        shrink: Whether covariances are shrunk by Ledoit and Wolf, which they have to be where there
            are fewer cases than features.
    """
    one, two = (_covariance(rows, shrink) for rows in (x, y))
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ two @ root)
    apart = x.mean(0) - y.mean(0)
    distance = apart @ apart + np.trace(one + two) - 2 * np.sqrt(mixed.clip(0)).sum()
    return max(0.0, float(distance))


def _covariance(rows: Rows, shrink: bool) -> Rows:
    if shrink:
        covariance: Rows = ledoit_wolf(rows - rows.mean(0), assume_centered=True)[0]
        return covariance
    return np.atleast_2d(np.cov(rows.T))


Kernel = Callable[[Rows, Rows], Rows]


def polynomial(x: Rows, y: Rows) -> Rows:
    """The cubic kernel of the kernel distance."""
    kernel: Rows = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def gaussian(median: float) -> Kernel:
    """The Gaussian kernel whose deviation is the median distance of real cases."""

    def kernel(x: Rows, y: Rows) -> Rows:
        squared: Rows = cdist(x, y, "sqeuclidean")
        return np.exp(-squared / (2 * median**2))

    return kernel


def median_distance(x: Rows) -> float:
    """Median distance between different cases of a set; 0 for equal ones."""
    apart = cdist(x, x)
    return float(np.median(apart[np.triu_indices(len(x), 1)]))


def kernel_distance(x: Rows, y: Rows, kernel: Kernel) -> float:
    """Unbiased squared maximum mean discrepancy; below 0 by chance where the sets are alike."""
    ones = np.ones((1, len(x))), np.ones((1, len(y)))
    return float(weighted_kernel_distance(kernel(x, x), kernel(y, y), kernel(x, y), *ones)[0])


def weighted_kernel_distance(xx: Rows, yy: Rows, xy: Rows, w: Rows, v: Rows) -> Rows:
    """The same for sets in which cases occur several times, ``(B,)``.

    Two copies of one case are no pair: a bootstrap sample would look more alike than it is.

    Args:
        xx: Kernel within the first set, ``(N, N)``.
        yy: Kernel within the second, ``(M, M)``.
        xy: Kernel between them, ``(N, M)``.
        w: How often each case of the first occurs, ``(B, N)``.
        v: How often each case of the second occurs, ``(B, M)``.
    """

    def within(kernel: Rows, weight: Rows) -> Rows:
        apart = kernel - np.diag(np.diag(kernel))
        pairs = weight.sum(1) ** 2 - (weight**2).sum(1)
        mean: Rows = ((weight @ apart) * weight).sum(1) / pairs
        return mean

    between = ((w @ xy) * v).sum(1) / (w.sum(1) * v.sum(1))
    return within(xx, w) + within(yy, v) - 2 * between


@dataclass(frozen=True)
class Neighbours:
    """What the neighbours say, case by case.

    Attributes:
        precision: Of each made case, whether it lies among real ones, ``(M,)``.
        density: Of each made case, how many real neighbourhoods it lies in, over k.
        recall: Of each real case, whether it lies among made ones, ``(N,)``.
        coverage: Of each real case, whether its neighbourhood holds a made one.
        nearest: Of each made case, the distance to the nearest real one.
    """

    precision: Rows
    density: Rows
    recall: Rows
    coverage: Rows
    nearest: Rows


def neighbours(x: Rows, y: Rows, k: int = NEIGHBOURS) -> Neighbours:
    """Precision, recall, density and coverage by case.

    Args:
        x: Features of real cases, ``(N, D)``; more than ``k``.
        y: Features of made ones, ``(M, D)``; more than ``k``.
        k: Which neighbour bounds a neighbourhood, the case itself not counted.
    """
    apart = cdist(x, y)
    real, made = (np.sort(cdist(z, z), axis=1)[:, k] for z in (x, y))
    # Rounding must not put a case outside of a neighbourhood whose border it is.
    within_real = apart <= real[:, None] * (1 + 1e-9)
    within_made = apart <= made[None, :] * (1 + 1e-9)
    return Neighbours(
        within_real.any(0).astype(np.float64),
        within_real.sum(0) / k,
        within_made.any(1).astype(np.float64),
        within_real.any(1).astype(np.float64),
        apart.min(0),
    )


def neighbours_for(fewest: int) -> int:
    """The k for sets of which the smaller has so many cases: 5, and fewer below 20."""
    return max(1, min(NEIGHBOURS, fewest // 4))


class Clusters:
    """Clusters of real features, in place of the classes that the inception score needs.

    A Gaussian mixture with diagonal covariances on at most 8 principal components of the real set.

    Args:
        real: Features of real cases, ``(N, D)``.
        seed: Seed of the first guess.
    """

    def __init__(self, real: Rows, seed: int = 0) -> None:
        self.count = int(np.clip(len(real) // 10, 2, MOST_CLUSTERS))
        dims = min(CLUSTER_DIMS, real.shape[1], len(real) - 1)
        self._pca = PCA(dims, svd_solver="full").fit(real)
        self._mixture = GaussianMixture(
            self.count, covariance_type="diag", reg_covar=1e-2, random_state=seed % 2**32, tol=1e-2
        )
        with warnings.catch_warnings():
            # Fewer clusters than asked for, where cases repeat: as good for a score.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._mixture.fit(self._pca.transform(real))

    def shares(self, rows: Rows) -> Rows:
        """How much of each case belongs to each cluster, ``(N, clusters)``."""
        found: Rows = self._mixture.predict_proba(self._pca.transform(rows))
        return found


def inception_score(shares: Rows) -> float:
    """The exponential of the mean information of a case about its cluster, from 1 on.

    Args:
        shares: How much of each case belongs to each cluster, ``(N, clusters)``.
    """
    logs = np.log(np.maximum(shares, 1e-12)) - np.log(np.maximum(shares.mean(0), 1e-12))
    return float(np.exp((shares * logs).sum(1).mean()))


def percentiles(values: Rows) -> tuple[float, float]:
    """Ends of the interval that holds 95 % of what is finite; NaN if nothing is."""
    held = values[np.isfinite(values)]
    if not len(held):
        return np.nan, np.nan
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(held, (tail, 100 - tail))
    return float(low), float(high)
