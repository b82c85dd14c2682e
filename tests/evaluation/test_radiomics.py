"""Claims about radiomic features, against the values that IBSI gives for its phantom."""

from __future__ import annotations

import numpy as np
import pytest

from medvae3d.evaluation.radiomics import (
    centre_of_mass_shift,
    cooccurrence,
    cooccurrence_features,
    grey_levels,
    histogram_features,
    intensity_statistics,
    region_features,
    shape_features,
)

# Slices along z, rows along y; 0 is outside of the region. Voxels are 2 mm wide.
PHANTOM = np.array(
    [
        [[1, 4, 4, 1, 1], [1, 4, 6, 1, 1], [4, 1, 6, 4, 1], [4, 4, 6, 4, 1]],
        [[1, 4, 4, 1, 1], [1, 1, 6, 1, 1], [0, 1, 3, 1, 1], [4, 4, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 6, 1, 1]],
    ]
)
SPACING = (2.0, 2.0, 2.0)
INSIDE = PHANTOM > 0

STATISTICS = {
    "mean": 2.15,
    "variance": 3.05,
    "skewness": 1.08,
    "kurtosis": -0.355,
    "median": 1,
    "minimum": 1,
    "10th percentile": 1,
    "90th percentile": 4,
    "maximum": 6,
    "interquartile range": 3,
    "range": 5,
    "mean absolute deviation": 1.55,
    "robust mean absolute deviation": 1.11,
    "median absolute deviation": 1.15,
    "energy": 567,
    "root mean square": 2.77,
}
HISTOGRAM = {"entropy": 1.27, "uniformity": 0.512, "mode": 1}
# Aggregated in 3-D with merging, distance 1.
COOCCURRENCE = {
    "joint maximum": 0.509,
    "joint average": 2.15,
    "joint variance": 3.13,
    "joint entropy": 2.57,
    "difference variance": 3.21,
    "difference entropy": 1.64,
    "sum entropy": 2.11,
    "angular second moment": 0.291,
    "contrast": 5.12,
    "dissimilarity": 1.38,
    "inverse difference": 0.688,
    "inverse difference moment": 0.631,
    "correlation": 0.183,
    "cluster tendency": 7.41,
    "cluster shade": 17.4,
    "cluster prominence": 147,
    "information correlation 1": -0.0288,
    "information correlation 2": 0.269,
}
SHAPE = {
    "volume": 592,
    "major axis length": 11.4,
    "minor axis length": 9.31,
    "least axis length": 8.54,
    "elongation": 0.816,
    "flatness": 0.749,
}


def agrees(found: float, published: float) -> bool:
    """Whether a number rounds to one that was published with three digits."""
    return float(f"{found:.3g}") == pytest.approx(published, rel=1e-9)


@pytest.mark.parametrize(
    ("found", "published"),
    [
        (intensity_statistics(PHANTOM[INSIDE].astype(float)), STATISTICS),
        (histogram_features(PHANTOM[INSIDE]), HISTOGRAM),
        (cooccurrence_features(cooccurrence(PHANTOM)), COOCCURRENCE),
        (shape_features(INSIDE, SPACING), SHAPE),
    ],
    ids=["statistics", "histogram", "co-occurrence", "shape"],
)
def test_every_feature_has_the_published_value_of_the_phantom(found, published):
    wrong = {
        name: (value, published[name])
        for name, value in found.items()
        if not agrees(value, published[name])
    }
    assert set(found) == set(published)
    assert not wrong


def test_the_centre_of_mass_shift_has_the_published_value():
    shift = centre_of_mass_shift(PHANTOM.astype(float), INSIDE, SPACING)
    assert agrees(shift, 0.672)


def test_a_bin_of_fixed_size_begins_at_zero():
    assert grey_levels(np.array([0, 0.24, 0.25, 0.99, 7.0]), 0.25, 4).tolist() == [1, 1, 2, 4, 4]


def test_the_features_of_a_region_do_not_see_what_lies_outside():
    rng = np.random.default_rng(0)
    image = rng.random((9, 8, 7))
    inside = np.zeros(image.shape, dtype=bool)
    inside[2:6, 3:7, 1:5] = rng.random((4, 4, 4)) < 0.7
    before = region_features(image, inside, 1 / 8, 16)
    after = region_features(np.where(inside, image, 5.0), inside, 1 / 8, 16)
    assert before == after


@pytest.mark.parametrize("where", [(slice(2, 3),) * 3, (slice(0, 5),) * 3], ids=["voxel", "flat"])
def test_a_single_voxel_and_a_flat_region_have_finite_features(where):
    image, inside = np.full((5, 5, 5), 0.3), np.zeros((5, 5, 5), dtype=bool)
    inside[where] = True
    found = region_features(image, inside, 1 / 32, 64)
    assert np.isfinite(list(found.values())).all()
    assert found["co-occurrence: contrast"] == 0 and found["histogram: entropy"] == 0
    assert found["statistics: kurtosis"] == 0
