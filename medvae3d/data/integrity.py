"""One pass over a data set: grids, labels, lesions, NaN, constant channels, duplicates.

Every file of a data list is read once. What is wrong with a case is a finding; what cannot be read
at all is listed apart; what is normal goes into statistics per split.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from medvae3d.data.manifests import SPLITS, Case, DataList
from medvae3d.data.volumes import Volume, label_values, read_mask, read_volume
from medvae3d.errors import GridError, LabelError, MedvaeError
from medvae3d.geometry import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[int, int, str], None]
TOLERANCE_MM = 1e-2
NEIGHBOURS_26 = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a case.

    Attributes:
        case: Name of the case.
        kind: ``grid``, ``label``, ``nan``, ``constant``, ``duplicate``, ``split``, ``channels``.
        text: What was found, what is allowed, and what to do.
    """

    case: str
    kind: str
    text: str


@dataclass(frozen=True)
class CaseReport:
    """What was found in one case.

    Attributes:
        case: Its name.
        subject: Its patient.
        split: Its split.
        shape: Voxels along each axis.
        spacing_mm: Size of a voxel.
        axcodes: Where the axes point.
        affine: Voxel index to mm.
        channels: Type and range of each channel; ``None`` for one that the case lacks.
        labels: Volume in ml of each label value but 0; ``None`` without a label.
        lesions_ml: Volumes of the connected components of the mask in ml, largest first.
        mismatch_mm: Distance of image and label at the worst corner; ``None`` if either is
            missing or their shapes differ.
    """

    case: str
    subject: str
    split: str
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    axcodes: str = ""
    affine: list[list[float]] = field(default_factory=list)
    channels: tuple[Mapping[str, Any] | None, ...] = ()
    labels: Mapping[int, float] | None = None
    lesions_ml: tuple[float, ...] = ()
    mismatch_mm: float | None = None

    @property
    def lesion_count(self) -> int:
        return len(self.lesions_ml)


