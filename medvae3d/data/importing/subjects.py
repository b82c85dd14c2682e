"""Subjects of torchio: files are taken as they are, what is in memory as it is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvae3d.data.datalists import SPLITS
from medvae3d.data.importing.common import (
    FoundCase,
    Layout,
    is_volume,
    require_all_labelled,
    require_there,
    require_unique,
    safe,
    some,
)
from medvae3d.data.staging import ScratchFolder
from medvae3d.data.volumes import write_volume
from medvae3d.errors import DataListError
from medvae3d.geometry import Grid

# Entries of a subject that name it, and the patient.
NAMES = ("case", "name", "subject_id", "id")
PATIENTS = ("subject", "patient", "subject_id", "id")


def find_subjects(subjects: Iterable[Any], channels: Sequence[str] | None = None) -> Layout:
    """Finds images and label map of each subject.

    An image that was loaded, and perhaps changed, is taken from memory, any other from its file.
    ``case``, ``name`` or ``subject_id`` names a case, ``subject`` or ``patient`` the patient, and
    ``split`` its split.

    Args:
        subjects: ``torchio.Subject`` each, or a ``SubjectsDataset``, whose transform is left out.
        channels: Names of the images to take, in order; all, by name, if not given.

    Raises:
        DataListError: If subjects differ in their images, or have several label maps.
    """
    import torchio as tio

    listed = subjects.dry_iter() if isinstance(subjects, tio.SubjectsDataset) else list(subjects)
    if not listed or not all(isinstance(each, tio.Subject) for each in listed):
        raise DataListError(
            f"the source holds {len(listed)} entries, of which not all are subjects; allowed is a "
            f"list of torchio.Subject, at least one."
        )
    folder = ScratchFolder()
    usual = sorted({n for each in listed for n in each.get_images_dict(intensity_only=True)})
    wanted = list(channels) if channels is not None else usual
    require_there(usual, wanted, "the list of subjects")
    cases = []
    for number, subject in enumerate(listed):
        images = subject.get_images_dict(intensity_only=True)
        if lacking := [name for name in wanted if name not in images]:
            raise DataListError(
                f"subject {number} has the images {some(images)} and lacks {some(lacking)}; all "
                f"need the same. Add them, or name what to take."
            )
        maps = {
            name: image
            for name, image in subject.get_images_dict(intensity_only=False).items()
            if isinstance(image, tio.LabelMap)
        }
        if len(maps) > 1:
            raise DataListError(
                f"subject {number} has the label maps {some(maps)}; allowed is one. Join them."
            )
        place = folder.path / f"{number:06d}"
        files = tuple((_file(images[name], place, name),) for name in wanted)
        label = next((_file(image, place, name, True) for name, image in maps.items()), None)
        name = safe(_said(subject, NAMES, f"subject-{number:04d}"))
        patient = _said(subject, PATIENTS, name)
        split = str(subject.get("split", ""))
        if split and split not in SPLITS:
            raise DataListError(
                f"subject {number} has split {split!r}; allowed are {', '.join(SPLITS)}."
            )
        cases.append(FoundCase(name, patient, files, label, split == "testing", split))
    require_all_labelled(cases, "the list of subjects")
    require_unique(cases, "the list of subjects")
    has_splits = all(case.split for case in cases)
    return Layout(
        "torchio", folder.path, tuple(cases), tuple(wanted), has_splits=has_splits,
        held=folder,
    )  # fmt: skip


def _said(subject: Any, keys: Sequence[str], other: str) -> str:
    return next((str(subject[k]) for k in keys if isinstance(subject.get(k), (str, int))), other)


def _file(image: Any, place: Path, name: str, is_mask: bool = False) -> Path:
    path = image.path
    if not image._loaded and isinstance(path, Path) and is_volume(path):
        return path
    data = image.data.numpy()
    if data.shape[0] != 1:
        raise DataListError(
            f"{name} of {path or 'a subject in memory'} has {data.shape[0]} channels; allowed is "
            f"one image a channel. Part it."
        )
    i, j, k = data.shape[1:]
    written = place / f"{safe(name)}.nii.gz"
    array = data[0]
    if array.dtype.kind == "f" or array.dtype == np.int64:
        array = array.astype(np.int32 if is_mask else np.float32)
    write_volume(written, array, Grid((i, j, k), np.asarray(image.affine, np.float64)))
    return written
