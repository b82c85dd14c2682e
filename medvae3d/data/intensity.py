r"""Native units to what networks see, and back.

Each scheme maps the range that training covers to :math:`[-1, 1]`, leaves head room above where
bright lesions live, and has an inverse that holds wherever nothing was clipped:

.. math::
    \text{window:} \quad & y = 2 \, \frac{x - a}{b - a} - 1 \\
    \text{power:} \quad & y = 2 \, (x / s)^{p} - 1 \\
    \text{percentile:} \quad & y = 2 \, \frac{x - q_{low}(x)}{q_{high}(x) - q_{low}(x)} - 1
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from medvae3d.errors import IntensityError, SettingError

Params = tuple[float, float]  # the native values that became -1 and 1


class Intensity(Protocol):
    """How one channel's native values become network values.

    ``normalize_with`` also returns the native values that became -1 and 1. They travel with a host
    image, so that what is put into it comes back in its own units.
    """

    kind: ClassVar[str]

    def normalize(self, x: Tensor) -> Tensor: ...

    def normalize_with(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Params]: ...

    def denormalize(self, y: Tensor, params: Params | None = None) -> Tensor: ...

    def check(self, x: Tensor, what: str = "image") -> None: ...


def _require_finite(x: Tensor, what: str) -> None:
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise IntensityError(
            f"{what} holds {bad} voxels that are NaN or infinite; every voxel must be finite. "
            f"`medvae3d data check` lists such files."
        )


def _linear(x: Tensor, low: float, high: float, top: float) -> Tensor:
    return ((x.float() - low) * (2 / (high - low)) - 1).clamp(-1, top)


@dataclass(frozen=True)
class WindowIntensity:
    """A fixed window, for CT in Hounsfield units: clipped, then mapped to [-1, 1].

    Attributes:
        low: Native value that becomes -1.
        high: Native value that becomes 1.
    """

    low: float
    high: float
    kind: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise SettingError(f"window runs from {self.low} to {self.high}; low must be lower.")

    def normalize(self, x: Tensor) -> Tensor:
        return _linear(x, self.low, self.high, top=1.0)

    def normalize_with(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Params]:
        return self.normalize(x), (self.low, self.high)

    def denormalize(self, y: Tensor, params: Params | None = None) -> Tensor:
        """Inverts :meth:`normalize` inside the window; ``params`` change nothing."""
        return (y.float() + 1) * ((self.high - self.low) / 2) + self.low

    def check(self, x: Tensor, what: str = "image") -> None:
        """Refuses NaN, and values that cannot be of this window's unit.

        Raises:
            IntensityError: If all values fall on one side of the window, or within 2 % of it.
        """
        _require_finite(x, what)
        low, high = (float(v) for v in x.aminmax())
        inside = min(high, self.high) - max(low, self.low)
        if inside < 0.02 * (self.high - self.low):
            raise IntensityError(
                f"{what} runs from {low:.4g} to {high:.4g}; the weights expect native values that "
                f"spread over {self.low:g} to {self.high:g} (HU for CT). Give the image in its "
                f"native unit, not rescaled, and check that channels are in the right order."
            )


@dataclass(frozen=True)
class PowerIntensity:
    """A power law from zero, for PET in SUV: faint uptake keeps contrast beside bright lesions.

    Attributes:
        scale: Native value that becomes 1.
        exponent: Power; 0.5 is a square root.
        headroom: How far above ``scale`` the powered value may go, as a share of it.
    """

    scale: float
    exponent: float = 0.5
    headroom: float = 0.2
    kind: ClassVar[str] = "power"

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.exponent <= 0 or self.headroom < 0:
            raise SettingError(
                f"power intensity has scale {self.scale}, exponent {self.exponent}, headroom "
                f"{self.headroom}; scale and exponent must be positive, headroom not negative."
            )

    def normalize(self, x: Tensor) -> Tensor:
        powered = (x.float().clamp(min=0) / self.scale) ** self.exponent
        return powered.clamp(max=1 + self.headroom) * 2 - 1

    def normalize_with(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Params]:
        return self.normalize(x), (0.0, self.scale)

    def denormalize(self, y: Tensor, params: Params | None = None) -> Tensor:
        """Inverts :meth:`normalize` from 0 to the head room; ``params`` change nothing."""
        return ((y.float() + 1) / 2).clamp(min=0) ** (1 / self.exponent) * self.scale

    def check(self, x: Tensor, what: str = "image") -> None:
        """Refuses NaN, and values that cannot be of this unit.

        Raises:
            IntensityError: If values are clearly negative (CT), or a hundred times too large.
        """
        _require_finite(x, what)
        low, high = (float(v) for v in x.aminmax())
        if low < -0.05 * self.scale or not 0.01 * self.scale < high < 100 * self.scale:
            raise IntensityError(
                f"{what} runs from {low:.4g} to {high:.4g}; the weights expect values from 0 to "
                f"about {self.scale:g} (SUV for PET, not Bq/ml). Convert the image to that unit, "
                f"and check that channels are in the right order."
            )


@dataclass(frozen=True)
class PercentileIntensity:
    """Percentiles of each image's own foreground, for MR, which has no unit.

    Attributes:
        low: Percentile that becomes -1.
        high: Percentile that becomes 1.
        reference_low: Training set's median of the native value at ``low``; in use when an image
            is made without a host.
        reference_high: The same at ``high``.
        headroom: How far above 1 the range goes, as a share of the whole range of 2. Lesions are
            often the brightest 0.5 % of a FLAIR, and must not be clipped.
    """

    low: float = 0.5
    high: float = 99.5
    reference_low: float | None = None
    reference_high: float | None = None
    headroom: float = 0.2
    kind: ClassVar[str] = "percentile"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 100 or self.headroom < 0:
            raise SettingError(
                f"percentiles are {self.low} and {self.high}, headroom {self.headroom}; allowed "
                f"are 0 <= low < high <= 100 and a headroom of 0 or more."
            )

    def params(self, x: Tensor, mask: Tensor | None = None) -> Params:
        """Native values at both percentiles, over ``mask`` or, without one, over ``x > 0``.

        Raises:
            IntensityError: If there is no foreground, or no contrast in it.
        """
        chosen = x[(x > 0) if mask is None else (mask != 0).expand(x.shape)]
        if not chosen.numel():
            where = "above 0" if mask is None else "in the given mask"
            raise IntensityError(
                f"image has no voxel {where}; percentiles need a foreground. "
                f"Check the file with `medvae3d data check`."
            )
        # NumPy, as torch.quantile refuses more than 2**24 voxels.
        values = chosen.detach().float().cpu().numpy()
        low, high = (float(v) for v in np.percentile(values, (self.low, self.high)))
        if not low < high:
            raise IntensityError(
                f"percentiles {self.low} and {self.high} of the image are both {low:.4g}; the "
                f"foreground needs contrast. Check the file with `medvae3d data check`."
            )
        return low, high

    def normalize(self, x: Tensor) -> Tensor:
        return self.normalize_with(x)[0]

    def normalize_with(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Params]:
        """Normalises one image and returns its percentiles, for :meth:`denormalize`."""
        low, high = self.params(x, mask)
        return _linear(x, low, high, top=1 + 2 * self.headroom), (low, high)

    def denormalize(self, y: Tensor, params: Params | None = None) -> Tensor:
        """Inverts with a host's own percentiles, or else with those of the training set.

        Raises:
            IntensityError: If neither is known.
        """
        low, high = params if params is not None else (self.reference_low, self.reference_high)
        if low is None or high is None:
            raise IntensityError(
                "percentile intensity has no reference_low and reference_high, and no host gave "
                "its own. Fit them on the training set with `PercentileIntensity.fit`."
            )
        return (y.float() + 1) * ((high - low) / 2) + low

    def fit(self, images: Iterable[Tensor]) -> PercentileIntensity:
        """The same scheme with the median percentiles of ``images`` as its reference."""
        pairs = np.array([self.params(x) for x in images])
        if not len(pairs):
            raise IntensityError("no image was given to fit percentiles on; give at least one.")
        low, high = (float(v) for v in np.median(pairs, axis=0))
        return replace(self, reference_low=low, reference_high=high)

    def check(self, x: Tensor, what: str = "image") -> None:
        """Refuses NaN, images without foreground, and values below zero (CT).

        Raises:
            IntensityError: If so.
        """
        _require_finite(x, what)
        _, high = self.params(x)
        negative = float((x < -0.1 * high).float().mean())
        if negative > 0.01:
            raise IntensityError(
                f"{what} is clearly negative in {100 * negative:.0f} % of its voxels (smallest "
                f"{float(x.min()):.4g}); the weights expect MR magnitudes, with 0 outside of the "
                f"body. A CT, or an image already normalised, will not do."
            )


KINDS: dict[str, type[WindowIntensity | PowerIntensity | PercentileIntensity]] = {
    scheme.kind: scheme for scheme in (WindowIntensity, PowerIntensity, PercentileIntensity)
}


def intensity_from_config(config: Mapping[str, Any]) -> Intensity:
    """Makes a scheme from ``{"kind": "window", "low": -200, "high": 300}``."""
    settings = dict(config)
    kind = settings.pop("kind", None)
    if kind not in KINDS:
        raise SettingError(f"intensity kind {kind!r} is unknown; it is one of {', '.join(KINDS)}.")
    try:
        return KINDS[kind](**settings)
    except TypeError as error:
        allowed = ", ".join(KINDS[kind].__dataclass_fields__)
        raise SettingError(
            f"intensity {kind!r} was given {sorted(settings)}; allowed are {allowed}."
        ) from error


@dataclass(frozen=True)
class IntensityChannels:
    """One scheme a channel.

    Attributes:
        specs: The schemes, in channel order.
    """

    specs: tuple[Intensity, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "specs", tuple(self.specs))

    @classmethod
    def from_config(cls, configs: Sequence[Mapping[str, Any]]) -> IntensityChannels:
        """Reads the list of dictionaries that a bundle's JSON holds."""
        return cls(tuple(intensity_from_config(config) for config in configs))

    def to_config(self) -> list[dict[str, Any]]:
        """What :meth:`from_config` reads."""
        return [{"kind": spec.kind, **asdict(spec)} for spec in self.specs]  # type: ignore[call-overload]

    def normalize(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalises ``(B, C, I, J, K)`` or ``(C, I, J, K)``; see :meth:`normalize_with`."""
        return self.normalize_with(x, mask)[0]

    def normalize_with(
        self, x: Tensor, mask: Tensor | None = None, missing: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        r"""Normalises each channel of each image, and returns which native values became -1 and 1.

        Args:
            x: Images in native units.
            mask: Foreground for percentiles, such as the brain.
            missing: Channels that were not observed: they become -1, and their native values NaN.

        Shape:
            - ``x``: :math:`(B, C, I, J, K)` or :math:`(C, I, J, K)`
            - ``mask``: the same with one channel
            - output: like ``x``, float32; and :math:`(B, C, 2)` or :math:`(C, 2)`, float64
        """
        self._require_channels(x)
        if x.ndim == 5:
            rows = [
                self.normalize_with(v, None if mask is None else mask[b], missing)
                for b, v in enumerate(x)
            ]
            return torch.stack([y for y, _ in rows]), torch.stack([p for _, p in rows])
        inside = None if mask is None else mask[0]
        nothing = (math.nan, math.nan)
        pairs = [
            (torch.full_like(v, -1.0, dtype=torch.float32), nothing)
            if channel in missing
            else spec.normalize_with(v, inside)
            for channel, (spec, v) in enumerate(zip(self.specs, x, strict=True))
        ]
        params = torch.tensor([p for _, p in pairs], dtype=torch.float64)
        return torch.stack([y for y, _ in pairs]), params

    def denormalize(self, y: Tensor, params: Tensor | None = None) -> Tensor:
        """Inverts :meth:`normalize_with`; without ``params``, by the training set's reference."""
        self._require_channels(y)
        if y.ndim == 5:
            rows = [
                self.denormalize(v, None if params is None else params[b]) for b, v in enumerate(y)
            ]
            return torch.stack(rows)
        pairs: list[Params | None] = [None] * len(self.specs)
        if params is not None:
            pairs = [None if math.isnan(low) else (float(low), float(high)) for low, high in params]
        channels = zip(self.specs, y, pairs, strict=True)
        return torch.stack([spec.denormalize(v, pair) for spec, v, pair in channels])

    def check(self, x: Tensor, what: str = "image", missing: Sequence[int] = ()) -> None:
        """Refuses native values ``(C, I, J, K)`` of another unit or modality, by channel."""
        self._require_channels(x)
        for channel, (spec, v) in enumerate(zip(self.specs, x, strict=True)):
            if channel in missing:
                continue
            spec.check(v, what if len(self.specs) == 1 else f"{what}, channel {channel},")

    def _require_channels(self, x: Tensor) -> None:
        if x.ndim not in (4, 5) or x.shape[-4] != len(self.specs):
            raise IntensityError(
                f"image has shape {tuple(x.shape)}; the weights expect {len(self.specs)} channels "
                f"as (channels, I, J, K). Give one file a channel, in the order of training."
            )
