r"""What a decoder leaves out of an image: its grain.

A decoder gives the middle of a density, and a density of independent voxels draws white noise. What
is missing from the middle is neither: scanner noise and fine texture are correlated over a few
voxels, and stronger in some tissues than in others. The grain draws it,

.. math:: x = \hat x + s(\hat x)\,(k * w), \qquad w \sim \mathcal N(0, 1), \quad \|k\|_2 = 1

with the deviation :math:`s`, a function of the decoded intensity, and the kernel :math:`k`. Both
are learned for each channel from what is left of training images after they were rebuilt, in the
calmest 15 % of the voxels of each intensity: elsewhere it is edges that the decoder has missed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvae3d.errors import SettingError
from medvae3d.numerics import standard_normal

BINS = 24
# A bin with fewer voxels takes its deviation from its neighbours.
LEAST_VOXELS = 500
# Voxels along each axis over which errors are called slow.
WINDOW = 5
# Share of the voxels of an intensity that the deviation is taken from. Chosen by eye, on samples of
# two bundles beside training scans: at 0.35 and above, missed anatomy came out as noise.
CALM = 0.15
# From the median of absolute values to the standard deviation of a normal. A median, as the few
# voxels where an edge or a vessel was missed are several times as far off as noise is.
SPREAD = 1.4826


class Grain(nn.Module):
    """Correlated noise with a deviation that depends on the intensity; none until it is fitted.

    Args:
        channels: Channels of the image.
        width: Voxels of the kernel along each axis, odd.

    Raises:
        SettingError: If the width is even or below 3.
    """

    kernel: Tensor
    deviation: Tensor

    def __init__(self, channels: int, width: int = 9) -> None:
        super().__init__()
        if width < 3 or width % 2 == 0:
            raise SettingError(
                f"the kernel of the grain has {width} voxels; allowed are odd numbers from 3 on."
            )
        kernel = torch.zeros(channels, 1, width, width, width)
        kernel[:, :, width // 2, width // 2, width // 2] = 1
        self.register_buffer("kernel", kernel)
        self.register_buffer("deviation", torch.zeros(channels, BINS))

    @property
    def is_fitted(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.deviation.any())

    def scale(self, image: Tensor) -> Tensor:
        """Deviation at each voxel, linear between the bins.

        Shape:
            - ``image`` and output: :math:`(C, I, J, K)`, network values
        """
        place = ((image.clamp(-1, 1) + 1) / 2 * (BINS - 1)).flatten(1)
        below = place.floor().clamp_max(BINS - 2).long()
        known = self.deviation.to(image.device)
        low, high = known.gather(1, below), known.gather(1, below + 1)
        return torch.lerp(low, high, place - below).reshape(image.shape)

    def draw(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws the grain of an image that was decoded; add it to the image.

        Shape:
            - ``image`` and output: :math:`(C, I, J, K)`, network values
        """
        width = self.kernel.shape[-1]
        shape = [n + width - 1 for n in image.shape[1:]]
        noise = standard_normal((1, len(image), *shape), generator).to(image.device)
        field = F.conv3d(noise, self.kernel.to(image.device), groups=len(image))[0]
        return self.scale(image) * field

    @torch.no_grad()
    def fit(self, made: Tensor, real: Tensor, valid: Tensor | None = None) -> None:
        """Learns deviation and kernel from images and what was rebuilt of them.

        Args:
            made: Rebuilt images, network values.
            real: The images.
            valid: 1 where an image was observed; everywhere by default.

        Shape:
            - ``made`` and ``real``: :math:`(N, C, I, J, K)`; ``valid``: the same, or
              :math:`(N, 1, I, J, K)`

        A channel that no case has gets no grain.
        """
        seen = torch.ones_like(real[:, :1]) if valid is None else (valid > 0).float()
        seen = seen.expand_as(real)
        made = made.clamp(-1, 1)
        real = torch.where(seen > 0, real, made)
        # Slow errors are of anatomy, not of grain, and so is what is left at edges of the image.
        left = _fast(real - made)
        # An error of the decoder is not of the scan: nowhere more than the scan has itself.
        own = _fast(real)
        rough = (_local_mean(real.square()) - _local_mean(real).square()).clamp_min(0)
        there = [channel for channel in range(real.shape[1]) if bool(seen[:, channel].any())]
        for channel in there:
            kept = (made[:, channel], rough[:, channel], seen[:, channel] > 0)
            self.deviation[channel] = torch.minimum(
                _deviation(left[:, channel], *kept), _deviation(own[:, channel], *kept)
            )
        spread = torch.stack([self.scale(image) for image in made])
        # Where next to nothing is left, as in air, a quotient would be of rounding errors.
        counted = seen * (spread > 0.1 * spread.amax((0, 2, 3, 4), keepdim=True))
        unit = left / spread.clamp_min(1e-6) * counted
        # Edges that were missed would otherwise pass for the correlation of noise.
        unit = unit.clamp(-3, 3)
        for channel in there:
            correlation = _correlation(
                unit[:, channel], counted[:, channel], self.kernel.shape[-1] // 2
            )
            self.kernel[channel, 0] = _kernel(correlation)


