"""Which format a data set has, and its cases in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from medvae3d.data.datalists import read_json
from medvae3d.data.importing.bids import find_bids
from medvae3d.data.importing.common import Layout, is_volume
from medvae3d.data.importing.decathlon import find_decathlon
from medvae3d.data.importing.dicom import find_dicom
from medvae3d.data.importing.lists import find_list
from medvae3d.data.importing.nnunet import find_nnunet
from medvae3d.data.importing.pairs import find_pairs
from medvae3d.data.importing.shards import find_shards, is_tar
from medvae3d.data.importing.slices import is_dicom
from medvae3d.data.importing.subjects import find_subjects
from medvae3d.errors import DataListError, SettingError, UnreadableFileError
from medvae3d.files import is_plain

FORMATS: dict[str, Callable[[Path, Sequence[str] | None], Layout]] = {
    "pairs": find_pairs,
    "dicom": find_dicom,
    "bids": find_bids,
    "nnunet": find_nnunet,
    "msd": find_decathlon,
    "monai": find_list,
    "webdataset": find_shards,
}


def find_layout(
    source: str | os.PathLike[str] | Iterable[Any],
    format: str | None = None,
    channels: Sequence[str] | None = None,
) -> Layout:
    """Finds the cases of a data set; only names and headers are read.

    Args:
        source: Its folder, or the ``dataset.json`` in it; a MONAI data list; a tar file; or
            torchio's subjects.
        format: One of `FORMATS`; told from the files if not given.
        channels: Names of the channels: which to take, or what they have to be.

    Raises:
        UnreadableFileError: If there is no such folder, or one in it may not be read.
        SettingError: If the format is unknown, cannot be told, or holds no case.
    """
    if not isinstance(source, (str, os.PathLike)):
        return find_subjects(source, channels)
    folder = Path(source)
    if folder.name == "dataset.json" and format != "monai":
        folder = folder.parent
    if not folder.is_dir() and not (folder.is_file() and _is_list_or_tar(folder)):
        raise UnreadableFileError(
            f"{folder} is no folder, no MONAI data list (.json) and no tar file. Give the folder "
            f"of the data set."
        )
    if format is not None and format not in FORMATS:
        raise SettingError(
            f"--format is {format!r}; allowed are {', '.join(FORMATS)}. Leave it out to have it "
            f"told from the files."
        )
    if folder.is_dir():
        _require_readable(folder)
    layout = FORMATS[format or _detected(folder)](folder, channels)
    if not layout.cases:
        raise SettingError(
            f"{folder} holds no case in the format {layout.format}. Give another folder, or "
            f"another --format of {', '.join(FORMATS)}."
        )
    for case in layout.cases:
        files = [*(file for files in case.images for file in files), case.label]
        for name in filter(None, (case.name, case.subject, *files)):
            if not is_plain(str(name)):
                raise DataListError(
                    f"{name} is not UTF-8, or holds control characters; a data list cannot hold "
                    f"such a name. Rename it."
                )
    return layout


def _require_readable(folder: Path) -> None:
    """Looks into all folders: one that may not be read would be passed over without a word."""

    def refuse(error: OSError) -> None:
        raise UnreadableFileError(
            f"{error.filename} cannot be read: {error.strerror}. Make it readable, or take it out "
            f"of the folder."
        ) from error

    for _ in os.walk(folder, onerror=refuse):
        pass


def _is_list_or_tar(path: Path) -> bool:
    return path.suffix == ".json" or is_tar(path)


def _detected(folder: Path) -> str:
    if folder.is_file():
        return "webdataset" if is_tar(folder) else "monai"
    if (folder / "dataset.json").is_file():
        content = read_json(folder / "dataset.json", "data set")
        for key, name in (("channel_names", "nnunet"), ("modality", "msd")):
            if key in content:
                return name
        raise SettingError(
            f"{folder / 'dataset.json'} has neither channel_names (nnU-Net) nor modality "
            f"(Decathlon). If it is a MONAI data list, give the file and --format monai."
        )
    has_subjects = any(path.is_dir() for path in folder.glob("sub-*"))
    if (folder / "dataset_description.json").is_file() or has_subjects:
        return "bids"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if any(is_dicom(path) for path in files if not is_volume(path)):
        return "dicom"
    if any(map(is_tar, files)):
        return "webdataset"
    if any(map(is_volume, files)):
        return "pairs"
    raise SettingError(
        f"{folder} is of no known format: it holds {len(files)} files, but no NIfTI, NRRD, "
        f"MetaImage, DICOM or tar. Known are {', '.join(FORMATS)}; name one with --format."
    )
