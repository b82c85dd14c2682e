"""The cases that a report is about: any data lists, read, checked and put on one grid.

Every list may have its own spacing, shape, orientation and unit of files. What comes out are cases
of one grid, with intensities on one scale, which is that of the real cases. Where images or masks
of the lists cannot be compared, such as for want of a channel, the others still are: what is
missing and why is said beside the cases.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform

from medvae3d.apps.evaluate_lists import CaseList, common_labels
from medvae3d.apps.evaluate_reading import (
    NAMED,
    Header,
    Reading,
    Tell,
    header_of,
    read_lists,
    resampled_shape,
)
from medvae3d.apps.evaluate_scale import schemes_of
from medvae3d.data.preparation import FILL, Observedd
from medvae3d.data.transforms import NormalizeChannelsd, PadCropd
from medvae3d.errors import (
    DataListError,
    GridMismatchError,
    IntensityError,
    LabelError,
    SettingError,
)
from medvae3d.evaluation.cases import Cases
from medvae3d.geometry import Grid

IMAGE, MASK = "image", "mask"
# Image, mask, where it was observed, and region stay; scores need about as much again for a while.
WORKING_COPIES = 2.0
INTENSITIES = ("range", "percentile")
NO_IMAGE = "no image"
LEFT_OUT = "the reference was left out: "


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
        lists: The lists of the sets, without the cases that were left out.
        blocked: Why images, masks or both are not there, by ``image`` and ``mask``.
    """

    sets: Mapping[str, Cases]
    frame: Frame
    hashes: Mapping[str, str]
    warnings: list[str] = field(default_factory=list)
    lists: Mapping[str, CaseList] = field(default_factory=dict)
    blocked: Mapping[str, str] = field(default_factory=dict)


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
        SettingError: If a setting is wrong, or there is not enough memory.
        UnreadableFileError: If a file cannot be read.
        GridMismatchError: If the channels of no case of a list lie on each other.
    """
    if intensity not in INTENSITIES:
        raise SettingError(
            f"intensity is {intensity!r}; allowed are {', '.join(INTENSITIES)}. Name one of them."
        )
    headers = {name: [header_of(case) for case in each.cases] for name, each in lists.items()}
    blocked: dict[str, str] = {}
    told: list[str] = []
    lists, channels = _fitting_channels(dict(lists), headers, told, blocked)
    real = headers["real"]
    if spacing_mm is None:
        spacing_mm = np.median([header.spacing for header in real], axis=0).tolist()
    spacing = tuple(round(float(size), 4) for size in spacing_mm)
    if shape is None:
        shape = np.max([resampled_shape(header, spacing) for header in real], axis=0).tolist()
    size = tuple(int(n) for n in shape)
    _require_memory(lists, size, len(channels), spacing, _largest(lists["real"], real))
    raw = read_lists(lists, spacing, tell or _silent, has_images=IMAGE not in blocked)
    told += raw.warnings
    names, values = _fitting_labels(raw, labels, told, blocked)
    if schemes is None and IMAGE not in blocked:
        try:
            schemes = schemes_of(raw.items["real"], channels, intensity, lists["real"], told)
        except IntensityError as error:
            blocked[IMAGE] = str(error)
    elif schemes is not None and len(schemes) != len(channels) and IMAGE not in blocked:
        raise SettingError(
            f"{len(schemes)} channels are wanted, {lists['real'].path} has {len(channels)}. List "
            f"one file a channel, in the order of the bundle."
        )
    if IMAGE in blocked:
        channels, schemes = (NO_IMAGE,), ()
    frame = Frame(spacing, size, channels, names, values, tuple(schemes or ()))  # type: ignore[arg-type]
    sets = {name: _stacked(raw.items.pop(name), frame, name, told) for name in list(raw.items)}
    told += [f"no {kind}s are judged: {why.rstrip('.')}" for kind, why in blocked.items()]
    told += _changes({name: headers[name] for name in sets}, raw.lists, frame)
    return Read(sets, frame, raw.hashes, told, raw.lists, blocked)


def _fitting_channels(
    lists: dict[str, CaseList],
    headers: dict[str, list[Header]],
    told: list[str],
    blocked: dict[str, str],
) -> tuple[dict[str, CaseList], tuple[str, ...]]:
    """The lists whose channels fit, and their names; without a reference that is the odd one."""
    try:
        return lists, _common_channels(lists, headers)
    except DataListError as error:
        others = {name: each for name, each in lists.items() if name != "reference"}
        try:
            channels = _common_channels(others, headers)
        except DataListError as fault:
            blocked[IMAGE] = str(fault)
            return lists, (NO_IMAGE,)
        told.append(f"{LEFT_OUT}{str(error).rstrip('.')}")
        return others, channels


def _fitting_labels(
    raw: Reading, labels: Mapping[str, int] | None, told: list[str], blocked: dict[str, str]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and values of the labels of the sets; none, and why, where these do not fit."""

    def of(sets: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
        if missing := [raw.maskless[name] for name in sets if name in raw.maskless]:
            raise GridMismatchError(missing[0])
        return common_labels(
            {name: raw.lists[name] for name in sets},
            {name: raw.values[name] for name in sets},
            labels,
        )

    names = list(raw.items)
    try:
        return of(names)
    except (DataListError, LabelError, GridMismatchError) as error:
        others = [name for name in names if name != "reference"]
        try:
            found = of(others)
        except (DataListError, LabelError, GridMismatchError) as fault:
            blocked[MASK] = str(fault)
            return (), ()
        for part in (raw.items, raw.lists, raw.hashes):
            part.pop("reference", None)
        told.append(f"{LEFT_OUT}{str(error).rstrip('.')}")
        return found


def _common_channels(
    lists: Mapping[str, CaseList], headers: Mapping[str, Sequence[Header]]
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
    largest: str,
) -> None:
    count = sum(len(each.cases) for each in lists.values())
    wanted = count * float(np.prod(shape)) * 4 * (channels + 3) * WORKING_COPIES
    limit = available_bytes()
    if wanted <= 0.9 * limit:
        return
    share = 0.9 * limit / wanted
    coarser = ",".join(f"{size * share ** (-1 / 3):.3g}" for size in spacing)
    smaller = ",".join(str(max(8, int(n * share ** (1 / 3)))) for n in shape)
    most = max(2, int(min(len(each.cases) for each in lists.values()) * share))
    raise SettingError(
        f"{count} cases of {' x '.join(map(str, shape))} voxels with {channels} channels need "
        f"about {wanted / 2**30:.1f} GiB, and {limit / 2**30:.1f} GiB are free; the largest real "
        f"case is {largest}. Judge fewer cases with --most {most}, or larger voxels with "
        f"--spacing {coarser}, or the middle of each with --shape {smaller}."
    )


def _largest(listed: CaseList, headers: Sequence[Header]) -> str:
    """The image of the case that takes most space; the common grid is as large along each axis."""
    sizes = [float(np.prod(np.multiply(each.shape, each.spacing))) for each in headers]
    return str(listed.cases[int(np.argmax(sizes))].files[0])


def available_bytes() -> float:
    """Memory that is free, or would be if caches were dropped; in bytes."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            rows = dict(line.split(":", 1) for line in file)
        return float(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")


def _finished(item: dict[Any, Any], frame: Frame, has_image: bool) -> dict[Any, Any]:
    """From native units to the common scale, shape and label values."""
    steps: list[MapTransform] = [PadCropd(["label"], frame.shape, value=0)]
    if has_image:
        steps += [
            NormalizeChannelsd(["image"], list(frame.intensities), invertible=False),
            Observedd(["image"]),
            PadCropd(["image"], frame.shape, value=FILL),
            PadCropd(["valid"], frame.shape, value=0),
        ]
    # One by one: MONAI's Compose makes another error of each.
    for step in steps:
        item = step(item)
    return item


def _stacked(items: list[dict[Any, Any]], frame: Frame, what: str, told: list[str]) -> Cases:
    """Cases of one size; the items are let go of one by one, as both together may be large.

    A case without contrast, or with voxels that are not finite, keeps its mask; of its image
    nothing counts as observed.
    """
    table = torch.zeros(max(frame.label_values, default=0) + 1)
    for number, value in enumerate(frame.label_values, start=1):
        table[value] = number
    count = len(items)
    image = torch.full((count, len(frame.channels), *frame.shape), FILL)
    mask, valid = torch.zeros((count, 1, *frame.shape)), torch.zeros((count, 1, *frame.shape))
    names = _unique([str(item["case"]) for item in items])
    faults: dict[str, str] = {}
    for row in range(count):
        item, items[row] = items[row], {}
        try:
            done = _finished(item, frame, has_image=bool(frame.intensities))
        except IntensityError as error:
            faults[names[row]] = str(error)
            done = _finished({"label": item["label"]}, frame, has_image=False)
        if "valid" in done:
            image[row] = done["image"].as_tensor()
            valid[row] = done["valid"].as_tensor()
        if frame.labels:
            mask[row] = table[done["label"].as_tensor().long()]
    if faults:
        named = ", ".join(list(faults)[:NAMED]) + ", ..." * (len(faults) > NAMED)
        told.append(
            f"the images of {len(faults)} of {count} {what} cases are not judged ({named}): "
            f"{next(iter(faults.values())).rstrip('.')}"
        )
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
    headers: Mapping[str, Sequence[Header]], lists: Mapping[str, CaseList], frame: Frame
) -> list[str]:
    """What the common grid and the lists took away or added."""
    # Real and reference cases are often of one list, of which the same is to be said once.
    told = list(dict.fromkeys(warning for each in lists.values() for warning in each.warnings))
    for name, rows in headers.items():
        sizes = [resampled_shape(header, frame.spacing_mm) for header in rows]
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
