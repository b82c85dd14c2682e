r"""What is left of a volume when a part of it is taken out: condition maps for filling it again.

The maps are :math:`[x \odot k,\ k,\ m \odot t,\ t]`: the image where it is known, where that is
(for each channel), the labels that are wanted, and whether any were told. :math:`k = 1 - w` for a
region :math:`w` that is to be made, and 0 in a channel that was not observed.

Regions are drawn for training: one or two ellipsoids, half of the time near a lesion and otherwise
anywhere, and now and then the whole volume. Their shape says nothing of what lies in them, so that
a region around a lesion can be filled without one: the wanted labels alone tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medvae3d.networks.conditioning import coin

# Radii of the ellipsoids, as shares of the sides of a volume.
RADII = (0.08, 0.32)
# Voxels that a region lies off a lesion at most, where it was drawn near one.
JITTER = 4.0


class RegionContext(nn.Module):
    """Builds the maps of a volume with a region taken out.

    A batch may say which region (``region``, 1 where voxels are to be made) and which labels are
    wanted (``wanted``, for the whole volume). Without a region, one is drawn from the generator;
    without a generator, it is the whole volume. While training, the true labels are told to some
    cases.

    Args:
        image_channels: Channels :math:`C` of the image.
        values: Label values, background first, :math:`N` of them.
        whole: Share of drawn regions that are the whole volume: the model then also makes volumes
            from nothing.
        told: Share of training cases that are told their labels.

    Shape:
        - maps: :math:`(B, 2 C + N, I, J, K)`
    """

    def __init__(
        self,
        image_channels: int,
        values: Sequence[int] = (0, 1),
        whole: float = 0.1,
        told: float = 0.5,
    ) -> None:
        super().__init__()
        self.image_channels = image_channels
        self.values = tuple(values)
        self.whole = whole
        self.told = told

    @property
    def channels(self) -> int:
        """Number of maps."""
        return 2 * self.image_channels + len(self.values)

    @property
    def radius(self) -> int:
        """Voxels around a tile that its maps depend on."""
        return 0

    def collect(
        self, batch: Mapping[str, Any], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Builds the maps of a batch.

        Returns:
            The maps, and the region, :math:`(B, 1, I, J, K)`.
        """
        image = batch["image"].float()
        region = batch.get("region")
        if region is None:
            lesion = batch["mask"] if batch.get("mask") is not None else image[:, :1] * 0
            region = self.draw(lesion, generator)
        wanted, told = batch.get("wanted"), torch.ones(len(image), device=image.device)
        if wanted is None:
            told = torch.zeros_like(told)
            if self.training and self.told:
                wanted, told = batch["mask"], coin(self.told, image, generator)
        return self(image, region.to(image), batch.get("valid"), wanted, told), region.to(image)

    def forward(
        self,
        image: Tensor,
        region: Tensor,
        valid: Tensor | None,
        wanted: Tensor | None,
        told: Tensor,
    ) -> Tensor:
        """Stacks the maps; ``told`` of shape ``(B,)`` says which cases are told their labels."""
        known = (1 - region).expand_as(image)
        if valid is not None:
            known = known * (valid > 0)
        # Nothing that was not observed is read, not even a NaN.
        kept = torch.where(known > 0, image, torch.zeros_like(image))
        told = told.reshape(-1, 1, 1, 1, 1).expand_as(image[:, :1])
        if wanted is None:
            labels = [torch.zeros_like(told)] * (len(self.values) - 1)
        else:
            labels = [(wanted == value).to(told) * told for value in self.values[1:]]
        return torch.cat([kept, known, *labels, told], dim=1)

    def nothing(self, count: int, shape: Sequence[int], device: torch.device | str) -> Tensor:
        """The maps of volumes of which nothing is known or wanted, ``(count, M, *shape)``."""
        return torch.zeros(count, self.channels, *shape, device=device)

    def draw(self, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draws a region for each case, ``(B, 1, I, J, K)``, float32; all of it without generator.

        Args:
            mask: Label maps that regions are drawn near to half of the time.
            generator: Source of all draws.
        """
        if generator is None:
            return torch.ones_like(mask[:, :1], dtype=torch.float32)
        return torch.stack([self._region(each[0] > 0, generator)[None] for each in mask])

    def _region(self, lesion: Tensor, generator: torch.Generator) -> Tensor:
        shape = torch.tensor(lesion.shape, dtype=torch.float32)
        numbers = torch.rand(16, generator=generator, device=generator.device).cpu()
        if float(numbers[0]) < self.whole:
            return torch.ones(lesion.shape, device=lesion.device)
        region = torch.zeros(lesion.shape, dtype=torch.bool)
        places = lesion.cpu().nonzero()
        for part in range(1 if float(numbers[1]) < 0.5 else 2):
            own = numbers[2 + 7 * part : 9 + 7 * part]
            if len(places) and float(numbers[1]) * 2 % 1 < 0.5:
                pick = places[min(int(own[0] * len(places)), len(places) - 1)].float()
                centre = pick + (own[1:4] - 0.5) * 2 * JITTER
            else:
                centre = own[1:4] * (shape - 1)
            low, high = RADII
            radii = (shape * (low + (high - low) * own[4:7])).clamp_min(1.0)
            axes = [
                ((torch.arange(int(n)) - c) / r).square()
                for n, c, r in zip(shape.tolist(), centre.tolist(), radii.tolist(), strict=True)
            ]
            away = axes[0][:, None, None] + axes[1][:, None] + axes[2]
            region |= away <= 1
        if not bool(region.any()):
            region[tuple(int(n) // 2 for n in lesion.shape)] = True
        return region.float().to(lesion.device)

    def extra_repr(self) -> str:
        return f"image_channels={self.image_channels}, values={self.values}, whole={self.whole}"
