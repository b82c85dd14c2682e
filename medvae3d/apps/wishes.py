"""What a request wishes for: numbers that a form or a viewer may send as text, read and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medvae3d.errors import SettingError
from medvae3d.geometry import TripleMM

Numbers: TypeAlias = "float | str | Sequence[float]"
ANYWHERE = (-1, -1, -1)
MOST_LESIONS = 50
LARGEST_SEED = 2**63 - 1
# Axis of a letter, and the direction along the world's right, anterior or superior.
LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
COORDINATE = re.compile(r"([RLAPSI]?)\s*[:=]?\s*([-+]?\d+(?:\.\d*)?)\s*(?:mm)?", re.IGNORECASE)


@dataclass(frozen=True)
class Wishes:
    """What is wished for.

    Attributes:
        seed: Seed.
        temperature: Scales the deviation of latents.
        volume_ml: Smallest and largest volume of the mask or of each lesion; ``None`` for any.
        lesions: Fewest and most lesions; ``None`` for any number.
        at: Voxel of the host as its file stores it; ``None`` for anywhere.
        at_mm: The same in mm along right, anterior, superior; ``None`` for anywhere.
    """

    seed: int = 0
    temperature: float = 1.0
    volume_ml: tuple[float, float] | None = None
    lesions: tuple[int, int] | None = None
    at: TripleMM | None = None
    at_mm: TripleMM | None = None

    @classmethod
    def read(
        cls,
        seed: int | str,
        temperature: float | str,
        volume_ml: Numbers = 0.0,
        lesions: Numbers = 0,
        at: Sequence[float | str] = ANYWHERE,
        at_mm: str | Sequence[float] = "",
    ) -> Wishes:
        """Reads wishes as a configuration or a request brings them.

        Raises:
            SettingError: If one cannot be what it is called.
        """
        voxel, place = _voxel(at), _place(at_mm)
        if voxel is not None and place is not None:
            raise SettingError(
                f"a place was asked for twice: voxel {voxel} and at_mm {at_mm!r}. Leave out one."
            )
        warmth = _number(temperature, "temperature")
        if not 0 <= warmth < math.inf:
            raise SettingError(f"temperature is {temperature!r}; allowed is a number from 0 on.")
        return cls(
            _seed(seed),
            warmth,
            number_range(volume_ml, "volume_ml"),
            lesion_range(lesions),
            voxel,
            place,
        )

    def place_mm(self, affine: NDArray[np.float64]) -> TripleMM | None:
        """The place in mm of the world.

        Args:
            affine: Of the host as its file stores it.
        """
        if self.at is None:
            return self.at_mm
        x, y, z = (np.asarray(affine, np.float64) @ [*self.at, 1.0])[:3].tolist()
        return (x, y, z)


def number_range(value: Numbers, name: str) -> tuple[float, float] | None:
    """A number as a range of one value, two numbers as they are, 0 as no wish.

    Raises:
        SettingError: If it is neither.
    """
    ends: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    try:
        low, high = float(ends[0]), float(ends[-1])
        if len(ends) > 2 or not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(ends)
    except (TypeError, ValueError, IndexError) as error:
        raise SettingError(
            f"{name} is {value!r}; allowed are a number, two numbers (smallest and largest), or 0 "
            f"for any."
        ) from error
    return (low, high) if low or high else None


def lesion_range(value: Numbers) -> tuple[int, int] | None:
    """Fewest and most lesions, ``None`` for any number.

    Raises:
        SettingError: If they are no whole numbers from 1 to `MOST_LESIONS`.
    """
    wanted = number_range(value, "lesions")
    if wanted is None:
        return None
    low, high = wanted
    if low != int(low) or high != int(high) or not 1 <= low <= high <= MOST_LESIONS:
        raise SettingError(
            f"lesions is {value!r}; allowed are whole numbers from 1 to {MOST_LESIONS}, the "
            f"smaller one first, or 0 for any."
        )
    return int(low), int(high)


def _seed(value: int | str) -> int:
    try:
        seed = int(str(value).strip())
    except ValueError:
        seed = -1
    if not 0 <= seed <= LARGEST_SEED:
        raise SettingError(
            f"seed is {value!r}; allowed are whole numbers from 0 to {LARGEST_SEED}. Write one in "
            f"digits, for example 3."
        )
    return seed


def _number(value: float | str, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise SettingError(f"{name} is {value!r}; allowed is a number. Write one.") from error


def _voxel(at: Sequence[float | str]) -> TripleMM | None:
    given = [_number(index, f"at_{axis}") for axis, index in zip("xyz", at, strict=True)]
    if all(index < 0 for index in given):
        return None
    if any(not 0 <= index < math.inf for index in given):
        raise SettingError(
            f"at_x, at_y, at_z are {', '.join(f'{index:g}' for index in given)}; allowed are three "
            f"numbers from 0 on, or -1 for all three. Give all of them, or none."
        )
    return (given[0], given[1], given[2])


def _place(text: str | Sequence[float]) -> TripleMM | None:
    """Three numbers, or what a viewer shows beside its crosshair."""
    if not isinstance(text, str):
        text = " ".join(str(number) for number in text)
    if not text.strip():
        return None
    found = COORDINATE.findall(text)
    rest = COORDINATE.sub("", text).strip(" ()[],;\t")
    letters = [letter.upper() for letter, _ in found]
    axes = [LETTERS[letter][0] if letter else axis for axis, letter in enumerate(letters)]
    if len(found) != 3 or rest or sorted(axes) != [0, 1, 2]:
        raise SettingError(
            f"at_mm is {text!r}; allowed are three numbers in mm, right, anterior, superior, as in "
            f"'12.5 -30 4', or with letters as in 'R 12.5, P 30, S 4'. Copy them from the viewer's "
            f"crosshair."
        )
    place = [0.0, 0.0, 0.0]
    for axis, letter, (_, number) in zip(axes, letters, found, strict=True):
        place[axis] = float(number) * (LETTERS[letter][1] if letter else 1)
    return (place[0], place[1], place[2])
