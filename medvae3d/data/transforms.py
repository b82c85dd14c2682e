"""MONAI dictionary transforms that keep place, label values and native units, and can be undone.

Geometry is MONAI's own. What is added: spacing that works beside MONAI Label's extra entries,
resampling after which a label map still holds its own values, and intensity schemes that remember
what a host's voxels were.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    InvertibleTransform,
    MapTransform,
    ResizeWithPadOrCropd,
    Spacing,
    Spacingd,
    SpatialResample,
)
from torch import Tensor

from medvae3d.data.datalists import MISSING
from medvae3d.data.intensity import IntensityChannels
from medvae3d.errors import GridError, IntensityError, LabelError, SettingError

PARAMS_KEY = "intensity_params"
PadCropd = ResizeWithPadOrCropd  # its inverse puts every voxel back, bit for bit
MOST_VOXELS = 1 << 30
Resampling = Literal["linear", "nearest", "label"]


def missing_channels(image: Any) -> tuple[int, ...]:
    """Numbers of the channels that a prepared image ``(C, I, J, K)`` lacks, from its meta data."""
    found = getattr(image, "meta", {}).get(MISSING, ())
    return tuple(int(channel) for channel in found if channel < len(image))


def require_values(mask: Tensor | np.ndarray, values: Sequence[int], what: str = "mask") -> None:
    """Checks that a mask holds whole numbers, and only allowed ones.

    Raises:
        LabelError: If not, with the values found.
    """
    given = torch.as_tensor(np.asarray(mask)) if not isinstance(mask, Tensor) else mask
    given = given.as_subclass(Tensor)
    known = torch.zeros(given.shape, dtype=torch.bool, device=given.device)
    for value in values:  # a few passes cost less than sorting a whole head
        known |= given == value
    unknown = [] if bool(known.all()) else [float(v) for v in given[~known].unique().tolist()]
    if unknown:
        shown = ", ".join(f"{v:g}" for v in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        raise LabelError(
            f"{what} holds {shown}; allowed are {', '.join(str(v) for v in values)}. "
            f"If the mask was interpolated, resample it again with nearest neighbours; if a label "
            f"is new, add it to the values."
        )


def one_hot(mask: Tensor, values: Sequence[int]) -> Tensor:
    """One channel a value, ``(N, I, J, K)`` float32, of a label map ``(1, I, J, K)``."""
    return torch.cat([(mask == value).float() for value in values])


def from_one_hot(shares: Tensor, values: Sequence[int]) -> Tensor:
    """The value with the largest share; the first of ``values`` wins ties."""
    table = torch.tensor(list(values), device=shares.device)
    # Interpolation weights add up to 1 only up to rounding: without this, which side of an exact
    # tie wins would depend on the place in the volume.
    shares = shares.as_subclass(Tensor).clone()
    shares[0] += 1e-5
    return table[shares.argmax(0, keepdim=True)]


def background_first(values: Sequence[int]) -> tuple[int, ...]:
    """``values`` in order, with 0 in front even where it is not among them."""
    return (0, *sorted({int(v) for v in values} - {0}))


def resample_to_grid(
    array: Tensor | np.ndarray,
    source_affine: np.ndarray,
    target_shape: Sequence[int],
    target_affine: np.ndarray,
    mode: Resampling = "linear",
    fill: float = 0.0,
) -> Tensor:
    """Reads a volume at the voxels of another grid.

    Args:
        array: Image, or with ``mode="label"`` an integer label map.
        source_affine: Where the voxels of ``array`` lie: index to mm, :math:`(4, 4)`.
        target_shape: Voxels of the grid to fill.
        target_affine: Where they lie.
        mode: ``linear``, ``nearest``, or ``label``: linear on one-hot values, then the largest.
        fill: Value outside of ``array``. Label maps get 0.

    Shape:
        - ``array``: :math:`(C, I, J, K)`
        - output: :math:`(C, I', J', K')`, float32, or the dtype of ``array`` for label and nearest

    Raises:
        SettingError: If ``mode`` is unknown.
        LabelError: If a label map has more than one channel.
    """
    if mode not in ("linear", "nearest", "label"):
        raise SettingError(f"resampling mode is {mode!r}; it is linear, nearest or label.")
    given = torch.as_tensor(array).as_subclass(Tensor)
    values: tuple[int, ...] = ()
    if mode == "label":
        if given.shape[0] != 1:
            raise LabelError(
                f"label map has {given.shape[0]} channels; label resampling needs one channel "
                f"of integer values."
            )
        values = background_first(given.unique().tolist())
        source = one_hot(given, values)[1:]
    else:
        source = given.float() - fill
    if mode == "label" and not len(source):
        return given.new_zeros((1, *target_shape))
    resampled = SpatialResample(mode="nearest" if mode == "nearest" else "bilinear")(
        MetaTensor(source, affine=torch.as_tensor(np.asarray(source_affine, dtype=np.float64))),
        dst_affine=torch.as_tensor(np.asarray(target_affine, dtype=np.float64)),
        spatial_size=tuple(int(n) for n in target_shape),
        padding_mode="zeros",
        align_corners=False,
    ).as_subclass(Tensor)
    if mode == "label":
        # Beyond the border all shares are 0: what is missing to 1 is background.
        shares = torch.cat([1 - resampled.sum(0, keepdim=True), resampled])
        return from_one_hot(shares, values).to(given.dtype)
    resampled = resampled + fill
    return resampled.to(given.dtype) if mode == "nearest" else resampled


def require_room(image: Any, spacing: Sequence[float] | np.ndarray) -> None:
    """Refuses a change of the voxel size that makes far more voxels than anything can hold.

    Raises:
        GridError: If it would.
    """
    if not isinstance(image, MetaTensor):
        return
    own = [float(size) for size in image.pixdim]
    wanted = [float(size) for size in np.broadcast_to(np.ravel(spacing), 3)]
    count = float(np.prod(image.shape[1:]) * np.prod(own) / np.prod(wanted))
    if count > MOST_VOXELS:
        file = image.meta.get("filename_or_obj", "a volume")
        raise GridError(
            f"{file} has voxels of {' x '.join(f'{s:g}' for s in own)} mm; with "
            f"{' x '.join(f'{s:g}' for s in wanted)} mm it would have {count:.3g}, and allowed are "
            f"{MOST_VOXELS}. Check the voxel size in its header, or ask for larger voxels."
        )


class SafeSpacingd(Spacingd):
    """MONAI's ``Spacingd``, working where strings such as ``image_path`` lie beside ``image``.

    MONAI 1.6 writes the new header into every entry whose name starts with ``<key>_``, and fails
    on those that are no dictionary; MONAI Label always puts one there. Such entries are set aside
    during the call and come back untouched.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Any, Any]:
        prefixes = tuple(f"{key}_" for key in self.keys)
        aside = {
            name: value
            for name, value in data.items()
            if isinstance(name, str)
            and name.startswith(prefixes)
            and name not in self.keys
            and not isinstance(value, Mapping)
        }
        seen = {name: value for name, value in data.items() if name not in aside}
        for key in self.key_iterator(seen):
            require_room(seen[key], self.spacing_transform.pixdim)
        return {**super().__call__(seen, lazy=lazy), **aside}


