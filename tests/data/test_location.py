"""Lesions are placed where lesions were, whatever the size of the brain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medvae3d.data.location import bounding_box, fit_location_map, location_weights
from medvae3d.errors import GridMismatchError, LabelError, SettingError


def ellipsoid(shape: tuple[int, int, int], centre: tuple, radius: float) -> np.ndarray:
    grids = np.meshgrid(*map(np.arange, shape), indexing="ij")
    scaled = [(g - c) / radius for g, c in zip(grids, centre, strict=True)]
    return sum(s**2 for s in scaled) < 1


def test_the_box_is_the_smallest() -> None:
    inside = np.zeros((5, 6, 7))
    inside[1:3, 2, 4:7] = 2
    assert bounding_box(inside) == (slice(1, 3), slice(2, 3), slice(4, 7))


def test_lesions_are_found_where_they_were() -> None:
    brain = np.ones((40, 40, 40))
    mask = np.zeros_like(brain)
    mask[8:12, 20:24, 28:32] = 1
    found = fit_location_map([(mask, brain)], size=10, smoothing=0, is_symmetric=False)
    assert found.max() == 1
    assert found.argmax() == np.ravel_multi_index((2, 5, 7), (10, 10, 10))
    assert (found > 0).sum() == 1


def test_a_map_carries_over_to_a_brain_of_another_size_and_place() -> None:
    brain = ellipsoid((40, 44, 40), (20, 22, 20), 16)
    mask = ellipsoid((40, 44, 40), (20, 30, 20), 3) & brain
    found = fit_location_map([(mask, brain)], size=16, smoothing=0.7)
    host = ellipsoid((90, 90, 90), (50, 40, 40), 32)
    weights = location_weights(found, host)
    grids = np.meshgrid(*[np.arange(90)] * 3, indexing="ij")
    mean = [float((weights * g).sum() / weights.sum()) for g in grids]
    # Half the way from the centre to the front, in a brain of twice the size.
    assert mean == pytest.approx([50, 56, 40], abs=1.0)
    assert not weights[~host].any()


def test_every_case_counts_the_same() -> None:
    brain = np.ones((32, 32, 32))
    few, many = np.zeros_like(brain), np.zeros_like(brain)
    few[4, 4, 4] = 1
    many[20:28, 20:28, 20:28] = 1
    found = fit_location_map([(few, brain), (many, brain)], 4, 0, is_symmetric=False)
    assert found[0, 0, 0] == pytest.approx(float(found[2:, 2:, 2:].sum()))


def test_sides_are_averaged() -> None:
    brain = np.ones((32, 32, 32))
    mask = np.zeros_like(brain)
    mask[2:5, 10:12, 10:12] = 1
    found = fit_location_map([(mask, brain)], 8)
    torch.testing.assert_close(found, found.flip(0))
    one_side = fit_location_map([(mask, brain)], 8, is_symmetric=False)
    assert one_side[:4].sum() > 10 * one_side[4:].sum()


def test_the_map_is_a_density_over_brain_not_over_the_box() -> None:
    """A cell that the brain fills by a tenth is as likely as others, voxel by voxel."""
    brain = ellipsoid((40, 40, 40), (20, 20, 20), 18)
    found = fit_location_map([(brain, brain)], 8, 0.5)
    inside = found[found > 0]
    torch.testing.assert_close(inside, torch.ones_like(inside))


def test_boxes_smaller_than_the_map_leave_no_gaps() -> None:
    brain = np.ones((7, 9, 5))
    found = fit_location_map([(brain, brain)], 16, 0)
    torch.testing.assert_close(found, torch.ones_like(found))


@pytest.mark.parametrize("empty", [torch.zeros(8, 8, 8), torch.zeros(0, 0, 0)])
def test_an_empty_map_means_anywhere_in_the_brain(empty: torch.Tensor) -> None:
    brain = ellipsoid((20, 20, 20), (10, 10, 10), 8)
    np.testing.assert_array_equal(location_weights(empty, brain), brain)


def test_a_map_that_misses_the_brain_means_anywhere() -> None:
    brain = np.zeros((16, 16, 16), bool)
    brain[:8, :, 0] = brain[8:, :, 15] = True
    found = torch.zeros(4, 4, 4)
    found[0, :, 3] = 1
    np.testing.assert_array_equal(location_weights(found, brain), brain)


def test_a_set_without_lesions_gives_an_empty_map() -> None:
    brain = np.ones((8, 8, 8))
    assert not fit_location_map([(0 * brain, brain)], 4).any()


def test_channel_axes_are_dropped() -> None:
    brain = np.ones((1, 8, 8, 8))
    assert fit_location_map([(brain, torch.from_numpy(brain))], 4).shape == (4, 4, 4)


def test_bad_requests_are_refused() -> None:
    brain = np.ones((8, 8, 8))
    with pytest.raises(SettingError, match="2 cells or more"):
        fit_location_map([(brain, brain)], 1)
    with pytest.raises(GridMismatchError, match="case 0"):
        fit_location_map([(brain[:4], brain)])
    with pytest.raises(LabelError, match="at least one voxel"):
        fit_location_map([(brain, 0 * brain)])
    with pytest.raises(LabelError, match="at least one voxel"):
        location_weights(torch.ones(4, 4, 4), 0 * brain)
