r"""Random poses and intensities for whole batches, in one resampling.

A pose maps an output voxel :math:`p`, measured from the centre of the volume, to the place

.. math:: q = S^{-1} A S \, p + t + u(p)

where values are read: :math:`S` holds the voxel sizes, so that a rotation stays one on anisotropic
voxels, :math:`A` rotates, scales and shears, :math:`t` shifts, and :math:`u` is a smooth elastic
field from a coarse grid of random vectors. Image and mask are read in the same pass. The mask
goes through one-hot values and the largest wins, so that no new label value can arise and, with
background winning ties, none grows by being resampled.

All randomness comes from the generator that is handed in, always in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.numerics import standard_normal

Padding = Literal["fill", "border"]


def _uniform(
    count: Sequence[int], low: float, high: float, generator: torch.Generator | None
) -> Tensor:
    # Drawn where the generator lives, so that a GPU run can share a CPU generator's numbers.
    device = generator.device if generator is not None else "cpu"
    return torch.rand(tuple(count), generator=generator, device=device) * (high - low) + low


def _triple(value: float | Sequence[float], name: str) -> tuple[float, float, float]:
    numbers = (value,) * 3 if isinstance(value, (int, float)) else tuple(value)
    if len(numbers) != 3 or any(n < 0 or not math.isfinite(n) for n in numbers):
        raise SettingError(f"{name} is {value}; give one number, or three, each 0 or more.")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


@dataclass(frozen=True)
class RandomPose:
    """Draws one pose a case and moves image and mask alike.

    Attributes:
        flip_axes: Axes of (0, 1, 2) that are mirrored.
        flip_probability: Chance of each of them.
        probability: Chance that a case is moved at all, besides flips.
        rotation_deg: Largest rotation about each axis, one number or three.
        scale: Largest relative change of size, the same along all axes: 0.1 for 1/1.1 to 1.1.
        anisotropic_scale: The same, drawn for each axis on top.
        shear: Largest shear, voxel for voxel.
        translation: Largest shift in voxels, one number or three.
        elastic: Typical size of the elastic field in voxels; 0 for none.
        elastic_grid: Random vectors along each axis of the elastic field.
        spacing_mm: Voxel size, where it is not the same along all axes.
        padding: What lies beyond the border: ``fill``, or the nearest voxel (``border``).
        fill: Intensity beyond the border.
    """

    flip_axes: tuple[int, ...] = ()
    flip_probability: float = 0.5
    probability: float = 1.0
    rotation_deg: float | tuple[float, float, float] = 0.0
    scale: float = 0.0
    anisotropic_scale: float = 0.0
    shear: float = 0.0
    translation: float | tuple[float, float, float] = 0.0
    elastic: float = 0.0
    elastic_grid: int = 5
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    padding: Padding = "fill"
    fill: float = -1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "flip_axes", tuple(self.flip_axes))
        object.__setattr__(self, "spacing_mm", _triple(self.spacing_mm, "spacing_mm"))
        object.__setattr__(self, "rotation_deg", _triple(self.rotation_deg, "rotation_deg"))
        object.__setattr__(self, "translation", _triple(self.translation, "translation"))
        if set(self.flip_axes) - {0, 1, 2}:
            raise SettingError(f"flip_axes is {self.flip_axes}; axes are 0, 1 and 2.")
        if self.padding not in ("fill", "border"):
            raise SettingError(f"padding is {self.padding!r}; it is 'fill' or 'border'.")
        for name in ("scale", "anisotropic_scale", "shear", "elastic"):
            if not getattr(self, name) >= 0:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.elastic and self.elastic_grid < 2:
            raise SettingError(f"elastic_grid is {self.elastic_grid}; it needs 2 points or more.")

    @property
    def only_flips(self) -> bool:
        """Whether nothing but flips is drawn, so that no voxel needs interpolation."""
        sizes = (self.scale, self.anisotropic_scale, self.shear, self.elastic)
        return not any((*_triple(self.rotation_deg, ""), *_triple(self.translation, ""), *sizes))

    def __call__(
        self,
        image: Tensor | None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        values: Sequence[int] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Moves a batch.

        Args:
            image: Normalised images, read linearly.
            mask: Integer label maps.
            generator: Where the poses come from.
            values: Label values besides 0 that masks may hold; looked up in ``mask`` if not given.

        Shape:
            - ``image``: :math:`(B, C, I, J, K)`
            - ``mask``: :math:`(B, 1, I, J, K)`
        """
        given = image if image is not None else mask
        if given is None:
            return None, None
        count = len(given)
        flips = _uniform((count, 3), 0, 1, generator) < self.flip_probability
        for axis in range(3):
            if axis not in self.flip_axes:
                flips[:, axis] = False
        if self.only_flips:
            return _flip(image, flips), _flip(mask, flips)
        matrix, shift = self._draw_matrix(count, generator)
        matrix = matrix * torch.where(flips, -1.0, 1.0)[:, None, :]
        shape = given.shape[2:]
        where = _grid(matrix.to(given.device), shift.to(given.device), shape)
        if self.elastic:
            where = where + self._draw_elastic(count, shape, generator, given.device)
        return self._read(image, mask, where, values)

    def _draw_matrix(self, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Matrix in voxels, ``(B, 3, 3)``, and shift in voxels, ``(B, 3)``."""
        moved = (_uniform((count, 1), 0, 1, generator) < self.probability).float()
        degrees = (
            torch.tensor(_triple(self.rotation_deg, ""))
            * _uniform((count, 3), -1, 1, generator).cpu()
        )
        sizes = math.log1p(self.scale) * _uniform((count, 1), -1, 1, generator).cpu()
        sizes = (
            sizes
            + math.log1p(self.anisotropic_scale) * _uniform((count, 3), -1, 1, generator).cpu()
        )
        shears = self.shear * _uniform((count, 3), -1, 1, generator).cpu()
        shift = (
            torch.tensor(_triple(self.translation, ""))
            * _uniform((count, 3), -1, 1, generator).cpu()
        )
        moved = moved.cpu()
        matrix = _rotation(degrees * moved * (math.pi / 180))
        slant = torch.eye(3).repeat(count, 1, 1)
        slant[:, 0, 1], slant[:, 0, 2], slant[:, 1, 2] = (shears * moved).unbind(1)
        matrix = matrix @ slant @ torch.diag_embed((-sizes * moved).exp())
        size = torch.tensor(self.spacing_mm)
        return matrix * size[None, None, :] / size[None, :, None], shift * moved

    def _draw_elastic(
        self,
        count: int,
        shape: Sequence[int],
        generator: torch.Generator | None,
        device: torch.device,
    ) -> Tensor:
        """A smooth field in normalised coordinates, ``(B, I, J, K, 3)``."""
        moved = (_uniform((count, 1, 1, 1, 1), 0, 1, generator) < self.probability).to(device)
        knots = standard_normal((count, 3, *(self.elastic_grid,) * 3), generator, device=device)
        # Linear interpolation alone would leave creases at the knots.
        knots = F.interpolate(knots, scale_factor=2, mode="trilinear", align_corners=True)
        knots = F.avg_pool3d(F.pad(knots, (1,) * 6, mode="replicate"), 3, stride=1)
        # Scaled and ordered while small: as grid_sample has it, in half volumes, last axis first.
        reach = torch.tensor([2 / n for n in shape], device=device).view(3, 1, 1, 1)
        knots = (self.elastic * moved * reach * knots).flip(1)
        field = F.interpolate(knots, tuple(shape), mode="trilinear", align_corners=True)
        return field.permute(0, 2, 3, 4, 1)

    def _read(
        self, image: Tensor | None, mask: Tensor | None, where: Tensor, values: Sequence[int] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        parts, channels = [], 0
        if image is not None:
            channels = image.shape[1]
            parts.append(image.float() - self.fill)  # beyond the border grid_sample reads 0
        if mask is not None:
            if values is None:
                values = [int(v) for v in mask.unique().tolist()]
            values = [v for v in values if v != 0]
            parts += [(mask == value).float() for value in values]
        read = F.grid_sample(
            torch.cat(parts, dim=1) if len(parts) > 1 else parts[0],
            where,
            mode="bilinear",
            padding_mode="zeros" if self.padding == "fill" else "border",
            align_corners=False,
        )
        moved = read[:, :channels] + self.fill if image is not None else None
        if mask is None or values is None:
            return moved, mask
        return moved, _largest(read[:, channels:], values, like=mask)


def _rotation(angles: Tensor) -> Tensor:
    """Rotations about i, then j, then k by ``(B, 3)`` radians, ``(B, 3, 3)``."""
    rotation = torch.eye(3).repeat(len(angles), 1, 1)
    for axis, (a, b) in enumerate(((1, 2), (2, 0), (0, 1))):
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        cosine, sine = angles[:, axis].cos(), angles[:, axis].sin()
        turn[:, a, a], turn[:, b, b], turn[:, a, b], turn[:, b, a] = cosine, cosine, -sine, sine
        rotation = turn @ rotation
    return rotation


def _grid(matrix: Tensor, shift: Tensor, shape: Sequence[int]) -> Tensor:
    """Where to read, as grid_sample has it: in half volumes, last axis first."""
    half = torch.tensor([n / 2 for n in shape], device=matrix.device)
    theta = torch.cat([matrix * half[None, None, :], shift[:, :, None]], 2) / half[None, :, None]
    theta = torch.cat([theta[:, :, :3].flip(1, 2), theta[:, :, 3:].flip(1)], 2)
    return F.affine_grid(theta, [len(theta), 1, *shape], align_corners=False)


def _largest(parts: Tensor, values: Sequence[int], like: Tensor) -> Tensor:
    """The value with the largest share of each voxel; background wins ties."""
    if not values:
        return torch.zeros_like(like)
    if len(values) == 1:
        return torch.where(parts > 0.5 + 1e-6, values[0], 0).to(like.dtype)
    best, index = parts.max(dim=1, keepdim=True)
    found = torch.tensor(values, dtype=like.dtype, device=like.device)[index]
    return torch.where(best > 1 - parts.sum(1, keepdim=True) + 1e-6, found, found.new_zeros(()))


def _flip(volume: Tensor | None, flips: Tensor) -> Tensor | None:
    if volume is None:
        return None
    for axis in range(3):
        if flips[:, axis].any():
            chosen = flips[:, axis].to(volume.device).view(-1, 1, 1, 1, 1)
            volume = torch.where(chosen, volume.flip(axis + 2), volume)
    return volume


@dataclass(frozen=True)
class RandomIntensity:
    r"""Draws gain, gamma, offset and noise for each channel of each case.

    On :math:`t = (x + 1) / 2`, the share of the range: :math:`t' = g \, t^{\gamma} + o + n`.
    What is at or under -1 (air, fill) stays there, so that the background keeps its one value.

    Attributes:
        gain: Largest relative change, 0.1 for 1/1.1 to 1.1.
        gamma: The same for the exponent.
        offset: Largest shift, as a share of the range.
        noise: Largest standard deviation of Gaussian noise, as a share of the range.
        probability: Chance that a case is changed.
    """

    gain: float = 0.0
    gamma: float = 0.0
    offset: float = 0.0
    noise: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value >= 0:
                raise SettingError(f"{name} is {value}; it must be 0 or more.")

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Changes intensities of ``(B, C, I, J, K)``."""
        if not any((self.gain, self.gamma, self.offset, self.noise)):
            return image
        count = (*image.shape[:2], 1, 1, 1)

        def draw(low: float, high: float, shape: Sequence[int] = count) -> Tensor:
            return _uniform(shape, low, high, generator).to(image.device)

        changed = draw(0, 1, (len(image), 1, 1, 1, 1)) < self.probability
        gain = (math.log1p(self.gain) * draw(-1, 1)).exp()
        gamma = (math.log1p(self.gamma) * draw(-1, 1)).exp()
        offset = self.offset * draw(-1, 1)
        noise = self.noise * draw(0, 1)
        share = ((image + 1) / 2).clamp(min=0)
        result = share.pow(gamma) if self.gamma else share
        result = gain * result + offset
        if self.noise:
            result = result + noise * standard_normal(image.shape, generator, device=image.device)
        result = (2 * result - 1).clamp(min=-1)
        return torch.where(changed & (share > 0), result, image)


@dataclass(frozen=True)
class Augmentation:
    """Pose, then intensities, on a training batch.

    Attributes:
        pose: Moves ``image`` and ``mask`` alike.
        intensity: Changes ``image``.
        values: Label values besides 0; looked up in each batch if not given.
    """

    pose: RandomPose = field(default_factory=RandomPose)
    intensity: RandomIntensity = field(default_factory=RandomIntensity)
    values: tuple[int, ...] | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Augmentation:
        """Reads ``{"pose": {...}, "intensity": {...}, "values": [1, 2]}`` as JSON has it."""
        unknown = set(config) - {"pose", "intensity", "values"}
        if unknown:
            raise SettingError(
                f"augmentation has {sorted(unknown)}; allowed are pose, intensity and values."
            )
        values = config.get("values")
        return cls(
            pose=_from_json(RandomPose, config.get("pose", {})),
            intensity=_from_json(RandomIntensity, config.get("intensity", {})),
            values=None if values is None else tuple(values),
        )

    def to_config(self) -> dict[str, Any]:
        """What :meth:`from_config` reads."""
        return asdict(self)

    def __call__(
        self, batch: Mapping[str, Any], generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        """A new batch with ``image``, ``mask`` and ``valid`` changed, where it has them.

        ``valid`` says where the image was observed, 1 or 0 for all or each of its channels. It
        moves along, and what comes in from beyond the border is not observed. What an image holds
        where it was not becomes air first: interpolation would otherwise carry it, or a NaN, into
        its neighbours. ``attributes`` of the mask must be measured again after this: size and
        shape change.
        """
        changed = dict(batch)
        image, mask, valid = batch.get("image"), batch.get("mask"), batch.get("valid")
        channels = 0 if image is None else image.shape[1]
        if image is not None and valid is not None:
            image = torch.where(valid > 0, image, self.pose.fill)
            image = torch.cat([image, 2 * valid.expand(-1, -1, *image.shape[2:]) - 1], dim=1)
        image, mask = self.pose(image, mask, generator=generator, values=self.values)
        if image is not None:
            if valid is not None:
                changed["valid"] = (image[:, channels:] > 0.5).float()
            changed["image"] = self.intensity(image, generator)[:, :channels]
        if mask is not None:
            changed["mask"] = mask
        return changed


def _from_json(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    unknown = set(settings) - set(kind.__dataclass_fields__)
    if unknown:
        allowed = ", ".join(kind.__dataclass_fields__)
        raise SettingError(f"{kind.__name__} was given {sorted(unknown)}; allowed are {allowed}.")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
