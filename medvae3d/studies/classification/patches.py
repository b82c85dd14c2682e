r"""Patches with and without a lesion, matched so that the class cannot be told from the place.

For each patch with a lesion there is one without from the same patient, with the most similar
place. With features :math:`f` of a patch (how much body it holds, how far it lies along the body,
how deep in a brain), each scaled to :math:`[0, 1]` over the patient, the patch taken is

.. math:: \operatorname*{argmin}_{b} \; \sum_k | f_k(a) - f_k(b) |

over those without a lesion that have not been taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.transforms import Compose
from scipy import ndimage
from torch import Tensor

from medvae3d.data.datalists import DataList, as_monai
from medvae3d.data.preparation import case_transforms
from medvae3d.errors import DataListError
from medvae3d.evaluation.cases import crop
from medvae3d.seeding import derive_seed
from medvae3d.studies.classification.tasks import Task, task_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class PatchForm:
    """What patches are cut, and from what.

    Attributes:
        classes: Names of the patches without and with a lesion.
        channels: Intensity scheme of each channel that is read, the first ones of the files.
        shown: Which of them the patches have.
        spacing_mm: Size of a voxel.
        shape: Voxels of a patch.
        inside: Least share of the body in a patch.
        lesion: Least share of the lesion in a patch that shows it.
        pairs: Most pairs a patient.
        step: Voxels between the patches that are looked at, along each axis.
        is_brain: Whether the body is told by a ``brainmask``, and patches are matched by depth and
            place in the brain; else by the CT or the first channel, and along the body.
        body_channel: Channel whose values above ``air`` are the body.
        air: Normalised value of air.
    """

    classes: tuple[str, str]
    channels: tuple[Mapping[str, Any], ...]
    spacing_mm: tuple[float, float, float]
    shown: tuple[int, ...] = (0,)
    shape: tuple[int, int, int] = (16, 16, 16)
    inside: float = 0.5
    lesion: float = 0.1
    pairs: int = 4
    step: int = 2
    is_brain: bool = False
    body_channel: int = 0
    air: float = -0.98

    def to_dict(self) -> dict[str, Any]:
        """Plain values of what a reader has to know."""
        return {
            "channels": [dict(self.channels[index]) for index in self.shown],
            "spacing_mm": list(self.spacing_mm),
            "shape": list(self.shape),
            "pairs": self.pairs,
        }


# CT alone. Mean and deviation of the PET uptake tell all 32 test patches apart (AUC 1.00), those of
# the CT do not (0.70). The MR covers every tumour and not all of the rest, so that a blank MR would
# give the answer away. Patches of 48 mm fit into the 5 cm that the crops leave round a tumour.
TUMOUR = PatchForm(
    classes=("tumour-free", "tumour"),
    channels=(
        {"intensity": {"kind": "power", "scale": 20.0, "exponent": 0.5}},
        {"intensity": {"kind": "window", "low": -200, "high": 300}},
    ),
    spacing_mm=(3.0, 3.0, 3.0),
    shown=(1,),
    body_channel=1,
)
# FLAIR alone, as the shipped bundle; a lesion has often some ten voxels.
LESION = PatchForm(
    classes=("normal-appearing", "lesion"),
    channels=({"intensity": {"kind": "percentile", "low": 0.5, "high": 99.5}},),
    spacing_mm=(1.0, 1.0, 1.0),
    inside=0.9,
    lesion=0.005,
    pairs=40,
    is_brain=True,
)


@dataclass(frozen=True)
class Candidates:
    """All patches of one patient that may be taken.

    Attributes:
        starts: First voxel of each, :math:`(M, 3)`.
        lesion: Share of lesion in each, :math:`(M,)`.
        features: What they are matched by, in [0, 1], :math:`(M, F)`.
    """

    starts: NDArray[np.int64] = field(repr=False)
    lesion: Array = field(repr=False)
    features: Array = field(repr=False)


def patch_task(name: str, form: PatchForm, datalist: DataList, seed: int) -> Task:
    """Cuts the pairs of all patients of a data list; cases without an image are left out.

    Args:
        name: Name of the task.
        form: What is cut.
        datalist: Cases with image and label, and ``brainmask`` for brains.
        seed: Seed of which lesion patches are taken.

    Raises:
        DataListError: If no patient gives a pair.
    """
    parts = []
    labels = {"background": 0, "lesion": 1}
    transform = Compose(case_transforms(form.channels, form.spacing_mm, None, labels))
    for case in datalist.cases:
        if not case.image or case.label is None:
            continue
        item = as_monai([case])[0]
        read = transform(item)
        image, mask = torch.as_tensor(read["image"]), torch.as_tensor(read["label"])
        body = _brain(item, form) if form.is_brain else _body(image, form)
        pairs = matched(
            candidates(mask[0].numpy() > 0, body, form), form, derive_seed(seed, case.name)
        )
        for start in pairs.reshape(-1, 2, 3):
            for value, place in zip((1, 0), start, strict=True):
                patch = crop(image[list(form.shown)], place.tolist(), form.shape, -1.0)
                parts.append((patch, value, case.subject, case.split))
    if not parts:
        raise DataListError(
            f"none of {len(datalist)} cases of {datalist.path or 'the data list'} has a patch with "
            f"and one without a {form.classes[1]}, each with {form.inside:.0%} of the body. Give "
            f"cases with image and mask, or another task."
        )
    return task_of(name, parts, form.classes, form.to_dict())


def candidates(lesion: NDArray[np.bool_], body: NDArray[np.bool_], form: PatchForm) -> Candidates:
    """All patches on a grid that hold enough of the body.

    Args:
        lesion: The lesion, :math:`(I, J, K)`.
        body: The body or brain, of the same shape.
        form: What is cut.
    """
    axes = [
        np.arange(0, length - side + 1, form.step)
        for length, side in zip(lesion.shape, form.shape, strict=True)
    ]
    starts = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    inside, share = (_shares(each, starts, form.shape) for each in (body, lesion))
    kept = inside >= form.inside
    starts, inside, share = starts[kept], inside[kept], share[kept]
    centres = starts + np.asarray(form.shape) / 2
    columns = [inside, centres[:, 2] / max(1, lesion.shape[2])]
    if form.is_brain and len(starts):
        depth = ndimage.distance_transform_edt(body, sampling=form.spacing_mm)
        i, j, k = np.minimum(centres.astype(int), np.asarray(body.shape) - 1).T
        middle = np.argwhere(body).mean(0)[0]
        columns += [
            depth[i, j, k] / max(1.0, float(depth.max())),
            # Left and right are alike; front and back are not.
            np.abs(centres[:, 0] - middle) / max(1.0, middle),
            centres[:, 1] / lesion.shape[1],
        ]
    return Candidates(starts, share, np.stack(columns, 1))


def matched(found: Candidates, form: PatchForm, seed: int) -> NDArray[np.int64]:
    """Pairs of first voxels, with a lesion and without, ``(P, 2, 3)``.

    Args:
        found: What may be taken.
        form: How many at most, and how much lesion.
        seed: Seed of which lesion patches are taken.
    """
    rng = np.random.default_rng(seed)
    shown = rng.permutation(np.flatnonzero(found.lesion >= form.lesion))
    free = np.flatnonzero(found.lesion == 0)
    pairs: list[Array] = []
    taken: list[Array] = []
    least = np.asarray(form.shape) / 2
    for row in shown:
        if len(pairs) == form.pairs or not len(free):
            break
        start = found.starts[row]
        # Patches that share most of their voxels are one case, not two.
        if any((np.abs(start - other[0]) < least).all() for other in pairs):
            continue
        cost = np.abs(found.features[free] - found.features[row]).sum(1)
        for other in free[np.argsort(cost, kind="stable")]:
            place = found.starts[other]
            if not any((np.abs(place - each) < least).all() for each in taken):
                pairs.append(np.stack([start, place]))
                taken.append(place)
                break
    return np.stack(pairs).astype(np.int64) if pairs else np.zeros((0, 2, 3), np.int64)


def _shares(where: NDArray[np.bool_], starts: Array, shape: Sequence[int]) -> Array:
    """Share of a patch that is inside of something, from sums over corners, ``(M,)``."""
    total = np.pad(where.astype(np.float64).cumsum(0).cumsum(1).cumsum(2), ((1, 0),) * 3)
    found = np.zeros(len(starts))
    for corner in np.ndindex(2, 2, 2):
        i, j, k = (starts + np.asarray(corner) * np.asarray(shape)).T
        found += (-1) ** (3 - sum(corner)) * total[i, j, k]
    share: Array = np.round(found) / np.prod(shape)
    return share


def _body(image: Tensor, form: PatchForm) -> NDArray[np.bool_]:
    tissue = image[form.body_channel].numpy() > form.air
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(tissue)
    return filled


def _brain(item: Mapping[str, Any], form: PatchForm) -> NDArray[np.bool_]:
    if "brainmask" not in item:
        raise DataListError(
            f"case {item.get('case')} has no brainmask, which tells normal-appearing tissue from "
            f"what lies outside of the brain. Add the key brainmask to its entry."
        )
    labels = {"background": 0, "brain": 1}
    steps = case_transforms(form.channels, form.spacing_mm, None, labels, allow_missing_images=True)
    read = Compose(steps)({"label": item["brainmask"]})
    brain: NDArray[np.bool_] = torch.as_tensor(read["label"])[0].numpy() > 0
    return brain
