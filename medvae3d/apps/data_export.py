"""Cases of a data list as BIDS derivatives or as raw data of nnU-Net v2; voxels stay as stored."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvae3d import __version__
from medvae3d.data.datalists import Case, DataList, read_json
from medvae3d.data.nifti import grid_of, read_stored, write_stored
from medvae3d.data.staging import staged_folder
from medvae3d.data.volumes import label_values, read_mask, write_bytes, write_volume
from medvae3d.errors import DataListError, SettingError
from medvae3d.studies.nnunet import dataset_folder

FORMATS = ("bids", "nnunet")
NUMBER = 501  # of the nnU-Net data set; its users number their own from 1 on
# Folder and end of the name of each channel in BIDS, which has no suffix for CT.
SUFFIXES = {
    "t1": ("anat", "T1w"), "t1w": ("anat", "T1w"), "t1n": ("anat", "T1w"),
    "t2": ("anat", "T2w"), "t2w": ("anat", "T2w"), "pd": ("anat", "PDw"), "pdw": ("anat", "PDw"),
    "t1c": ("anat", "ce-gadolinium_T1w"), "t1ce": ("anat", "ce-gadolinium_T1w"),
    "t1gd": ("anat", "ce-gadolinium_T1w"), "flair": ("anat", "FLAIR"), "pet": ("pet", "pet"),
    "ct": ("ct", "ct"),
}  # fmt: skip


def export(
    datalist: DataList,
    out: str | os.PathLike[str],
    format: str,
    *,
    channels: Sequence[str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Writes the cases of a list in another format.

    Args:
        datalist: The cases; records of synthetic ones lie in ``records`` beside the list.
        out: Folder to make; whole or not at all.
        format: ``bids`` or ``nnunet``.
        channels: Names of the channels, if the list does not have them.
        progress: Called before each case with its index, the number of cases and its name.

    Raises:
        SettingError: If the format or a channel is unknown, or labels do not suit nnU-Net.
        DataListError: If a case lacks a channel.
    """
    if format not in FORMATS:
        raise SettingError(f"--format is {format!r}; allowed are {' and '.join(FORMATS)}.")
    names = tuple(channels or _channels(datalist.info))
    for case in datalist:
        if len(case.image) != len(names):
            raise DataListError(
                f"case {case.name} has {len(case.image)} images, and there are {len(names)} names "
                f"of channels ({', '.join(names) or 'none'}). Name them with --channels."
            )
    write = _write_bids if format == "bids" else _write_nnunet
    with staged_folder(out) as folder:
        for index, case in enumerate(datalist):
            if progress is not None:
                progress(index, len(datalist), case.name)
            write(case, index, folder, names, datalist)
        if format == "bids":
            _finish_bids(folder, datalist)
        else:
            _finish_nnunet(folder, names, datalist)
    return Path(out)


def _write_bids(
    case: Case, index: int, folder: Path, names: Sequence[str], listed: DataList
) -> None:
    facts = _facts(case, listed)
    entities = _subject(case, index) + ("_desc-synthetic" if facts["Synthetic"] else "")
    for name, path in zip(names, case.image, strict=True):
        if name.lower() not in SUFFIXES:
            raise SettingError(
                f"there is no BIDS suffix for the channel {name!r}; known are "
                f"{', '.join(SUFFIXES)}. Give names of these with --channels, in order."
            )
        part, suffix = SUFFIXES[name.lower()]
        place = folder / _subject(case, index) / part / f"{entities}_{suffix}"
        _copy_volume(path, place.with_name(place.name + ".nii.gz"))
        _write_json(place.with_name(place.name + ".json"), facts)
    if case.label is not None:
        part = SUFFIXES[names[0].lower()][0] if names else "anat"
        place = folder / _subject(case, index) / part / f"{entities}_dseg"
        mask = read_mask(case.label)
        write_volume(place.with_name(place.name + ".nii.gz"), mask.array, mask.grid)
        _write_json(place.with_name(place.name + ".json"), facts)


