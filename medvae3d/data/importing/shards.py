"""WebDataset shards: tar files whose members of one name up to the first dot are a case.

``case1.ct.nii.gz`` is the channel ``ct`` of ``case1``, ``case1.label.nii.gz`` its mask, and
``case1.json`` may name the case, its subject and its split.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medvae3d.data.datalists import SPLITS, read_json
from medvae3d.data.importing.archives import members_of
from medvae3d.data.importing.common import (
    NIFTI_SUFFIXES,
    FoundCase,
    Layout,
    require_all_labelled,
    require_there,
    require_unique,
    safe,
    some,
)
from medvae3d.data.importing.pairs import MASK_WORDS
from medvae3d.data.staging import ScratchFolder
from medvae3d.errors import DataListError, UnreadableFileError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
INDEX = "shards.json"
LONGEST_NAME = 80


def is_tar(path: Path) -> bool:
    """Whether a name is that of a tar file."""
    return path.name.lower().endswith(TAR_SUFFIXES) and not path.name.startswith(".")


def find_shards(source: Path, channels: Sequence[str] | None = None) -> Layout:
    """Unpacks the volumes of shards and finds the cases in them.

    Args:
        source: A tar file, or a folder of them, perhaps with `INDEX`, which says how many cases
            there are.
        channels: Channels to take, in order; all that there are, by name, if not given.

    Raises:
        UnreadableFileError: If a tar file ends early, is damaged or missing.
        DataListError: If members cannot be put together to cases.
    """
    files = [source] if source.is_file() else sorted(p for p in source.iterdir() if is_tar(p))
    if not files:
        raise DataListError(f"{source} holds no tar file. Give the folder of the shards.")
    index = source / INDEX if source.is_dir() else source.with_name(INDEX)
    about = read_json(index, "index of shards") if source.is_dir() and index.is_file() else {}
    try:
        lacking = {str(each["file"]) for each in about.get("shards", [])}
    except (TypeError, KeyError):
        raise DataListError(
            f"{index} has `shards` of another form; allowed is a list of objects with a `file`. "
            f"Correct it, or remove it."
        ) from None
    _require_form(about, index)
    lacking -= {path.name for path in files}
    if lacking:
        raise UnreadableFileError(
            f"{index} names {some(sorted(lacking))}, which {source} does not hold. Copy all shards."
        )
    folder = ScratchFolder()
    parts: dict[str, dict[str, Path]] = defaultdict(dict)
    numbers = itertools.count()
    for path in files:
        _unpack(path, folder.path, parts, numbers)
    volumes = {
        key: {word: place for word, place in found.items() if word != "json"}
        for key, found in parts.items()
    }
    masks = {
        key: [word for word in found if MASK_WORDS.fullmatch(word)]
        for key, found in volumes.items()
    }
    usual = sorted({w for key, found in volumes.items() for w in found if w not in masks[key]})
    wanted = list(channels or about.get("channels") or usual)
    require_there(usual, wanted, source)
    cases = []
    for key, found in volumes.items():
        lost = [name for name in wanted if name not in found]
        if lost or len(masks[key]) > 1:
            raise DataListError(
                f"{source}: {key} has {some(found)}; allowed are the channels {some(wanted)} and "
                f"at most one mask. Correct the shard, or name with --channels what to take."
            )
        facts = read_json(parts[key]["json"], f"{key}.json") if "json" in parts[key] else {}
        split = facts.get("split", "") if facts.get("split") in SPLITS else ""
        images = tuple((found[name],) for name in wanted)
        label = found[masks[key][0]] if masks[key] else None
        name = safe(str(facts.get("case", key)))
        subject = str(facts.get("subject", name))
        cases.append(FoundCase(name, subject, images, label, split == "testing", split))
    if "cases" in about and about["cases"] != len(cases):
        raise UnreadableFileError(
            f"{index} promises {about['cases']} cases, the shards hold {len(cases)}. Copy them "
            f"again."
        )
    require_all_labelled(cases, source)
    require_unique(cases, source)
    labels = {str(value): str(name) for name, value in (about.get("labels") or {}).items()}
    info: dict[str, Any] = {key: about[key] for key in ("name", "licence") if about.get(key)}
    has_splits = bool(cases) and all(case.split for case in cases)
    return Layout(
        "webdataset", folder.path, tuple(cases), tuple(wanted), labels, has_splits, info,
        folder,
    )  # fmt: skip


def _require_form(about: Mapping[str, Any], index: Path) -> None:
    """Checks what an index says besides its shards."""
    channels, labels = about.get("channels", []), about.get("labels") or {}
    is_named = isinstance(channels, list) and all(isinstance(name, str) for name in channels)
    if not is_named or not isinstance(labels, dict):
        raise DataListError(
            f"{index} has channels {channels!r} and labels {labels!r}; allowed are a list of names "
            f"and an object. Correct it, or remove it."
        )


def _unpack(
    path: Path, folder: Path, parts: dict[str, dict[str, Path]], numbers: Iterator[int]
) -> None:
    """Writes each member to a folder of its own: those of a case may lie anywhere in a shard."""
    with members_of(path) as members:
        for name, write in members:
            key, _, ending = name.rpartition("/")[2].partition(".")
            word = _word(ending) if key else None
            if word is None:
                continue
            if word in parts[key]:
                raise DataListError(
                    f"{path}: {name} occurs twice in the shards; names of cases must differ. Write "
                    f"the shards again."
                )
            suffix = ".json" if word == "json" else "." + ending.lower().partition("nii")[1]
            suffix += ".gz" if ending.lower().endswith(".gz") else ""
            title = f"{safe(key)[:LONGEST_NAME]}.{safe(word)[:LONGEST_NAME]}{suffix}"
            place = folder / f"{next(numbers):06d}" / title
            place.parent.mkdir()
            write(place)
            parts[key][word] = place


def _word(ending: str) -> str | None:
    """What a member is, from what follows the first dot: ``ct`` of ``ct.nii.gz``."""
    if ending.lower() == "json":
        return "json"
    for suffix in NIFTI_SUFFIXES:
        if ending.lower().endswith(suffix.lstrip(".")):
            return ending[: -len(suffix) + 1].strip(".") or "image"
    return None
