"""The files of a report: headers, and volumes with one voxel size and orientation.

A case whose mask does not lie on its image, or whose channels do not lie on each other, is told
apart here and not passed on as if it did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd

from medvae3d.apps.evaluate_lists import CaseList
from medvae3d.data.datalists import Case
from medvae3d.data.manifests import sha256_of
from medvae3d.data.nifti import enough_memory, grid_of, read_header, stored_shape
from medvae3d.data.transforms import LabelSpacingd, SafeSpacingd
from medvae3d.data.volumes import Volume, read_mask, read_volume
from medvae3d.errors import DataListError, GridMismatchError

Tell = Callable[[int, int, str], None]
"""Told what is done, what is wanted, and a few words about it."""

ORIENTATION = (("L", "R"), ("P", "A"), ("I", "S"))
NAMED = 3


@dataclass(frozen=True)
class Header:
    """What the headers of a case say, with axes as right, anterior, superior.

    Attributes:
        shape: Voxels.
        spacing: Size of a voxel in mm.
        channels: Channels of all its files.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    channels: int


@dataclass
class Reading:
    """The first pass over all sets, in native units.

    Attributes:
        lists: The cases that were read; without those that were left out.
        items: Image and mask of each case, by set.
        values: Values in the masks, by set.
        hashes: One SHA-256 over all files of a set.
        maskless: Why a set is to be taken as one without masks, by set.
        warnings: Which cases were left out and why.
    """

    lists: dict[str, CaseList]
    items: dict[str, list[dict[Any, Any]]] = field(default_factory=dict)
    values: dict[str, set[int]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    maskless: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read_lists(
    lists: Mapping[str, CaseList], spacing: Sequence[float], tell: Tell, *, has_images: bool = True
) -> Reading:
    """Reads all cases to one voxel size and orientation.

    Args:
        lists: Cases by set.
        spacing: Size of a voxel in mm.
        tell: Told about each case.
        has_images: Whether images are passed on; their files are read for their place in any case.

    Raises:
        GridMismatchError: If the channels of no case of a set lie on each other.
        UnreadableFileError: If a file cannot be read.
    """
    found = Reading(dict(lists))
    wanted, done = sum(len(each.cases) for each in lists.values()), 0
    for name, each in lists.items():
        digest, values = hashlib.sha256(), set[int]()
        items: list[dict[Any, Any]] = []
        kept: list[Case] = []
        apart: dict[str, str] = {}
        off: dict[str, str] = {}
        for case in each.cases:
            tell(done, wanted, f"reading {name} cases")
            done += 1
            for file in case.files:
                digest.update(f"{sha256_of(file)}  {file.name}\n".encode())
            try:
                with enough_memory(f"case {case.name} ({case.files[0]})"):
                    item, off_image = _read_case(case)
            except GridMismatchError as error:
                apart[case.name] = str(error)
                continue
            if off_image:
                off[case.name] = off_image
            with enough_memory(f"case {case.name} ({case.files[0]})"):
                inside = np.unique(item["label"].numpy()).astype(int).tolist()
                items.append(_resampled(item, spacing, inside, has_images))
            values.update(inside)
            kept.append(case)
        if apart and not kept:
            raise GridMismatchError(next(iter(apart.values())))
        if off and len(off) == len(kept):
            # Images can still be judged; a set without any mask says nothing of masks.
            found.maskless[name] = (
                f"no mask of {each.path} lies on its image. {next(iter(off.values()))}"
            )
        elif off:
            rows = [row for row, case in enumerate(kept) if case.name not in off]
            items, kept = [items[row] for row in rows], [kept[row] for row in rows]
        lost = apart | (off if name not in found.maskless else {})
        if lost:
            named = ", ".join(list(lost)[:NAMED]) + ", ..." * (len(lost) > NAMED)
            found.warnings.append(
                f"{len(lost)} of {len(each.cases)} {name} cases left out, whose files do not lie "
                f"on each other ({named}): {next(iter(lost.values())).rstrip('.')}"
            )
        found.items[name], found.values[name] = items, values
        found.hashes[name] = digest.hexdigest()
        found.lists[name] = replace(each, cases=tuple(kept))
    return found


def _resampled(
    item: dict[Any, Any], spacing: Sequence[float], values: Sequence[int], has_images: bool
) -> dict[Any, Any]:
    if not has_images:
        item.pop("image")
    turn = Orientationd(["image", "label"], "RAS", labels=ORIENTATION, allow_missing_keys=True)
    item = turn(item)
    if has_images:
        item = SafeSpacingd(["image"], pixdim=spacing, mode="bilinear")(item)
    return LabelSpacingd(["label"], spacing, values)(item)


def _read_case(case: Case) -> tuple[dict[Any, Any], str]:
    """Image and mask of a case, as stored, with their place; an empty mask if it has none.

    Also says how the mask lies off the image, in which case it is empty too.
    """
    volumes = [
        read_volume(file, what=f"image of {case.name}", channels=len(case.image) == 1)
        for file in case.image
    ]
    first = volumes[0]
    for volume in volumes[1:]:
        _require_on(first, volume)
    image = np.concatenate([v.array if v.array.ndim == 4 else v.array[None] for v in volumes])
    label, off = np.zeros(first.grid.shape, dtype=np.uint8), ""
    if case.label is not None:
        mask = read_mask(case.label, what=f"label of {case.name}")
        try:
            _require_on(first, mask)
            label = mask.array
        except GridMismatchError as error:
            off = str(error)
    affine = torch.as_tensor(np.array(first.grid.affine))
    item = {
        "case": case.name,
        "image": MetaTensor(torch.from_numpy(image), affine=affine),
        "label": MetaTensor(torch.from_numpy(label)[None], affine=affine),
    }
    return item, off


def _require_on(first: Volume, other: Volume) -> None:
    first.grid.require_same(other.grid, this=str(first.path), that=str(other.path))


def header_of(case: Case) -> Header:
    """Shape, spacing and channels of a case, from headers alone.

    Raises:
        UnreadableFileError: If a file is no NIfTI.
        DataListError: If the case has no image.
    """
    channels, grid = 0, None
    for file in case.image:
        header = read_header(file, f"image of {case.name} {file}")
        grid = grid or grid_of(header, f"image of {case.name} {file}")
        shape = stored_shape(header)
        channels += int(shape[3]) if len(shape) > 3 else 1
    if grid is None:
        raise DataListError(f"case {case.name} has no image; a report needs one of each case.")
    order = nib.orientations.io_orientation(grid.affine)[:, 0].astype(int)
    back = np.argsort(order)
    return Header(
        tuple(grid.shape[i] for i in back), tuple(grid.spacing[i] for i in back), channels
    )


def resampled_shape(header: Header, spacing: Sequence[float]) -> list[int]:
    """Voxels of a case at another voxel size."""
    return [
        max(1, round(n * old / new))
        for n, old, new in zip(header.shape, header.spacing, spacing, strict=True)
    ]
