"""Claims about telling members of a training set from others."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medvae3d.evaluation.membership import judged_membership, membership_auc
from medvae3d.evaluation.sections import Light


def test_the_area_is_that_of_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    members, others = rng.integers(1, 8, 30), rng.integers(0, 6, 20)
    truth = roc_auc_score([1] * 30 + [0] * 20, [*members, *others])
    assert membership_auc(members, others, 0).value == pytest.approx(truth)


def test_scores_that_know_nothing_give_a_half():
    """Over 60 pairs of sets: a half on average, and within interval and floor nearly always."""
    rng = np.random.default_rng(1)
    found = [membership_auc(rng.normal(size=30), rng.normal(size=40), s) for s in range(60)]
    assert np.mean([m.value for m in found]) == pytest.approx(0.5, abs=0.03)
    assert sum(m.low <= 0.5 <= m.high for m in found) >= 52
    assert sum(m.floor_low <= m.value <= m.floor_high for m in found) >= 52


def test_members_that_all_score_more_are_told():
    found = membership_auc(np.arange(20) + 100.0, np.arange(20), 0)
    assert (found.value, found.low, found.high) == (1, 1, 1)
    assert judged_membership({"likelihood": found}).light is Light.RED


def test_lights_follow_the_interval():
    rng = np.random.default_rng(2)
    same = membership_auc(rng.normal(size=200), rng.normal(size=200), 0)
    little = membership_auc(rng.normal(0.4, size=300), rng.normal(size=300), 0)
    assert judged_membership({"a": same}).light is Light.GREEN
    assert judged_membership({"a": same, "b": little}).light is Light.AMBER
    few = membership_auc(np.arange(5) + 9, np.arange(5), 0)
    assert judged_membership({"a": few}).light is Light.GREY


def test_what_was_not_measured_does_not_count():
    found = membership_auc([1, 2, np.nan], [0, np.nan, np.nan], 0)
    assert found.value is None and found.n == (2, 1) and "each needs 2" in found.note
    # A likelihood of 0 is a score.
    assert membership_auc([1, 2, -np.inf], [0, 0], 0).value == pytest.approx(2 / 3)
