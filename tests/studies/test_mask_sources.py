"""Masks for a second stage: real ones, and balls that keep volumes and places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.evaluation.cases import mask_cases
from medvae3d.geometry import Grid
from medvae3d.studies.mask_sources import ball_like, given_masks

GRID = Grid.centred((12, 12, 12), (1.0, 1.0, 2.0))


def label(start=2, stop=9):
    made = np.zeros((12, 12, 12), np.uint8)
    made[start:stop, 4:6, 3:8] = 1
    made[start:stop, 6:7, 3:8] = 3
    return made


def cases(*labels):
    names = [f"case {index}" for index in range(len(labels))]
    return mask_cases([torch.from_numpy(each)[None] for each in labels], names)


def test_a_ball_has_as_many_voxels_of_each_label_and_the_centre_of_the_mask():
    real = label()
    ball = ball_like(real, GRID.spacing)
    assert np.bincount(ball.ravel()).tolist() == np.bincount(real.ravel()).tolist()
    centre = [np.argwhere(each > 0).mean(0) for each in (ball, real)]
    np.testing.assert_allclose(*centre, atol=0.5)


def test_no_voxel_outside_a_ball_is_nearer_to_its_centre_than_one_inside():
    real = label()
    ball = ball_like(real, GRID.spacing) > 0
    centre = np.argwhere(real > 0).mean(0)
    apart = np.linalg.norm((np.indices(real.shape).T - centre) * GRID.spacing, axis=-1).T
    assert apart[ball].max() <= apart[1:-1, 1:-1, 1:-1][~ball[1:-1, 1:-1, 1:-1]].min() + 1e-9
    assert apart[ball].max() < apart[real > 0].max()  # the mask is longer


def test_labels_of_a_ball_lie_in_the_direction_that_they_lie_in_the_mask():
    ball = ball_like(label(), GRID.spacing)
    first, second = (np.argwhere(ball == value).mean(0) for value in (1, 3))
    assert second[1] > first[1] + 1
    np.testing.assert_allclose(second[[0, 2]], first[[0, 2]], atol=0.6)


def test_both_sources_draw_the_same_cases_each_once_before_any_again():
    given = cases(label(2, 9), label(2, 8), label(3, 7), np.zeros_like(label()), label(0, 12))
    real, balls = (given_masks(name, given, GRID, 6, seed=1) for name in ("real", "balls"))
    volumes = [int((each.array > 0).sum()) for each in real]
    assert volumes == [int((each.array > 0).sum()) for each in balls]
    # The empty mask and the one that reaches both borders are left out.
    assert sorted(volumes[:3]) == sorted(volumes[3:]) == [4 * 15, 6 * 15, 7 * 15]
    with pytest.raises(SettingError, match="real, balls"):
        given_masks("cubes", given, GRID, 1, seed=0)
    with pytest.raises(SettingError, match="none of 1 masks"):
        given_masks("real", cases(np.zeros_like(label())), GRID, 1, seed=0)
