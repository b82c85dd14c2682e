"""Wishes of a request: read as people and viewers write them, or refused in a sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medvae3d.apps.wishes import Wishes
from medvae3d.errors import SettingError


def read(**changes: Any) -> Wishes:
    return Wishes.read(**{"seed": 0, "temperature": 1.0, **changes})


@pytest.mark.parametrize(
    "text",
    ["12.5 -30 4", "12.5, -30, 4", "R 12.5, P 30, S 4", "(S 4.0mm, R12.5, P: 30)", [12.5, -30, 4]],
)
def test_crosshair_is_read_as_viewers_show_it(text: Any) -> None:
    assert read(at_mm=text).place_mm(np.eye(4)) == (12.5, -30.0, 4.0)


def test_left_and_inferior_count_the_other_way() -> None:
    assert read(at_mm="L 3, A 2, I 1").at_mm == (-3.0, 2.0, -1.0)


def test_voxel_is_one_of_the_file() -> None:
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = [100, 0, -9]
    assert read(at=("10", 4, 2)).place_mm(affine) == (80.0, 4.0, -3.0)
    assert read().place_mm(affine) is None


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"seed": "abc"}, "seed is 'abc'; allowed are whole numbers from 0"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"volume_ml": [1, 2, 3]}, "volume_ml is"),
        ({"volume_ml": "inf"}, "volume_ml is 'inf'"),
        ({"lesions": 1e9}, "whole numbers from 1 to 50"),
        ({"lesions": 1.5}, "whole numbers from 1 to 50"),
        ({"at": (3, -1, -1)}, "Give all of them, or none"),
        ({"at_mm": "here"}, "Copy them from the viewer's crosshair"),
        ({"at_mm": "1 2"}, "three numbers in mm"),
        ({"at_mm": "R 1, L 2, S 3"}, "three numbers in mm"),
        ({"at": (1, 1, 1), "at_mm": "1 1 1"}, "Leave out one"),
    ],
)
def test_what_is_no_wish_is_refused(wish: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        read(**wish)
