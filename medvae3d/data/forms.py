"""The form of a data set: channels, labels, voxels and attributes, read off its cases.

A model is built for a form. Where nobody states one, it follows from what one pass over the cases
has found, by rules that are told with it, so that they can be overruled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medvae3d.data.case_names import file_word
from medvae3d.data.datalists import Case, DataList
from medvae3d.data.integrity import CaseReport, IntegrityReport
from medvae3d.data.volumes import read_mask, read_volume
from medvae3d.errors import DataListError, LabelError

# A volume of 64 x 64 x 64: 0.5 to 1 s a step of a small trunk on one core; a GPU takes more.
MOST_VOXELS = 64**3
# Spacings whose longest and shortest axis differ less become cubes, which no rotation distorts.
CUBIC_RATIO = 1.6
# Cases whose voxels are read to place a window.
WINDOW_CASES = 16
UPTAKE = ("pet", "suv")


@dataclass(frozen=True)
class DataForm:
    """What a model is built for.

    Attributes:
        channels: Name, unit, normalisation and storage of each channel.
        labels: Name and value of each label, background first.
        spacing: Size of a voxel in mm along right, anterior, superior.
        spatial_shape: Voxels of one volume.
        attributes: Names of the attributes of a mask that the model is told.
        classes: Names of the classes of cases, if all of them carry one.
        max_components: Connected components of a mask that are not unusual.
        allow_border: Whether masks reach the border of their volume.
        notes: How the form was found, in words.
    """

    channels: tuple[Mapping[str, Any], ...]
    labels: Mapping[str, int]
    spacing: tuple[float, float, float]
    spatial_shape: tuple[int, int, int]
    attributes: tuple[str, ...]
    classes: tuple[str, ...] = ()
    max_components: int = 1
    allow_border: bool = False
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The entries of a configuration that state the form."""
        return {
            "channels": [dict(channel) for channel in self.channels],
            "labels": dict(self.labels),
            "spacing": list(self.spacing),
            "spatial_shape": list(self.spatial_shape),
            "attributes": list(self.attributes),
            "classes": list(self.classes),
        }


def read_form(
    datalist: DataList, report: IntegrityReport, multiples: Sequence[int] = (8, 8, 8)
) -> DataForm:
    """Reads the form of a data set off its training cases.

    Args:
        datalist: The cases.
        report: What a pass over them has found.
        multiples: What the voxels along each axis have to be multiples of.

    Raises:
        DataListError: If no training case has both an image and a mask.
        LabelError: If the label values are not 0, 1, 2 and so on.
    """
    pairs = [
        (case, found)
        for case, found in zip(datalist, report.cases, strict=True)
        if case.split == "training" and found.channels and found.labels
    ]
    if not pairs:
        raise DataListError(
            f"{datalist.path} has no case with an image and a mask under 'training' to read the "
            f"form of the data off; at least one is needed. Add one."
        )
    cases, found = [case for case, _ in pairs], [each for _, each in pairs]
    labels = _labels(datalist, found)
    spacing, shape, notes = _grid(found, multiples)
    classes, unclassed = _classes(datalist)
    touching = sum(_touches(case) for case in cases) / len(cases)
    parts = float(np.quantile([each.lesion_count for each in found], 0.95))
    return DataForm(
        channels=_channels(datalist, cases, found),
        labels=labels,
        spacing=spacing,
        spatial_shape=shape,
        attributes=_attributes(labels, found),
        classes=classes,
        max_components=max(1, math.ceil(parts)),
        allow_border=touching > 0.05,
        notes=(*notes, *unclassed),
    )


def _labels(datalist: DataList, found: Sequence[CaseReport]) -> dict[str, int]:
    """Names and values; those names that the list states, in either of the usual forms."""
    stated: dict[int, str] = {}
    for key, value in dict(datalist.info.get("labels") or {}).items():
        number, name = (key, value) if str(key).isdigit() else (value, key)
        if str(number).isdigit():
            stated[int(number)] = str(name)
    values = sorted({0, *stated, *(value for each in found for value in each.labels or ())})
    if values != list(range(len(values))) or len(values) < 2:
        raise LabelError(
            f"the masks of {datalist.path} hold the label values {values}; allowed are 0 "
            f"(background), 1, 2 and so on without a gap. Number them anew."
        )
    plain = {0: "background", 1: "lesion"} if len(values) == 2 else {0: "background"}
    return {stated.get(v, plain.get(v, f"label_{v}")): v for v in values}


def _grid(
    found: Sequence[CaseReport], multiples: Sequence[int]
) -> tuple[tuple[float, float, float], tuple[int, int, int], tuple[str, ...]]:
    """Spacing and shape in which every training case is whole, within `MOST_VOXELS`."""
    sizes, spacings = [], []
    for each in found:
        order = [_world_axis(letter) for letter in each.axcodes]
        spacing = np.array(each.spacing_mm)[np.argsort(order)]
        spacings.append(spacing)
        sizes.append(np.array(each.shape)[np.argsort(order)] * spacing)
    extent = np.max(sizes, axis=0)
    spacing = np.median(spacings, axis=0)
    if spacing.max() / spacing.min() < CUBIC_RATIO:
        spacing = np.full(3, float(np.prod(spacing) ** (1 / 3)))
    native = np.round(spacing, 2)
    spacing, notes = native, tuple[str, ...]()
    while True:
        wanted = zip(extent / spacing, multiples, strict=True)
        shape = [math.ceil(voxels / step - 1e-3) * step for voxels, step in wanted]
        if math.prod(shape) <= MOST_VOXELS or shape == list(multiples):
            break
        spacing = np.round(spacing * 1.05, 2)
    if (spacing != native).any():
        told = " x ".join(f"{s:g}" for s in native)
        notes = (
            f"voxels of {told} mm would make volumes of more than {MOST_VOXELS} voxels; they are "
            f"made coarser. Set spacing=[...] and spatial_shape=[...] for others.",
        )
    i, j, k = (float(s) for s in spacing)
    a, b, c = (int(n) for n in shape)
    return (i, j, k), (a, b, c), notes


