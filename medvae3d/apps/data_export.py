"""Cases of a data list in the formats of others; BIDS and nnU-Net v2 are written here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medvae3d import __version__
from medvae3d.apps.export_cases import (
    channel_names,
    copy_volume,
    facts_of,
    label_names,
    letters,
    require_different,
    write_json,
)
from medvae3d.apps.export_dicom import DicomWriter
from medvae3d.apps.export_shards import SHARD_CASES, ShardWriter
from medvae3d.data.datalists import Case, DataList, require_all_channels
from medvae3d.data.staging import require_new_folder, staged_folder
from medvae3d.data.volumes import label_values, read_mask, write_bytes, write_volume
from medvae3d.errors import DataListError, SettingError
from medvae3d.studies.nnunet import dataset_folder

FORMATS = ("bids", "nnunet", "dicom", "webdataset")
OF_IMAGES = ("nnunet", "dicom")  # which have no place for a mask alone
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
    seed: int = 0,
    shard_size: int = SHARD_CASES,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Writes the cases of a list in another format.

    Args:
        datalist: The cases; records of synthetic ones lie in ``records`` beside the list.
        out: Folder to make; whole or not at all.
        format: ``bids``, ``nnunet``, ``dicom`` or ``webdataset``.
        channels: Names of the channels, if the list does not have them.
        seed: Part of the UIDs of DICOM.
        shard_size: Most cases in a shard of WebDataset.
        progress: Called before each case with its index, the number of cases and its name.

    Raises:
        SettingError: If the format or a channel is unknown, or labels do not suit nnU-Net.
        DataListError: If a case lacks a channel.
    """
    if format not in FORMATS:
        raise SettingError(
            f"--format is {format!r}; allowed are {', '.join(FORMATS)}. Name one of them."
        )
    names = tuple(channels or channel_names(datalist.info))
    require_all_channels(datalist, f"--format {format}")
    for case in datalist:
        if len(case.image) != len(names):
            raise DataListError(
                f"case {case.name} has {len(case.image)} images, and there are {len(names)} names "
                f"of channels ({', '.join(names) or 'none'}). Name them with --channels."
            )
        if not case.image and format in OF_IMAGES:
            raise DataListError(
                f"case {case.name} has no image; --format {format} needs one for each mask. Add "
                f"the images to the list, or choose bids or webdataset."
            )
    require_new_folder(out)
    with staged_folder(out) as folder:
        writer = _writer(format, folder, names, datalist, seed, shard_size)
        for index, case in enumerate(datalist):
            if progress is not None:
                progress(index, len(datalist), case.name)
            writer.write(case, index)
        writer.finish()
    return Path(out)


class Writer(Protocol):
    """Writes cases in a format, one after the other."""

    def write(self, case: Case, index: int) -> None:
        """Writes a case."""

    def finish(self) -> None:
        """Writes what is about all of them."""


class BidsWriter:
    """BIDS derivatives, with a sidecar each."""

    def __init__(self, folder: Path, names: Sequence[str], listed: DataList) -> None:
        if unknown := [name for name in names if name.lower() not in SUFFIXES]:
            raise SettingError(
                f"there is no BIDS suffix for the channel {unknown[0]!r}; known are "
                f"{', '.join(SUFFIXES)}. Give names of these with --channels, in order."
            )
        self.folder, self.listed = folder, listed
        self.parts = [SUFFIXES[name.lower()] for name in names]
        require_different(names, [suffix for _, suffix in self.parts], "BIDS suffix")

    def write(self, case: Case, index: int) -> None:
        """Writes a case."""
        _write_bids(case, index, self.folder, self.parts, self.listed)

    def finish(self) -> None:
        """Writes description and participants."""
        _finish_bids(self.folder, self.listed)


class NnunetWriter:
    """A raw data set of nnU-Net v2."""

    def __init__(self, folder: Path, names: Sequence[str], listed: DataList) -> None:
        self.folder, self.names, self.listed = folder, names, listed

    def write(self, case: Case, index: int) -> None:
        """Writes a case."""
        _write_nnunet(case, index, self.folder, self.names, self.listed)

    def finish(self) -> None:
        """Writes ``dataset.json``."""
        _finish_nnunet(self.folder, self.names, self.listed)


