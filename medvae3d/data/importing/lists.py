"""MONAI data lists: a JSON file whose cases may be of any format that SimpleITK reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvae3d.data.datalists import read_datalist
from medvae3d.data.importing.common import (
    FoundCase,
    Layout,
    is_volume,
    require_channels,
    require_unique,
    safe,
    some,
)
from medvae3d.errors import DataListError

KEPT = ("name", "description", "licence", "reference")


def find_list(source: Path, channels: Sequence[str] | None = None) -> Layout:
    """Finds the cases of a data list, with its splits.

    Args:
        source: The JSON file; paths inside are relative to its folder.
        channels: Names that the channels should have.

    Raises:
        DataListError: If the list, or a case in it, cannot be imported.
        UnreadableFileError: If a file that it names does not exist.
    """
    if source.is_dir():
        raise DataListError(
            f"{source} is a folder; --format monai takes a data list. Give the JSON file."
        )
    listed = read_datalist(source)
    bare = [case.name for case in listed if not case.image]
    if bare:
        raise DataListError(
            f"{source}: {some(bare)} have no image; an import needs one for each case. Add them, "
            f"or take the entries out."
        )
    foreign = [file for case in listed for file in case.files if not is_volume(file)]
    if foreign:
        raise DataListError(
            f"{source} names {some(foreign, 3)}; allowed are NIfTI, NRRD and MetaImage files. "
            f"Import DICOM series by their folders."
        )
    cases = []
    for case in listed:
        files = tuple((file,) for file in case.image)
        is_test = case.split == "testing"
        name, split = safe(case.name), case.split
        cases.append(FoundCase(name, case.subject, files, case.label, is_test, split, case.missing))
    require_unique(cases, source)
    names = tuple(_names(listed.info))
    if channels is not None and names:
        require_channels(names, channels, source)
    info = {key: listed.info[key] for key in KEPT if key in listed.info}
    return Layout(
        "monai",
        source.parent,
        tuple(cases),
        tuple(channels or names),
        _labels(listed.info.get("labels")),
        has_splits=True,
        info=info,
    )


def _names(info: Any) -> list[str]:
    for key in ("channels", "channel_names", "modality"):
        found = info.get(key)
        if isinstance(found, (dict, list)):
            return [str(name) for name in (found.values() if isinstance(found, dict) else found)]
    return []


def _labels(found: Any) -> dict[str, str]:
    """Value and name of each label, whichever way round the list has them."""
    if not isinstance(found, dict):
        return {}
    is_named = all(isinstance(value, int) for value in found.values())
    return {str(v): str(k) for k, v in found.items()} if is_named else {
        str(k): str(v) for k, v in found.items()
    }  # fmt: skip
