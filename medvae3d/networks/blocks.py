r"""Building blocks of encoders, decoders and discriminators.

Two rules hold for everything that a decoder is made of:

1. Normalisation acts within one voxel, never across voxels, so that a tile decodes to the same
   numbers as the whole volume, and so that a sample does not depend on its neighbours in a batch.
2. Up-sampling repeats or shuffles voxels and then convolves. Transposed convolutions, which print
   a checkerboard, do not occur.

All activations are smooth: the potential of a Hamiltonian flow is differentiated twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stride = tuple[int, int, int]


def as_stride(stride: int | Sequence[int]) -> Stride:
    """Returns a stride along (I, J, K); one number stands for all three.

    Raises:
        ValueError: If an entry is neither 1 nor 2.
    """
    values = (stride,) * 3 if isinstance(stride, int) else tuple(int(s) for s in stride)
    if len(values) != 3 or any(value not in (1, 2) for value in values):
        raise ValueError(f"a stride is 1 or 2 along each of three axes, found {stride!r}")
    return values[0], values[1], values[2]


def channels_last(network: nn.Module) -> nn.Module:
    """Lays out convolution weights with channels last, in place, and returns the network.

    ``Module.to`` would also try tensors of four axes, such as the step sizes of a flow, and fail.
    """
    for parameter in network.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return network


def silence(layer: nn.Module) -> None:
    """Sets weight and bias of a layer to zero, so that it starts by adding nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class ChannelNorm(nn.Module):
    """Scales the channels of each voxel to unit mean square."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(dim=1, keepdim=True) + 1e-4).rsqrt()


class Modulation(nn.Module):
    r"""Gain and shift of feature channels by a vector, by maps, or by both.

    .. math:: y = (1 + \gamma(c) + \Gamma(m)) \odot h + \beta(c) + B(m)

    The vector part is the condition embedding block, the map part the mask embedding block of the
    PAVAE-style models. Both start at zero, so training starts from the unconditional network.

    Args:
        channels: Number of feature channels :math:`C`.
        vector_features: Length :math:`F` of the embedded condition vector; 0 for none.
        map_channels: Number of condition maps :math:`M`; 0 for none.
        hidden: Width of the convolution shared by gain and shift of the maps.

    Shape:
        - ``h`` and the output: :math:`(B, C, I, J, K)`
        - ``vector``: :math:`(B, F)`; ``maps``: :math:`(B, M, I, J, K)`

    References:
        Perez et al., "FiLM: visual reasoning with a general conditioning layer", 2018.
        Park et al., "Semantic image synthesis with spatially-adaptive normalization", 2019.
    """

    def __init__(
        self, channels: int, vector_features: int = 0, map_channels: int = 0, hidden: int = 32
    ) -> None:
        super().__init__()
        self.vector = nn.Linear(vector_features, 2 * channels) if vector_features else None
        self.maps = (
            nn.Sequential(
                nn.Conv3d(map_channels, hidden, kernel_size=3, padding=1),
                nn.SiLU(),
                nn.Conv3d(hidden, 2 * channels, kernel_size=3, padding=1),
            )
            if map_channels
            else None
        )
        last = [layer for layer in (self.vector, self.maps[-1] if self.maps else None) if layer]
        for layer in last:
            silence(layer)

    def forward(self, h: Tensor, vector: Tensor | None, maps: Tensor | None) -> Tensor:
        gain: Tensor | float = 1.0
        shift: Tensor | float = 0.0
        if self.vector is not None:
            if vector is None:
                raise ValueError("this network is conditioned on attributes, and none were given")
            by_vector = self.vector(vector)[..., None, None, None].chunk(2, dim=1)
            gain, shift = gain + by_vector[0], shift + by_vector[1]
        if self.maps is not None:
            if maps is None:
                raise ValueError("this network is conditioned on maps, and none were given")
            by_maps = self.maps(maps).chunk(2, dim=1)
            gain, shift = gain + by_maps[0], shift + by_maps[1]
        return gain * h + shift


class ResidualBlock(nn.Module):
    r"""Residual convolutions at one resolution, modulated by a condition.

    .. math:: y = x + f\big(\mathrm{mod}(\mathrm{norm}(x), c, m)\big)

    The last convolution starts at zero: a new block is the identity and can be grown into a
    trained network without a jump.

    Args:
        channels: Number of feature channels :math:`C`.
        vector_features: Length of the embedded condition vector; 0 for none.
        map_channels: Number of condition maps; 0 for none.
        dropout: Share of channels dropped between the convolutions while training.

    Shape:
        - ``x`` and the output: :math:`(B, C, I, J, K)`
    """

    radius = 2
    """Voxels that one output voxel sees to each side, at this resolution."""

    def __init__(
        self, channels: int, vector_features: int = 0, map_channels: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = ChannelNorm()
        self.modulate = (
            Modulation(channels, vector_features, map_channels)
            if vector_features or map_channels
            else None
        )
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv3d(channels, channels, kernel_size=3, padding=1),
            nn.SiLU(),
            nn.Dropout3d(dropout) if dropout else nn.Identity(),
            nn.Conv3d(channels, channels, kernel_size=3, padding=1),
        )
        silence(self.body[-1])

    def forward(
        self, x: Tensor, vector: Tensor | None = None, maps: Tensor | None = None
    ) -> Tensor:
        h = self.norm(x)
        if self.modulate is not None:
            h = self.modulate(h, vector, maps)
        return x + self.body(h)


def kernel_of(stride: Stride) -> Stride:
    """Width of a strided convolution that centres its voxels: 4 for a stride of 2, else 3."""
    i, j, k = (4 if step == 2 else 3 for step in stride)
    return i, j, k


class Downsample(nn.Conv3d):
    """Halves the resolution along the axes whose stride is 2, by one strided convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int | Sequence[int] = 2
    ) -> None:
        stride = as_stride(stride)
        kernel = kernel_of(stride)
        super().__init__(in_channels, out_channels, kernel_size=kernel, stride=stride, padding=1)