def _local_mean(x: Tensor) -> Tensor:
    return F.avg_pool3d(x, WINDOW, 1, WINDOW // 2, count_include_pad=False)


def _quantile(x: Tensor) -> Tensor:
    return x.sort().values[int(CALM * (len(x) - 1))]


def _fast(x: Tensor) -> Tensor:
    return x - _local_mean(x)


def _deviation(left: Tensor, made: Tensor, rough: Tensor, seen: Tensor) -> Tensor:
    """Deviation by decoded intensity, in the calmest voxels of each, ``(BINS,)``."""
    bins = ((made + 1) / 2 * (BINS - 1)).round().long()[seen]
    sizes, unrest = left.abs()[seen], rough[seen]
    counts = torch.bincount(bins, minlength=BINS)
    known = (counts >= min(LEAST_VOXELS, int(counts.max()))).nonzero().flatten()
    found = []
    for each in known:
        here = bins == each
        calm = unrest[here] <= _quantile(unrest[here])
        found.append(SPREAD * sizes[here][calm].median())
    values = torch.stack(found)
    # Linear between known bins, constant beyond them.
    place = torch.arange(BINS)
    after = torch.searchsorted(known, place).clamp(1, max(1, len(known) - 1))
    if len(known) == 1:
        return values.expand(BINS)
    first, second = known[after - 1], known[after]
    share = ((place - first) / (second - first)).clamp(0, 1)
    return torch.lerp(values[after - 1], values[after], share)


def _correlation(unit: Tensor, counted: Tensor, reach: int) -> Tensor:
    """Mean product of voxels by their distance up to ``reach``, ``(2 reach + 1,) * 3``."""
    shape = [n + reach for n in unit.shape[1:]]
    axes = (1, 2, 3)
    products, pairs = (
        torch.fft.irfftn(
            torch.fft.rfftn(x.double(), s=shape, dim=axes).abs().square(), s=shape, dim=axes
        ).sum(0)
        for x in (unit, counted)
    )
    lags = torch.arange(-reach, reach + 1)
    i, j, k = torch.meshgrid(lags, lags, lags, indexing="ij")
    return products[i, j, k] / pairs[i, j, k].clamp_min(1)


def _kernel(correlation: Tensor) -> Tensor:
    """A symmetric kernel of unit norm whose correlation with itself is near the one wanted."""
    width = len(correlation)
    middle = torch.arange(width) - width // 2
    # Flat up to half of the reach, then down to 0: the rest of the correlation is cut off anyway.
    far = (2 * middle.abs() / (width // 2 + 1) - 1).clamp_min(0).to(correlation.dtype)
    window = (1 + torch.cos(torch.pi * far)) / 2
    tapered = correlation * window[:, None, None] * window[:, None] * window
    size = 4 * width
    i, j, k = torch.meshgrid(middle, middle, middle, indexing="ij")
    wide = torch.zeros(size, size, size, dtype=correlation.dtype)
    wide[i, j, k] = tapered
    power = torch.fft.fftn(wide).real.clamp_min(0)
    kernel = torch.fft.ifftn(power.sqrt()).real[i, j, k]
    return (kernel / kernel.norm().clamp_min(1e-12)).float()
