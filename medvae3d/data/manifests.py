"""Manifests: what a public data set is, where it comes from, and what one may do with it.

A manifest is a JSON file with source, licence, citation, label values, channels, split by patient
and check sums, but no images. With a local copy of the data it makes a data list.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvae3d.data.case_names import subject_of
from medvae3d.data.datalists import (
    SPLITS,
    Case,
    DataList,
    as_monai,
    read_datalist,
    read_json,
    require_files,
    write_datalist,
)
from medvae3d.errors import DataListError
from medvae3d.files import sha256_of

__all__ = [
    "SPLITS",
    "Case",
    "DataList",
    "Manifest",
    "Verification",
    "as_monai",
    "read_datalist",
    "read_manifest",
    "sha256_of",
    "split_of",
    "subject_of",
    "write_datalist",
]


NEEDED: dict[str, type] = {
    "name": str,
    "title": str,
    "source": str,
    "licence": dict,
    "citations": list,
    "label_values": dict,
    "channels": list,
    "spacing": dict,
    "size": dict,
    "how_to_get": str,
    "limitations": list,
}
OPTIONAL: dict[str, type] = {"layouts": list, "archives": list, "cases": list, "notes": list}
SHARES = (0.8, 0.1, 0.1)
WORD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Verification:
    """How a local copy compares with the check sums of a manifest; lists of relative paths."""

    same: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        return not self.changed and not self.missing


@dataclass(frozen=True)
class Manifest:
    """What a public data set is, where it comes from, and what one may do with it.

    Attributes:
        name: Short name, that of the file.
        title: Its full name.
        source: Where it is published.
        licence: ``name``, ``url`` and, where needed, ``note``.
        citations: What a publication has to cite.
        label_values: Meaning of each label value; empty if there are no labels.
        channels: ``name``, ``unit`` and, where needed, ``note``, in the order of the files.
        spacing: ``values`` in mm, each a triple, and a ``note``.
        size: Number of ``cases``; further counts.
        how_to_get: How to obtain and arrange the files.
        limitations: What a user must know.
        layouts: How to find the cases of a local copy whose files are not listed: ``image`` and
            ``label`` as paths with words in braces, as ``{subject}/{subject}_{visit}.nii.gz``;
            ``case`` and ``subject`` as names made of those words; ``split`` where it is given,
            else ``shares`` of the patients in each split.
        archives: Files to download: ``url`` and a check sum, ``md5`` or ``sha256``.
        cases: The cases: ``case``, ``subject``, ``split``, files with check sums.
        notes: Everything else.
    """

    name: str
    title: str
    source: str
    licence: Mapping[str, str]
    citations: tuple[str, ...]
    label_values: Mapping[int, str]
    channels: tuple[Mapping[str, str], ...]
    spacing: Mapping[str, Any]
    size: Mapping[str, Any]
    how_to_get: str
    limitations: tuple[str, ...]
    layouts: tuple[Mapping[str, Any], ...] = ()
    archives: tuple[Mapping[str, str], ...] = ()
    cases: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    def to_datalist(self, root: str | os.PathLike[str]) -> DataList:
        """Makes a data list from a local copy of the data set under ``root``.

        Raises:
            UnreadableFileError: If files that the manifest lists are missing.
            DataListError: If no case is found.
        """
        root = Path(root).absolute()
        entries = self.cases or tuple(e for one in self.layouts for e in _find_cases(one, root))
        if not entries:
            expected = " or ".join(_leading(layout) for layout in self.layouts)
            raise DataListError(
                f"no case of {self.name} found under {root}; expected files like {expected}. "
                f"{self.how_to_get}"
            )
        cases = tuple(
            Case(
                image=tuple(root / file["path"] for file in entry.get("image", ())),
                label=root / entry["label"]["path"] if entry.get("label") else None,
                subject=entry["subject"],
                split=entry["split"],
                extra={"case": entry["case"]}
                | {key: root / file["path"] for key, file in entry.get("extra", {}).items()},
            )
            for entry in entries
        )
        require_files(cases, Path(self.name))
        labels = {str(value): meaning for value, meaning in self.label_values.items()}
        info = {"name": self.name, "licence": dict(self.licence), "labels": labels}
        return DataList(cases, root, info | {"channels": [c["name"] for c in self.channels]})

    def verify(self, root: str | os.PathLike[str]) -> Verification:
        """Compares the files under ``root`` with the check sums of the manifest."""
        root = Path(root)
        result: dict[str, list[str]] = {"same": [], "changed": [], "missing": [], "unchecked": []}
        for file in (file for entry in self.cases for file in _entry_files(entry)):
            path, expected = root / file["path"], file.get("sha256")
            if not path.is_file():
                kind = "missing"
            elif expected is None:
                kind = "unchecked"
            else:
                kind = "same" if sha256_of(path) == expected else "changed"
            result[kind].append(file["path"])
        return Verification(**{kind: tuple(paths) for kind, paths in result.items()})


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads and validates a manifest.

    Raises:
        UnreadableFileError: If it does not exist.
        DataListError: If it is not JSON, lacks a key, has one too many or of another type, or has
            one patient in two splits.
    """
    path = Path(path)
    content = read_json(path, "manifest")
    wrong = [
        f"{key} ({type(content[key]).__name__ if key in content else 'missing'})"
        for key, kind in (NEEDED | OPTIONAL).items()
        if (key in NEEDED or key in content) and not isinstance(content.get(key), kind)
    ]
    wrong += [f"{key} (unknown)" for key in content if key not in NEEDED | OPTIONAL]
    if wrong:
        needed = ", ".join(f"{key} ({kind.__name__})" for key, kind in NEEDED.items())
        raise DataListError(
            f"{path}: {', '.join(wrong)}. A manifest has {needed}, and may have "
            f"{', '.join(OPTIONAL)}. Correct these keys."
        )
    _check_content(content, path)
    _check_entries(content.get("cases", ()), path)
    lists = ("citations", "channels", "limitations", "layouts", "archives", "cases", "notes")
    labels = {int(value): str(text) for value, text in content["label_values"].items()}
    tuples = {key: tuple(content.get(key, ())) for key in lists}
    return Manifest(**(content | tuples | {"label_values": labels}))


