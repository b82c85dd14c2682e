"""Weights, offsets and grain with which what was made is joined with a scan."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medvae3d.synthesis import blending

NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


def test_weights_are_one_inside_and_end_in_nothing() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[7:13, 8:12, 9:11] = True
    weights = blending.blend_weights(mask)
    assert (weights[mask] == 1).all()
    reach = ndimage.binary_dilation(mask, NEIGHBOURS, blending.REACH)
    assert not weights[~reach].any() and (weights <= 1).all() and (weights >= 0).all()
    profile = weights[10, 10, 10:]
    assert (np.diff(profile) <= 0).all()
    assert 0 < weights[weights > 0].min() < 0.02


def test_the_offset_is_what_a_ring_shows() -> None:
    mask = np.zeros((24, 24, 24), bool)
    mask[9:15, 9:15, 9:15] = True
    ring = blending.ring_around(mask, 2, np.ones_like(mask))
    assert not (ring & ndimage.binary_dilation(mask, NEIGHBOURS, 2)).any()
    difference = np.full((1, 24, 24, 24), 5, np.float32)
    difference[:, mask] = 40
    np.testing.assert_allclose(blending.smooth_offset(difference, ring)[0][mask], 5, rtol=1e-3)
    nothing = blending.smooth_offset(difference, np.zeros_like(ring))
    assert not nothing.any()


def test_a_membrane_carries_what_is_linear_around_a_region_into_it() -> None:
    axes = np.indices((14, 12, 10)).astype(np.float32)
    difference = np.stack([3 + 2 * axes[0] - axes[1] + 0.5 * axes[2], 0 * axes[0] + 7])
    region = np.zeros(axes.shape[1:], bool)
    region[4:9, 3:8, 2:7] = True
    region[6, 5, 7] = True
    shown = np.where(region, 100, difference)
    found = blending.membrane_offset(shown, region, ~region)
    np.testing.assert_allclose(found[:, region], difference[:, region], atol=2e-3)
    assert not found[:, ~region].any()


def test_a_membrane_has_no_slope_where_nothing_is_known() -> None:
    region = np.zeros((10, 8, 8), bool)
    region[:4] = True
    region[8:, 2:4, 2:4] = True
    known = np.zeros_like(region)
    known[4] = True
    found = blending.membrane_offset(np.full((1, *region.shape), 5, np.float32), region, known)
    np.testing.assert_allclose(found[0, :4], 5, rtol=1e-4)
    assert not found[0, 4:].any()


def test_grain_is_noise_without_edges() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 2, (24, 24, 24)).astype(np.float32)
    edge = np.zeros_like(noise)
    edge[12:] = 500
    strength = blending.noise_of(noise + edge, np.ones(noise.shape, bool))
    assert 1.5 < strength < 2.2
    grain = blending.grain_of((noise + edge)[None], [strength])[0]
    assert np.abs(grain).max() < 5
    assert 1 < grain[:8].std() < 2
