"""The lists that a report is about: which cases of which splits, with which channels and labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medvae3d.data.case_names import VOLUME_SUFFIXES
from medvae3d.data.datalists import (
    SPLIT_ALIASES,
    SPLITS,
    Case,
    DataList,
    read_datalist,
    read_json,
    require_all_channels,
    require_files,
)
from medvae3d.errors import DataListError, LabelError, SettingError, UnreadableFileError
from medvae3d.seeding import derive_seed

# As `generate` and nnU-Net, and as `data phantom` and `data import` name it.
IN_FOLDER = ("dataset.json", "datalist.json")
ALL = "all"


@dataclass(frozen=True)
class CaseList:
    """Cases of one set.

    Attributes:
        path: The data list.
        splits: The splits that were taken.
        cases: Cases with an image.
        channels: Names of the channels; empty if the list does not say.
        labels: Names of the label values; empty if the list does not say.
        warnings: What was left out.
        info: Everything in the list that is no split.
    """

    path: Path
    splits: tuple[str, ...]
    cases: tuple[Case, ...]
    channels: tuple[str, ...] = ()
    labels: Mapping[int, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


def open_list(path: str | Path) -> DataList:
    """Reads a MONAI data list, a folder that ``generate`` made, or one of nnU-Net's raw data sets.

    Args:
        path: The JSON file, or a folder with ``dataset.json`` or ``datalist.json``.

    Raises:
        UnreadableFileError: If it is not there.
        DataListError: If it lists no cases.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in IN_FOLDER if (path / name).is_file()]
        if not found:
            raise UnreadableFileError(
                f"{path} is a folder without {' or '.join(IN_FOLDER)}. Give the data list itself, "
                f"or make one with `medvae3d data import`."
            )
        path = found[0]
    content = read_json(path, "data list")
    lists_cases = any(SPLIT_ALIASES.get(key, key) in SPLITS for key in content)
    if "file_ending" in content and not lists_cases:
        return _open_nnunet(path, content)
    return read_datalist(path)


def _open_nnunet(path: Path, content: Mapping[str, Any]) -> DataList:
    """The cases of a raw data set of nnU-Net v2, which are named by their files alone."""
    ending = str(content["file_ending"])
    if ending not in VOLUME_SUFFIXES:
        raise DataListError(
            f"{path} has file_ending {ending!r}; allowed are {' and '.join(VOLUME_SUFFIXES)}. "
            f"Convert the volumes, and correct it there."
        )
    numbered = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    cases = []
    for part, split in (("Tr", "training"), ("Ts", "testing")):
        files: dict[str, list[Path]] = {}
        for file in sorted((path.parent / f"images{part}").glob(f"*{ending}")):
            match = numbered.fullmatch(file.name)
            if match:
                files.setdefault(match.group(1), []).append(file.absolute())
        for name, images in files.items():
            label = (path.parent / f"labels{part}" / f"{name}{ending}").absolute()
            mask = label if label.is_file() else None
            cases.append(Case(tuple(images), mask, name, split, {"case": name}))
    if not cases:
        raise DataListError(
            f"{path} names no cases, and imagesTr beside it has none called CASE_0000{ending}. "
            f"Give a MONAI data list, or a raw data set of nnU-Net."
        )
    require_files(cases, path)
    return DataList(tuple(cases), path.parent.absolute(), content, path)


def choose(listed: DataList, splits: str | Sequence[str]) -> CaseList:
    """Takes the cases of some splits that can be judged.

    Args:
        listed: The list.
        splits: ``all``, or splits, with commas if given as one text.

    Raises:
        SettingError: If a split is unknown.
        DataListError: If no case is left.
    """
    wanted = _splits(splits)
    chosen = [case for case in listed.cases if case.split in wanted]
    imaged = [case for case in chosen if case.image]
    # Masks that are empty because there are none would pass for healthy cases.
    labelled = [case for case in imaged if case.label is not None]
    cases, warnings = labelled or imaged, []
    path = listed.path or listed.root
    if not cases:
        counts = {split: len(listed.split(split)) for split in SPLITS if listed.split(split)}
        raise DataListError(
            f"{path} has no case with an image in {', '.join(wanted)}; it has {counts or 'none'}. "
            f"Name another split, or add cases."
        )
    require_all_channels(cases, f"a report on {path}")
    if len(chosen) > len(imaged):
        warnings.append(f"{len(chosen) - len(imaged)} cases of {path} without an image left out")
    if len(imaged) > len(cases):
        warnings.append(f"{len(imaged) - len(cases)} cases of {path} without a label left out")
    if not labelled:
        warnings.append(f"no case of {path} has a label; their masks count as empty")
    return CaseList(
        Path(path),
        wanted,
        tuple(cases),
        _channel_names(listed.info),
        declared_labels(listed.info.get("labels")),
        tuple(warnings),
        listed.info,
    )


def _splits(splits: str | Sequence[str]) -> tuple[str, ...]:
    words = splits.split(",") if isinstance(splits, str) else list(splits)
    words = [SPLIT_ALIASES.get(word.strip(), word.strip()) for word in words]
    unknown = [word for word in words if word not in (*SPLITS, ALL)]
    if unknown or not words:
        raise SettingError(
            f"splits are {', '.join(words) or 'none'}; allowed are {', '.join(SPLITS)}, several "
            f"with commas, or {ALL}."
        )
    return SPLITS if ALL in words else tuple(split for split in SPLITS if split in words)


