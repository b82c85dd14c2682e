"""Cases as patches are cut from them: read, checked, and kept where there is room.

What is random about a patch is drawn from a generator of its own, seeded by (seed, epoch, what it
is for, index), so that it depends on nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio as tio
from torch import Tensor
from torch.utils.data import Dataset

from medvae3d.data.datalists import MISSING, Case
from medvae3d.data.intensity import IntensityChannels
from medvae3d.data.preparation import with_blanks
from medvae3d.data.sampling import LesionSampler, places_of
from medvae3d.data.stamps import require_unchanged, stamps_of
from medvae3d.data.transforms import missing_channels, require_values
from medvae3d.data.unpacked import Unpacked
from medvae3d.data.volumes import read_mask, read_volume
from medvae3d.errors import DataListError, GridError, LabelError

CaseLike = Case | Mapping[str, Any]

ORDER, PLACES, SHUFFLE = range(3)


def random_for(seed: int, epoch: int, purpose: int, index: int = 0) -> np.random.Generator:
    """The generator of one choice."""
    return np.random.default_rng([seed, epoch, purpose, index])


def load_case(
    case: CaseLike,
    intensities: IntensityChannels | None = None,
    values: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Reads one case: ``image`` (C, I, J, K) or ``None``, ``mask`` (1, I, J, K), ``case``.

    Numbers of the channels that it lacks are in ``missing_channels``; these are blank in the image.

    Args:
        case: A :class:`Case`, or a dictionary whose ``image`` and ``label`` (or ``mask``) are
            files, lists of one file a channel, or tensors. ``None`` in the place of a file is a
            channel that the case lacks; so are those named by an entry ``missing_channels``, or by
            the meta data of a prepared image.
        intensities: Brings the image from native units to network values.
        values: Label values the mask may hold.

    Raises:
        GridMismatchError: If channels and mask do not lie voxel on voxel.
        LabelError: If there is no mask, or it holds other values.
        DataListError: If the case has none of its channels.
    """
    if isinstance(case, Case):
        entry: dict[str, Any] = {"image": [*case.channels], "label": case.label, "case": case.name}
        entry |= {k: v for k, v in case.extra.items() if k == "weights"}
    else:
        entry = dict(case)
    label = entry.get("mask", entry.get("label"))
    name = _name(entry, label)
    if label is None:
        raise LabelError(f"case {name} has no label; patches need one. Add it to the data list.")
    mask, mask_grid = _read(label, f"label of {name}", is_mask=True)
    if values is not None:
        require_values(mask, (0, *values), what=f"mask of {name}")
    found: dict[str, Any] = {"case": name, "mask": mask, "image": None, MISSING: ()}
    image, missing = entry.get("image"), lacking(entry)
    if image is not None and (isinstance(image, (Tensor, np.ndarray)) or len(image)):
        _require_any(name, image, missing)
        voxels, image_grid = _read(image, f"image of {name}", is_mask=False, missing=missing)
        if voxels.shape[1:] != mask.shape[1:]:
            raise GridError(
                f"case {name}: image has {tuple(voxels.shape[1:])} voxels, mask "
                f"{tuple(mask.shape[1:])}. Resample one onto the other with `medvae3d data align`."
            )
        if image_grid is not None and mask_grid is not None:
            image_grid.require_same(mask_grid, this=f"image of {name}", that=f"label of {name}")
        if intensities is not None:
            voxels = intensities.normalize_with(voxels, missing=missing)[0]
        found |= {"image": voxels, MISSING: missing}
    if entry.get("weights") is not None:
        found["weights"] = _read(entry["weights"], f"weights of {name}", is_mask=False)[0]
    return found


def lacking(case: CaseLike) -> tuple[int, ...]:
    """Numbers of the channels that a case lacks, as :func:`load_case` finds them."""
    if isinstance(case, Case):
        return case.missing
    image = case.get("image")
    named = {int(channel) for channel in case.get(MISSING, ())}
    if isinstance(image, (Tensor, np.ndarray)):
        # A model may read fewer channels than the list has.
        return tuple(sorted({c for c in named if c < len(image)} | {*missing_channels(image)}))
    files = image if isinstance(image, (list, tuple)) else ()
    blank = tuple(channel for channel, file in enumerate(files) if file is None)
    return blank or (tuple(sorted(named)) if image else ())


def _require_any(name: str, image: Any, missing: Sequence[int]) -> None:
    """Refuses a case without any of its channels."""
    if isinstance(image, (Tensor, np.ndarray)):
        is_empty = len(missing) == len(image)
    else:
        is_empty = not isinstance(image, (str, os.PathLike)) and not any(image)
    if is_empty:
        raise DataListError(
            f"case {name} has none of its {len(missing)} channels. Leave the case out, give it one "
            f"of them, or leave its image out if it is a mask alone."
        )


def _name(entry: Mapping[str, Any], label: Any) -> str:
    for key in ("case", "subject"):
        if key in entry:
            return str(entry[key])
    return Path(label).name.split(".")[0] if isinstance(label, (str, os.PathLike)) else "unnamed"


