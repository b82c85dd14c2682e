"""From files to what networks are trained on: one list of MONAI transforms for every bundle."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    EnsureChannelFirstd,
    LoadImaged,
    MapTransform,
    Orientationd,
    Transform,
)
from torch import Tensor

from medvae3d.data.case_names import VOLUME_SUFFIXES
from medvae3d.data.datalists import MISSING, as_monai, read_datalist
from medvae3d.data.transforms import (
    LabelSpacingd,
    LabelValuesd,
    NormalizeChannelsd,
    PadCropd,
    SafeSpacingd,
    missing_channels,
)
from medvae3d.data.volumes import read_mask, read_volume
from medvae3d.errors import IntensityError

# NIfTI by nibabel, anything else by ITK, as MONAI chooses by itself. It makes one of each of its
# readers for that, and where pydicom is installed one of them warns of a missing GPU decoder.
READERS = ("ITKReader", "NibabelReader")
FILL = -1.0
"""Normalised intensity of what lies outside of an image; all intensity schemes start there."""


def read_items(
    datalist: str, split: str, *, with_image: bool = False, optional: bool = False
) -> list[dict[str, Any]]:
    """Reads one split of a data list as MONAI's data sets take it.

    Args:
        datalist: Path of the list.
        split: ``training``, ``validation`` or ``testing``.
        with_image: Whether to leave out cases that have a mask alone.
        optional: Whether a list that does not exist is one without cases. MONAI Label brings the
            training cases itself, and the list of the bundle's own training is then not there.

    Raises:
        DataListError: If the list cannot be used.
    """
    if optional and not Path(datalist).exists():
        return []
    items = as_monai(read_datalist(datalist).split(split), may_lack=True)
    return [item for item in items if "image" in item or not with_image]


def imaged(dataset: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The prepared cases that have an image."""
    cases = (dataset[index] for index in range(len(dataset)))
    return [case for case in cases if "image" in case]


class SoundFilesd(MapTransform):
    """Reads NIfTI files strictly before MONAI does, once in a process as long as they stay.

    MONAI tries one reader after the other; what nibabel refuses, ITK may fill up with zeros.

    Args:
        keys: Entries that name a file, or one a channel; anything else is let through.
        allow_missing_keys: Whether entries may be absent.

    Raises:
        MedvaeError: If a file is not whole, or not a volume that can be used.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(dict(data)):
            files = data[key] if isinstance(data[key], (list, tuple)) else [data[key]]
            for file in files:
                if isinstance(file, (str, Path)) and str(file).endswith(VOLUME_SUFFIXES):
                    _require_sound(str(file), str(key), _stamp(file))
        return dict(data)


@lru_cache(maxsize=1 << 16)
def _require_sound(file: str, what: str, stamp: tuple[int, ...]) -> None:
    if what == "label":
        read_mask(file)
    else:
        read_volume(file, what=what, channels=True)


def _stamp(file: str | Path) -> tuple[int, ...]:
    """What changes with a file."""
    try:
        status = Path(file).stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


class MissingChannelsd(MapTransform):
    """Puts blank channels where a case has none, so that the others keep their numbers.

    Which they are is read from the entry ``missing_channels`` and stays in the image's meta data,
    where `NormalizeChannelsd` and `Observedd` find it. Cases without that entry stay as they are.

    Args:
        keys: The image, a MetaTensor :math:`(C, I, J, K)` of the channels that there are.
        allow_missing_keys: Whether the image may be absent.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        missing = [int(channel) for channel in changed.get(MISSING, ())]
        if not missing:
            return changed
        for key in self.key_iterator(changed):
            image = changed[key]
            changed[key] = MetaTensor(
                with_blanks(image.as_tensor(), missing),
                meta={**image.meta, MISSING: missing},
                applied_operations=image.applied_operations,
            )
        return changed


def with_blanks(given: Tensor, missing: Sequence[int]) -> Tensor:
    """Puts channels of zeros where there are none.

    Args:
        given: The channels that there are, :math:`(C', I, J, K)`.
        missing: Numbers of the others among all :math:`C`.

    Shape:
        - output: :math:`(C, I, J, K)`
    """
    whole = given.new_zeros(len(given) + len(missing), *given.shape[1:])
    whole[[i for i in range(len(whole)) if i not in missing]] = given
    return whole