def subset(
    listed: CaseList, most: int | None, seed: int, name: str, draw: str | None = None
) -> CaseList:
    """At most ``most`` cases, drawn by seed, in the order of the list.

    Args:
        listed: The cases.
        most: How many; all if ``None``.
        seed: Seed of the draw.
        name: What the set is called.
        draw: Which draw; sets with the same one and as many cases lose the same ones.
    """
    if most is None or len(listed.cases) <= most:
        return listed
    rng = np.random.default_rng(derive_seed(seed, "most", draw or name))
    rows = sorted(rng.permutation(len(listed.cases))[:most].tolist())
    text = f"{most} of {len(listed.cases)} {name} cases, drawn with seed {seed}"
    return replace(
        listed,
        cases=tuple(listed.cases[row] for row in rows),
        warnings=(*listed.warnings, text),
    )


def first_channels(listed: CaseList, count: int | None) -> CaseList:
    """The first channel files of each case; cases with fewer, or with one file, stay as they are.

    Args:
        listed: The cases.
        count: How many; all if ``None``.
    """
    if count is None or all(len(case.image) <= count for case in listed.cases):
        return listed
    cases = tuple(replace(case, image=case.image[:count]) for case in listed.cases)
    text = f"only the first {count} channel files of the cases of {listed.path} are looked at"
    return replace(
        listed, cases=cases, channels=listed.channels[:count], warnings=(*listed.warnings, text)
    )


def of_same_names(real: CaseList, synthetic: CaseList) -> tuple[CaseList, CaseList]:
    """The cases of both lists that have a partner of the same name in the other, by name.

    Raises:
        DataListError: If there is none.
    """
    both = {case.name for case in real.cases} & {case.name for case in synthetic.cases}
    if not both:
        raise DataListError(
            f"no case of {synthetic.path}, such as {synthetic.cases[0].name}, has the name of a "
            f"case of {real.path}, such as {real.cases[0].name}; --paired compares cases of the "
            f"same name. Name them alike, or leave --paired away."
        )
    kept = [
        replace(
            each,
            cases=tuple(
                sorted((c for c in each.cases if c.name in both), key=lambda case: case.name)
            ),
        )
        for each in (real, synthetic)
    ]
    return kept[0], kept[1]


def _channel_names(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the channels, from what nnU-Net, the Decathlon or medvae3d write."""
    for key in ("channel_names", "channels", "modality"):
        found = info.get(key)
        if isinstance(found, Mapping) and found:
            return tuple(str(name) for name in found.values())
        if isinstance(found, list) and found:
            return tuple(
                str(each.get("name", each)) if isinstance(each, Mapping) else str(each)
                for each in found
            )
    return ()


def declared_labels(labels: Any) -> dict[int, str]:
    """Names by value, from ``{"1": "lesion"}`` or ``{"lesion": 1}``, without the background."""
    if not isinstance(labels, Mapping):
        return {}
    for pairs in (labels.items(), ((value, name) for name, value in labels.items())):
        try:
            found = {int(value): str(name) for value, name in pairs}
        except (TypeError, ValueError):
            continue
        return {value: found[value] for value in sorted(found) if value}
    return {}


def common_labels(
    lists: Mapping[str, CaseList],
    found: Mapping[str, set[int]],
    given: Mapping[str, int] | None = None,
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The labels of all sets: those given, else those declared, else those found.

    Args:
        lists: The lists.
        found: Values in the masks, by set.
        given: Names and values from the user.

    Returns:
        Names and values without the background, in the order of the values.

    Raises:
        DataListError: If two lists mean different labels.
        LabelError: If a mask holds a value that is no label.
    """
    if given:
        names = {value: name for name, value in given.items() if value}
    else:
        names = _agreed(lists, found)
    for name, each in lists.items():
        strange = sorted(found[name] - {0, *names})
        if strange:
            raise LabelError(
                f"{each.path}: masks hold the values {strange}; allowed are "
                f"{[0, *sorted(names)]}. Correct the masks, or name all labels with --labels "
                f"lesion=1,organ=2."
            )
    values = tuple(sorted(names))
    return tuple(names[value] for value in values), values


def _agreed(lists: Mapping[str, CaseList], found: Mapping[str, set[int]]) -> dict[int, str]:
    meant = {
        # A list without any label says nothing about labels.
        name: set(each.labels) or found[name] - {0}
        for name, each in lists.items()
        if each.labels or any(case.label is not None for case in each.cases)
    }
    first = next(iter(meant), None)
    if first is None:
        return {}
    for name, values in meant.items():
        if values != meant[first]:
            raise DataListError(
                f"{lists[first].path} has the labels {_shown(lists[first], meant[first])}, "
                f"{lists[name].path} has {_shown(lists[name], values)}; both need the same. "
                f"Correct one of them, or say which labels are meant with --labels "
                f"lesion=1,organ=2."
            )
    known = {v: text for each in lists.values() for v, text in each.labels.items()}
    return {value: known.get(value, f"label {value}") for value in sorted(meant[first])}


def _shown(listed: CaseList, values: set[int]) -> str:
    words = [f"{v} ({listed.labels[v]})" if v in listed.labels else str(v) for v in sorted(values)]
    return ", ".join(words) or "none"
