"""Folders of DICOM: series, studies of several series, and the masks of both.

A series is a case, or, where several channels are wanted, a study is one. Names of patients do not
leave the files: cases and subjects are numbered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from medvae3d.data.importing.common import (
    FoundCase,
    Layout,
    is_volume,
    require_all_labelled,
    some,
)
from medvae3d.data.importing.segmentations import (
    SEGMENTATION,
    label_map,
    names_of,
    read_segmentation,
    series_of,
)
from medvae3d.data.importing.slices import (
    SOP_CLASS,
    Slice,
    grid_of_slices,
    is_dicom,
    meta_element,
    read_header,
)
from medvae3d.data.importing.studies import Chosen, Series, choose
from medvae3d.data.staging import ScratchFolder
from medvae3d.data.volumes import write_volume
from medvae3d.errors import DataListError


def find_dicom(source: Path, channels: Sequence[str] | None = None) -> Layout:
    """Finds all series below a folder, and which of them are channels of one case.

    Args:
        source: Folder of one series, or of folders of them. A DICOM segmentation anywhere in it is
            the mask of the series that it refers to; a volume beside the slices is that of theirs.
        channels: Series to take, by modality or description; see `choose`.

    Raises:
        GridError: If the slices of a series make no volume.
        GridMismatchError: If the channels of a case have no common frame of reference.
        UnreadableFileError: If a file cannot be decoded.
        DataListError: If channels are missing or not unique, or there are several masks for one.
    """
    series, segmented = _collect(source)
    chosen, names = choose(series, channels, source)
    subjects: dict[str, str] = {}
    cases: list[FoundCase] = []
    labels: dict[str, str] = {}
    scratch = ScratchFolder()
    for number, case in enumerate(chosen, start=1):
        first = case.series[0]
        patient = first.fact("patient") or str(first.folder)
        subject = subjects.setdefault(patient, f"subject-{len(subjects) + 1:03d}")
        images = tuple(tuple(each.path for each in one.ordered()) for one in case.series)
        masks: list[tuple[Path, Series | None]] = [(p, None) for p in _beside(case, series, source)]
        masks += [(segmented[one.uid], one) for one in case.around if one.uid in segmented]
        if len(masks) > 1:
            raise DataListError(
                f"{some(path for path, _ in masks)} are masks of {first.title}; allowed is one "
                f"series and one mask in a folder. Join the masks into one label map, or part them."
            )
        mask = None
        for path, segments in masks:
            mask = path
            if segments is not None:
                mask = scratch.path / f"{number:04d}.nii.gz"
                labels |= _draw(path, segments, mask)
        name = f"{'study' if len(names) > 1 else 'series'}-{number:04d}"
        cases.append(FoundCase(name, subject, images, mask, one_grid=len(names) > 1))
    require_all_labelled(cases, source)
    return Layout("dicom", source, tuple(cases), names, labels, held=scratch)


def _collect(source: Path) -> tuple[list[Series], dict[str, Path]]:
    """All series, and the segmentation of each by the UID of the series."""
    files: dict[tuple[Path, str], list[Slice]] = defaultdict(list)
    segmented: dict[str, Path] = {}
    for path in sorted(source.rglob("*")):
        if path.name.startswith(".") or path.name == "DICOMDIR" or not is_dicom(path):
            continue
        if meta_element(path, SOP_CLASS) == SEGMENTATION:
            uid = series_of(read_segmentation(path))
            other = segmented.setdefault(uid, path)
            if other != path:
                raise DataListError(
                    f"{other} and {path} are segmentations of one series; allowed is one. Join "
                    f"them, or take one out of the folder."
                )
            continue
        found = read_header(path)
        files[path.parent, found.facts.get("series", "")].append(found)
    series = [Series(folder, uid, tuple(slices)) for (folder, uid), slices in files.items()]
    known = {each.uid for each in series}
    if lost := [path for uid, path in segmented.items() if uid not in known]:
        raise DataListError(
            f"{some(lost)}: the series that it segments is not under {source}. Add the series, or "
            f"take the segmentation out of the folder."
        )
    return series, segmented


def _draw(path: Path, series: Series, target: Path) -> dict[str, str]:
    """Writes a segmentation as a label map on the grid of its series; says what labels it has."""
    read = read_segmentation(path)
    grid = grid_of_slices(series.ordered())
    write_volume(target, label_map(read, grid, path), grid)
    return {"0": "background", **names_of(read)}


def _beside(case: Chosen, series: Sequence[Series], source: Path) -> list[Path]:
    """Volumes beside the slices of a case, or beside the folders of its study."""
    homes = {one.folder for one in case.series}
    masks = []
    for folder in sorted(homes):
        there = _volumes(folder)
        if there and any(one.folder == folder and one not in case.around for one in series):
            raise DataListError(
                f"{folder} holds {some(path.name for path in there)} beside its slices; allowed is "
                f"one series and one mask in a folder. Join the masks into one label map, or part "
                f"them."
            )
        masks += there
    parents = {home.parent for home in homes if home != source} - homes
    for folder in sorted(parents) if len(case.series) > 1 else []:
        below = [one for one in series if folder in one.folder.parents]
        masks += _volumes(folder) if all(one in case.around for one in below) else []
    return masks


def _volumes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and is_volume(path))
