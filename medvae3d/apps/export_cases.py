"""What all formats of an export read from a case and its list: names, labels, what is synthetic."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvae3d.data.datalists import Case, DataList, read_json
from medvae3d.data.nifti import grid_of, read_stored, write_stored
from medvae3d.data.volumes import write_bytes
from medvae3d.errors import DataListError, SettingError
from medvae3d.files import json_bytes
from medvae3d.geometry import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray


def facts_of(case: Case, listed: DataList) -> dict[str, Any]:
    """What a sidecar says: whether the case is synthetic, and its record if it has one."""
    path = listed.root / "records" / f"{case.name}.json"
    is_beside = Path(case.name).name == case.name  # a name may be anything, also ../x
    record = read_json(path, "record") if is_beside and path.is_file() else {}
    synthetic = bool(record.get("synthetic", listed.info.get("synthetic", False)))
    words = "synthetic, made by a generative model" if synthetic else "as in the data list"
    facts: dict[str, Any] = {"Synthetic": synthetic, "Description": words}
    return {**facts, **({"Record": record} if record else {})}


def channel_names(info: Mapping[str, Any]) -> list[str]:
    """The names of the channels, as far as a list has them."""
    for key in ("channel_names", "channels", "modality"):
        found = info.get(key)
        if isinstance(found, dict):
            return [str(name) for name in found.values()]
        if isinstance(found, list):
            return [str(name) for name in found]
    return []


def label_names(listed: DataList) -> dict[str, int]:
    """Name and value of each label, whichever way round the list has them."""
    found = listed.info.get("labels") or {"background": 0, "lesion": 1}
    try:
        pairs = {str(name): int(value) for name, value in found.items()}
    except (TypeError, ValueError):
        pairs = {str(name): int(value) for value, name in found.items()}
    return {"background" if value == 0 else name: value for name, value in pairs.items()}


def require_different(names: Sequence[str], words: Sequence[str], what: str) -> None:
    """Checks that channels are told apart by what a format calls them.

    Args:
        names: The channels.
        words: What each is called.
        what: What is called so, for the message.

    Raises:
        SettingError: If two are called the same.
    """
    for number, word in enumerate(words):
        other = words.index(word)
        if other != number:
            raise SettingError(
                f"the channels {names[other]!r} and {names[number]!r} would both have the {what} "
                f"{word}; allowed is one channel each. Name them otherwise with --channels, in "
                f"order."
            )


def letters(name: str) -> str:
    """A name of letters, digits and lines."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "case"


def read_channel(path: Path) -> tuple[NDArray[Any], Any, Grid]:
    """The voxels of one channel as they are stored, ``(I, J, K)``, their header, where they lie.

    Raises:
        DataListError: If the file holds several channels.
    """
    stored, header = read_stored(path, f"image {path}")
    grid = grid_of(header, f"image {path}")
    if stored.size != np.prod(grid.shape):
        raise DataListError(
            f"image {path} holds several channels; allowed is one file a channel. Part it, for "
            f"example with medvae3d data import."
        )
    return stored.reshape(grid.shape, order="F"), header, grid


def copy_volume(path: Path, place: Path) -> Grid:
    """Writes a volume with the voxels as they are stored; returns where they lie.

    Raises:
        DataListError: If it holds several channels.
    """
    stored, header, grid = read_channel(path)
    write_stored(place, stored, grid, header)
    return grid


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON; the same content gives the same bytes."""
    write_bytes(path, json_bytes(content))
