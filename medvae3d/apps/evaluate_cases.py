"""The cases that a report is about: any data lists, read, checked and put on one grid.

Every list may have its own spacing, shape, orientation and unit of files. What comes out are cases
of one grid, with intensities on one scale, which is that of the real cases.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd

from medvae3d.apps.evaluate_lists import CaseList, common_labels
from medvae3d.data.datalists import Case
from medvae3d.data.manifests import sha256_of
from medvae3d.data.nifti import grid_of
from medvae3d.data.preparation import FILL, Observedd
from medvae3d.data.transforms import (
    LabelSpacingd,
    NormalizeChannelsd,
    PadCropd,
    SafeSpacingd,
)
from medvae3d.data.volumes import read_mask, read_volume
from medvae3d.errors import DataListError, IntensityError, SettingError, UnreadableFileError
from medvae3d.evaluation.cases import Cases
from medvae3d.geometry import Grid

Tell = Callable[[int, int, str], None]
"""Told what is done, what is wanted, and a few words about it."""

# Share of the voxels of all real cases that lies below and above of the common scale, in percent.
ROBUST = (0.1, 99.9)
# Voxels of a case and channel that the scale is found from.
SAMPLED = 50_000
# Image, mask, where it was observed, and region stay; scores need about as much again for a while.
WORKING_COPIES = 2.0
INTENSITIES = ("range", "percentile")
ORIENTATION = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Frame:
    """What all cases are brought to.

    Attributes:
        spacing_mm: Size of a voxel along right, anterior, superior.
        shape: Voxels along the same.
        channels: Names of the channels.
        labels: Names of the labels, background left out; label ``i`` of a mask is the ``i``-th.
        label_values: What these were in the files.
        intensities: How each channel was scaled.
    """

    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    label_values: tuple[int, ...]
    intensities: tuple[Mapping[str, Any], ...] = ()

    @property
    def grid(self) -> Grid:
        """The grid of all cases, about its own middle."""
        return Grid.centred(self.shape, self.spacing_mm)


@dataclass(frozen=True)
class Read:
    """What was read: the sets by name, the frame, and what a reader has to be told.

    Attributes:
        sets: Cases by ``real``, ``synthetic`` and, if there are any, ``reference``.
        frame: What they were brought to.
        hashes: One SHA-256 over all files of a set, by set.
        warnings: What was padded, cut or left out.
    """

    sets: Mapping[str, Cases]
    frame: Frame
    hashes: Mapping[str, str]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    channels: int


def read_sets(
    lists: Mapping[str, CaseList],
    *,
    spacing_mm: Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    intensity: str = "range",
    schemes: Sequence[Mapping[str, Any]] | None = None,
    labels: Mapping[str, int] | None = None,
    tell: Tell | None = None,
) -> Read:
    """Reads all sets onto one grid.

    Args:
        lists: Cases by ``real``, ``synthetic`` and ``reference``; the first is what others follow.
        spacing_mm: Size of a voxel; the median of the real cases if not given.
        shape: Voxels; the largest of the real cases along each axis if not given.
        intensity: ``range``: one scale a channel, from the real cases; ``percentile``: each image
            from its own darkest to its brightest, for MR without a unit.
        schemes: How each channel is scaled, as `medvae3d.data.intensity` reads it, in place of
            that.
        labels: Names and values of the labels, in place of what the lists say.
        tell: Told about each case.

    Raises:
        DataListError: If the lists do not fit each other.
        SettingError: If there is not enough memory.
        UnreadableFileError: If a file cannot be read.
    """
    if intensity not in INTENSITIES:
        raise SettingError(
            f"intensity is {intensity!r}; allowed are {', '.join(INTENSITIES)}. Name one of them."
        )
    headers = {name: [_header(case) for case in each.cases] for name, each in lists.items()}
    channels = _common_channels(lists, headers)
    real = headers["real"]
    if spacing_mm is None:
        spacing_mm = np.median([header.spacing for header in real], axis=0).tolist()
    spacing = tuple(round(float(size), 4) for size in spacing_mm)
    if shape is None:
        shape = np.max([_resampled(header, spacing) for header in real], axis=0).tolist()
    size = tuple(int(n) for n in shape)
    _require_memory(lists, size, len(channels), spacing)
    raw = _Reading(lists, tell or _silent).read(spacing)
    names, values = common_labels(lists, raw.found, labels)
    if schemes is None:
        schemes = _schemes(raw.items["real"], channels, intensity, lists["real"])
    elif len(schemes) != len(channels):
        raise SettingError(
            f"{len(schemes)} channels are wanted, {lists['real'].path} has {len(channels)}. List "
            f"one file a channel, in the order of the bundle."
        )
    frame = Frame(spacing, size, channels, names, values, tuple(schemes))  # type: ignore[arg-type]
    finish = _finishing(frame)
    sets = {name: _stacked(raw.items.pop(name), finish, frame) for name in list(raw.items)}
    told = _changes(headers, lists, frame)
    return Read(sets, frame, raw.hashes, told)


class _Reading:
    """The first pass: files to volumes with one voxel size and orientation, in native units."""

    def __init__(self, lists: Mapping[str, CaseList], tell: Tell) -> None:
        self.lists, self.tell = lists, tell
        self.items: dict[str, list[dict[Any, Any]]] = {}
        self.found: dict[str, set[int]] = {}
        self.hashes: dict[str, str] = {}

    def read(self, spacing: Sequence[float]) -> _Reading:
        both = ["image", "label"]
        resample_image = SafeSpacingd(["image"], pixdim=spacing, mode="bilinear")
        turn = Orientationd(both, axcodes="RAS", labels=ORIENTATION)
        wanted, done = sum(len(each.cases) for each in self.lists.values()), 0
        for name, each in self.lists.items():
            items, digest = [], hashlib.sha256()
            found: set[int] = set()
            for case in each.cases:
                self.tell(done, wanted, f"reading {name} cases")
                item: dict[Any, Any] = _read_case(case)
                values = np.unique(item["label"].numpy()).astype(int).tolist()
                found.update(values)
                item = resample_image(turn(item))
                item = LabelSpacingd(["label"], spacing, values)(item)
                items.append(item)
                for file in case.files:
                    digest.update(f"{sha256_of(file)}  {file.name}\n".encode())
                done += 1
            self.items[name], self.found[name] = items, found
            self.hashes[name] = digest.hexdigest()
        return self


def _read_case(case: Case) -> dict[str, Any]:
    """Image and mask of a case, as stored, with their place; an empty mask if it has none."""
    volumes = [
        read_volume(file, what=f"image of {case.name}", channels=len(case.image) == 1)
        for file in case.image
    ]
    first = volumes[0]
    for volume in volumes[1:]:
        first.grid.require_same(volume.grid, this=str(first.path), that=str(volume.path))
    image = np.concatenate([v.array if v.array.ndim == 4 else v.array[None] for v in volumes])
    label = np.zeros(first.grid.shape, dtype=np.uint8)
    if case.label is not None:
        mask = read_mask(case.label, what=f"label of {case.name}")
        first.grid.require_same(mask.grid, this=str(first.path), that=str(mask.path))
        label = mask.array
    affine = torch.as_tensor(np.array(first.grid.affine))
    return {
        "case": case.name,
        "image": MetaTensor(torch.from_numpy(image), affine=affine),
        "label": MetaTensor(torch.from_numpy(label)[None], affine=affine),
    }


def _header(case: Case) -> _Header:
    """Shape, spacing and channels of a case, from headers alone, with axes as RAS."""
    channels, grid = 0, None
    for file in case.image:
        try:
            header: Any = nib.load(file).header
        except Exception as error:  # nibabel raises many kinds, from zlib's to its own
            raise UnreadableFileError(
                f"image of {case.name} {file} cannot be read: {error}. It has to be a whole NIfTI "
                f"file; get it again, or take the case out of the data list."
            ) from error
        grid = grid or grid_of(header, f"image of {case.name} {file}")
        shape = header.get_data_shape()
        channels += int(shape[3]) if len(shape) > 3 else 1
    if grid is None:
        raise DataListError(f"case {case.name} has no image; a report needs one of each case.")
    order = nib.orientations.io_orientation(grid.affine)[:, 0].astype(int)
    back = np.argsort(order)
    return _Header(
        tuple(grid.shape[i] for i in back), tuple(grid.spacing[i] for i in back), channels
    )


def _resampled(header: _Header, spacing: Sequence[float]) -> list[int]:
    return [
        max(1, round(n * old / new))
        for n, old, new in zip(header.shape, header.spacing, spacing, strict=True)
    ]


def _common_channels(
    lists: Mapping[str, CaseList], headers: Mapping[str, Sequence[_Header]]
) -> tuple[str, ...]:
    """Names of the channels, of which all cases of all lists have the same number.

    Raises:
        DataListError: If they do not.
    """
    counts: dict[str, int] = {}
    for name, each in lists.items():
        found = [header.channels for header in headers[name]]
        odd = [case for case, n in zip(each.cases, found, strict=True) if n != found[0]]
        if odd:
            other = found[each.cases.index(odd[0])]
            raise DataListError(
                f"{each.path}: {each.cases[0].name} has {found[0]} channels, {odd[0].name} has "
                f"{other}; all cases need the same. Correct the list; `medvae3d data check` shows "
                f"all such cases."
            )
        counts[name] = found[0]
        if counts[name] != counts["real"]:
            raise DataListError(
                f"{lists['real'].path} has {counts['real']} channels, {each.path} has "
                f"{counts[name]}; both need the same channels in the same order. Take the first "
                f"{min(counts.values())} files of each case with --channels "
                f"{min(counts.values())}, or correct one of the lists."
            )
    wanted = counts["real"]
    for each in lists.values():
        if len(each.channels) == wanted:
            return each.channels
    return tuple(f"channel {number + 1}" for number in range(wanted))


def _require_memory(
    lists: Mapping[str, CaseList],
    shape: Sequence[int],
    channels: int,
    spacing: Sequence[float],
) -> None:
    count = sum(len(each.cases) for each in lists.values())
    wanted = count * float(np.prod(shape)) * 4 * (channels + 3) * WORKING_COPIES
    limit = available_bytes()
    if wanted <= 0.9 * limit:
        return
    share = 0.9 * limit / wanted
    coarser = ",".join(f"{size * share ** (-1 / 3):.3g}" for size in spacing)
    smaller = ",".join(str(max(8, int(n * share ** (1 / 3)))) for n in shape)
    raise SettingError(
        f"{count} cases of {' x '.join(map(str, shape))} voxels with {channels} channels need "
        f"about {wanted / 2**30:.1f} GiB, and {limit / 2**30:.1f} GiB are free. Judge fewer cases "
        f"with --most {max(2, int(min(len(each.cases) for each in lists.values()) * share))}, or "
        f"larger voxels with --spacing {coarser}, or the middle of each with --shape {smaller}."
    )


def available_bytes() -> float:
    """Memory that is free, or would be if caches were dropped; in bytes."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            rows = dict(line.split(":", 1) for line in file)
        return float(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")


def _schemes(
    items: Sequence[Mapping[str, Any]],
    channels: Sequence[str],
    intensity: str,
    listed: CaseList,
) -> list[dict[str, Any]]:
    """How each channel is scaled, as `medvae3d.data.intensity` reads it."""
    if intensity == "percentile":
        return [{"kind": "percentile"} for _ in channels]
    schemes = []
    for number, channel in enumerate(channels):
        some = []
        for item in items:
            values = item["image"][number].as_tensor().flatten()
            some.append(values[:: max(1, len(values) // SAMPLED)].numpy())
        low, high = (float(v) for v in np.percentile(np.concatenate(some), ROBUST))
        if not low < high:
            raise IntensityError(
                f"{listed.path}: {channel} is {low:g} in nearly all voxels of all real cases; "
                f"there is nothing to compare. Check the list with `medvae3d data check`."
            )
        schemes.append({"kind": "window", "low": low, "high": high})
    return schemes


def _finishing(frame: Frame) -> Compose:
    """From native units to the common scale, shape and label values."""
    return Compose(
        [
            NormalizeChannelsd(["image"], list(frame.intensities), invertible=False),
            Observedd(["image"]),
            PadCropd(["image"], frame.shape, value=FILL),
            PadCropd(["valid", "label"], frame.shape, value=0),
        ]
    )


def _stacked(items: list[dict[Any, Any]], finish: Compose, frame: Frame) -> Cases:
    """Cases of one size; the items are let go of one by one, as both together may be large."""
    table = torch.zeros(max(frame.label_values, default=0) + 1)
    for number, value in enumerate(frame.label_values, start=1):
        table[value] = number
    count = len(items)
    image = torch.empty((count, len(frame.channels), *frame.shape))
    mask, valid = torch.empty((count, 1, *frame.shape)), torch.empty((count, 1, *frame.shape))
    names = _unique([str(item["case"]) for item in items])
    for row in range(count):
        item, items[row] = items[row], {}
        try:
            done = finish(item)
        except IntensityError as error:
            raise IntensityError(f"{names[row]}: {error}") from error
        image[row] = done["image"].as_tensor()
        valid[row] = done["valid"].as_tensor()
        mask[row] = table[done["label"].as_tensor().long()]
    return Cases(image, mask, valid, (mask > 0).float(), names)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names, those that come again with their number."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(found)


def _changes(
    headers: Mapping[str, Sequence[_Header]], lists: Mapping[str, CaseList], frame: Frame
) -> list[str]:
    """What the common grid and the lists took away or added."""
    # Real and reference cases are often of one list, of which the same is to be said once.
    told = list(dict.fromkeys(warning for each in lists.values() for warning in each.warnings))
    for name, rows in headers.items():
        sizes = [_resampled(header, frame.spacing_mm) for header in rows]
        cut = sum(any(n > m for n, m in zip(size, frame.shape, strict=True)) for size in sizes)
        padded = sum(any(n < m for n, m in zip(size, frame.shape, strict=True)) for size in sizes)
        moved = sum(not np.allclose(h.spacing, frame.spacing_mm, rtol=0.01) for h in rows)
        for count, what in (
            (moved, "were resampled to another voxel size"),
            (cut, "were larger than the common grid and were cut about their middle"),
            (padded, "were smaller than the common grid and were padded; padding is not judged"),
        ):
            if count:
                told.append(f"{count} of {len(rows)} {name} cases {what}")
    return told


def _silent(done: int, wanted: int, words: str) -> None:
    """Says nothing."""
