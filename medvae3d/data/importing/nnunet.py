"""Raw data sets of nnU-Net v2: ``dataset.json``, ``imagesTr/CASE_0000.*``, ``labelsTr/CASE.*``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvae3d.data.datalists import read_json, require_name
from medvae3d.data.importing.common import (
    VOLUME_SUFFIXES,
    FoundCase,
    Layout,
    is_volume,
    require_all_labelled,
    require_channels,
    require_unique,
    safe,
    some,
)
from medvae3d.errors import DataListError, UnreadableFileError


def find_nnunet(source: Path, channels: Sequence[str] | None = None) -> Layout:
    """Finds the cases of a raw data set.

    Args:
        source: Its folder.
        channels: Names that the channels should have.

    Raises:
        DataListError: If ``dataset.json`` and the files disagree.
        UnreadableFileError: If it names files that do not exist.
    """
    path = source / "dataset.json"
    content = read_json(path, "nnU-Net data set")
    names = _channel_names(content, path)
    require_channels(names, channels, path)
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending not in VOLUME_SUFFIXES:
        raise DataListError(
            f"{path} has file_ending {ending!r}; allowed are {', '.join(VOLUME_SUFFIXES)}. "
            f"Convert the volumes, and correct it there."
        )
    training = _listed(content, path, names) or _cases(source, "Tr", names, ending)
    if content.get("numTraining", len(training)) != len(training):
        raise DataListError(
            f"{path} promises {content['numTraining']} training cases, imagesTr holds "
            f"{len(training)}. Copy the data set again, or correct numTraining."
        )
    if not training:
        raise DataListError(
            f"{source / 'imagesTr'} holds no file named CASE_0000{ending}. Check file_ending in "
            f"{path}, and the names of the files."
        )
    if unlabelled := [case.name for case in training if case.label is None]:
        raise DataListError(
            f"{source / 'labelsTr'} has no file for {some(unlabelled)}; each training case needs "
            f"CASE{ending}. Add them."
        )
    cases = (*training, *_cases(source, "Ts", names, ending))
    require_all_labelled(cases, source)
    require_unique(cases, source)
    info: dict[str, Any] = {
        key: content[key] for key in ("name", "licence", "reference") if key in content
    }
    labels = _labels(content, path)
    return Layout("nnunet", source, cases, names, labels, has_splits=True, info=info)


def _channel_names(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = content.get("channel_names")
    is_numbered = isinstance(names, dict) and list(names) == [str(i) for i in range(len(names))]
    if not names or not is_numbered or not all(isinstance(v, str) for v in names.values()):
        raise DataListError(
            f"{path} has channel_names {names!r}; allowed is an object whose keys count from "
            f'"0" on, such as {{"0": "T1w", "1": "FLAIR"}}. Correct it there.'
        )
    return tuple(names.values())


def _labels(content: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Value and name of each label; what only occurs in regions gets a number for a name."""
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise DataListError(
            f'{path} has labels {labels!r}; allowed is {{"background": 0, "lesion": 1}}. '
            f"Correct it there."
        )
    found: dict[int, str] = {}
    for name, value in labels.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, int) and v >= 0 for v in values):
            raise DataListError(
                f"{path} gives label {name!r} the value {value!r}; allowed are whole numbers from "
                f"0 on. Correct it there."
            )
        for number in values:
            if len(values) == 1:
                found[number] = str(name)
            else:
                found.setdefault(number, f"label {number}")
    return {str(value): found[value] for value in sorted(found) if found[value] != "ignore"}


def _listed(content: Mapping[str, Any], path: Path, names: Sequence[str]) -> tuple[FoundCase, ...]:
    """The training cases of a data set whose files lie elsewhere, which it lists itself."""
    found = content.get("dataset")
    if found is None:
        return ()
    if not isinstance(found, dict) or not found:
        raise DataListError(
            f"{path} has dataset {found!r}; allowed is an object of cases with images and label. "
            f"Correct it there."
        )
    cases = []
    for case, entry in found.items():
        where = f"{path}: {case} of dataset"
        told = entry if isinstance(entry, dict) else {}
        files, label = told.get("images"), told.get("label")
        if (
            not isinstance(files, list)
            or not isinstance(label, str)
            or not all(isinstance(file, str) for file in files)
            or len(files) != len(names)
        ):
            raise DataListError(
                f"{where} has images {files!r} and label {label!r}; allowed are one file for each "
                f"of the channels {some(names)}, in order, and one label. Correct it there."
            )
        for file in (*files, label):
            require_name(file, path.parent, where)
        images = tuple((path.parent / file,) for file in files)
        cases.append(FoundCase(safe(case), case, images, path.parent / label))
    every = [f for case in cases for f in (*(each[0] for each in case.images), case.label)]
    if missing := [file for file in every if file is not None and not file.is_file()]:
        raise UnreadableFileError(
            f"{path} names {len(missing)} files that do not exist: {some(missing, 3)}. Paths are "
            f"relative to its folder; correct them there."
        )
    if foreign := [file for file in every if file is not None and not is_volume(file)]:
        raise DataListError(
            f"{path} names {some(foreign, 3)}; allowed are {', '.join(VOLUME_SUFFIXES)}. Convert "
            f"them, and correct it there."
        )
    return tuple(cases)


def _cases(source: Path, part: str, names: Sequence[str], ending: str) -> tuple[FoundCase, ...]:
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    files: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in sorted((source / f"images{part}").glob(f"*{ending}")):
        if path.name.startswith("."):
            continue
        match = pattern.fullmatch(path.name)
        if match is None:
            raise DataListError(
                f"{path} is not named CASE_0000{ending}, with four digits for the channel. "
                f"Rename it as nnU-Net asks for."
            )
        files[match[1]][int(match[2])] = path
    cases = []
    for case, found in files.items():
        if sorted(found) != list(range(len(names))):
            raise DataListError(
                f"{source / f'images{part}'}: case {case} has the channels "
                f"{', '.join(f'{i:04d}' for i in sorted(found))}; channel_names in dataset.json "
                f"are {some(names)}, so {', '.join(f'{i:04d}' for i in range(len(names)))} are "
                f"needed. Add the missing files, or correct channel_names."
            )
        label = source / f"labels{part}" / f"{case}{ending}"
        images = tuple((found[i],) for i in range(len(names)))
        cases.append(
            FoundCase(safe(case), case, images, label if label.is_file() else None, part == "Ts")
        )
    return tuple(cases)
