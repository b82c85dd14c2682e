"""Data sets of the Medical Segmentation Decathlon: ``dataset.json`` with pairs of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvae3d.data.datalists import read_json, require_name
from medvae3d.data.importing.common import (
    FoundCase,
    Layout,
    require_channels,
    require_unique,
    safe,
    some,
    stem_of,
)
from medvae3d.errors import DataListError, UnreadableFileError


def find_decathlon(source: Path, channels: Sequence[str] | None = None) -> Layout:
    """Finds the cases that ``dataset.json`` names.

    Args:
        source: Folder of the data set.
        channels: Names that the channels should have.

    Raises:
        DataListError: If the file is not as the Decathlon has it.
        UnreadableFileError: If it names files that do not exist.
    """
    path = source / "dataset.json"
    content = read_json(path, "Decathlon data set")
    modality = content.get("modality")
    if not isinstance(modality, dict) or list(modality) != [str(i) for i in range(len(modality))]:
        raise DataListError(
            f'{path} has modality {modality!r}; allowed is an object such as {{"0": "MRI"}}, whose '
            f"keys count from 0 on. Correct it there."
        )
    names = tuple(str(name) for name in modality.values())
    require_channels(names, channels, path)
    cases = []
    for key in ("training", "test"):
        entries = content.get(key, [])
        if not isinstance(entries, list):
            raise DataListError(f"{path}: {key} is no list. Correct it there.")
        for i, entry in enumerate(entries):
            item = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(item, dict) or not isinstance(item.get("image"), str):
                raise DataListError(
                    f"{path}: entry {i} of {key} is {entry!r}; allowed is "
                    f'{{"image": "a.nii.gz", "label": "b.nii.gz"}}, or a path under test. '
                    f"Correct it there."
                )
            if not isinstance(item.get("label") or "", str):
                raise DataListError(
                    f"{path}: entry {i} of {key} has label {item['label']!r}; allowed is a path. "
                    f"Correct it there."
                )
            for file in filter(None, (item["image"], item.get("label"))):
                require_name(file, source, f"{path}: entry {i} of {key}")
            image = source / item["image"]
            label = source / item["label"] if item.get("label") else None
            if key == "training" and label is None:
                raise DataListError(
                    f"{path}: entry {i} of training, {item['image']}, has no label. Add it."
                )
            name = safe(stem_of(image))
            cases.append(FoundCase(name, name, ((image,),), label, key == "test"))
    missing = [
        file
        for case in cases
        for file in (case.images[0][0], case.label)
        if file is not None and not file.is_file()
    ]
    if missing:
        raise UnreadableFileError(
            f"{path} names {len(missing)} files that do not exist: {some(missing, 3)}. Unpack the "
            f"archive again; paths are relative to the folder of dataset.json."
        )
    if not any(not case.is_test for case in cases):
        raise DataListError(f"{path} names no training cases. Check that it is the right file.")
    require_unique(cases, source)
    found = content.get("labels")
    labels = {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
    info: dict[str, Any] = {
        key: content[key] for key in ("name", "licence", "reference") if key in content
    }
    return Layout("msd", source, tuple(cases), names, labels, has_splits=True, info=info)
