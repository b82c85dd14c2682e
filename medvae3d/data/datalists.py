"""MONAI data lists: the cases that training, evaluation and checks read.

A data list is a JSON file with the splits ``training``, ``validation`` and ``testing``; each entry
has an ``image`` (one file, or one a channel), a ``label``, or both, and any further keys. In a list
of one file a channel, ``null`` stands for a channel that the case lacks.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from medvae3d.data.case_names import VOLUME_SUFFIXES, name_of, subject_of
from medvae3d.data.volumes import write_bytes
from medvae3d.errors import DataListError, UnreadableFileError
from medvae3d.files import is_plain, load_json

SPLITS = ("training", "validation", "testing")
# nnU-Net and the Decathlon say "test", and list images alone there.
SPLIT_ALIASES = {"test": "testing", "val": "validation", "train": "training"}
MISSING = "missing_channels"
"""Entry of a case, as MONAI's data sets take it, with the numbers of the channels that it lacks."""


DEEPEST_LIST = 50


@dataclass(frozen=True)
class Case:
    """One case of a data list.

    Attributes:
        image: Files of the channels that there are, in order; none for a case that is a mask alone.
        label: File of the mask, if there is one.
        subject: The patient; cases of one patient belong into one split.
        split: ``training``, ``validation`` or ``testing``.
        extra: Further keys of the entry; those that name volumes hold paths.
        missing: Numbers of the channels that the case lacks, from 0, in order.
    """

    image: tuple[Path, ...]
    label: Path | None
    subject: str
    split: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[int, ...] = ()

    @property
    def channels(self) -> tuple[Path | None, ...]:
        """File of each channel, ``None`` where the case lacks it."""
        files = iter(self.image)
        count = len(self.image) + len(self.missing)
        return tuple(None if i in self.missing else next(files) for i in range(count))

    @property
    def name(self) -> str:
        """Short name of the case, from its files."""
        return str(self.extra["case"]) if "case" in self.extra else name_of(self.files)

    @property
    def files(self) -> tuple[Path, ...]:
        """Image files and label file."""
        return self.image if self.label is None else (*self.image, self.label)


@dataclass(frozen=True)
class DataList:
    """The cases of a data list.

    Attributes:
        cases: All cases, in the order of the file.
        root: Folder that relative paths start from.
        info: Everything in the file that is no split: name, licence, labels.
        path: The file, if it was read from one.
    """

    cases: tuple[Case, ...]
    root: Path
    info: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def split(self, name: str) -> tuple[Case, ...]:
        """The cases of one split; none is an answer, an unknown split is not."""
        if name not in SPLITS:
            raise DataListError(
                f"there is no split {name!r}; allowed are {', '.join(SPLITS)}. Name one of them."
            )
        return tuple(case for case in self.cases if case.split == name)

    def merged(self, other: DataList) -> DataList:
        """Adds the cases of another list whose files are not in this one.

        A mask that is alone in one list and has its image in the other is kept once, with the
        image, and keeps its split.
        """
        mine, theirs = _by_label(self.cases), _by_label(other.cases)
        kept = [
            theirs[case.label] if _is_better(theirs.get(case.label), case) else case
            for case in self.cases
        ]
        added = [case for case in other.cases if case.label is None or case.label not in mine]
        known = {case.files for case in kept}
        added = [case for case in added if case.files not in known]
        return DataList((*kept, *added), self.root, self.info)


def read_datalist(path: str | os.PathLike[str], *, check_files: bool = True) -> DataList:
    """Reads a MONAI data list.

    Args:
        path: The JSON file; paths inside are relative to its folder.
        check_files: Whether every file named must exist.

    Raises:
        UnreadableFileError: If the list, or a file that it names, does not exist.
        DataListError: If it is not JSON or not of the expected structure.
    """
    path = Path(path)
    content = read_json(path, "data list")
    root = path.parent.absolute()
    names = {key: SPLIT_ALIASES.get(key, key) for key in content}
    found = [key for key in content if names[key] in SPLITS and isinstance(content[key], list)]
    if not found:
        raise DataListError(
            f"{path} has the keys {sorted(map(str, content))[:8]}; a data list has at least one "
            f"of {', '.join(SPLITS)}, each a list of cases. Write {{'training': [{{'image': "
            f"'a.nii.gz', 'label': 'b.nii.gz'}}]}}."
        )
    cases = tuple(
        _read_case(entry, names[key], root, f"{path}: entry {i} of {key}")
        for key in found
        for i, entry in enumerate(content[key])
    )
    if not cases:
        raise DataListError(f"{path} lists no case under {', '.join(found)}. Add cases.")
    if check_files:
        require_files(cases, path)
    info = {key: value for key, value in content.items() if key not in found}
    return DataList(cases, root, info, path)