def _read(source: Any, what: str, is_mask: bool, missing: Sequence[int] = ()) -> tuple[Tensor, Any]:
    if isinstance(source, (Tensor, np.ndarray)):
        voxels = torch.as_tensor(source).as_subclass(Tensor)
        return (voxels if voxels.ndim == 4 else voxels[None]), None
    if is_mask:
        volume = read_mask(source, what=what)
        return torch.from_numpy(volume.array)[None], volume.grid
    files = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    files = [file for file in files if file is not None]
    is_alone = len(files) == 1 and not missing
    volumes = [read_volume(file, what=what, channels=is_alone) for file in files]
    for volume in volumes[1:]:
        volumes[0].grid.require_same(volume.grid, this=str(files[0]), that=str(volume.path))
    arrays = [v.array if v.array.ndim == 4 else v.array[None] for v in volumes]
    voxels = torch.from_numpy(np.concatenate(arrays)).float()
    return with_blanks(voxels, missing) if missing else voxels, volumes[0].grid


class CasePatches(Dataset[dict[str, Any]]):
    """All patches of one visit to a case, by ``(epoch, case)``; cut in the worker."""

    def __init__(
        self,
        cases: Sequence[CaseLike],
        load: Callable[[CaseLike], dict[str, Any]],
        sampler: LesionSampler,
        samples_per_case: int,
        seed: int,
        channels: int | None,
        cache_bytes: float,
    ) -> None:
        self.cases, self.load, self.sampler = cases, load, sampler
        self.stamps = [stamps_of(case) for case in cases]
        self.lacks_channels = any(lacking(case) for case in cases)
        self.samples_per_case, self.seed, self.channels = samples_per_case, seed, channels
        self.cache_bytes = cache_bytes
        self.cache: dict[int, tio.Subject] = {}
        self.cached_bytes = 0
        self.unpacked: Unpacked | None = None

    def __len__(self) -> int:
        return len(self.cases)

    def dry_iter(self) -> list[int]:
        """Stands for the cases when torchio's queue counts them."""
        return list(range(len(self.cases)))

    def __getitem__(self, visit: tuple[int, int]) -> dict[str, Any]:
        epoch, index = visit
        subject = self.subject(index)
        subject["random"] = random_for(self.seed, epoch, PLACES, index)
        return {**self.sampler.cut(subject, self.samples_per_case), "case": subject["case"]}

    def subject(self, index: int) -> tio.Subject:
        """The whole case, from memory or from what was unpacked where it fits there."""
        if index in self.cache:
            return self.cache[index]
        require_unchanged(self.stamps[index])
        kept = None if self.unpacked is None else self.unpacked.get(index)
        if kept is not None:
            places = {value: rows.numpy() for value, rows in kept.pop("places").items()}
            return _subject(**kept, places=places)
        loaded = self.load(self.cases[index])
        require_unchanged(self.stamps[index])
        image, mask, name = loaded["image"], loaded["mask"], loaded["case"]
        if image is None and self.channels is None:
            self.channels = self._channels_of_others()
        channels = len(image) if image is not None else self.channels
        if self.channels is not None and channels != self.channels:
            raise DataListError(
                f"case {name} has {channels} channels, others have {self.channels}. Give every "
                f"case the same channels in the same order."
            )
        tensors = {"mask": mask}
        missing: tuple[int, ...] = ()
        if image is not None:
            missing = tuple(c for c in loaded.get(MISSING, ()) if c < len(image))
            _require_any(name, image, missing)
            tensors["image"] = image.float()
        if "weights" in loaded:
            tensors["weights"] = loaded["weights"].float()
        facts: dict[str, Any] = {"case": name, "channels": channels, MISSING: missing}
        places = places_of(mask)
        subject = _subject(tensors, **facts, places=places)
        size = sum(tensor.nbytes for tensor in tensors.values())
        size += sum(indices.nbytes for indices in places.values())
        if self.cached_bytes + size <= self.cache_bytes:
            self.cache[index] = subject
            self.cached_bytes += size
        elif self.unpacked is not None:
            rows = {value: torch.from_numpy(indices) for value, indices in places.items()}
            # Copies, as a crop would be written with all that it was cut from.
            plain = {key: tensor.as_subclass(Tensor).clone() for key, tensor in tensors.items()}
            self.unpacked.keep(index, {"tensors": plain, **facts, "places": rows}, size)
        return subject

    def _channels_of_others(self) -> int:
        for case in self.cases:
            image = case.image if isinstance(case, Case) else case.get("image")
            if isinstance(image, (Tensor, np.ndarray)) or image:
                found = self.load(case)["image"]
                return len(found)
        return 1


def _subject(tensors: Mapping[str, Tensor], **facts: Any) -> tio.Subject:
    images: dict[str, Any] = {
        name: (tio.LabelMap if name == "mask" else tio.ScalarImage)(tensor=tensor)
        for name, tensor in tensors.items()
    }
    return tio.Subject(**images, **facts)


class LoadCase:
    """Loading as an object rather than a closure, so that spawned workers can have it."""

    def __init__(
        self,
        intensities: IntensityChannels | None,
        values: Sequence[int] | None,
        prepare: Callable[[dict[str, Any]], dict[str, Any]] | None,
    ) -> None:
        self.intensities, self.values, self.prepare = intensities, values, prepare

    def __call__(self, case: CaseLike) -> dict[str, Any]:
        loaded = load_case(case, self.intensities, self.values)
        if self.prepare is None:
            return loaded
        return {MISSING: loaded[MISSING], **self.prepare(loaded)}
