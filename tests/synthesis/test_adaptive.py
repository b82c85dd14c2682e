"""Claims about how samples are parted among classes."""

from __future__ import annotations

import pytest

from medvae3d.errors import SettingError
from medvae3d.synthesis.adaptive import adaptive_counts


@pytest.mark.parametrize("total", [0, 1, 7, 100, 1001])
def test_counts_add_up_and_the_weaker_class_never_gets_fewer(total):
    recalls = {"a": 0.95, "b": 0.7, "c": 0.4}
    counts = adaptive_counts(recalls, total)
    assert list(counts) == ["a", "b", "c"]
    assert sum(counts.values()) == total
    assert counts["a"] <= counts["b"] <= counts["c"]


def test_no_class_falls_below_the_floor():
    counts = adaptive_counts({"known": 1.0, "missed": 0.0}, 1000, floor=0.3)
    assert counts == {"known": 150, "missed": 850}


@pytest.mark.parametrize("recalls", [{"a": 0.8, "b": 0.8}, {"a": 1.0, "b": 1.0}])
def test_equal_recalls_are_uniform_sampling(recalls):
    assert adaptive_counts(recalls, 10) == {"a": 5, "b": 5}
    assert adaptive_counts({"a": 0.1, "b": 0.9}, 10, sharpness=0.0) == {"a": 5, "b": 5}


@pytest.mark.parametrize(
    "wrong", [{}, {"a": 1.2}, {"a": float("nan")}], ids=["no class", "above 1", "not a number"]
)
def test_recalls_that_are_none_are_refused(wrong):
    with pytest.raises(SettingError, match="Measure them on validation cases"):
        adaptive_counts(wrong, 10)