class LabelSpacingd(MapTransform, InvertibleTransform):
    """Changes the voxel size of label maps: linear on one-hot values, then the largest share.

    Smoother than nearest neighbours at the same volume. Background wins ties, so that a
    structure is not dilated. The inverse works in the same way.

    Args:
        keys: Entries to resample, MetaTensors :math:`(1, I, J, K)`.
        pixdim: Voxel size in mm.
        values: Label values the maps may hold; 0 is always among them.
        allow_missing_keys: Whether entries may be absent.
    """

    KEPT = "label_spacing_kept"

    def __init__(
        self,
        keys: KeysCollection,
        pixdim: Sequence[float],
        values: Sequence[int],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = background_first(values)
        self.spacing = Spacing(pixdim, mode="bilinear", padding_mode="border")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            require_values(changed[key], self.values, what=str(key))
            if self._has_spacing(changed[key]):
                changed[key].meta[self.KEPT] = True
            else:
                changed[key] = self._through(changed[key], self.spacing)
        return changed

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            if not changed[key].meta.pop(self.KEPT, False):
                changed[key] = self._through(changed[key], self.spacing.inverse)
        return changed

    def _has_spacing(self, mask: MetaTensor) -> bool:
        wanted = torch.as_tensor(self.spacing.pixdim, dtype=mask.pixdim.dtype)
        return bool(torch.allclose(mask.pixdim, wanted.expand(3), rtol=0, atol=1e-4))

    def _through(self, mask: MetaTensor, resample: Any) -> MetaTensor:
        require_room(mask, self.spacing.pixdim)
        shares = MetaTensor(
            one_hot(mask.as_subclass(Tensor), self.values),
            meta=mask.meta,
            applied_operations=mask.applied_operations,
        )
        moved = resample(shares)
        labels = from_one_hot(moved, self.values).to(mask.dtype)
        return MetaTensor(labels, meta=moved.meta, applied_operations=moved.applied_operations)


class LabelValuesd(MapTransform):
    """Refuses label maps that hold other values than ``values``.

    Args:
        keys: Entries to check.
        values: What they may hold; 0 is always allowed.
        dtype: What checked maps become.
        allow_missing_keys: Whether entries may be absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        values: Sequence[int],
        dtype: torch.dtype = torch.uint8,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = background_first(values)
        self.dtype = dtype

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        for key in self.key_iterator(changed):
            file = getattr(changed[key], "meta", {}).get("filename_or_obj", "")
            require_values(changed[key], self.values, what=f"{key} {file}".strip())
            changed[key] = torch.as_tensor(changed[key]).to(self.dtype)
        return changed


def _channels(intensities: IntensityChannels | Sequence[Mapping[str, Any]]) -> IntensityChannels:
    if isinstance(intensities, IntensityChannels):
        return intensities
    return IntensityChannels.from_config(intensities)


class NormalizeChannelsd(MapTransform, InvertibleTransform):
    """Brings native units to network values, channel by channel, and remembers how.

    Channels that a case lacks become -1 everywhere, see `medvae3d.data.preparation`. The native
    values that became -1 and 1 stay in the image's meta data, for
    :class:`DenormalizeChannelsd`, and in its list of applied operations, for ``Invertd``.

    Args:
        keys: Entries to normalise, :math:`(C, I, J, K)`.
        intensities: One scheme a channel, or their JSON form.
        mask_key: Entry with the foreground for percentiles, such as the brain.
        check: Whether to refuse values of another unit or modality first.
        invertible: Whether ``inverse`` undoes it. Set it to ``False`` where ``Invertd`` carries a
            mask through the same list of transforms: its numbers must not become HU.
        allow_missing_keys: Whether entries may be absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        intensities: IntensityChannels | Sequence[Mapping[str, Any]],
        mask_key: str | None = None,
        check: bool = False,
        invertible: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.intensities = _channels(intensities)
        self.mask_key = mask_key
        self.check = check
        self.invertible = invertible

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        mask = None if self.mask_key is None else torch.as_tensor(changed[self.mask_key])
        for key in self.key_iterator(changed):
            image = changed[key]
            native = torch.as_tensor(image).as_subclass(Tensor)
            missing = missing_channels(image)
            if self.check:
                file = getattr(image, "meta", {}).get("filename_or_obj", "")
                self.intensities.check(native, what=f"{key} {file}".strip(), missing=missing)
            inside = None if mask is None else mask.as_subclass(Tensor)
            with _named(image):
                normalised, params = self.intensities.normalize_with(native, inside, missing)
            if isinstance(image, MetaTensor):
                normalised = MetaTensor(
                    normalised,
                    meta={**image.meta, PARAMS_KEY: params},
                    applied_operations=image.applied_operations,
                )
                if self.invertible:
                    self.push_transform(normalised, extra_info={PARAMS_KEY: params})
            changed[key] = normalised
        return changed

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        if not self.invertible:
            return changed
        for key in self.key_iterator(changed):
            params = self.pop_transform(changed[key])["extra_info"][PARAMS_KEY]
            changed[key] = _denormalised(changed[key], self.intensities, params)
        return changed


@contextmanager
def _named(image: Any) -> Iterator[None]:
    """Puts the file of an image before what is wrong with its values."""
    try:
        yield
    except IntensityError as error:
        file = str(getattr(image, "meta", {}).get("filename_or_obj", ""))
        if not file or file in str(error):
            raise
        raise IntensityError(f"{file}: {error}") from error


class DenormalizeChannelsd(MapTransform):
    """Brings network values back to native units.

    Args:
        keys: Entries to bring back, :math:`(C, I, J, K)`.
        intensities: One scheme a channel, or their JSON form.
        source_key: Entry that :class:`NormalizeChannelsd` saw, whose own percentiles are used;
            without one, or where it has none, the training set's.
        allow_missing_keys: Whether entries may be absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        intensities: IntensityChannels | Sequence[Mapping[str, Any]],
        source_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.intensities = _channels(intensities)
        self.source_key = source_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        source = changed.get(self.source_key) if self.source_key is not None else None
        params = getattr(source, "meta", {}).get(PARAMS_KEY)
        for key in self.key_iterator(changed):
            changed[key] = _denormalised(changed[key], self.intensities, params)
        return changed


def _denormalised(image: Any, intensities: IntensityChannels, params: Tensor | None) -> Any:
    native = intensities.denormalize(torch.as_tensor(image).as_subclass(Tensor), params)
    if not isinstance(image, MetaTensor):
        return native
    meta = {name: value for name, value in image.meta.items() if name != PARAMS_KEY}
    return MetaTensor(native, meta=meta, applied_operations=image.applied_operations)