def split_of(subject: str, shares: Sequence[float] = SHARES) -> str:
    """Draws the split of a patient from the name alone: the same on every machine."""
    point = int(hashlib.sha256(subject.encode()).hexdigest()[:8], 16) / 2**32
    for split, share in zip(SPLITS, shares, strict=True):
        if point < share:
            return split
        point -= share
    return SPLITS[0]


def _check_content(content: Mapping[str, Any], path: Path) -> None:
    if content["name"] != path.stem:
        raise DataListError(
            f"{path} is named {content['name']!r}; allowed is the name of its file. Rename one."
        )
    empty = [key for key in ("source", "how_to_get", "citations", "spacing") if not content[key]]
    empty += [f"licence.{key}" for key in ("name", "url") if not content["licence"].get(key)]
    empty += [
        f"channels[{i}].{key}"
        for i, channel in enumerate(content["channels"])
        for key in ("name", "unit")
        if not channel.get(key)
    ]
    if not isinstance(content["size"].get("cases"), int):
        empty.append("size.cases")
    if not content.get("cases") and not all(map(_leading, content.get("layouts") or [{}])):
        empty.append("cases, or layouts with an image or label")
    if empty:
        raise DataListError(f"{path} has no {', '.join(empty)}; a manifest needs them. Add them.")
    strange = [value for value in content["label_values"] if not value.isdigit()]
    if strange:
        raise DataListError(
            f"{path} has the label values {strange}; allowed are whole numbers from 0 on."
        )


def _check_entries(cases: Sequence[Mapping[str, Any]], path: Path) -> None:
    splits: dict[str, str] = {}
    for i, entry in enumerate(cases):
        wrong = [key for key in ("case", "subject", "split") if not isinstance(entry.get(key), str)]
        files = [] if wrong else list(_entry_files(entry))
        if wrong or not files or entry["split"] not in SPLITS:
            raise DataListError(
                f"{path}: case {i} lacks {', '.join(wrong) or 'files or a split'}; a case has "
                f"case, subject, split ({', '.join(SPLITS)}), and image or label. Add them."
            )
        for file in files:
            digest = file.get("sha256")
            if not isinstance(file.get("path"), str) or Path(file["path"]).is_absolute():
                raise DataListError(f"{path}: a file of case {i} has no relative path. Add it.")
            if digest is not None and not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
                raise DataListError(
                    f"{path}: {file['path']} has the check sum {digest!r}; allowed are 64 "
                    f"hexadecimal digits, or null where it is unknown. Compute it again."
                )
        first = splits.setdefault(entry["subject"], entry["split"])
        if first != entry["split"]:
            raise DataListError(
                f"{path}: {entry['subject']} is in {first} and in {entry['split']}; a patient "
                f"belongs into one split. Move all cases of the patient into one."
            )


def _entry_files(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from entry.get("image", ())
    if entry.get("label"):
        yield entry["label"]
    yield from entry.get("extra", {}).values()


def _leading(layout: Mapping[str, Any]) -> str:
    """The file by which cases are found: the label, or the first image."""
    return str(layout.get("label") or next(iter(layout.get("image", ())), ""))


def _find_cases(layout: Mapping[str, Any], root: Path) -> Iterator[dict[str, Any]]:
    """Finds the cases of a local copy by their labels."""
    leading = _leading(layout)
    words = tuple(dict.fromkeys(WORD.findall(leading)))
    pattern = re.compile(_expression(leading))
    for file in sorted(root.glob(WORD.sub("*", leading))):
        match = pattern.fullmatch(file.relative_to(root).as_posix())
        # Archives made on a Mac hold a second, unreadable file ._NAME for each NAME.
        if not match or any(part.startswith(".") for part in file.relative_to(root).parts):
            continue
        found = match.groupdict()
        case = layout.get("case", "_".join(f"{{{word}}}" for word in words)).format(**found)
        subject = layout.get("subject", f"{{{words[0]}}}").format(**found)
        entry: dict[str, Any] = {
            "case": case,
            "subject": subject,
            "split": layout.get("split") or split_of(subject, layout.get("shares", SHARES)),
            "image": [{"path": name.format(**found)} for name in layout.get("image", ())],
        }
        if "label" in layout:
            entry["label"] = {"path": layout["label"].format(**found)}
        extra = layout.get("extra", {})
        entry["extra"] = {key: {"path": name.format(**found)} for key, name in extra.items()}
        yield entry


def _expression(path: str) -> str:
    """Regular expression for a path with words in braces; a repeated word must match itself."""
    parts, seen = [], set()
    for i, part in enumerate(WORD.split(path)):
        if i % 2 == 0:
            parts.append(re.escape(part))
        else:
            parts.append(f"(?P={part})" if part in seen else f"(?P<{part}>[^/]+)")
            seen.add(part)
    return "".join(parts)
