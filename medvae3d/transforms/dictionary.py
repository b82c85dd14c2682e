"""Synthetic lesions as a MONAI dictionary transform."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from os import PathLike
from typing import Any, cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, RandomizableTransform
from monai.utils import TraceKeys
from torch import Tensor

from medvae3d.errors import GridError, LabelError, SettingError
from medvae3d.geometry import Grid
from medvae3d.synthesis.records import plain
from medvae3d.transforms.draws import SharedDraws, identity_of
from medvae3d.transforms.lesions import Change, LesionMaker

COUNT_KEY = "synthetic_lesions"
"""Entry of each volume's meta data: how many lesions were put into it."""


class RandSynthesizeLesiond(RandomizableTransform, MapTransform, InvertibleTransform):
    """Puts synthetic lesions into a training case, image and label.

    It belongs behind loading, ``EnsureChannelFirstd``, orientation and spacing, and before
    intensities are scaled and patches are cropped: a lesion is made from the case's own units and
    from what surrounds it. Voxels outside of the zone of a lesion stay as they are, bit for bit.

    Each volume's meta data hold ``synthetic_lesions``, the number that was put in, and its list of
    applied operations the records of the lesions and the voxels that were there, which `inverse`
    puts back. A case in which no lesion finds a place stays as it is.

    Args:
        keys: Entries of the image; their channels together, in order, are those of the bundle.
        bundle: Name of a shipped two-stage bundle, or the folder of any.
        label_key: Entry of the label map, :math:`(1, I, J, K)`; ``None`` if there is none.
        prob: Share of cases that get lesions.
        lesions: Fewest and most lesions put into a case.
        volume_ml: Smallest and largest volume of each; as in the training set if not given.
        label_value: Value of lesions in the label map, old and new; the bundle's if not given.
            Other values may be there, such as organs; new lesions are drawn over them.
        brain_key: Entry with the brain or body; found in the image if not given, which takes about
            a third of the time.
        seed: If given, lesions are a function of it, of the case and of how often the case was
            loaded, for any number of workers; see `SharedDraws`. If not, of the random state, as
            in all of MONAI: under ``set_random_state``, and set anew by MONAI's loader in each
            worker.
        case_key: With ``seed``: entry that names the case. Its content does so if not given; give
            a name if random transforms come before this one.
        device: Where networks compute; see `LesionMaker`.
        temperature: Scales the deviation of latents; the bundle's if not given.
        extrapolate: Whether volumes beyond the training set may be asked for.
        allow_overlap: Whether new lesions may lie on others.
        invertible: Whether `inverse` puts the old voxels back. Set it to ``False`` where
            ``Invertd`` carries a prediction through the same list of transforms.
        allow_missing_keys: Whether entries may be absent; a case without image stays as it is.

    Raises:
        BundleError: If the bundle is unknown, or does not put lesions into scans.
        SettingError: If a setting cannot be used.

    Example:
        >>> import medvae3d
        >>> add = medvae3d.transforms.RandSynthesizeLesiond(
        ...     "image", "brain_mri_ms_pavae", prob=0.5, volume_ml=(0.1, 1.0), seed=0
        ... )
    """

    def __init__(
        self,
        keys: KeysCollection,
        bundle: str | PathLike[str],
        label_key: str | None = "label",
        prob: float = 0.5,
        *,
        lesions: tuple[int, int] = (1, 1),
        volume_ml: tuple[float, float] | None = None,
        label_value: int | None = None,
        brain_key: str | None = None,
        seed: int | None = None,
        case_key: str | None = None,
        device: str = "cpu",
        temperature: float | None = None,
        extrapolate: bool = False,
        allow_overlap: bool = False,
        invertible: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if not 0 <= prob <= 1:
            raise SettingError(f"prob is {prob}; allowed are shares from 0 to 1.")
        self.maker = LesionMaker.of(
            bundle, lesions=lesions, volume_ml=volume_ml, temperature=temperature,
            extrapolate=extrapolate, allow_overlap=allow_overlap, device=device,
        )  # fmt: skip
        self.label_key, self.brain_key, self.case_key = label_key, brain_key, case_key
        self.label_value = self.maker.label_value if label_value is None else int(label_value)
        self.invertible = invertible
        self.draws = None if seed is None else SharedDraws(seed)
        self._seed = 0

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch it is, so that lesions depend on seed, case and epoch alone.

        Raises:
            SettingError: If there is no ``seed``.
        """
        if self.draws is None:
            raise SettingError("set_epoch needs a seed; give one: RandSynthesizeLesiond(seed=0).")
        self.draws.set_epoch(epoch)

    def randomize(self, data: Any) -> None:
        """Draws whether there will be lesions, and their seed."""
        if self.draws is None:
            super().randomize(None)
            self._seed = int(self.R.randint(2**31 - 1))  # in any case: the state moves on alike
            return
        if self.case_key is not None:
            case = str(data[self.case_key])
        else:
            volumes = [data[key] for key in self.key_iterator(data)]
            case = identity_of(*(_array(volume) for volume in volumes))
        chance, self._seed = self.draws(case)
        self._do_transform = chance < self.prob

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        keys = list(self.key_iterator(changed))
        if not keys:
            return changed
        self.randomize(changed)
        made: Change | str = "left out by prob"
        if self._do_transform:
            made = self._made(changed, keys)
        self._do_transform = isinstance(made, Change)
        start = 0
        for key in keys:
            channels = len(changed[key])
            values = made.image[start : start + channels] if isinstance(made, Change) else None
            changed[key] = self._replaced(changed[key], made, values)
            start += channels
        if self.label_key is not None:
            label = changed[self.label_key]
            values = None
            if isinstance(made, Change):
                old = _array(label)[(slice(None), *made.box)]
                values = np.where(made.added[None], self.label_value, old)
            changed[self.label_key] = self._replaced(label, made, values)
        return changed

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        labels = [self.label_key] if self.label_key in changed else []
        for key in [*self.key_iterator(changed), *labels]:
            volume = changed[key]
            done = self.pop_transform(volume)
            facts = done.get(TraceKeys.EXTRA_INFO) or {}
            if self.invertible and done[TraceKeys.DO_TRANSFORM]:
                volume = _with_box(volume, facts["box"], torch.as_tensor(facts["before"]))
                volume.meta[COUNT_KEY] = 0
            changed[key] = volume
        return changed

    def _made(self, data: Mapping[Hashable, Any], keys: list[Hashable]) -> Change | str:
        grid = _grid(data[keys[0]], keys[0])
        for key in keys[1:]:
            grid.require_same(_grid(data[key], key), this=str(keys[0]), that=str(key))
        image = np.concatenate([_array(data[key]) for key in keys]).astype(np.float32)
        there = brain = None
        if self.label_key is not None:
            there = self._mask(data, self.label_key, grid, str(keys[0])) == self.label_value
        if self.brain_key is not None:
            brain = self._mask(data, self.brain_key, grid, str(keys[0])) > 0
        return self.maker(image, grid, self._seed, there=there, brain=brain)

    def _mask(self, data: Mapping[Hashable, Any], key: str, grid: Grid, image: str) -> Any:
        if key not in data:
            raise SettingError(
                f"the case has no entry {key!r}; it has {', '.join(map(str, data))}. Name the "
                f"entry, or give None."
            )
        mask = data[key]
        if len(mask) != 1:
            raise LabelError(
                f"{key} has {len(mask)} channels; allowed is one map of whole numbers. Put "
                f"RandSynthesizeLesiond before labels are made one-hot."
            )
        grid.require_same(_grid(mask, key), this=image, that=key)
        return _array(mask)[0]

    def _replaced(self, volume: MetaTensor, made: Change | str, values: Any) -> MetaTensor:
        facts: dict[str, Any]
        if isinstance(made, Change):
            box = [[side.start, side.stop] for side in made.box]
            before = volume.as_tensor()[(slice(None), *made.box)].clone()
            facts = {
                "box": box,
                "before": before,
                "seed": self._seed,
                "lesions": json.dumps(plain(made.lesions)),
            }
            volume = _with_box(volume, box, _cast(values, volume))
        else:
            facts = {"reason": made}
        volume = cast(MetaTensor, volume.clone()) if isinstance(made, str) else volume
        volume.meta[COUNT_KEY] = len(made.lesions) if isinstance(made, Change) else 0
        return cast(MetaTensor, self.push_transform(volume, extra_info=facts))


def _grid(volume: Any, key: Hashable) -> Grid:
    if not isinstance(volume, MetaTensor):
        raise GridError(
            f"{key} is a {type(volume).__name__} and does not say where its voxels lie. Load it "
            f"with LoadImaged and EnsureChannelFirstd, and leave set_track_meta on."
        )
    i, j, k = volume.shape[-3:]
    return Grid((i, j, k), np.asarray(volume.affine.cpu(), np.float64))


def _array(volume: Any) -> Any:
    tensor = volume.as_tensor() if isinstance(volume, MetaTensor) else torch.as_tensor(volume)
    return tensor.detach().cpu().numpy()


def _cast(values: Any, like: Tensor) -> Tensor:
    """Values in the type of a volume; whole numbers are rounded, not cut."""
    if not like.dtype.is_floating_point:
        values = np.rint(values)
    return torch.as_tensor(values).to(dtype=like.dtype, device=like.device)


def _with_box(volume: MetaTensor, box: Any, values: Tensor) -> MetaTensor:
    """A copy of a volume with other values in a box."""
    changed = cast(MetaTensor, volume.clone())
    sides = tuple(slice(int(start), int(stop)) for start, stop in box)
    changed.as_tensor()[(slice(None), *sides)] = values.to(changed.as_tensor())
    return changed
