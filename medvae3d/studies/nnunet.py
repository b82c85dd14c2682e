"""An arm of a study as a raw data set of nnU-Net v2, for whoever wants its verdict.

::

    Dataset501_NAME/
      dataset.json
      imagesTr/CASE_0000.nii.gz   labelsTr/CASE.nii.gz     what the arm trains on
      imagesTs/CASE_0000.nii.gz   labelsTs/CASE.nii.gz     real, unseen cases

Intensities are the normalised ones of the study, from -1 on, and voxels those of its grid: all arms
are the same in this. What nnU-Net's own check of a data set asks for is asked here first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medvae3d.data.volumes import write_bytes, write_volume
from medvae3d.errors import SettingError
from medvae3d.evaluation.cases import Cases
from medvae3d.geometry import Grid

ENDING = ".nii.gz"
FIRST, LAST = 1, 999


def dataset_folder(root: Path, number: int, name: str) -> Path:
    """Name of the folder of a data set: three digits and a safe name.

    Raises:
        SettingError: If the number has more than three digits.
    """
    if not FIRST <= number <= LAST:
        raise SettingError(
            f"the number of an nnU-Net data set is {number}; allowed are {FIRST} to {LAST}. "
            f"Export fewer arms at a time, into another folder."
        )
    return root / f"Dataset{number:03d}_{_safe(name)}"


def write_dataset(
    folder: Path,
    training: Mapping[str, Cases],
    testing: Cases,
    labels: Mapping[str, int],
    channels: Sequence[str],
    spacing_mm: Sequence[float],
    description: str = "",
) -> None:
    """Writes a raw data set; one that has its ``dataset.json`` is whole and left as it is.

    Args:
        folder: Its folder, as `dataset_folder` names it.
        training: Training cases, by what they are, such as ``real`` and ``synthetic``.
        testing: Real, unseen cases.
        labels: Name and value of each label, background first.
        channels: Names of the channels.
        spacing_mm: Size of a voxel along (I, J, K).
        description: What the arm is.

    Raises:
        SettingError: If the labels are not ``background`` 0, then 1, 2 and so on.
    """
    if list(labels.values()) != list(range(len(labels))) or next(iter(labels)) != "background":
        raise SettingError(
            f"the labels are {dict(labels)}; nnU-Net takes background as 0 and the others as 1, 2 "
            f"and so on. Rename or map them in the bundle's configuration."
        )
    if (folder / "dataset.json").is_file():
        return
    count = 0
    for kind, cases in training.items():
        for row, name in enumerate(cases.names):
            case = f"{_safe(kind)}_{row:05d}_{_safe(name)}"
            _write_case(folder, "Tr", case, cases, row, spacing_mm)
            count += 1
    for row, name in enumerate(testing.names):
        _write_case(folder, "Ts", f"unseen_{row:05d}_{_safe(name)}", testing, row, spacing_mm)
    content = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": dict(labels),
        "numTraining": count,
        "file_ending": ENDING,
        "name": folder.name.partition("_")[2],
        "description": description,
    }
    # Last, so that a data set that has it is whole.
    write_bytes(folder / "dataset.json", json.dumps(content, indent=1).encode() + b"\n")


def _write_case(
    folder: Path, part: str, case: str, cases: Cases, row: int, spacing_mm: Sequence[float]
) -> None:
    sizes = (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2]))
    grid = Grid.centred(tuple(cases.image.shape[2:]), sizes)
    images, masks = folder / f"images{part}", folder / f"labels{part}"
    for path in (images, masks):
        path.mkdir(parents=True, exist_ok=True)
    for channel, array in enumerate(cases.image[row].numpy()):
        path = images / f"{case}_{channel:04d}{ENDING}"
        write_volume(path, array.astype(np.float32), grid)
    mask = (cases.mask[row, 0] * (cases.valid[row, 0] > 0)).numpy().astype(np.uint8)
    write_volume(masks / f"{case}{ENDING}", mask, grid)


def _safe(name: str) -> str:
    """A name of letters, digits and lines; nnU-Net reads a case by what precedes ``_0000``."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "case"
