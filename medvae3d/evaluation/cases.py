"""Cases in memory: what every figure is computed from.

A case is a whole volume, or a patch round one lesion of it. Images are normalised, from -1 on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from medvae3d.data.lesions import NEIGHBOURS
from medvae3d.data.preparation import FILL
from medvae3d.errors import DataListError
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.seeding import derive_generator

# Components below this are specks whose shape is that of the voxel grid.
MIN_VOXELS = 5


@dataclass(frozen=True, eq=False)
class Cases:
    """Volumes of one size with their masks.

    Attributes:
        image: Normalised, :math:`(N, C, I, J, K)`.
        mask: Label maps, :math:`(N, 1, I, J, K)`.
        valid: 1 where image and mask were observed, :math:`(N, 1, I, J, K)`.
        region: 1 in the lesion that a case is about; all of the mask, or the one in the middle of
            a patch.
        names: One a case.
    """

    image: Tensor = field(repr=False)
    mask: Tensor = field(repr=False)
    valid: Tensor = field(repr=False)
    region: Tensor = field(repr=False)
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Any) -> Cases:
        index = torch.arange(len(self))[rows]
        return Cases(
            self.image[index],
            self.mask[index],
            self.valid[index],
            self.region[index],
            tuple(self.names[int(i)] for i in index),
        )

    def with_masks_of(self, order: Sequence[int]) -> Cases:
        """The same images with the masks of other cases."""
        rows = torch.as_tensor(order)
        return replace(self, mask=self.mask[rows], region=self.region[rows])

    def batches(self, size: int) -> Iterator[Cases]:
        """Parts of at most ``size`` cases, in order."""
        for first in range(0, len(self), size):
            yield self[first : first + size]

    def batch(
        self, statistics: TrainingStatistics | None = None, spacing_mm: Sequence[float] = (1, 1, 1)
    ) -> dict[str, Any]:
        """What a latent model takes; with attributes if it is told any.

        Args:
            statistics: What attributes are standardised with.
            spacing_mm: Size of a voxel along (I, J, K).
        """
        batch: dict[str, Any] = {"image": self.image, "mask": self.mask, "case": list(self.names)}
        if not bool(self.valid.all()):
            batch["valid"] = self.valid
        if statistics is not None and statistics.names:
            values = statistics.measure(self.mask, spacing_mm)
            batch["attributes"] = statistics.standardise(values)
        return batch


def whole_cases(items: Sequence[Mapping[str, Any]]) -> Cases:
    """Stacks prepared cases that have both image and label.

    Raises:
        DataListError: If there is none, or one lacks a channel.
    """
    found = [items[index] for index in range(len(items))]
    found = [item for item in found if "image" in item and "label" in item]
    if not found:
        raise DataListError(
            f"none of {len(items)} cases has both an image and a label; figures need at least one "
            f"such case in the training split and one in the split that is judged. Add them to the "
            f"data list, or name another split."
        )
    masks = torch.stack([_plain(item["label"]) for item in found]).float()
    ones = torch.ones_like(masks[0])
    lacking = [item for item in found if len(item.get("valid", ones)) > 1]
    if lacking:
        raise DataListError(
            f"{len(lacking)} of {len(found)} cases lack a channel, such as "
            f"{lacking[0].get('case', 'the first')}; figures need every channel of a case. Leave "
            f"them out, or have their channels made with `medvae3d impute`."
        )
    return Cases(
        torch.stack([_plain(item["image"]) for item in found]).float(),
        masks,
        torch.stack([_plain(item.get("valid", ones)) for item in found]).float(),
        (masks > 0).float(),
        tuple(str(item.get("case", index)) for index, item in enumerate(found)),
    )


def mask_cases(patches: Sequence[Tensor], names: Sequence[str]) -> Cases:
    """Cases of masks alone, each :math:`(1, I, J, K)`; their images are blank and not observed."""
    masks = torch.stack([torch.as_tensor(patch) for patch in patches]).float()
    nothing = torch.zeros_like(masks)
    return Cases(nothing + FILL, masks, nothing, (masks > 0).float(), tuple(names))


def lesion_cases(
    item: Mapping[str, Any],
    patch_shape: Sequence[int],
    *,
    ignore: Tensor | None = None,
    min_voxels: int = MIN_VOXELS,
    jitter: int = 0,
    repeats: int = 1,
    seed: int = 0,
) -> Cases | None:
    """Cuts a patch round every lesion of a prepared volume.

    Args:
        item: Prepared case with ``image`` and ``label``.
        patch_shape: Voxels of a patch; a lesion must fit into it, and is left out if not.
        ignore: Voxels of lesions that count as not observed and belong to no mask,
            :math:`(1, I, J, K)`.
        min_voxels: Smallest lesion, by its component in the 26-neighbourhood.
        jitter: Largest shift of the lesion off the middle, in voxels.
        repeats: Patches a lesion.
        seed: Seed of the shifts.

    Returns:
        The patches, in the order of the grid; ``None`` if no lesion is left.
    """
    image, mask = _plain(item["image"]).float(), _plain(item["label"]).float()
    hidden = torch.zeros_like(mask) if ignore is None else (_plain(ignore) > 0).float()
    mask = mask * (1 - hidden)
    numbered, _ = ndimage.label(mask[0].numpy() > 0, NEIGHBOURS)
    sizes = np.bincount(numbered.ravel())
    size = [int(n) for n in patch_shape]
    rng = np.random.default_rng(seed)
    lesions, observed = torch.from_numpy(numbered)[None], 1 - hidden
    images: list[Tensor] = []
    masks: list[Tensor] = []
    valid: list[Tensor] = []
    regions: list[Tensor] = []
    names = []
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        extents = [side.stop - side.start for side in box]
        if sizes[number] < min_voxels or any(e > p for e, p in zip(extents, size, strict=True)):
            continue
        for repeat in range(repeats):
            start = []
            for side, extent, p in zip(box, extents, size, strict=True):
                # So far that the lesion stays whole.
                reach = min(jitter, (p - extent) // 2)
                shift = int(rng.integers(-reach, reach + 1)) if reach else 0
                start.append((side.start + side.stop - p) // 2 + shift)
            images.append(crop(image, start, size, FILL))
            masks.append(crop(mask, start, size))
            valid.append(crop(observed, start, size))
            regions.append((crop(lesions, start, size) == number).float())
            names.append(
                f"{item.get('case', 'case')} lesion {number}" + f" ({repeat})" * (repeat > 0)
            )
    if not names:
        return None
    stacks = [torch.stack(parts) for parts in (images, masks, valid, regions)]
    return Cases(stacks[0], stacks[1], stacks[2], stacks[3], tuple(names))


def joined(parts: Sequence[Cases | None]) -> Cases:
    """Several sets of cases as one.

    Raises:
        DataListError: If there is no case in any.
    """
    found = [part for part in parts if part is not None]
    if not found:
        raise DataListError(
            f"no lesion of {MIN_VOXELS} voxels or more that fits into a patch was found in cases "
            f"with an image. Check the masks with `medvae3d data check`, or name another split."
        )
    return Cases(
        torch.cat([part.image for part in found]),
        torch.cat([part.mask for part in found]),
        torch.cat([part.valid for part in found]),
        torch.cat([part.region for part in found]),
        tuple(name for part in found for name in part.names),
    )


def framed_as(cases: Cases, real: Cases, seed: int = 0) -> Cases:
    """Cases with as much padding round them as real ones have, each that of one drawn by seed.

    Scans are padded to one size, samples fill it. A segmenter that normalises over the volume takes
    the missing border for another scan: hippocampi in reconstructions were found with a Dice of
    0.71, and of 0.83 once the border was that of the scan.

    Args:
        cases: Samples.
        real: Real cases of the same size.
        seed: Seed of the draw.
    """
    if bool((real.valid > 0).all()):
        return cases
    generator = derive_generator(seed, "frames")
    frames = real.valid[torch.randint(len(real), (len(cases),), generator=generator)] > 0
    return replace(
        cases,
        image=torch.where(frames, cases.image, FILL),
        mask=cases.mask * frames,
        valid=cases.valid * frames,
        region=cases.region * frames,
    )


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` rows, spread evenly over all of them."""
    if count <= wanted:
        return list(range(count))
    return [row * count // wanted for row in range(wanted)]


def crop(x: Tensor, start: Sequence[int], shape: Sequence[int], fill: float = 0.0) -> Tensor:
    """A box of a volume :math:`(C, I, J, K)`; what lies beyond its border is ``fill``."""
    made = x.new_full((len(x), *shape), fill)
    here, there = [slice(None)], [slice(None)]
    for first, length, limit in zip(start, shape, x.shape[1:], strict=True):
        low, high = max(first, 0), min(first + length, limit)
        here.append(slice(low - first, max(high, low) - first))
        there.append(slice(low, max(high, low)))
    made[tuple(here)] = x[tuple(there)]
    return made


def _plain(value: Any) -> Tensor:
    tensor: Tensor = torch.as_tensor(value)
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
