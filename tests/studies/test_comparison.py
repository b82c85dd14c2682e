"""Paired comparisons: against scipy, and against Holm by hand."""

import numpy as np
import pytest
from scipy import stats

from medvae3d.studies.comparison import compare, holm, over_seeds, paired, signed_rank


def scores(values):
    return {f"subject {i}": v for i, v in enumerate(values)}


def test_holm_is_that_of_a_table_worked_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; none may fall.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_keeps_one_value_and_ends_at_one():
    assert holm([0.02]) == [0.02]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_signed_rank_test_is_scipys():
    differences = np.random.default_rng(0).normal(0.3, 1, 15)
    assert signed_rank(differences) == stats.wilcoxon(differences).pvalue


def test_arms_that_do_not_differ_have_a_p_value_of_one():
    # 0.1 + 0.2 differs from 0.3 in its last bit.
    found = paired(scores([0.1 + 0.2, 0.5, 0.7]), scores([0.3, 0.5, 0.7]))
    assert found.p == 1.0
    assert not found.is_clear


def test_the_difference_is_paired_by_name_and_not_by_place():
    a = {"x": 0.9, "y": 0.2, "only here": 0.0}
    b = {"y": 0.1, "x": 0.7, "z": 1.0}
    found = paired(a, b)
    assert found.difference == pytest.approx(0.15)
    assert found.subjects == 2


def test_a_subject_counts_once_however_many_seeds_it_has():
    found = over_seeds([{"a": 0.2, "b": 1.0}, {"a": 0.4, "b": None}])
    assert found == {"a": pytest.approx(0.3), "b": 1.0}


def test_the_interval_of_a_shift_without_spread_is_that_shift():
    base = np.linspace(0.1, 0.9, 10)
    found = paired(scores(base + 0.05), scores(base))
    assert (found.low, found.high) == (pytest.approx(0.05), pytest.approx(0.05))


def test_a_planted_gain_is_clear_and_noise_is_not():
    rng = np.random.default_rng(1)
    base = rng.uniform(0.4, 0.9, 20)
    arms = {
        "base": scores(base),
        "better": scores(base + rng.normal(0.05, 0.02, 20)),
        "same": scores(base + rng.normal(0, 0.02, 20)),
    }
    found = compare(arms, "base")
    assert list(found) == ["better", "same"]
    assert found["better"].is_clear
    assert found["better"].p_corrected == pytest.approx(2 * found["better"].p)
    assert not found["same"].is_clear


def test_an_arm_without_a_subject_in_common_is_said_to_have_none():
    found = compare({"base": scores([0.5]), "other": {"elsewhere": 0.1}}, "base")["other"]
    assert (found.difference, found.p, found.subjects) == (None, None, 0)