def _world_axis(letter: str) -> int:
    return next(axis for axis, ends in enumerate(("LR", "PA", "IS")) if letter in ends)


def _channels(
    datalist: DataList, cases: Sequence[Case], found: Sequence[CaseReport]
) -> tuple[dict[str, Any], ...]:
    count = min(len(each.channels) for each in found)
    names = _channel_names(datalist, cases, count)
    channels = []
    for index, name in enumerate(names):
        having = [case for case in cases if index not in case.missing]
        ranges = [item for each in found if (item := each.channels[index]) is not None]
        if not ranges:
            raise DataListError(
                f"{datalist.path}: channel {index} ({name}) is null in every training case with "
                f"an image and a mask; at least one has to have it. Add one, or leave the channel "
                f"out of all cases."
            )
        low = float(np.median([item["low"] for item in ranges]))
        high = float(np.median([item["high"] for item in ranges]))
        channels.append(_channel(name, index, low, high, having))
    return tuple(channels)


def _channel(
    name: str, index: int, low: float, high: float, cases: Sequence[Case]
) -> dict[str, Any]:
    """Uptake by a power law, signed values by a window, all others by percentiles."""
    if name.lower() in UPTAKE and low >= 0:
        scale = float(f"{high:.2g}")
        intensity = {"kind": "power", "scale": scale, "exponent": 0.5}
        # 16 bits hold a hundred times the scale in steps of 1/300 of it.
        return {
            "name": name, "unit": "SUV", "intensity": intensity, "slope": scale / 4000,
            "dtype": "int16",
        }  # fmt: skip
    # Small ranges are not whole numbers in native units.
    dtype = "int16" if high - low > 200 else "float32"
    if low < -0.01 * high:
        values = _some_voxels(index, cases)
        ends = [float(f"{v:.3g}") for v in np.percentile(values, (0.5, 99.5))]
        is_ct = name.lower() == "ct" or low <= -500
        intensity = {"kind": "window", "low": ends[0], "high": ends[1]}
        unit, slope = ("HU", 1.0) if is_ct else ("a.u.", None)
        return {"name": name, "unit": unit, "intensity": intensity, "slope": slope, "dtype": dtype}
    intensity = {"kind": "percentile", "low": 0.5, "high": 99.5}
    return {"name": name, "unit": "a.u.", "intensity": intensity, "slope": None, "dtype": dtype}


def _some_voxels(index: int, cases: Sequence[Case]) -> np.ndarray[Any, Any]:
    """Every eighth voxel of a channel in some of the cases that have it."""
    kept = []
    step = max(1, len(cases) // WINDOW_CASES)
    for case in cases[::step][:WINDOW_CASES]:
        arrays = [read_volume(path, channels=True).array for path in case.image]
        place = index - sum(number < index for number in case.missing)
        kept.append(np.concatenate(arrays)[place].ravel()[::8])
    return np.concatenate(kept)


def _channel_names(datalist: DataList, cases: Sequence[Case], count: int) -> list[str]:
    """Names that the list states, or that the files bear, or else numbers."""
    for key in ("channels", "channel_names", "modality"):
        stated = datalist.info.get(key)
        values = list(stated.values()) if isinstance(stated, Mapping) else stated
        if isinstance(values, list) and len(values) >= count:
            return [_shown(str(each)) for each in values[:count]]
    words = [_file_word(cases, index) for index in range(count)]
    if all(words) and len(set(words)) == len(words):
        return [_shown(word) for word in words]
    return ["MR"] if count == 1 else [f"channel {index}" for index in range(count)]


def _file_word(cases: Sequence[Case], index: int) -> str:
    """What the first case that has a file for a channel calls it."""
    files = (case.channels[index] for case in cases if index < len(case.channels))
    return next((file_word(path) for path in files if path is not None), "")


def _shown(name: str) -> str:
    return name.upper() if name.islower() and len(name) <= 5 else name


def _attributes(labels: Mapping[str, int], found: Sequence[CaseReport]) -> tuple[str, ...]:
    """The volume of each label, or of all together where a case lacks one of them."""
    values = [value for value in labels.values() if value]
    is_whole = all(set(values) <= set(each.labels or ()) for each in found)
    if len(values) == 1 or not is_whole:
        return ("log_volume",)
    return tuple(f"log_volume:{value}" for value in values)


def _classes(datalist: DataList) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Classes, if all training cases carry one, and what to say if only some of them do."""
    cases = datalist.split("training")
    stated = {str(case.extra["class"]) for case in cases if case.extra.get("class") is not None}
    without = [case.name for case in cases if case.extra.get("class") is None]
    if not without or not stated:
        return tuple(sorted(stated)), ()
    note = (
        f"{len(without)} of {len(cases)} training cases have no class, such as {without[0]}, so "
        f"that the model is told none; for one that is, give every case a 'class' of "
        f"{', '.join(sorted(stated))}."
    )
    return (), (note,)


def _touches(case: Case) -> bool:
    """Whether a mask reaches the border of its file."""
    if case.label is None:
        return False
    mask = read_mask(case.label).array > 0
    return any(mask.take(end, axis).any() for axis in range(3) for end in (0, -1))