@dataclass(frozen=True)
class IntegrityReport:
    """What one pass over a data set found.

    Attributes:
        cases: One report a case, in the order of the list.
        findings: What is wrong.
        unreadable: What could not be read at all; each with its reason.
    """

    cases: tuple[CaseReport, ...]
    findings: tuple[Finding, ...]
    unreadable: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 if all is well, 1 with findings, 2 if a file cannot be read."""
        return 2 if self.unreadable else 1 if self.findings else 0

    @property
    def summary(self) -> dict[str, Any]:
        """Statistics per split: counts, shapes, spacings, orientations, labels, volumes."""
        groups = {split: [c for c in self.cases if c.split == split] for split in SPLITS}
        kinds = Counter(finding.kind for finding in self.findings)
        return {
            "cases": len(self.cases),
            "unreadable": len(self.unreadable),
            "findings": dict(sorted(kinds.items())),
            "splits": {split: _statistics(group) for split, group in groups.items() if group},
        }

    def to_json(self) -> str:
        """The whole report as JSON."""
        content = {
            "exit_code": self.exit_code,
            "summary": self.summary,
            "findings": [asdict(finding) for finding in self.findings],
            "unreadable": [asdict(finding) for finding in self.unreadable],
            "cases": [asdict(case) | {"lesion_count": case.lesion_count} for case in self.cases],
        }
        return json.dumps(content, indent=1)


def check(
    datalist: DataList,
    *,
    values: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> IntegrityReport:
    """Reads every case of a data list once and reports what it finds.

    Args:
        datalist: The cases; read it with ``check_files=False`` to have missing files reported
            rather than raised.
        values: Label values that may occur; if not given, those in the list's ``labels``, or any.
        progress: Called before each case with its index, the number of cases and its name.
    """
    if values is None and isinstance(datalist.info.get("labels"), dict):
        values = _declared(datalist.info["labels"])
    reports: list[CaseReport] = []
    findings: list[Finding] = []
    unreadable: list[Finding] = []
    digests: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for i, case in enumerate(datalist.cases):
        if progress is not None:
            progress(i, len(datalist), case.name)
        reader = _Reader(case, values)
        reports.append(reader.report())
        findings += reader.findings
        unreadable += reader.unreadable
        for path, digest in reader.digests:
            digests[digest].append((case.name, path))
    findings += _shared_subjects(datalist.cases)
    findings += _duplicates(digests)
    findings += _odd_channels(reports)
    return IntegrityReport(tuple(reports), tuple(findings), tuple(unreadable))


class _Reader:
    """Reads the files of one case and collects what is wrong with them."""

    def __init__(self, case: Case, values: Sequence[int] | None) -> None:
        self.case = case
        self.values = values
        self.findings: list[Finding] = []
        self.unreadable: list[Finding] = []
        self.digests: list[tuple[Path, str]] = []

    def report(self) -> CaseReport:
        images = [v for path in self.case.image if (v := self._image(path)) is not None]
        channels: list[dict[str, Any] | None] = []
        for volume in images:
            channels += self._channels(volume)
        for number in self.case.missing:
            channels.insert(number, None)
        self._require_single(images)
        grids = {volume.path: volume.grid for volume in images}
        # Freed before the label is read: a case of four channels is a third of a gigabyte.
        del images
        mask = self._mask()
        first = next(iter(grids.values()), None) or (mask.grid if mask else None)
        mismatch = None
        if grids:
            (path, grid), *others = grids.items()
            for other, other_grid in others:
                self._compare(grid, other_grid, f"channel {path.name}", f"channel {other.name}")
            if mask is not None:
                self._compare(grid, mask.grid, f"image {path.name}", f"label {mask.path.name}")
                if grid.shape == mask.grid.shape:
                    mismatch = grid.worst_corner_mm(mask.grid)
        labels, lesions = _lesions(mask.array, mask.grid) if mask else (None, ())
        if labels == {}:
            self._find("label", f"{self.case.label} is empty: there is no voxel above 0. Remove "
                       f"the case, or keep it on purpose as one without a lesion.")  # fmt: skip
        place = {} if first is None else {
            "shape": first.shape, "spacing_mm": first.spacing,
            "axcodes": first.axcodes, "affine": first.affine.tolist(),
        }  # fmt: skip
        case = self.case
        return CaseReport(
            case.name, case.subject, case.split, **place, channels=tuple(channels),
            labels=labels, lesions_ml=lesions, mismatch_mm=mismatch,
        )  # fmt: skip

    def _image(self, path: Path) -> Volume | None:
        try:
            volume = read_volume(path, channels=True, finite=False)
        except GridError as error:
            self._find("grid", str(error))
        except MedvaeError as error:
            self.unreadable.append(Finding(self.case.name, "unreadable", str(error)))
        else:
            self.digests.append((path, _digest(volume)))
            return volume
        return None

    def _require_single(self, images: Sequence[Volume]) -> None:
        """With a channel missing, a file of several would leave open which they are."""
        several = [volume for volume in images if len(volume.array) > 1]
        if self.case.missing and several:
            self._find(
                "channels",
                f"{several[0].path} holds {len(several[0].array)} channels, and null stands for "
                f"another one of this case; allowed beside null is one file a channel. Part the "
                f"file, for example with `medvae3d data import`.",
            )

    def _mask(self) -> Volume | None:
        if self.case.label is None:
            return None
        try:
            volume = read_mask(self.case.label, self.values)
        except GridError as error:
            self._find("grid", str(error))
        except LabelError as error:
            self._find("label", str(error))
        except MedvaeError as error:
            self.unreadable.append(Finding(self.case.name, "unreadable", str(error)))
        else:
            self.digests.append((self.case.label, _digest(volume)))
            return volume
        return None

    def _channels(self, volume: Volume) -> list[dict[str, Any]]:
        """Type and range of each channel of a file."""
        items = []
        for i, array in enumerate(volume.array):
            name = str(volume.path) + (f" channel {i}" if len(volume.array) > 1 else "")
            finite = np.isfinite(array)
            bad = int(array.size - finite.sum())
            if bad:
                self._find(
                    "nan",
                    f"{name} holds {bad} NaN or infinite voxels of {array.size}; allowed are "
                    f"finite values. Replace them, for example by the background value.",
                )
            kept = array[finite] if bad else array
            low, high = (float(kept.min()), float(kept.max())) if kept.size else (0.0, 0.0)
            if low == high:
                self._find(
                    "constant",
                    f"{name} is {low:g} in every voxel; an image has at least two values. "
                    f"Export it again, or remove the case.",
                )
            file = volume.path.name
            items.append({"file": file, "dtype": str(volume.dtype), "low": low, "high": high})
        return items

    def _compare(self, grid: Grid, other: Grid, this: str, that: str) -> None:
        try:
            grid.require_same(other, this=this, that=that, tolerance_mm=TOLERANCE_MM)
        except GridError as error:
            self._find("grid", str(error))

    def _find(self, kind: str, text: str) -> None:
        self.findings.append(Finding(self.case.name, kind, text))


def _lesions(mask: NDArray[Any], grid: Grid) -> tuple[dict[int, float], tuple[float, ...]]:
    """Volume of each label value, and of each connected component of all of them, in ml."""
    voxel = grid.voxel_volume_ml
    volumes = {
        value: round(float((mask == value).sum() * voxel), 6)
        for value in label_values(mask)
        if value != 0
    }
    if not volumes:
        return {}, ()
    boxes = ndimage.find_objects((mask != 0).astype(np.uint8))
    parts, _ = ndimage.label(mask[boxes[0]] != 0, NEIGHBOURS_26)
    sizes = np.bincount(parts.ravel())[1:]
    return volumes, tuple(round(float(n * voxel), 6) for n in sorted(sizes, reverse=True))


def _digest(volume: Volume) -> str:
    """SHA-256 of voxels and affine, whatever the compression or type in the file."""
    digest = hashlib.sha256(np.ascontiguousarray(volume.array).data)
    digest.update(str(volume.array.shape).encode())
    digest.update(np.round(volume.grid.affine, 4).tobytes())
    return digest.hexdigest()


def _shared_subjects(cases: Iterable[Case]) -> list[Finding]:
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for case in cases:
        splits[case.subject].setdefault(case.split, case.name)
    return [
        Finding(
            next(iter(where.values())),
            "split",
            f"subject {subject} is in {' and in '.join(where)}; a subject belongs into one split, "
            f"or scores on unseen cases mean nothing. Move all its cases into one.",
        )
        for subject, where in splits.items()
        if len(where) > 1
    ]


def _duplicates(digests: Mapping[str, Sequence[tuple[str, Path]]]) -> list[Finding]:
    return [
        Finding(
            files[0][0],
            "duplicate",
            f"{' and '.join(str(path) for _, path in files)} hold the same voxels on the same "
            f"grid; each file should occur once. Remove the copies.",
        )
        for files in digests.values()
        if len(files) > 1
    ]


def _odd_channels(reports: Sequence[CaseReport]) -> list[Finding]:
    counts = Counter(len(report.channels) for report in reports if report.channels)
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    return [
        Finding(
            report.case,
            "channels",
            f"{report.case} has {len(report.channels)} channels, most cases have {usual}; all "
            f"cases with images need the same. Add the missing files or remove the case.",
        )
        for report in reports
        if len(report.channels) not in (0, usual)
    ]


def _declared(labels: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Label values that a list declares, as MONAI writes them (value: name) or nnU-Net does."""
    for numbers in (labels.keys(), labels.values()) if labels else ():
        try:
            return tuple(int(number) for number in numbers)
        except (TypeError, ValueError):
            continue
    return None


