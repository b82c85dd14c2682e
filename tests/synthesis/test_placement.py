"""Places are drawn where lesions were seen, and only where there is room."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medvae3d.data.phantom import phantom_case
from medvae3d.synthesis.placement import Site, centre_of, find_brain, find_tissue

SHAPE = (30, 30, 30)
NO_MAP = torch.zeros(0, 0, 0)


def site(**changed: Any) -> Site:
    """A brain from 5 to 25 along each axis, its upper half tissue."""
    image = np.zeros(SHAPE, np.float32)
    image[5:25, 5:25, 5:25] = 10
    image[5:25, 5:25, 5:14] = 1
    options = {
        "brain": image > 0,
        "taken": np.zeros(SHAPE, bool),
        "location_map": NO_MAP,
        "finds_tissue": True,
        **changed,
    }
    return Site.of(image, **options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CUBE = np.ones((3, 3, 3), bool)


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ((10, 10, 16), None),
        ((0, 10, 16), "beyond the border"),
        ((10, 10, 28), "beyond the border"),
        ((-4, 10, 16), "beyond the border"),
        ((4, 10, 16), "outside of the brain"),
        ((10, 10, 12), "mostly in CSF"),
        ((10, 10, 13), None),
    ],
)
def test_a_place_is_refused_for_a_reason(start: tuple[int, int, int], reason: str | None) -> None:
    assert site().fault(CUBE, start) == reason


def test_a_twentieth_of_a_mask_may_leave_the_brain() -> None:
    long = np.ones((1, 1, 20), bool)
    here = site(finds_tissue=False)
    assert here.fault(long, (10, 10, 4)) is None
    assert here.fault(long, (10, 10, 3)) == "outside of the brain"


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_one_voxel_stays_between_lesions(gap: int) -> None:
    here = site()
    here.take(CUBE, (10, 10, 16))
    reason = here.fault(CUBE, (13 + gap, 13 + gap, 19 + gap))
    assert (reason is None) == (gap > 0)


def test_lesions_may_lie_on_others_when_asked() -> None:
    here = site()
    here.take(CUBE, (10, 10, 16))
    assert here.fault(CUBE, (11, 10, 16)) == "on or beside another lesion"
    here.keep_apart = False
    assert here.fault(CUBE, (11, 10, 16)) is None


def test_the_place_asked_for_need_not_be_tissue() -> None:
    assert site().fault(CUBE, (10, 10, 8), in_tissue=False) is None


def test_drawn_places_are_good() -> None:
    here = site()
    for seed in range(30):
        start = here.draw(CUBE, generator(seed))
        assert start is not None and here.fault(CUBE, start) is None


def test_places_follow_the_location_map() -> None:
    found = torch.full((10, 10, 10), 0.001)
    found[2, 7, 7] = 100.0
    here = site(location_map=found)
    starts = np.array([here.draw(CUBE, generator(seed)) for seed in range(40)])
    # Cell (2, 7, 7) of ten over a brain from 5 to 25: its middle lies at 9.5, 19.5, 19.5.
    middle = starts.mean(0) + 1
    assert middle == pytest.approx([9.5, 19.5, 19.5], abs=1.0)


def test_a_place_depends_on_its_generator_alone() -> None:
    here = site()
    first = here.draw(CUBE, generator(4))
    here.draw(CUBE, generator(5))
    assert here.draw(CUBE, generator(4)) == first


def test_no_place_is_told_with_its_reasons() -> None:
    here = site(taken=np.ones(SHAPE, bool))
    assert here.draw(CUBE, generator()) is None
    assert here.refused["on or beside another lesion"] > 50


def test_a_map_without_weight_in_tissue_means_anywhere() -> None:
    below = torch.zeros(4, 4, 4)
    below[:, :, 0] = 1
    start = site(location_map=below).draw(CUBE, generator())
    assert start is not None and start[2] >= 12


def test_the_centre_is_the_nearest_voxel() -> None:
    mask = np.zeros((4, 5, 3), bool)
    mask[1:4, 2, :] = True
    assert centre_of(mask) == (2, 2, 1)


def test_ventricles_are_no_tissue() -> None:
    case = phantom_case(0, (84, 96, 80), (2.0, 2.0, 2.0), (0, 0))
    brain = case.brain > 0
    for channel in case.image:
        tissue = find_tissue(channel, brain)
        assert not (tissue & ~brain).any()
        dark = brain & (channel < 0.4 * np.median(channel[brain]))
        assert dark.sum() > 20 and not (tissue & dark).any()
        assert tissue.sum() > 0.85 * brain.sum()


def test_air_in_a_rough_brain_mask_is_no_tissue() -> None:
    case = phantom_case(0, (60, 70, 56), (3.0, 3.0, 3.0), (0, 0))
    brain = case.brain > 0
    image = np.where(brain, case.image[0], 0)
    rough = np.ones(brain.shape, bool)
    assert brain.mean() < 0.5
    np.testing.assert_array_equal(find_tissue(image, rough), find_tissue(image, brain))


def test_a_body_is_filled_where_there_is_no_skull_to_find() -> None:
    i, j, k = np.meshgrid(*map(np.arange, (40, 40, 20)), indexing="ij")
    body = (i - 20) ** 2 + (j - 20) ** 2 < 15**2
    lungs = (i - 20) ** 2 + (j - 20) ** 2 < 5**2
    image = np.where(body & ~lungs, 40, -1000).astype(np.float32)
    found = find_brain(image, (4, 4, 4), has_skull=False)
    assert (found == body).mean() > 0.98
