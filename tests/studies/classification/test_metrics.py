"""Scores of probabilities: known values, scikit-learn, and two ways to the same interval."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as known

from medvae3d.studies.classification import metrics


def cases(count=80, seed=0, gap=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 2
    p = 1 / (1 + np.exp(-(gap * (y - 0.5) + rng.normal(size=count))))
    return y, np.round(p, 2)  # rounded, so that there are ties


def test_scores_agree_with_scikit_learn():
    y, p = cases()
    called = (p >= 0.5).astype(int)
    found = {name: float(values[0]) for name, values in metrics.scores(y, p).items()}
    expected = {
        "auc": known.roc_auc_score(y, p),
        "balanced_accuracy": known.balanced_accuracy_score(y, called),
        "accuracy": known.accuracy_score(y, called),
        "sensitivity": known.recall_score(y, called),
        "specificity": known.recall_score(y, called, pos_label=0),
        "precision": known.precision_score(y, called),
        "recall": known.recall_score(y, called),
        "f1": known.f1_score(y, called),
        "brier": known.brier_score_loss(y, p),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert tuple(found) == metrics.MEASURES


def test_a_weight_counts_as_so_many_cases():
    y, p = cases(20)
    weights = np.random.default_rng(1).integers(0, 4, 20)
    repeated = metrics.scores(np.repeat(y, weights), np.repeat(p, weights))
    weighted = metrics.scores(y, p, weights[None])
    for name, values in repeated.items():
        assert weighted[name][0] == pytest.approx(values[0]), name


def test_delong_gives_the_value_worked_out_by_hand():
    # Positives 0.8, 0.6, 0.4; negatives 0.5, 0.4, 0.1: V = 1, 1, 1/2; W = 2/3, 5/6, 1.
    # var(V) = (1/36 + 1/36 + 1/9) / 2 = 1/12 and var(W) = (1/36 + 0 + 1/36) / 2 = 1/36.
    # So the AUC is 5/6, and its variance (1/12 + 1/36) / 3 = 1/27.
    y = np.array([1, 1, 1, 0, 0, 0])
    p = np.array([0.8, 0.6, 0.4, 0.5, 0.4, 0.1])
    v, w = metrics.auc_parts(y, p)
    np.testing.assert_allclose(v[0], [1, 1, 1 / 2])
    np.testing.assert_allclose(w[0], [2 / 3, 5 / 6, 1])
    value, covariance = metrics.delong(y, [p])
    assert value[0] == pytest.approx(5 / 6)
    assert covariance[0, 0] == pytest.approx(1 / 27)


def test_delong_deviation_is_that_of_a_bootstrap_within_classes():
    y, p = cases(120, seed=3)
    _, covariance = metrics.delong(y, [p])
    rng = np.random.default_rng(0)
    drawn = np.zeros((4000, len(y)))
    for value in (0, 1):
        rows = np.flatnonzero(y == value)
        drawn[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), 4000)
    deviation = metrics.scores(y, p, drawn)["auc"].std()
    assert np.sqrt(covariance[0, 0]) == pytest.approx(deviation, rel=0.05)


def test_delong_interval_holds_the_truth_in_about_95_of_100_studies():
    truth = 0.7602499389  # of two normals whose means lie one deviation apart
    inside = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        y = np.arange(100) % 2
        value, covariance = metrics.delong(y, [rng.normal(size=100) + y])
        inside += abs(value[0] - truth) <= metrics.NORMAL * covariance[0, 0] ** 0.5
    assert 0.90 <= inside / 300 <= 0.985


def test_delong_covariance_of_two_arms_is_that_of_a_paired_bootstrap():
    y, p = cases(120, seed=4)
    q = np.clip(p + 0.2 * np.random.default_rng(1).normal(size=120), 0, 1)
    _, covariance = metrics.delong(y, [p, q])
    drawn = metrics.subject_weights([str(i) for i in range(120)], 0, 4000)
    pair = np.stack([metrics.scores(y, each, drawn)["auc"] for each in (p, q)])
    np.testing.assert_allclose(covariance, np.cov(pair), rtol=0.12)


def test_arms_that_order_cases_alike_do_not_differ():
    y, p = cases()
    found = metrics.delong_test(y, p, p**3)
    assert found.difference == pytest.approx(0, abs=1e-12)
    assert found.p == 1.0


def test_seeds_have_the_mean_of_their_aucs():
    y, p = cases(60)
    q = np.random.default_rng(5).random(60)
    runs = np.stack([p, q])
    mean = (known.roc_auc_score(y, p) + known.roc_auc_score(y, q)) / 2
    assert metrics.measured(y, runs, [str(i) for i in range(60)])["auc"].value == (
        pytest.approx(mean)
    )


def test_patches_of_a_subject_do_not_count_as_subjects():
    y, p = cases(40, seed=6)
    several = [f"patient {i // 2}" for i in range(40)]
    # Each case ten times over says nothing new; only an interval over patches would shrink.
    alone = metrics.measured(y, p, several)["auc"]
    copied = metrics.measured(np.tile(y, 10), np.tile(p, 10), several * 10)["auc"]
    assert copied.n == 20
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high), abs=1e-9)
    wrong = metrics.measured(np.tile(y, 10), np.tile(p, 10), [str(i) for i in range(400)])["auc"]
    assert wrong.high - wrong.low < 0.5 * (alone.high - alone.low)


def test_comparison_turns_its_sign_with_the_arms():
    y, p = cases(40)
    q = np.random.default_rng(2).random(40)
    several = [f"patient {i // 2}" for i in range(40)]
    for subjects in (several, [str(i) for i in range(40)]):
        ahead, behind = (metrics.compared(y, a, b, subjects) for a, b in ((p, q), (q, p)))
        for name in metrics.MEASURES:
            assert ahead[name].difference == pytest.approx(-behind[name].difference)
            assert ahead[name].low == pytest.approx(-behind[name].high)
            assert ahead[name].p == pytest.approx(behind[name].p)
    assert ahead["auc"].p < 0.05


def test_all_pairs_in_order_have_no_interval_and_say_so():
    found = metrics.measured([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], list("abcd"))["auc"]
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert "in order" in found.note


def test_one_subject_has_no_interval_and_no_p_value():
    y, p = [0, 1, 0, 1], [[0.2, 0.6, 0.7, 0.9]]
    found = metrics.measured(y, p, ["a"] * 4)["auc"]
    assert found.value == 0.75 and found.low is None and found.note == "no interval: one subject"
    other = metrics.compared(y, p, [[0.5, 0.4, 0.3, 0.9]], ["a"] * 4)["auc"]
    assert other.difference == 0 and other.low is None and other.p is None