def _statistics(group: Sequence[CaseReport]) -> dict[str, Any]:
    volumes = [sum(report.labels.values()) for report in group if report.labels]
    spacings = np.array([report.spacing_mm for report in group if report.spacing_mm])
    shapes = np.array([report.shape for report in group if report.shape])
    lacking = Counter(i for report in group for i, c in enumerate(report.channels) if c is None)
    counts = {"cases_without_channel": dict(sorted(lacking.items()))} if lacking else {}
    values = sorted({value for report in group for value in report.labels or ()})
    return {
        "cases": len(group),
        "subjects": len({report.subject for report in group}),
        "with_image": sum(bool(report.channels) for report in group),
        "with_label": sum(report.labels is not None for report in group),
        "channels": sorted({len(report.channels) for report in group if report.channels}),
        **counts,
        "axcodes": dict(Counter(report.axcodes for report in group if report.axcodes)),
        "shape": _range(shapes),
        "spacing_mm": _range(spacings),
        "label_values": values,
        "volume_ml": _quantiles(volumes),
        "lesions": _quantiles([report.lesion_count for report in group if report.labels]),
    }


def _range(rows: NDArray[Any]) -> dict[str, list[float]]:
    return {"low": rows.min(0).tolist(), "high": rows.max(0).tolist()} if len(rows) else {}


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not len(values):
        return {}
    low, median, high = np.quantile(values, (0, 0.5, 1))
    return {"low": float(low), "median": float(median), "high": float(high)}