def _writer(
    format: str, folder: Path, names: Sequence[str], listed: DataList, seed: int, size: int
) -> Writer:
    if format == "bids":
        return BidsWriter(folder, names, listed)
    if format == "nnunet":
        return NnunetWriter(folder, names, listed)
    if format == "dicom":
        return DicomWriter(folder, names, listed, seed)
    return ShardWriter(folder, names, listed, size)


def _write_bids(
    case: Case, index: int, folder: Path, parts: Sequence[tuple[str, str]], listed: DataList
) -> None:
    facts = facts_of(case, listed)
    # BIDS requires it of derivatives; only the list can know.
    facts["SkullStripped"] = bool(listed.info.get("skull_stripped", False))
    entities = _subject(case, index) + ("_desc-synthetic" if facts["Synthetic"] else "")
    for (part, suffix), path in zip(parts, case.image, strict=True):
        place = folder / _subject(case, index) / part / f"{entities}_{suffix}"
        copy_volume(path, place.with_name(place.name + ".nii.gz"))
        write_json(place.with_name(place.name + ".json"), facts)
    if case.label is not None:
        # BIDS has masks of anatomy alone, whatever they were drawn on.
        place = folder / _subject(case, index) / "anat" / f"{entities}_dseg"
        mask = read_mask(case.label)
        write_volume(place.with_name(place.name + ".nii.gz"), mask.array, mask.grid)
        write_json(place.with_name(place.name + ".json"), facts)


def _finish_bids(folder: Path, listed: DataList) -> None:
    subjects = [(_subject(case, i), case) for i, case in enumerate(listed)]
    all_synthetic = all(facts_of(case, listed)["Synthetic"] for case in listed)
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
    write_json(folder / "dataset_description.json", description)
    write_bytes(folder / "README", _readme(listed, all_synthetic).encode())
    columns = {
        "case": {"Description": "name of the case in the data list"},
        "split": {"Description": "training, validation or testing, as in the data list"},
    }
    write_json(folder / "participants.json", columns)
    lines = ["participant_id\tcase\tsplit", *(f"{s}\t{c.name}\t{c.split}" for s, c in subjects)]
    write_bytes(folder / "participants.tsv", ("\n".join(lines) + "\n").encode())
    write_bytes(folder / ".bidsignore", b"sub-*/ct\noptions.json\n")


def _readme(listed: DataList, all_synthetic: bool) -> str:
    number = sum(facts_of(case, listed)["Synthetic"] for case in listed)
    what = "No case is of a patient. " if all_synthetic else ""
    return (
        f"{listed.info.get('name', 'cases')}: {len(listed)} cases, written by medvae3d "
        f"{__version__}. {number} of them are synthetic, made by a generative model; their files "
        f"have desc-synthetic in their names and Synthetic in their sidecars. {what}\n"
    )


def _write_nnunet(
    case: Case, index: int, folder: Path, names: Sequence[str], listed: DataList
) -> None:
    root = dataset_folder(folder, NUMBER, str(listed.info.get("name", "cases")))
    part = "Ts" if case.split == "testing" else "Tr"
    name = f"{letters(case.name)}_{index:05d}"
    files = [root / f"images{part}" / f"{name}_{n:04d}.nii.gz" for n in range(len(case.image))]
    grids = [copy_volume(path, file) for path, file in zip(case.image, files, strict=True)]
    for path, grid in zip(case.image[1:], grids[1:], strict=True):
        grids[0].require_same(grid, this=str(case.image[0]), that=str(path))
    if case.label is None:
        if part == "Tr":
            raise DataListError(f"case {case.name} has no mask; nnU-Net needs one to train on.")
        return
    mask = read_mask(case.label)
    if grids:
        grids[0].require_same(mask.grid, this=str(case.image[0]), that=str(case.label))
    wanted = sorted(label_names(listed).values())
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
    labels = dict(sorted(label_names(listed).items(), key=lambda item: item[1]))
    content = {
        "channel_names": {str(index): name for index, name in enumerate(names)},
        "labels": labels,
        "numTraining": sum(case.split != "testing" for case in listed),
        "file_ending": ".nii.gz",
        "synthetic_cases": sum(facts_of(case, listed)["Synthetic"] for case in listed),
    }
    write_json(root / "dataset.json", content)


def _subject(case: Case, index: int) -> str:
    # BIDS allows letters and digits alone; the number keeps equal names apart.
    return f"sub-{re.sub('[^A-Za-z0-9]', '', case.name.removeprefix('sub-'))}x{index:05d}"
