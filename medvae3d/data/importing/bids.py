"""BIDS: anatomical images of subjects, and masks made from them in the tree or in derivatives."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvae3d.data.datalists import read_json
from medvae3d.data.importing.common import (
    FoundCase,
    Layout,
    require_all_labelled,
    require_there,
    some,
    stem_of,
)
from medvae3d.errors import DataListError
from medvae3d.files import load_text

MASK_SUFFIXES = ("dseg", "mask")
FOLDERS = ("anat", "pet", "ct")


def find_bids(source: Path, channels: Sequence[str] | None = None) -> Layout:
    """Finds the images of all subjects and sessions by suffix (``_T1w``), with their masks.

    Args:
        source: Folder with ``sub-*``; masks lie there or under ``derivatives``.
        channels: Suffixes to take, in order; all that there are, by name, if not given.

    Raises:
        DataListError: If a participant, an image of a sidecar, a suffix or a mask is missing, or
            occurs twice.
    """
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    masks: dict[str, Path] = {}
    pattern = "sub-*/**/*.nii*"
    for path in sorted({*source.glob(pattern), *source.glob(f"derivatives/*/{pattern}")}):
        *entities, suffix = stem_of(path).split("_")
        if path.parent.name not in FOLDERS or path.name.startswith("."):
            continue
        keys = [part for part in entities if part.startswith(("sub-", "ses-"))]
        scan = "_".join(keys)
        known = masks if suffix in MASK_SUFFIXES else images[scan]
        key = scan if suffix in MASK_SUFFIXES else suffix
        if key in known:
            raise DataListError(
                f"{known[key]} and {path} are both the {suffix} of {scan}; allowed is one for each "
                f"subject and session. Move one of them away."
            )
        known[key] = path
    if lost := _lonely(source, channels):
        raise DataListError(
            f"{some(lost, 3)}: there is no file that this describes. Copy the data set again, with "
            f"its images, or take the JSON file out."
        )
    participants = _participants(source)
    subjects = {scan.partition("_")[0] for scan, files in images.items() if files}
    if missing := [name for name in participants if name not in subjects]:
        raise DataListError(
            f"{source / 'participants.tsv'} names {some(missing)}, of whom there is no image. Add "
            f"their folders, or take them out of the table."
        )
    if participants and (unknown := sorted(subjects - set(participants))):
        raise DataListError(
            f"{source / 'participants.tsv'} lacks {some(unknown)}, of whom there are images. Add "
            f"them to the table, or move the table away."
        )
    if alone := sorted(set(masks) - {scan for scan, files in images.items() if files}):
        raise DataListError(
            f"{some(masks[scan] for scan in alone)}: there is no image of that subject and "
            f"session under {source}. Give the folder that holds images and derivatives."
        )
    usual = tuple(sorted({suffix for files in images.values() for suffix in files}))
    wanted = usual if channels is None else tuple(channels)
    require_there(usual, wanted, source)
    cases = []
    for scan, files in sorted(images.items()):
        if not files:
            continue
        if lacking := [suffix for suffix in wanted if suffix not in files]:
            raise DataListError(
                f"{source}: {scan} has {some(files)} and lacks {some(lacking)}; all need the same. "
                f"Add the files, or name with --channels what to take."
            )
        chosen = tuple((files[suffix],) for suffix in wanted)
        cases.append(FoundCase(scan, scan.partition("_")[0], chosen, masks.get(scan)))
    if not cases:
        raise DataListError(
            f"{source} holds no participants: there is no image named "
            f"sub-*/anat/sub-*_SUFFIX.nii.gz. Check the folder."
        )
    require_all_labelled(cases, source)
    return Layout("bids", source, tuple(cases), wanted, info=_description(source))


def _lonely(source: Path, channels: Sequence[str] | None) -> list[Path]:
    """Sidecars of files that are not there; those of derivatives may stand for themselves."""
    found = []
    for path in sorted(source.glob("sub-*/**/*.json")):
        *entities, suffix = path.stem.split("_")
        is_wanted = channels is None or suffix in (*channels, *MASK_SUFFIXES)
        if path.parent.name not in FOLDERS or path.name.startswith(".") or not is_wanted:
            continue
        # One sidecar may describe several files, whose names say more than its own.
        beside = (each.name for each in path.parent.iterdir() if each.suffix != ".json")
        named = (name.partition(".")[0].split("_") for name in beside)
        if not any(part[-1] == suffix and set(entities) <= set(part[:-1]) for part in named):
            found.append(path)
    return found


def _participants(source: Path) -> list[str]:
    path = source / "participants.tsv"
    if not path.is_file():
        return []
    try:
        text = load_text(path).removeprefix("\ufeff")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    except (OSError, ValueError, csv.Error) as error:
        raise DataListError(f"{path} is no table in UTF-8: {error}. Correct it there.") from error
    if rows and "participant_id" not in rows[0]:
        raise DataListError(
            f"{path} has the columns {some(rows[0])}; the first has to be participant_id, with "
            f"tabs between columns. Correct it there."
        )
    names = [row["participant_id"] or "" for row in rows]
    return [name if name.startswith("sub-") else f"sub-{name}" for name in names if name]


def _description(source: Path) -> dict[str, Any]:
    path = source / "dataset_description.json"
    if not path.is_file():
        return {}
    content = read_json(path, "BIDS description")
    named = {"name": content.get("Name"), "licence": content.get("License")}
    return {key: value for key, value in named.items() if value}