class FirstChannelsd(MapTransform):
    """Keeps the first channels of images that bring more than a model reads.

    Args:
        keys: Entries to cut, :math:`(C, I, J, K)`.
        channels: Number of channels to keep.
        allow_missing_keys: Whether entries may be absent.

    Raises:
        IntensityError: If an image has fewer channels, or lacks all that are kept.
    """

    def __init__(
        self, keys: KeysCollection, channels: int, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            found = len(changed[key])
            if found < self.channels:
                name = getattr(changed[key], "meta", {}).get("filename_or_obj", key)
                raise IntensityError(
                    f"{name} has {found} channels, the model reads {self.channels}. List one file "
                    f"a channel, in the model's order, in the data list."
                )
            changed[key] = changed[key][: self.channels]
            if len(missing_channels(changed[key])) == self.channels:
                name = getattr(changed[key], "meta", {}).get("filename_or_obj", key)
                raise IntensityError(
                    f"{name} is of a channel that the model does not read, and those that it reads "
                    f"are null in the data list. Leave the case out."
                )
        return changed


class Observedd(MapTransform):
    """Adds a map of where an image was observed, which padding then extends by zeros.

    It has one channel, or those of an image that lacks some.

    Args:
        keys: The image, a MetaTensor :math:`(C, I, J, K)`.
        name: Entry to add, :math:`(1, I, J, K)` or :math:`(C, I, J, K)`.
        allow_missing_keys: Whether the image may be absent.
    """

    def __init__(
        self, keys: KeysCollection, name: str = "valid", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.name = name

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            image = changed[key]
            missing = missing_channels(image)
            seen = torch.ones_like((image if missing else image[:1]).as_tensor())
            for channel in missing:
                seen[channel] = 0
            changed[self.name] = MetaTensor(seen, affine=image.affine)
        return changed


def _loading(keys: Sequence[str], missing: Mapping[str, Any]) -> list[Transform]:
    return [SoundFilesd(keys, **missing), LoadImaged(keys, reader=READERS, **missing)]  # type: ignore[arg-type]


def case_transforms(
    channels: Sequence[Mapping[str, Any]],
    spacing: Sequence[float],
    spatial_shape: Sequence[int] | None,
    labels: Mapping[str, int] | None = None,
    allow_missing_images: bool = False,
    is_loaded: bool = False,
) -> list[Transform]:
    """Lists the transforms from files to a normalised image and its mask on the model's grid.

    Right, anterior and superior come first; voxels get one size; intensities are normalised
    channel by channel; the volume is padded and cropped about its centre. All that moves voxels can
    be undone with MONAI's ``Invertd``; intensities are brought back by `DenormalizeChannelsd`. A
    channel that a case lacks is -1 everywhere and nowhere ``valid``.

    Args:
        channels: For each channel its ``intensity`` scheme, see `medvae3d.data.intensity`.
        spacing: Size of a voxel in mm along (I, J, K).
        spatial_shape: Voxels of the result; ``None`` keeps what spacing gives.
        labels: Names and values of the mask; without them only the image is prepared.
        allow_missing_images: Whether cases may have a mask alone.
        is_loaded: Whether the volumes are read already, by a transform of one's own.
    """
    missing: dict[str, Any] = {"allow_missing_keys": allow_missing_images}
    image, mask = ["image"], ["label"] if labels else []
    every = [*image, *mask]
    steps: list[Transform] = [
        *([] if is_loaded else _loading(every, missing)),
        EnsureChannelFirstd(every, **missing),
        MissingChannelsd(image, **missing),
        FirstChannelsd(image, len(channels), **missing),
        Orientationd(every, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")), **missing),
        SafeSpacingd(image, pixdim=spacing, mode="bilinear", **missing),
    ]
    if labels:
        values = list(labels.values())
        steps += [LabelValuesd(mask, values), LabelSpacingd(mask, spacing, values)]
    steps.append(
        NormalizeChannelsd(
            image, [channel["intensity"] for channel in channels], invertible=False, **missing
        )
    )
    if spatial_shape is not None:
        steps.append(Observedd(image, **missing))
        steps.append(PadCropd(image, spatial_shape, value=FILL, **missing))
        steps.append(PadCropd(["valid", *mask], spatial_shape, value=0, **missing))
    return steps
