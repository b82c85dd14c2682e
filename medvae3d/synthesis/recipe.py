"""What a bundle makes: channels, labels, grid and how samples are drawn, from its configuration.

The same identifiers of ``configs/inference.json`` are read by the command line, by the bundle run
and from Python, so that all three make the same files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from medvae3d.data.intensity import (
    Intensity,
    IntensityChannels,
    PercentileIntensity,
    intensity_from_config,
)
from medvae3d.errors import BundleError, MedvaeError, SettingError
from medvae3d.geometry import Grid, Triple, TripleMM
from medvae3d.models.statistics import TrainingStatistics

Kind = Literal["joint", "two_stage", "insertion"]
# What the image range of `TrainingStatistics` is before it is fitted.
UNFITTED = (0.0, 1.0)
NEEDED = ("channels", "labels", "spacing", "spatial_shape")


@dataclass(frozen=True)
class Channel:
    """One channel of the image, and how it is stored.

    Attributes:
        name: Modality, such as ``PET``.
        intensity: Native units to network values and back.
        unit: Native unit, such as ``SUV``.
        slope: Value of one stored step; ``None`` for floats, or steps of 1.
        dtype: Type of the stored voxels.
    """

    name: str
    intensity: Intensity
    unit: str = ""
    slope: float | None = None
    dtype: str = "int16"

    def __post_init__(self) -> None:
        if self.slope is not None and not self.slope > 0:
            raise SettingError(
                f"channel {self.name}: slope is {self.slope}; allowed is a step above 0."
            )
        try:
            is_number = np.dtype(self.dtype).kind in "uif"
        except TypeError:
            is_number = False
        if not is_number:
            raise SettingError(
                f"channel {self.name}: dtype is {self.dtype!r}; allowed are int16, uint8, float32 "
                f"and other types of NIfTI."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Channel:
        """Reads ``{"name": "PET", "unit": "SUV", "intensity": {...}, "slope": 0.005}``."""
        lacking = [key for key in ("name", "intensity") if key not in config]
        unknown = sorted(set(config) - {each.name for each in fields(cls)})
        if lacking or unknown:
            raise SettingError(
                f"channel {dict(config)} lacks {lacking} and has the unknown entries {unknown}; "
                f"allowed are name, intensity, unit, slope, dtype, the first two always."
            )
        intensity = config["intensity"]
        made = intensity_from_config(intensity) if isinstance(intensity, Mapping) else intensity
        return cls(**{**config, "intensity": made})


@dataclass(frozen=True)
class Synthesis:
    """How samples are drawn.

    Attributes:
        kind: ``joint``, image and mask from one latent; ``two_stage``, mask and then image;
            ``insertion``, lesions put into a host.
        temperature: Scales the deviation of latents; below 1, samples keep closer to the training
            set and differ less.
        volume_attributes: Attributes that say how large the mask is: ``log_volume``, or one
            ``log_volume:VALUE`` for each label value. Empty if the weights are not told.
        volume_range_percent: Percentiles of the training volumes between which volumes are drawn.
        max_attempts: Draws of one sample before giving up.
        max_components: Components that a mask keeps; more of any size make it implausible.
        allow_border: Whether a mask may touch the border of the volume.
        block_size: Samples decoded together. Another number changes the last bits of a sample.
        options: All settings, also those that only insertion reads.
    """

    kind: Kind = "joint"
    temperature: float = 1.0
    volume_attributes: tuple[str, ...] = ("log_volume",)
    volume_range_percent: tuple[float, float] = (1.0, 99.0)
    max_attempts: int = 20
    max_components: int = 1
    allow_border: bool = False
    block_size: int = 8
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = self.volume_range_percent
        faults = {
            f"kind is {self.kind!r}; allowed are {', '.join(get_args(Kind))}": (
                self.kind not in get_args(Kind)
            ),
            f"temperature is {self.temperature}; allowed is 0 or more": not self.temperature >= 0,
            f"volume_range_percent is {[low, high]}; allowed are two percentiles, the lower "
            f"first": not 0 <= low < high <= 100,
            f"max_attempts is {self.max_attempts}; allowed is 1 or more": self.max_attempts < 1,
            f"max_components is {self.max_components}; allowed is 1 or more": (
                self.max_components < 1
            ),
            f"block_size is {self.block_size}; allowed is 1 or more": self.block_size < 1,
        }
        wrong = [message for message, is_wrong in faults.items() if is_wrong]
        if wrong:
            raise SettingError(f"synthesis: {'; '.join(wrong)}.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Synthesis:
        """Reads the ``synthesis`` entry; ``volume_attribute`` is a name or a list of names."""
        known = {each.name for each in fields(cls)} - {"options", "volume_attributes"}
        settings = {key: value for key, value in config.items() if key in known}
        told = config.get("volume_attribute", "log_volume")
        names = (told,) if isinstance(told, str) else tuple(told or ())
        if "volume_range_percent" in settings:
            settings["volume_range_percent"] = _numbers(settings, "volume_range_percent", 2)
        return cls(**settings, volume_attributes=names, options=dict(config))


@dataclass(frozen=True)
class Recipe:
    """What a bundle makes.

    Attributes:
        channels: Channels of the image, in the order of training.
        labels: Name and value of each label, background first.
        spacing: Size of a voxel in mm along right, anterior, superior.
        spatial_shape: Voxels of one volume.
        synthesis: How samples are drawn.
    """

    channels: tuple[Channel, ...]
    labels: Mapping[str, int]
    spacing: TripleMM
    spatial_shape: Triple
    synthesis: Synthesis = field(default_factory=Synthesis)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, source: str = "the configuration") -> Recipe:
        """Reads the top-level identifiers of ``inference.json``.

        Args:
            config: Resolved identifiers; others than those of a recipe are ignored.
            source: Where they come from, for messages.

        Raises:
            BundleError: If one is missing.
            SettingError: If one cannot be used.
        """
        lacking = [key for key in NEEDED if config.get(key) is None]
        if lacking:
            raise BundleError(
                f"{source} lacks {', '.join(lacking)}; a bundle that makes volumes says at the "
                f"top level what they are: {', '.join(NEEDED)} and synthesis. Add them."
            )
        try:
            return cls(
                tuple(Channel.from_config(each) for each in config["channels"]),
                _labels(config["labels"]),
                cast(TripleMM, _numbers(config, "spacing", 3, positive=True)),
                cast(Triple, tuple(map(int, _numbers(config, "spatial_shape", 3, positive=True)))),
                Synthesis.from_config(config.get("synthesis") or {}),
            )
        except (TypeError, MedvaeError) as error:
            raise SettingError(f"{source}: {error}") from error

    def __post_init__(self) -> None:
        if not self.channels:
            raise SettingError("channels is empty; a volume needs at least one channel.")

    @property
    def grid(self) -> Grid:
        """The grid of a volume made without a host: RAS, its centre at 0 mm."""
        return Grid.centred(self.spatial_shape, self.spacing)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return self.grid.voxel_volume_ml

    @property
    def values(self) -> tuple[int, ...]:
        """Label values, background first."""
        return tuple(self.labels.values())

    @property
    def intensities(self) -> IntensityChannels:
        """The schemes of all channels."""
        return IntensityChannels(tuple(channel.intensity for channel in self.channels))

    def label_name(self, value: int) -> str:
        """The name of a label value."""
        return next(name for name, known in self.labels.items() if known == value)

    def require_references(self, statistics: TrainingStatistics) -> None:
        """Checks that images made without a host have native values to come back to.

        Raises:
            BundleError: If a channel in percentiles has none; all of it would be stored as 0 or 1.
        """
        for index, channel in enumerate(self.channels):
            scheme = channel.intensity
            if not isinstance(scheme, PercentileIntensity) or scheme.reference_low is not None:
                continue
            seen = (float(statistics.image_low[index]), float(statistics.image_high[index]))
            if seen == UNFITTED:
                raise BundleError(
                    f"channel {channel.name} is in percentiles, and neither the weights nor "
                    f"inference.json say which native values those are. Train anew so that "
                    f"`statistics.image_low` and `image_high` are fitted, or give the intensity a "
                    f"reference_low and reference_high."
                )

    def to_native(self, image: Tensor, statistics: TrainingStatistics | None = None) -> Tensor:
        """Takes network values to native units, within the range that training covered.

        Percentiles that have no host come back at the median percentiles of the training set.

        Shape:
            - ``image`` and output: :math:`(B, C, I, J, K)`, float32
        """
        channels = []
        for index, channel in enumerate(self.channels):
            scheme = channel.intensity
            params = None
            if isinstance(scheme, PercentileIntensity) and statistics is not None:
                seen = (float(statistics.image_low[index]), float(statistics.image_high[index]))
                # 0 and 1: nothing was fitted, and what the configuration says must do.
                params = None if seen == UNFITTED else seen
            top = 1.0 + 2 * float(getattr(scheme, "headroom", 0.0))
            channels.append(scheme.denormalize(image[:, index].float().clamp(-1, top), params))
        return torch.stack(channels, dim=1)


def _numbers(
    config: Mapping[str, Any], key: str, count: int, positive: bool = False
) -> tuple[float, ...]:
    value: Any = config[key]
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == count
    if not is_list or not all(isinstance(v, (int, float)) for v in value):
        raise SettingError(f"{key} is {value!r}; allowed is a list of {count} numbers.")
    if positive and not all(0 < v < float("inf") for v in value):
        raise SettingError(f"{key} is {list(value)}; each number must be above 0.")
    return tuple(float(v) for v in value)


def _labels(config: Any) -> dict[str, int]:
    if not isinstance(config, Mapping):
        raise SettingError(f"labels is {config!r}; allowed are names with their values.")
    labels = {str(name): int(value) for name, value in config.items()}
    labels = dict(sorted(labels.items(), key=lambda item: item[1]))
    if list(labels.values()) != list(range(len(labels))) or len(labels) < 2:
        raise SettingError(
            f"labels are {labels}; allowed are the values 0 (background), 1, 2 and so on, each "
            f"once, as nnU-Net has them too."
        )
    return labels
