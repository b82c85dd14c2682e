"""Claims about distances of two sets of features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_mmd
from monai.metrics.fid import get_fid_score

from medvae3d.evaluation.two_sample import (
    Clusters,
    Standard,
    frechet,
    gaussian,
    inception_score,
    kernel_distance,
    median_distance,
    neighbours,
    neighbours_for,
    polynomial,
    weighted_kernel_distance,
)


def draws(count, dims=5, seed=0, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).normal(size=(count, dims))


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")
def test_frechet_distance_agrees_with_monai():
    x, y = draws(60), draws(50, seed=1, mean=0.4, scale=1.5) @ np.diag([1, 2, 3, 0.5, 0.1])
    expected = get_fid_score(torch.from_numpy(y), torch.from_numpy(x)).item()
    assert frechet(x, y) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_is_that_of_the_gaussians():
    """Means 1 apart in each of 5 dimensions, deviations 1 and 2: 5 + 5 (2 - 1)^2 = 10."""
    x, y = draws(200_000), draws(200_000, seed=1, mean=1, scale=2)
    assert frechet(x, y) == pytest.approx(10, rel=0.01)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_shrinking_lessens_the_distance_of_equal_distributions_with_few_cases():
    x, y = draws(30, 40), draws(30, 40, seed=1)
    assert frechet(x, y, shrink=True) < frechet(x, y) / 2


def test_the_kernel_distance_with_a_linear_kernel_is_monais():
    x, y = draws(20), draws(20, seed=1, mean=0.3)
    expected = compute_mmd(torch.from_numpy(x), torch.from_numpy(y), None).item()
    assert kernel_distance(x, y, lambda a, b: a @ b.T) == pytest.approx(expected)


@pytest.mark.parametrize("kernel", [polynomial, gaussian(3.0)])
def test_the_kernel_distance_is_unbiased_at_zero_and_sees_the_variance(kernel):
    same = [
        kernel_distance(draws(20, seed=2 * s), draws(20, seed=2 * s + 1), kernel)
        for s in range(300)
    ]
    wider = [
        kernel_distance(draws(20, seed=2 * s), draws(20, seed=2 * s + 1, scale=2), kernel)
        for s in range(50)
    ]
    error = np.std(same) / len(same) ** 0.5
    assert abs(np.mean(same)) < 3 * error
    assert np.mean(wider) > 10 * error


def test_copies_of_a_case_do_not_bring_sets_closer_or_further_apart():
    """Every case twice is the same sample; pairs of copies would make it look more alike."""
    x, y = draws(12), draws(9, seed=1)
    parts = polynomial(x, x), polynomial(y, y), polynomial(x, y)
    doubled = weighted_kernel_distance(*parts, np.full((1, 12), 2.0), np.full((1, 9), 2.0))
    assert doubled[0] == pytest.approx(kernel_distance(x, y, polynomial))


def test_equal_sets_have_full_precision_and_far_sets_none():
    x = draws(40)
    same, far = neighbours(x, x), neighbours(x, x + 100)
    for name in ("precision", "recall", "coverage"):
        assert getattr(same, name).mean() == 1
        assert getattr(far, name).mean() == 0
    assert far.density.mean() == 0


def test_coverage_and_density_of_equal_distributions_are_those_of_the_paper():
    """Naeem et al.: density 1, coverage 1 - prod (N - i) / (N + M - i) for i = 1 to k."""
    n, m, k = 60, 40, 5
    found = [neighbours(draws(n, seed=2 * s), draws(m, seed=2 * s + 1), k) for s in range(200)]
    steps = np.arange(1, k + 1)
    expected = 1 - np.prod((n - steps) / (n + m - steps))
    assert np.mean([f.coverage.mean() for f in found]) == pytest.approx(expected, abs=0.01)
    assert np.mean([f.density.mean() for f in found]) == pytest.approx(1, abs=0.03)


def test_neighbours_agree_with_their_definitions_written_out():
    x, y, k = draws(15, 2), draws(12, 2, seed=1, mean=0.5), 3
    found = neighbours(x, y, k)
    radius = [sorted(np.linalg.norm(x - a, axis=1))[k] for a in x]
    other = [sorted(np.linalg.norm(y - b, axis=1))[k] for b in y]
    for j, b in enumerate(y):
        hits = [np.linalg.norm(a - b) <= r for a, r in zip(x, radius, strict=True)]
        assert found.precision[j] == any(hits)
        assert found.density[j] == pytest.approx(sum(hits) / k)
    for i, a in enumerate(x):
        assert found.recall[i] == any(
            np.linalg.norm(a - b) <= r for b, r in zip(y, other, strict=True)
        )
        assert found.coverage[i] == (np.linalg.norm(y - a, axis=1).min() <= radius[i])


def test_fewer_neighbours_are_asked_of_small_sets():
    assert [neighbours_for(n) for n in (2, 8, 20, 400)] == [1, 2, 5, 5]


def test_collapse_keeps_precision_and_loses_recall():
    x = draws(60)
    found = neighbours(x, x[:1] + 0.01 * draws(60, seed=1))
    assert found.precision.mean() > 0.95
    assert found.recall.mean() < 0.1 and found.coverage.mean() < 0.5


def test_the_inception_type_score_counts_clear_and_even_clusters():
    even = np.eye(4)[np.arange(40) % 4]
    assert inception_score(even) == pytest.approx(4)
    assert inception_score(even[::4]) == pytest.approx(1)
    assert inception_score(np.full((40, 4), 0.25)) == pytest.approx(1)


def test_clusters_are_found_in_real_features_and_missed_by_a_collapsed_set():
    centres = 20 * np.eye(5)
    x = np.concatenate([draws(20, seed=s) + centre for s, centre in enumerate(centres)])
    clusters = Clusters(x, seed=0)
    score = inception_score(clusters.shares(x))
    assert 4.5 < score <= clusters.count
    assert inception_score(clusters.shares(x[:20])) < 0.5 * score


def test_features_are_standardised_by_the_real_set_alone():
    x, y = draws(50, mean=3, scale=2), draws(30, seed=1, mean=5)
    standard = Standard.fit(x, y)
    np.testing.assert_allclose(standard(x).mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(standard(x).std(0), 1)
    np.testing.assert_allclose(standard(y), (y - x.mean(0)) / x.std(0))


def test_a_feature_that_is_constant_among_real_cases_is_not_lost():
    x, y = draws(20, 2), draws(20, 2, seed=1)
    x[:, 1], y[:, 1] = 4.0, 7.0
    standard = Standard.fit(x, y)
    assert (standard(y)[:, 1] == 2).all()
    x[:, 1] = y[:, 1] = 4.0
    assert Standard.fit(x, y).kept.tolist() == [True, False]


def test_no_single_outlier_is_all_of_a_distance():
    x, y = draws(30), draws(30, seed=1)
    y[0, 0] = 1e9
    assert np.abs(Standard.fit(x, y)(y)).max() == 10


def test_many_features_become_axes_that_keep_every_length():
    x, y = draws(40, 400), draws(30, 400, seed=1)
    standard = Standard.fit(x, y)
    plain = np.clip((y - x.mean(0)) / x.std(0), -10, 10)
    assert standard(y).shape == (30, 40)
    np.testing.assert_allclose(np.linalg.norm(standard(y), axis=1), np.linalg.norm(plain, axis=1))


def test_the_median_distance_leaves_out_a_case_and_itself():
    assert median_distance(np.array([[0.0], [1.0], [3.0]])) == 2
