"""Cases that were found, as NIfTI files and a data list."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvae3d.data.datalists import SPLITS, Case, write_datalist
from medvae3d.data.importing.common import (
    NIFTI_SUFFIXES,
    FoundCase,
    Layout,
    as_labels,
    read_itk,
    safe,
)
from medvae3d.data.importing.layouts import find_layout
from medvae3d.data.importing.one_grid import write_on_one_grid
from medvae3d.data.importing.slices import read_series
from medvae3d.data.nifti import grid_of, read_stored, write_stored
from medvae3d.data.staging import require_new_folder, staged_folder
from medvae3d.data.volumes import read_mask, write_bytes, write_volume
from medvae3d.errors import DataListError, LabelError, SettingError
from medvae3d.seeding import derive_seed

SHARES = (0.8, 0.1, 0.1)
AS_THEY_ARE = (1.0, 0.0, 0.0)


def import_dataset(
    source: str | os.PathLike[str] | Iterable[Any],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    channels: Sequence[str] | None = None,
    shares: Sequence[float] | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Writes the cases of a data set as NIfTI with a data list; the source stays as it is.

    Args:
        source: Folder of the data set, a MONAI data list, a tar file; or torchio's subjects.
        out: Folder to make; whole or not at all.
        format: One of `layouts.FORMATS`; told from the files if not given.
        channels: Names of the channels: which to take, or what they have to be.
        shares: Shares of training, validation and testing, dealt by patient. Cases that the data
            set keeps for testing stay there. If not given: the splits of the data set, or 0.8, 0.1
            and 0.1 where it has none.
        seed: Seed of the dealing.
        progress: Called before each case with its index, the number of cases and its name.

    Returns:
        The data list.

    Raises:
        OutputError: If ``out`` holds something.
        SettingError: If a share is negative or all are 0.
    """
    out = require_new_folder(out)
    layout = find_layout(source, format, channels)
    splits = deal(layout, shares or (AS_THEY_ARE if layout.has_splits else SHARES), seed)
    with staged_folder(out) as folder:
        cases, origins = [], {}
        for index, found in enumerate(layout.cases):
            if progress is not None:
                progress(index, len(layout.cases), found.name)
            label = None
            if found.label is not None:
                label = folder / "labels" / f"{found.name}_label.nii.gz"
                _write_label(found.label, label)
            origin = _origin(found, layout.root)
            if found.one_grid:
                images, origin["covered"] = write_on_one_grid(
                    found, layout.channels, folder / "images", label
                )
            else:
                images = _write_images(found, layout, folder / "images")
            split = "testing" if found.is_test else splits[found.subject]
            if found.split and shares is None:
                split = found.split
            extra = {"case": found.name}
            cases.append(Case(images, label, found.subject, split, extra, found.missing))
            origins[found.name] = origin
        info: dict[str, Any] = dict(layout.info)
        if layout.channels:
            info["channels"] = list(layout.channels)
        if layout.labels:
            info["labels"] = dict(layout.labels)
        write_datalist(folder / "datalist.json", cases, info)
        made_from = {"format": layout.format, "seed": seed, "cases": origins}
        write_bytes(folder / "import.json", json.dumps(made_from, indent=1).encode() + b"\n")
    return out / "datalist.json"


def deal(layout: Layout, shares: Sequence[float], seed: int) -> dict[str, str]:
    """Deals patients to splits: as close to the shares as whole patients allow.

    Raises:
        SettingError: If there are not three shares from 0 on.
    """
    if len(shares) != 3 or not min(shares) >= 0 or not 0 < sum(shares) < float("inf"):
        raise SettingError(
            f"--split is {','.join(f'{s:g}' for s in shares)}; allowed are three shares from 0 on, "
            f"of training, validation and testing. Write it like --split 0.8,0.1,0.1."
        )
    subjects = {case.subject for case in layout.cases if not case.is_test}
    order = sorted(subjects, key=lambda subject: (derive_seed(seed, "split", subject), subject))
    bounds = np.rint(np.cumsum(shares) / sum(shares) * len(order))
    return {
        subject: SPLITS[int(np.searchsorted(bounds, i, side="right"))]
        for i, subject in enumerate(order)
    }


def _write_images(found: FoundCase, layout: Layout, folder: Path) -> tuple[Path, ...]:
    """Writes one file a channel; files that hold several channels are parted."""
    names = [safe(name) for name in layout.channels]
    written: list[Path] = []

    def target() -> Path:
        number = len(written)
        for lost in found.missing:
            number += lost <= number
        word = names[number] if number < len(names) else f"{number:04d}"
        written.append(folder / f"{found.name}_{word}.nii.gz")
        return written[-1]

    for files in found.images:
        path = files[0]
        if len(files) > 1:
            array, grid = read_series(files)
            write_volume(target(), array, grid)
        elif path.name.endswith(NIFTI_SUFFIXES):
            stored, header = read_stored(path, f"image {path}")
            grid = grid_of(header, f"image {path}")
            # Type, scaling and the very entries of the affine stay: voxels are copied as stored.
            for channel in np.moveaxis(stored.reshape(*grid.shape, -1, order="F"), -1, 0):
                write_stored(target(), channel, grid, header)
        else:
            channels, grid = read_itk(path)
            for channel in channels:
                write_volume(target(), channel, grid)
    if found.missing and len(written) != len(found.images):
        raise DataListError(
            f"case {found.name} has {len(written)} channels in {len(found.images)} files, and null "
            f"for another one; allowed beside null is one file a channel. Part the files first."
        )
    if names and len(written) + len(found.missing) != len(names):
        raise DataListError(
            f"case {found.name} has {len(written)} channels in {found.images[0][0]}; the data set "
            f"names {len(names)} ({', '.join(layout.channels)}). Correct the names, or the file."
        )
    if len(set(written)) != len(written):
        raise DataListError(
            f"{layout.root} names two channels alike: {', '.join(layout.channels)}. Rename one."
        )
    return tuple(written)


def _write_label(path: Path, target: Path) -> None:
    if path.name.endswith(NIFTI_SUFFIXES):
        mask = read_mask(path)
        write_volume(target, mask.array, mask.grid)
        return
    layers, grid = read_itk(path, "label")
    if len(layers) > 1:
        raise LabelError(
            f"label {path} holds {len(layers)} layers, as segments that overlap do; allowed is one "
            f"label map. Export it as a label map, for example in 3D Slicer."
        )
    write_volume(target, as_labels(layers[0], f"label {path}"), grid)


def _origin(found: FoundCase, root: Path) -> dict[str, Any]:
    """Where a case comes from, relative to the data set; of a series the first and last file."""

    def relative(path: Path) -> str:
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name

    images = [[relative(path) for path in (files[:1] + files[1:][-1:])] for files in found.images]
    return {"image": images, "label": found.label and relative(found.label)}
