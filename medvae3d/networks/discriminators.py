"""Discriminators: networks that score how real a volume looks, patch by patch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from medvae3d.networks.blocks import as_stride, kernel_of


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches of a volume, and offers its features on the way.

    MONAI's discriminator normalises over the batch or the volume; here the weights are normalised
    instead (spectral norm), since batches are small.

    Args:
        in_channels: Channels of the volume, image and mask together.
        channels: Feature channels of each strided level.
        strides: Stride of each level; 2 along each axis by default.

    Shape:
        - input: :math:`(B, C, I, J, K)`
        - output: list of feature maps, the last one the logits :math:`(B, 1, i, j, k)`

    References:
        Isola et al., "Image-to-image translation with conditional adversarial networks", 2017.
        Miyato et al., "Spectral normalization for generative adversarial networks", 2018.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (32, 64, 128),
        strides: Sequence[int | Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        previous = in_channels
        for width, stride in zip(channels, strides or [2] * len(channels), strict=True):
            steps = as_stride(stride)
            conv = nn.Conv3d(previous, width, kernel_size=kernel_of(steps), stride=steps, padding=1)
            self.layers.append(nn.Sequential(spectral_norm(conv), nn.LeakyReLU(0.2)))
            previous = width
        self.logits = spectral_norm(nn.Conv3d(previous, 1, kernel_size=3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return [*features, self.logits(x)]