def _finish_bids(folder: Path, listed: DataList) -> None:
    subjects = [(_subject(case, i), case) for i, case in enumerate(listed)]
    all_synthetic = all(_facts(case, listed)["Synthetic"] for case in listed)
    name = str(listed.info.get("name", "cases"))
    description: dict[str, Any] = {
        "Name": f"{name} (synthetic, no patients)" if all_synthetic else name,
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "medvae3d", "Version": __version__}],
    }
    licence = listed.info.get("licence")
    if licence:
        description["License"] = licence if isinstance(licence, str) else json.dumps(licence)
    _write_json(folder / "dataset_description.json", description)
    lines = ["participant_id\tcase\tsplit", *(f"{s}\t{c.name}\t{c.split}" for s, c in subjects)]
    write_bytes(folder / "participants.tsv", ("\n".join(lines) + "\n").encode())
    write_bytes(folder / ".bidsignore", b"sub-*/ct/\n")


def _write_nnunet(
    case: Case, index: int, folder: Path, names: Sequence[str], listed: DataList
) -> None:
    root = dataset_folder(folder, NUMBER, str(listed.info.get("name", "cases")))
    part = "Ts" if case.split == "testing" else "Tr"
    name = f"{_letters(case.name)}_{index:05d}"
    for channel, path in enumerate(case.image):
        _copy_volume(path, root / f"images{part}" / f"{name}_{channel:04d}.nii.gz")
    if case.label is None:
        if part == "Tr":
            raise DataListError(f"case {case.name} has no mask; nnU-Net needs one to train on.")
        return
    mask = read_mask(case.label)
    wanted = sorted(_labels(listed).values())
    unknown = sorted(set(label_values(mask.array)) - set(wanted))
    if unknown or wanted != list(range(len(wanted))):
        raise SettingError(
            f"the labels of {case.label} are {label_values(mask.array)}, those of the list "
            f"{wanted}; nnU-Net takes 0, 1, 2 and so on, and all of them named. Correct 'labels' "
            f"in the list, or map the values."
        )
    write_volume(root / f"labels{part}" / f"{name}.nii.gz", mask.array, mask.grid, dtype=np.uint8)


def _finish_nnunet(folder: Path, names: Sequence[str], listed: DataList) -> None:
    root = dataset_folder(folder, NUMBER, str(listed.info.get("name", "cases")))
    labels = dict(sorted(_labels(listed).items(), key=lambda item: item[1]))
    content = {
        "channel_names": {str(index): name for index, name in enumerate(names)},
        "labels": labels,
        "numTraining": sum(case.split != "testing" for case in listed),
        "file_ending": ".nii.gz",
        "synthetic_cases": sum(_facts(case, listed)["Synthetic"] for case in listed),
    }
    _write_json(root / "dataset.json", content)


def _facts(case: Case, listed: DataList) -> dict[str, Any]:
    """What a sidecar says: whether the case is synthetic, and its record if it has one."""
    path = listed.root / "records" / f"{case.name}.json"
    record = read_json(path, "record") if path.is_file() else {}
    synthetic = bool(record.get("synthetic", listed.info.get("synthetic", False)))
    words = "synthetic, made by a generative model" if synthetic else "as in the data list"
    facts: dict[str, Any] = {"Synthetic": synthetic, "Description": words}
    return {**facts, **({"Record": record} if record else {})}


def _channels(info: Mapping[str, Any]) -> list[str]:
    for key in ("channel_names", "channels", "modality"):
        found = info.get(key)
        if isinstance(found, dict):
            return [str(name) for name in found.values()]
        if isinstance(found, list):
            return [str(name) for name in found]
    return []


def _labels(listed: DataList) -> dict[str, int]:
    """Name and value of each label, whichever way round the list has them."""
    found = listed.info.get("labels") or {"background": 0, "lesion": 1}
    try:
        pairs = {str(name): int(value) for name, value in found.items()}
    except (TypeError, ValueError):
        pairs = {str(name): int(value) for value, name in found.items()}
    return {"background" if value == 0 else name: value for name, value in pairs.items()}


def _subject(case: Case, index: int) -> str:
    # BIDS allows letters and digits alone; the number keeps equal names apart.
    return f"sub-{re.sub('[^A-Za-z0-9]', '', case.name.removeprefix('sub-'))}x{index:05d}"


def _letters(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "case"


def _copy_volume(path: Path, place: Path) -> None:
    stored, header = read_stored(path, f"image {path}")
    grid = grid_of(header, f"image {path}")
    if stored.size != np.prod(grid.shape):
        raise DataListError(
            f"image {path} holds several channels; allowed is one file a channel. Part it, for "
            f"example with medvae3d data import."
        )
    write_stored(place, stored.reshape(grid.shape, order="F"), grid, header)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_bytes(path, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