def require_files(cases: Iterable[Case], source: Path) -> None:
    """Checks that all image and label files of the cases exist."""
    missing = [file for case in cases for file in case.files if not file.is_file()]
    if missing:
        shown = ", ".join(map(str, missing[:3]))
        raise UnreadableFileError(
            f"{source} names {len(missing)} files that do not exist: {shown}"
            f"{', ...' if len(missing) > 3 else ''}. Paths are relative to the folder of the "
            f"list; correct them, or put the files there."
        )


def require_all_channels(cases: Iterable[Case], what: str) -> None:
    """Refuses cases that lack a channel, where nothing can stand in its place.

    Args:
        cases: The cases.
        what: What needs all of them, for the message.

    Raises:
        DataListError: If there is such a case.
    """
    lacking = [case for case in cases if case.missing]
    if lacking:
        first = lacking[0]
        number = f"{len(lacking)} case lacks" if len(lacking) == 1 else f"{len(lacking)} cases lack"
        raise DataListError(
            f"{what} needs every channel of a case, and {number} one, such as {first.name}, whose "
            f"channel {first.missing[0]} (from 0) is null. Leave such cases out, or have their "
            f"channels made with `medvae3d impute`."
        )


def require_class(name: Any, known: Sequence[str], where: str) -> None:
    """Checks the class of a case, for models that are told one.

    Args:
        name: What the case says, if anything.
        known: The classes that the model is told.
        where: The case, for the message.

    Raises:
        DataListError: If there is none, or another one.
    """
    if name is None:
        raise DataListError(
            f"{where} has no class; this model is told one of {', '.join(known)}. Add "
            f"'class': '{known[0]}' or another of them to its entry in the data list, or train a "
            f"model without classes."
        )
    if str(name) not in known:
        raise DataListError(
            f"{where} is of class {str(name)!r}; this model is told one of {', '.join(known)}. "
            f"Correct the entry of the data list, or name its class among the attributes of "
            f"network_def as 'class:{name}'."
        )


def write_datalist(
    path: str | os.PathLike[str], cases: Iterable[Case], info: Mapping[str, Any] | None = None
) -> None:
    """Writes a data list, with paths relative to its folder; whole or not at all."""
    root = Path(path).absolute().parent
    content: dict[str, Any] = dict(info or {})
    content |= {split: [] for split in SPLITS}
    for case in cases:
        entry: dict[str, Any] = {}
        if case.image:
            files = [None if f is None else _relative(f, root) for f in case.channels]
            entry["image"] = files if len(files) > 1 else files[0]
        if case.label is not None:
            entry["label"] = _relative(case.label, root)
        entry["subject"] = case.subject
        entry |= {key: _relative(value, root) for key, value in case.extra.items()}
        content[case.split].append(entry)
    write_bytes(path, json.dumps(content, indent=1).encode() + b"\n")


