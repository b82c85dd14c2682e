"""Where patches are taken: around lesions, by a map of weights, or anywhere.

torchio's own label sampler builds a map of probabilities and its cumulative sum over the whole
volume at each visit: 8 patches of a head of 182 x 218 x 182 took 175 ms and 290 MB. It leaves out
lesions nearer to the border than half a patch, and every crop draws from torch's global random
state. Here the voxels of a lesion are listed once (the same visit: 23 ms), a patch is moved inwards
at the border, and the draws come from a generator that is handed in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torchio as tio
from numpy.typing import NDArray
from torch import Tensor

from medvae3d.data.datalists import MISSING
from medvae3d.errors import DataListError, GridError, LabelError, SettingError

Sampling = Literal["label", "weights", "uniform"]
Held = Mapping[str, Any]  # a torchio subject, seen from outside


class LesionSampler(tio.data.PatchSampler):
    """Chooses patches by what lies at their centre; a torchio sampler.

    Unlike torchio's own, a lesion near the border is reached too: the patch is moved inwards, not
    the lesion left out. Places come from the subject's ``random`` entry, a NumPy generator, and
    from torch's global state only where there is none.

    Args:
        patch_shape: Voxels of a patch.
        sampling: ``label``: a value is drawn by ``label_probabilities``, then one of its voxels;
            ``weights``: a voxel is drawn by the image named ``weights``; ``uniform``: any place.
        label_probabilities: Share of patches a label value; without it, all but 0 count alike.
        jitter: Largest shift of the centre off the drawn voxel, so that not every lesion lies in
            the middle.
        pad: Whether a volume smaller than the patch is filled up, or refused.
        allow_empty: Whether a case without any wanted label is sampled uniformly, or refused.
        fill: Intensity outside of the volume.
    """

    def __init__(
        self,
        patch_shape: Sequence[int],
        sampling: Sampling = "label",
        label_probabilities: Mapping[int, float] | None = None,
        jitter: int = 0,
        pad: bool = True,
        allow_empty: bool = False,
        fill: float = -1.0,
    ) -> None:
        if len(tuple(patch_shape)) != 3 or any(int(n) < 1 for n in patch_shape):
            raise SettingError(f"patch_shape is {patch_shape}; give three numbers of 1 or more.")
        i, j, k = (int(n) for n in patch_shape)
        super().__init__((i, j, k))
        if sampling not in ("label", "weights", "uniform"):
            raise SettingError(f"sampling is {sampling!r}; it is label, weights or uniform.")
        if label_probabilities is not None:
            shares = {int(v): float(p) for v, p in label_probabilities.items()}
            if any(p < 0 for p in shares.values()) or not sum(shares.values()) > 0:
                raise SettingError(
                    f"label_probabilities is {dict(label_probabilities)}; shares must be 0 or "
                    f"more, and one of them positive."
                )
            label_probabilities = shares
        if not 0 <= jitter < min(patch_shape) / 2:
            raise SettingError(
                f"jitter is {jitter} voxels; allowed are 0 to under half of patch_shape "
                f"{tuple(patch_shape)}, or the lesion would be missed."
            )
        self.sampling = sampling
        self.label_probabilities = label_probabilities
        self.jitter, self.pad, self.allow_empty, self.fill = jitter, pad, allow_empty, fill

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        i, j, k = (int(n) for n in self.patch_size)
        return i, j, k

    def __call__(
        self, subject: tio.Subject, num_patches: int | None = None
    ) -> Generator[tio.Subject, None, None]:
        return self._generate_patches(subject, num_patches)

    def _generate_patches(
        self, subject: tio.Subject, num_patches: int | None = None
    ) -> Generator[tio.Subject, None, None]:
        for _ in itertools.count() if num_patches is None else range(num_patches):
            cut = self.cut(subject, 1)
            patch: dict[str, Any] = {"mask": tio.LabelMap(tensor=cut["mask"][0])}
            patch["valid"] = tio.LabelMap(tensor=cut["valid"][0])
            patch["image"] = tio.ScalarImage(tensor=cut["image"][0])
            yield tio.Subject(**patch, case=_case(subject), location=cut["location"][0])

    def cut(self, subject: Held, count: int) -> dict[str, Any]:
        """Cuts patches, stacked: one block of shared memory a case and entry, not one a patch.

        Returns:
            ``image`` (count, C, ...) float32, ``mask`` (count, 1, ...), ``valid`` (count, 1, ...)
            uint8, 1 where a voxel of the image was observed, and ``location`` (count, 6): first
            voxel and last plus one in the case's own voxels, below 0 where it was filled up.
            ``valid`` is (count, C, ...) where the subject says that it lacks channels, by their
            numbers in ``missing_channels``; these are ``fill`` throughout and nowhere valid.
        """
        mask = subject["mask"].data
        image = subject["image"].data if "image" in subject else None
        channels = len(image) if image is not None else int(subject.get("channels", 1))
        missing = list(subject.get(MISSING, ()))
        shape = (count, 1, *self.patch_shape)
        rows = channels if missing else 1
        found: dict[str, Any] = {
            "image": torch.full((count, channels, *self.patch_shape), self.fill)
            if image is not None
            else torch.zeros(count, channels, *self.patch_shape),
            "mask": torch.zeros(shape, dtype=mask.dtype),
            "valid": torch.zeros(count, rows, *self.patch_shape, dtype=torch.uint8),
        }
        starts = self.starts(subject, count)
        for patch, start in enumerate(starts):
            source, target = _windows(start, self.patch_shape, mask.shape[1:])
            found["mask"][(patch, slice(None), *target)] = mask[(slice(None), *source)]
            if image is not None:
                found["image"][(patch, slice(None), *target)] = image[(slice(None), *source)]
                found["valid"][(patch, slice(None), *target)] = 1
        if missing:
            found["image"][:, missing], found["valid"][:, missing] = self.fill, 0
        ends = starts + np.array(self.patch_shape)
        found["location"] = torch.from_numpy(np.concatenate([starts, ends], axis=1))
        return found

    def starts(self, subject: Held, count: int) -> NDArray[np.int64]:
        """First voxels of ``count`` patches, ``(count, 3)``.

        Raises:
            GridError: If the volume is smaller than the patch and may not be filled up.
            LabelError: If the case has none of the wanted labels.
        """
        shape = np.array(subject["mask"].data.shape[1:])
        size = np.array(self.patch_shape)
        if (shape < size).any() and not self.pad:
            raise GridError(
                f"case {_case(subject)} has {tuple(shape.tolist())} voxels, the patch "
                f"{self.patch_shape}. Make the patch smaller, or set pad to fill the volume up."
            )
        random = subject.get("random")
        if random is None:
            random = np.random.default_rng(int(torch.randint(2**62, ()).item()))
        room = np.maximum(shape - size, 0)
        if self.sampling == "uniform":
            starts = random.integers(0, room + 1, size=(count, 3))
        else:
            centres = self._centres(subject, count, random)
            if self.jitter:
                centres = centres + random.integers(-self.jitter, self.jitter + 1, size=(count, 3))
            starts = np.clip(centres - size // 2, 0, room)
        # A volume smaller than the patch lies in its middle.
        return np.where(shape < size, -((size - shape) // 2), starts).astype(np.int64)

    def _centres(self, subject: Held, count: int, random: np.random.Generator) -> NDArray[np.int64]:
        shape = tuple(subject["mask"].data.shape[1:])
        if self.sampling == "weights":
            chosen = self._by_weights(subject, count, random)
        else:
            chosen = self._by_label(subject, count, random)
        return np.stack(np.unravel_index(chosen, shape), axis=1)

    def _by_weights(
        self, subject: Held, count: int, random: np.random.Generator
    ) -> NDArray[np.int64]:
        if "weights" not in subject:
            raise DataListError(
                f"case {_case(subject)} has no 'weights' volume; sampling by weights needs one "
                f"a case. Add it to the data list, or sample by label."
            )
        weights = subject["weights"].data[0].numpy().ravel()
        total = np.cumsum(weights, dtype=np.float64)
        if weights.min() < 0 or not 0 < total[-1] < math.inf:
            raise LabelError(
                f"case {_case(subject)}: weights add up to {total[-1]:g}, smallest "
                f"{weights.min():g}; they must be 0 or more, and one of them positive."
            )
        drawn = np.minimum(random.random(count) * total[-1], np.nextafter(total[-1], 0))
        return np.searchsorted(total, drawn, side="right")

    def _by_label(
        self, subject: Held, count: int, random: np.random.Generator
    ) -> NDArray[np.int64]:
        mask = subject["mask"].data[0].numpy().ravel()
        places = subject.get("places") or places_of(subject["mask"].data)
        shares = self.label_probabilities or dict.fromkeys(places, 1.0)
        wanted = {v: p for v, p in shares.items() if p > 0 and (v == 0 or v in places)}
        if not any(v != 0 for v in wanted) and any(v != 0 and p > 0 for v, p in shares.items()):
            wanted = {}  # background alone would hide that the lesion is missing
        if not wanted:
            if self.allow_empty:
                return random.integers(0, mask.size, size=count)
            raise LabelError(
                f"case {_case(subject)} has an empty mask: none of the labels "
                f"{sorted(v for v in shares if v != 0) or 'other than 0'} that patches are to "
                f"show. Leave the case out, or set allow_empty to sample it anywhere."
            )
        values = np.array(list(wanted))
        if self.label_probabilities is None:  # every labelled voxel alike, as torchio has it
            chances = np.array([len(places[v]) for v in wanted], dtype=np.float64)
        else:
            chances = np.array(list(wanted.values()))
        drawn = random.choice(values, size=count, p=chances / chances.sum())
        return np.array([_voxel_of(int(v), mask, places, random) for v in drawn])


def places_of(mask: Tensor) -> dict[int, NDArray[np.int64]]:
    """Flat indices of the voxels of each label value but 0."""
    flat = mask[0].numpy().ravel()
    labelled = np.flatnonzero(flat)
    found = flat[labelled]
    return {int(value): labelled[found == value] for value in np.unique(found)}


def _case(subject: Held) -> str:
    return str(subject.get("case", "unnamed"))


def _voxel_of(
    value: int,
    mask: NDArray[Any],
    places: Mapping[int, NDArray[np.int64]],
    random: np.random.Generator,
) -> int:
    if value in places:
        return int(random.choice(places[value]))
    # Nearly every voxel is background: trying is faster than a list of all of them.
    for _ in range(1000):
        place = int(random.integers(mask.size))
        if mask[place] == value:
            return place
    return int(random.choice(np.flatnonzero(mask == value)))


def _windows(
    start: NDArray[np.int64], size: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the patch reads from the volume, and where that lies in the patch."""
    source, target = [], []
    for first, length, limit in zip(start.tolist(), size, shape, strict=True):
        low, high = max(first, 0), min(first + length, limit)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    return tuple(source), tuple(target)