class Upsample(nn.Module):
    """Repeats voxels along the axes whose stride is 2, then convolves."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int | Sequence[int] = 2
    ) -> None:
        super().__init__()
        self.stride = as_stride(stride)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(repeat_voxels(x, self.stride))


def repeat_voxels(x: Tensor, stride: Stride) -> Tensor:
    """Repeats each voxel ``stride`` times along (I, J, K)."""
    if stride == (1, 1, 1):
        return x
    return F.interpolate(x, scale_factor=[float(s) for s in stride], mode="nearest")


class SubPixelOutput(nn.Module):
    r"""Goes to full resolution by shuffling channels into voxels, and smooths once.

    Layers of few channels at full resolution cost the most and compute the least, so the last
    features live at reduced resolution. The sub-kernels start alike (no grid at the start) and a
    small convolution at the end removes what grid training could bring back.

    Args:
        in_channels: Feature channels at reduced resolution.
        out_channels: Channels at full resolution.
        stride: Full over reduced resolution along (I, J, K).

    References:
        Shi et al., "Real-time single image and video super-resolution using an efficient
        sub-pixel convolutional neural network", 2016.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int | Sequence[int]) -> None:
        super().__init__()
        self.stride = as_stride(stride)
        self.out_channels = out_channels
        repeats = math.prod(self.stride)
        self.conv = nn.Conv3d(in_channels, out_channels * repeats, kernel_size=3, padding=1)
        self.smooth = nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1)
        with torch.no_grad():
            first = self.conv.weight[::repeats].clone()
            self.conv.weight.copy_(first.repeat_interleave(repeats, dim=0))
            self.conv.bias.zero_()  # type: ignore[union-attr]
            self.smooth.weight.zero_()
            self.smooth.bias.zero_()  # type: ignore[union-attr]
            for channel in range(out_channels):
                self.smooth.weight[channel, channel, 1, 1, 1] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(shuffle_voxels(self.conv(x), self.stride))


def shuffle_voxels(x: Tensor, stride: Stride) -> Tensor:
    """Moves channels into voxels: ``(B, C s_i s_j s_k, i, j, k)`` to ``(B, C, i s_i, ...)``."""
    batch, channels, *shape = x.shape
    x = x.reshape(batch, channels // math.prod(stride), *stride, *shape)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, -1, *(n * s for n, s in zip(shape, stride, strict=True)))


def pool_maps(maps: Tensor, stride: Stride) -> Tensor:
    """Averages maps over the voxels that become one; nearest resizing would lose small lesions."""
    return maps if stride == (1, 1, 1) else F.avg_pool3d(maps, stride, stride)