def as_monai(cases: Iterable[Case], *, may_lack: bool = False) -> list[dict[str, Any]]:
    """Makes the dictionaries that MONAI's data sets take, with absolute paths.

    Cases without an image or label lack that key. ``case``, ``subject`` and ``split`` are set.

    Args:
        cases: The cases.
        may_lack: Whether cases may lack channels; the numbers of those are then in
            ``missing_channels``, and `medvae3d.data.preparation` knows what to do with them.

    Raises:
        DataListError: If one does and may not.
    """
    items = []
    cases = list(cases)
    if not may_lack:
        require_all_channels(cases, "this command")
    for case in cases:
        item: dict[str, Any] = {key: _absolute(value) for key, value in case.extra.items()}
        if case.image:
            files = [_absolute(file) for file in case.image]
            item["image"] = files if len(files) > 1 else files[0]
        if case.label is not None:
            item["label"] = _absolute(case.label)
        if case.missing:
            item[MISSING] = list(case.missing)
        items.append(item | {"case": case.name, "subject": case.subject, "split": case.split})
    return items


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON object; ``what`` names the file in messages."""
    try:
        content = load_json(path)
    except OSError as error:
        raise UnreadableFileError(
            f"{what} {path} cannot be read: {error.strerror or error}. Check the path."
        ) from error
    except ValueError as error:
        raise DataListError(f"{what} {path} is not JSON: {error}. Correct it there.") from error
    if not isinstance(content, dict):
        raise DataListError(
            f"{what} {path} holds a {type(content).__name__}; allowed is a JSON object. "
            f"Put the list under a key such as 'training'."
        )
    return content


def _read_case(entry: Any, split: str, root: Path, where: str) -> Case:
    if isinstance(entry, str):
        entry = {"image": entry}
    if not isinstance(entry, dict):
        raise DataListError(
            f"{where} is a {type(entry).__name__}; allowed is an object with image, label or "
            f"both. Write {{'image': 'a.nii.gz', 'label': 'b.nii.gz'}}."
        )
    image, label = entry.get("image"), entry.get("label")
    image = [image] if isinstance(image, str) else image or []
    missing: tuple[int, ...] = ()
    if isinstance(image, list) and image and None in image:
        missing = tuple(i for i, file in enumerate(image) if file is None)
        image = [file for file in image if file is not None]
        if not image:
            raise DataListError(
                f"{where} has null for each of its {len(missing)} channels; allowed is null for "
                f"some of them. Leave 'image' out of a case that is a mask alone."
            )
    paths = [*image, *([label] if label else [])] if isinstance(image, list) else [None]
    if not all(isinstance(file, str) and file for file in paths):
        raise DataListError(
            f"{where} has image {entry.get('image')!r} and label {label!r}; allowed are a path, "
            f"or for the image a list of paths, one a channel, with null for a channel that the "
            f"case lacks. Correct the entry."
        )
    for file in cast("list[str]", paths):
        require_name(file, root, where)
    if not image and not label:
        raise DataListError(
            f"{where} has the keys {sorted(entry)}; it needs image, label or both. Add one."
        )
    files = tuple(root / file for file in image)
    mask = root / label if label else None
    subject = entry.get("subject")
    if subject is not None and not isinstance(subject, (str, int)):
        raise DataListError(f"{where} has subject {subject!r}; allowed is a name. Correct it.")
    extra = {
        key: _resolved(value, root)
        for key, value in entry.items()
        if key not in ("image", "label", "subject", "split")
    }
    every = files if mask is None else (*files, mask)
    who = subject_of(every) if subject is None else str(subject)
    return Case(files, mask, who, split, extra, missing)


def require_name(file: str, root: Path, where: str) -> None:
    """Refuses what no file can be called, and names that reports and records cannot hold."""
    reason = "" if is_plain(file) else "it is not UTF-8, or holds control characters"
    try:
        (root / file).lstat()
    except ValueError as error:
        reason = reason or type(error).__name__
    except OSError as error:
        reason = reason or ("it is too long" if error.errno == errno.ENAMETOOLONG else "")
    if reason:
        raise DataListError(
            f"{where} names a file {ascii(file)[:60]}, which cannot be used: {reason}. Rename the "
            f"file, and correct the entry."
        )


def _resolved(value: Any, root: Path, depth: int = 0) -> Any:
    if isinstance(value, list):
        if depth > DEEPEST_LIST:
            raise DataListError(
                f"a list in the data list holds lists in lists, {depth} deep. Correct it."
            )
        return [_resolved(item, root, depth + 1) for item in value]
    is_volume = isinstance(value, str) and value.endswith(VOLUME_SUFFIXES)
    return root / value if is_volume else value


def _relative(value: Any, root: Path) -> Any:
    if isinstance(value, (list, tuple)):
        return [_relative(item, root) for item in value]
    if not isinstance(value, Path):
        return value
    return Path(os.path.relpath(value.absolute(), root)).as_posix()


def _absolute(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_absolute(item) for item in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def _by_label(cases: Iterable[Case]) -> dict[Path | None, Case]:
    return {case.label: case for case in cases if case.label is not None}


def _is_better(other: Case | None, case: Case) -> bool:
    return other is not None and bool(other.image) and not case.image
