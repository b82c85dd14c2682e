r"""Encoder and decoder trunks.

The trunk starts with a strided convolution and ends with a sub-pixel output, so that no layer
with many channels runs at full resolution. The latent is a map of
:math:`L` channels, or a vector of :math:`L` numbers when ``vector_from`` gives the shape of the
last feature map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medvae3d.networks.blocks import (
    ChannelNorm,
    Downsample,
    ResidualBlock,
    Stride,
    SubPixelOutput,
    Upsample,
    as_stride,
    pool_maps,
    silence,
)
from medvae3d.networks.folding import FoldedUpsample


def all_strides(
    channels: Sequence[int], strides: Sequence[int | Sequence[int]] | None
) -> list[Stride]:
    """One stride a level; the default halves every axis at every level.

    Raises:
        ValueError: If there are not as many strides as levels.
    """
    if strides is None:
        strides = [2] * len(channels)
    if len(strides) != len(channels):
        raise ValueError(f"{len(channels)} levels need as many strides, found {len(strides)}")
    return [as_stride(stride) for stride in strides]


def total_stride(strides: Sequence[Stride]) -> Stride:
    """Voxels of the volume per voxel of the latent along (I, J, K)."""
    i, j, k = (math.prod(s[axis] for s in strides) for axis in range(3))
    return i, j, k


class Encoder(nn.Module):
    """Turns a volume into features of a posterior.

    Args:
        in_channels: Channels of the input.
        out_features: Channels of the output (twice the latent channels for a Gaussian).
        channels: Feature channels of each level, from the finest to the coarsest.
        strides: Stride of each level, 1 or 2 along each axis; all 2 by default.
        blocks: Residual blocks a level.
        vector_features: Length of the embedded condition vector; 0 for none.
        vector_from: Shape of the last feature map, if the output is to be a vector.
        dropout: Share of channels dropped in residual blocks while training.

    Shape:
        - input: :math:`(B, C, I, J, K)`, each side a multiple of its stride
        - output: :math:`(B, O, i, j, k)`, or :math:`(B, O)` with ``vector_from``
    """

    def __init__(
        self,
        in_channels: int,
        out_features: int,
        channels: Sequence[int] = (32, 64, 128),
        strides: Sequence[int | Sequence[int]] | None = None,
        blocks: int = 1,
        vector_features: int = 0,
        vector_from: Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.strides = all_strides(channels, strides)
        self.down = nn.ModuleList()
        self.levels = nn.ModuleList()
        previous = in_channels
        for width, stride in zip(channels, self.strides, strict=True):
            self.down.append(Downsample(previous, width, stride))
            self.levels.append(
                nn.ModuleList(
                    ResidualBlock(width, vector_features, dropout=dropout) for _ in range(blocks)
                )
            )
            previous = width
        self.norm = ChannelNorm()
        if vector_from is None:
            self.head: nn.Module = nn.Conv3d(previous, out_features, kernel_size=3, padding=1)
        else:
            self.head = nn.Sequential(
                nn.Flatten(), nn.Linear(previous * math.prod(vector_from), out_features)
            )

    def forward(self, x: Tensor, vector: Tensor | None = None) -> Tensor:
        return self.head(self.features(x, vector))

    def features(self, x: Tensor, vector: Tensor | None = None) -> Tensor:
        """The last feature map, which the head reads, ``(B, channels[-1], i, j, k)``."""
        for down, level in zip(self.down, self.levels, strict=True):
            x = down(x)
            for block in level:  # type: ignore[attr-defined]
                x = block(x, vector)
        return F.silu(self.norm(x))


class Decoder(nn.Module):
    """Turns a latent into features of the heads, at full resolution.

    Args:
        latent_channels: Channels of a latent map, or length of a latent vector.
        out_features: Channels of the output, the sum over the heads.
        channels: Feature channels of each level, from the finest to the coarsest, as the encoder.
        strides: Stride of each level, as the encoder.
        blocks: Residual blocks a level.
        vector_features: Length of the embedded condition vector; 0 for none.
        map_channels: Number of condition maps at full resolution; 0 for none.
        vector_from: Shape of the first feature map, if the latent is a vector.
        dropout: Share of channels dropped in residual blocks while training.
        checkpointing: Whether to recompute levels in the backward pass, which saves memory for
            large volumes. Not for use with a flow, whose gradients are differentiated again.
        coarse: Outputs at lower resolution, of the finest levels. Each is fed to what follows it.
        folded: Whether not to compute on repeated voxels (see `medvae3d.networks.folding`): the
            same weights and function in less time, up to rounding. Shipped bundles are without,
            since a training or a sample that rounds otherwise has other bytes.

    Shape:
        - ``z``: :math:`(B, L, i, j, k)` or :math:`(B, L)`
        - ``maps``: :math:`(B, M, I, J, K)`
        - output: :math:`(B, O, I, J, K)`
    """

    def __init__(
        self,
        latent_channels: int,
        out_features: int,
        channels: Sequence[int] = (32, 64, 128),
        strides: Sequence[int | Sequence[int]] | None = None,
        blocks: int = 1,
        vector_features: int = 0,
        map_channels: int = 0,
        vector_from: Sequence[int] | None = None,
        dropout: float = 0.0,
        checkpointing: bool = False,
        coarse: int = 0,
        folded: bool = False,
    ) -> None:
        super().__init__()
        self.strides = all_strides(channels, strides)
        self.blocks = blocks
        self.has_maps = bool(map_channels)
        self.checkpointing = checkpointing
        self.is_local = vector_from is None
        if vector_from is None:
            self.stem: nn.Module = nn.Conv3d(latent_channels, channels[-1], 3, padding=1)
        else:
            self.stem = nn.Sequential(
                nn.Linear(latent_channels, channels[-1] * math.prod(vector_from)),
                nn.Unflatten(1, (channels[-1], *vector_from)),
            )
        self.levels = nn.ModuleList()
        self.up = nn.ModuleList()
        for level in reversed(range(len(channels))):
            width = channels[level]
            self.levels.append(
                nn.ModuleList(
                    ResidualBlock(width, vector_features, map_channels, dropout)
                    for _ in range(blocks)
                )
            )
            if level:
                kind = FoldedUpsample if folded else Upsample
                self.up.append(kind(width, channels[level - 1], self.strides[level]))
        self.norm = ChannelNorm()
        self.output = SubPixelOutput(channels[0], out_features, self.strides[0])
        if not 0 <= coarse <= len(channels):
            raise ValueError(
                f"{len(channels)} levels have {coarse} coarse outputs; at most one each"
            )
        self.coarse_out, self.coarse_in = nn.ModuleList(), nn.ModuleList()
        for width in reversed(channels[:coarse]):
            self.coarse_out.append(nn.Conv3d(width, out_features, 1))
            self.coarse_in.append(nn.Conv3d(out_features, width, 1))
            silence(self.coarse_in[-1])

    @property
    def stride(self) -> Stride:
        """Voxels of the volume per voxel of the latent along (I, J, K)."""
        return total_stride(self.strides)

    @property
    def coarse_strides(self) -> list[Stride]:
        """Voxels of the volume per voxel of each coarse output, coarsest first."""
        return [total_stride(self.strides[:n]) for n in range(len(self.coarse_out), 0, -1)]

    @property
    def radius(self) -> Stride:
        """Voxels of the volume, to each side, that one voxel of the output depends on.

        An upper bound per axis; the tiler takes its halo from it. Each 3 x 3 x 3 convolution adds
        one voxel of its own resolution; condition maps enter through two more.
        """
        bound = []
        for axis in range(3):
            scale = self.stride[axis]
            reach = scale  # the stem
            for level in reversed(range(len(self.strides))):
                reach += self.blocks * (ResidualBlock.radius + 2 * self.has_maps) * scale
                scale //= self.strides[level][axis]
                if level:
                    reach += 2 * scale  # the convolution after repeating, and where it rounds
            reach += self.strides[0][axis] + 1  # sub-pixel convolution and smoothing
            bound.append(reach)
        return bound[0], bound[1], bound[2]

    def forward(
        self, z: Tensor, vector: Tensor | None = None, maps: Tensor | None = None
    ) -> Tensor:
        return self.pyramid(z, vector, maps)[-1]

    def pyramid(
        self, z: Tensor, vector: Tensor | None = None, maps: Tensor | None = None
    ) -> list[Tensor]:
        """All outputs, coarsest first; the last one is that at full resolution."""
        pyramid = self._pyramid(maps)
        outputs, first = [], len(self.levels) - len(self.coarse_out)
        x = self.stem(z)
        for index, level in enumerate(self.levels):
            for block in level:  # type: ignore[attr-defined]
                if self.checkpointing and x.requires_grad:
                    x = checkpoint(block, x, vector, pyramid[index], use_reentrant=False)
                else:
                    x = block(x, vector, pyramid[index])
            if index >= first:
                outputs.append(self.coarse_out[index - first](F.silu(self.norm(x))))
                x = x + self.coarse_in[index - first](outputs[-1])
            if index < len(self.up):
                x = self.up[index](x)
        return [*outputs, self.output(F.silu(self.norm(x)))]

    @property
    def finest_halo(self) -> int:
        """Voxels to each side that `finest` spoils, at its own resolution."""
        return self.blocks * (ResidualBlock.radius + 2 * self.has_maps) + 2

    def until_finest(
        self,
        z: Tensor,
        vector: Tensor | None = None,
        maps: Tensor | None = None,
        slab: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """All levels but the finest: their last feature map, and the maps that `finest` is told.

        Only for decoders of two levels or more without coarse outputs. With ``slab``, the last of
        these levels is computed that many of its own planes along I at a time, and a halo: little
        more work, and the memory of a slab in the place of that of the level.
        """
        pyramid = self._pyramid(maps)
        x = self.stem(z)
        last = len(self.levels) - 2
        for index in range(last):
            x = self._level(index, x, vector, pyramid[index])
        step = self.strides[-last][0] if last else 1
        planes = x.shape[2] * step
        if slab is None or slab >= planes:
            return self._level(last, x, vector, pyramid[last]), pyramid[-1]
        made: Tensor | None = None
        halo = self.blocks * (ResidualBlock.radius + 2 * self.has_maps) + 1
        for start in range(0, planes, slab):
            stop = min(start + slab, planes)
            low, high = max(0, start - halo) // step, min(x.shape[2], -(-(stop + halo) // step))
            told = pyramid[last]
            told = None if told is None else told[:, :, low * step : high * step]
            part = self._level(last, x[:, :, low:high], vector, told)
            if made is None:
                shape = (*part.shape[:2], planes, *part.shape[3:])
                made = torch.empty(
                    shape,
                    dtype=part.dtype,
                    device=part.device,
                    memory_format=torch.channels_last_3d,
                )
            made[:, :, start:stop] = part[:, :, start - low * step : stop - low * step]
        assert made is not None  # there is a plane
        return made, pyramid[-1]

    def _level(self, index: int, x: Tensor, vector: Tensor | None, maps: Tensor | None) -> Tensor:
        """Up to a level and through its blocks."""
        if index:
            x = self.up[index - 1](x)
        for block in self.levels[index]:  # type: ignore[attr-defined]
            x = block(x, vector, maps)
        return x

    def finest(self, x: Tensor, vector: Tensor | None, maps: Tensor | None) -> Tensor:
        """The finest level and the output, from what `until_finest` gives or a crop of it."""
        x = self._level(len(self.levels) - 1, x, vector, maps)
        return self.output(F.silu(self.norm(x)))

    def _pyramid(self, maps: Tensor | None) -> list[Tensor | None]:
        """The maps at the resolution of each level, coarsest first."""
        if maps is None or not self.has_maps:
            return [None] * len(self.strides)
        pyramid: list[Tensor | None] = []
        for stride in self.strides:
            maps = pool_maps(maps, stride)
            pyramid.append(maps)
        return pyramid[::-1]
