"""Single lesions cut out of masks: what a model of lesion shapes is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from medvae3d.errors import LabelError

NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
"""Voxels that touch by a corner belong to one lesion (26-neighbourhood)."""


def single_lesions(
    mask: Tensor | np.ndarray, patch_shape: Sequence[int], min_voxels: int = 27
) -> list[Tensor]:
    """Cuts every lesion of a mask into the middle of a patch of its own.

    Lesions that do not fit into the patch with a free layer around them are left out, and so are
    specks, whose shape is that of the voxel grid.

    Args:
        mask: Integer mask, :math:`(I, J, K)` or :math:`(1, I, J, K)`; all but 0 is lesion.
        patch_shape: Voxels of a patch.
        min_voxels: Smallest lesion.

    Returns:
        Patches :math:`(1, i, j, k)`, uint8, in the order of the grid.
    """
    volume = np.asarray(mask).reshape(np.asarray(mask).shape[-3:]) > 0
    labelled, _ = ndimage.label(volume, NEIGHBOURS)
    sizes = np.bincount(labelled.ravel())
    patches = []
    for number, box in enumerate(ndimage.find_objects(labelled), start=1):
        extent = [side.stop - side.start for side in box]
        fits = all(e <= p - 2 for e, p in zip(extent, patch_shape, strict=True))
        if sizes[number] < min_voxels or not fits:
            continue
        patch = np.zeros(tuple(patch_shape), dtype=np.uint8)
        starts = [(p - e) // 2 for e, p in zip(extent, patch_shape, strict=True)]
        target = tuple(slice(s, s + e) for s, e in zip(starts, extent, strict=True))
        patch[target] = labelled[box] == number
        patches.append(torch.from_numpy(patch)[None])
    return patches


class LesionShapes(Sequence[dict[str, Any]]):
    """All single lesions of a set of cases, as prepared cases with a mask alone.

    Args:
        dataset: Prepared cases with a ``label``.
        patch_shape: Voxels of a patch.
        min_voxels: Smallest lesion.

    Raises:
        LabelError: If no case has a lesion that fits.
    """

    def __init__(
        self,
        dataset: Sequence[Mapping[str, Any]],
        patch_shape: Sequence[int],
        min_voxels: int = 27,
    ) -> None:
        self.items: list[dict[str, Any]] = []
        for index in range(len(dataset)):
            case = dataset[index]
            name = str(case.get("case", index))
            found = single_lesions(case["label"], patch_shape, min_voxels)
            self.items += [
                {"label": patch, "case": f"{name} lesion {number}"}
                for number, patch in enumerate(found)
            ]
        if not self.items:
            raise LabelError(
                f"none of the {len(dataset)} cases has a lesion of {min_voxels} voxels or more "
                f"that fits into {tuple(patch_shape)} voxels. Check the masks with `medvae3d data "
                f"check`, or enlarge the patch."
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]
