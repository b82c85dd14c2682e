r"""From what a model is told to what its layers take: vectors from attributes, maps from masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AIR = -1.0
"""Normalised intensity of what lies outside of a body."""


class AttributeEmbedding(nn.Module):
    r"""Embeds standardised attributes, :math:`e = \mathrm{MLP}(c)`.

    Args:
        attributes: Number of attributes :math:`F`.
        features: Length :math:`E` of the embedding.

    Shape:
        - input: :math:`(B, F)`; output: :math:`(B, E)`
    """

    def __init__(self, attributes: int, features: int = 128) -> None:
        super().__init__()
        self.attributes = attributes
        self.features = features
        self.body = nn.Sequential(
            nn.Linear(attributes, features), nn.SiLU(), nn.Linear(features, features), nn.SiLU()
        )

    def forward(self, attributes: Tensor) -> Tensor:
        return self.body(attributes)


def gaussian_blur(x: Tensor, deviation: float) -> Tensor:
    """Blurs each channel by a separable Gaussian that is cut at three deviations.

    Args:
        x: Volumes, :math:`(B, C, I, J, K)`.
        deviation: Standard deviation in voxels.
    """
    reach = blur_radius(deviation)
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / deviation).square())
    kernel = (kernel / kernel.sum()).to(x.dtype)
    shape = x.shape
    x = x.reshape(-1, 1, *shape[2:])
    for axis in range(3):
        size, padding = [1, 1, 1], [0, 0, 0]
        size[axis], padding[axis] = len(kernel), reach
        x = F.conv3d(x, kernel.reshape(1, 1, *size), padding=padding)
    return x.reshape(shape)


def blur_radius(deviation: float) -> int:
    """Voxels that a blur of this deviation reaches to each side."""
    return max(1, round(3 * deviation))


def dilate(mask: Tensor, voxels: int) -> Tensor:
    """Dilates a 0/1 mask by a cube of ``2 voxels + 1``."""
    size = 2 * voxels + 1
    return mask if voxels == 0 else F.max_pool3d(mask, size, stride=1, padding=voxels)


def coin(probability: float, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """One 0/1 draw a sample, ``(B,)``."""
    draw = torch.rand(len(like), generator=generator, device=like.device)
    return (draw < probability).float()


class LesionContext(nn.Module):
    r"""Maps that tell a decoder where the lesion is and what surrounds it.

    The maps are :math:`[m,\ G_1 m,\ G_2 m,\ b,\ k]`: the mask, two blurs of it, which say how far
    inside or outside a voxel lies, the image with the dilated mask cut out, and where the image is
    known. Without a context the last two are zero.

    Args:
        image_channels: Channels :math:`C` of the image.
        dilation: Voxels by which the mask is grown before it is cut out.
        deviations: Standard deviations of the blurs, in voxels.
        dropout: Share of training samples that lose their context, so that the model also learns
            to make the surroundings.
        with_mask: Whether the mask and its blurs are told; without, their maps are zero, which
            shows what they are worth.

    Shape:
        - ``mask``: :math:`(B, 1, I, J, K)`; ``image``: :math:`(B, C, I, J, K)` or ``None``
        - output: :math:`(B, 3 + C + 1, I, J, K)`
    """

    def __init__(
        self,
        image_channels: int,
        dilation: int = 2,
        deviations: tuple[float, float] = (1.5, 4.0),
        dropout: float = 0.0,
        with_mask: bool = True,
    ) -> None:
        super().__init__()
        self.image_channels = image_channels
        self.dilation = dilation
        self.with_mask = with_mask
        self.deviations = tuple(deviations)
        self.dropout = dropout

    @property
    def channels(self) -> int:
        """Number of maps."""
        return 4 + self.image_channels

    @property
    def radius(self) -> int:
        """Voxels around a tile that its maps depend on."""
        return max(self.dilation, *(blur_radius(d) for d in self.deviations))

    def collect(
        self, batch: Mapping[str, Any], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Builds the maps of a batch, without context for some of its cases while training.

        Returns:
            The maps, and which voxels the model is asked for (``None``: all).
        """
        keep = None
        if self.training and self.dropout:
            keep = coin(1 - self.dropout, batch["mask"], generator)
        image = batch.get("context", batch.get("image"))
        valid = batch.get("valid")
        if image is not None and valid is not None:
            # A channel that is missing, and what padding holds, look like air: known, and dark.
            image = torch.where(valid > 0, image, torch.full_like(image, AIR))
        return self(batch["mask"], image, keep), None

    def forward(
        self, mask: Tensor, image: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Builds the maps; ``keep`` of shape ``(B,)`` says which samples keep their context."""
        inside = (mask > 0).float()
        blurs = [gaussian_blur(inside, deviation) for deviation in self.deviations]
        if image is None:
            known = torch.zeros_like(inside)
            context = inside.new_zeros(len(mask), self.image_channels, *mask.shape[2:])
        else:
            known = 1 - dilate(inside, self.dilation)
            if keep is not None:
                known = known * keep.to(known).reshape(-1, 1, 1, 1, 1)
            context = image.float() * known
        told = torch.cat([inside, *blurs], dim=1)
        return torch.cat([told * float(self.with_mask), context, known], dim=1)
