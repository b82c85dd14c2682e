r"""Repeats voxels and convolves, without computing on what is repeated.

Voxels repeated twice along an axis and then convolved by three taps :math:`w` make, with :math:`c`
the coarse voxels and :math:`f` the fine ones,

.. math::
    f_{2i - 1} = (w_0 + w_1)\, c_{i - 1} + w_2\, c_i, \qquad
    f_{2i} = w_0\, c_{i - 1} + (w_1 + w_2)\, c_i .

So a *cell* of two neighbours comes from two coarse voxels. In three dimensions one convolution of
eight taps makes the eight fine voxels of a cell as channels: 64 products in place of 216, and few
channels at full resolution become many at half of it, on which processors are fast. A second
convolution that reads these voxels can read the cells instead, which pays where it makes few
channels, as the last one of a decoder does.

Weights, their names and the linear map are those of the plain layers; sums of weights round
otherwise, so results agree to rounding and not to the bit. Everything is built of convolutions, so
it is differentiated as often as these are (see `medvae3d.flows.twice`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvae3d.networks.blocks import Stride, Upsample, shuffle_voxels
from medvae3d.numerics import float32_island

FEW = 4
"""Channels up to which a convolution is quicker from cells; more would multiply by many zeros."""

KEEP_ZERO = (nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.Mish, nn.Tanh, nn.Identity)
"""Activations of one voxel that leave a zero zero, as it stands for what is beyond the volume."""

# Along one axis, by the stride: which of three taps make (place in the cell, tap of the cell).
_INTO_CELLS = {
    1: [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]],
    2: [[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]],
}
# And which of them lead (fine voxel of a coarse one, tap, place in the cell) to the next layer.
_FROM_CELLS = {
    1: [[[[1, 0, 0]], [[0, 1, 0]], [[0, 0, 1]]]],
    2: [
        [[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 0]]],
        [[[0, 0, 0], [1, 0, 0]], [[0, 1, 0], [0, 0, 1]]],
    ],
}


@lru_cache(maxsize=32)
def _taps(stride: Stride, kind: str, device: torch.device) -> Tensor:
    """The three axes together: ``(places * taps, 27)``, or with the places read in between."""
    table = _INTO_CELLS if kind == "into" else _FROM_CELLS
    i, j, k = (torch.tensor(table[s], dtype=torch.float32) for s in stride)
    if kind == "into":
        found = torch.einsum("ptw,qux,rvy->pqrtuvwxy", i, j, k)
    else:
        found = torch.einsum("atpw,buqx,cvry->abctuvpqrwxy", i, j, k)
    return found.reshape(-1, 27).to(device)


def _mixed(weight: Tensor, stride: Stride, kind: str) -> Tensor:
    """Sums of the taps of a kernel of 27, ``(O, rows of the table, C)``, in its own precision."""
    by_tap = weight.permute(0, 2, 3, 4, 1).reshape(len(weight), 27, weight.shape[1])
    with float32_island(weight.device.type), torch.inference_mode(False):
        table = _taps(stride, kind, weight.device)
    with float32_island(weight.device.type):
        return torch.matmul(table.to(weight.dtype), by_tap)


def _kernel(stride: Stride) -> list[int]:
    return [2 if s == 2 else 3 for s in stride]


def into_cells(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Stride) -> Tensor:
    """Repeats voxels and convolves; fine voxels lie as channels of cells.

    Along an axis of stride 2, cell :math:`i` holds the fine voxels :math:`2i - 1` and :math:`2i`,
    of which the first of the first cell and the last of the last one are outside of the volume.

    Shape:
        - ``x``: :math:`(B, C, i, j, k)`; ``weight``: :math:`(O, C, 3, 3, 3)`
        - output: :math:`(B, P O, i + 1, j + 1, k + 1)` with the :math:`P` places first; no further
          cell along an axis of stride 1
    """
    places, kernel = math.prod(stride), _kernel(stride)
    channels = weight.shape[1]
    mixed = _mixed(weight, stride, "into").unflatten(1, (places, -1)).transpose(0, 1)
    folded = mixed.reshape(-1, *kernel, channels).permute(0, 4, 1, 2, 3)
    return F.conv3d(x, folded, None if bias is None else bias.repeat(places), padding=1)


def from_cells(cells: Tensor, weight: Tensor, bias: Tensor | None, stride: Stride) -> Tensor:
    """Convolves fine voxels that lie in cells; what is outside of the volume has to be zero there.

    Shape:
        - ``cells``: as `into_cells` makes them; ``weight``: :math:`(O, C, 3, 3, 3)`
        - output: :math:`(B, O, I, J, K)`
    """
    places, kernel = math.prod(stride), _kernel(stride)
    mixed = _mixed(weight, stride, "from")
    folded = mixed.reshape(-1, *kernel, places * weight.shape[1]).permute(0, 4, 1, 2, 3)
    bias = None if bias is None else bias.repeat_interleave(places)
    padding = [0 if s == 2 else 1 for s in stride]
    return shuffle_voxels(F.conv3d(cells, folded, bias, padding=padding), stride)


def repeat_and_convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Stride) -> Tensor:
    """The same as convolving ``repeat_voxels(x, stride)`` with three taps an axis and a padding.

    Shape:
        - ``x``: :math:`(B, C, i, j, k)`; output: :math:`(B, O, I, J, K)`
    """
    if stride == (1, 1, 1):
        return F.conv3d(x, weight, bias, padding=1)
    made: Tensor = _Spread.apply(into_cells(x, weight, bias, stride), stride)
    return made


def _sides(stride: Stride, place: Sequence[int], count: Sequence[int]) -> tuple[Any, Any]:
    """Which cells have a fine voxel of the volume in this place, and where these voxels are."""
    cells, fine = [], []
    for s, p, n in zip(stride, place, count, strict=True):
        if s == 1:
            cells.append(slice(None))
            fine.append(slice(None))
        else:  # of n cells
            cells.append(slice(1, n) if p == 0 else slice(0, n - 1))
            fine.append(slice(1 - p, None, 2))
    return tuple(cells), tuple(fine)


def _by_place(cells: Tensor, stride: Stride) -> Any:
    """For each place: the channels of its voxels that are within the volume, and where to."""
    channels = cells.shape[1] // math.prod(stride)
    for number, place in enumerate(product(*(range(s) for s in stride))):
        inside, fine = _sides(stride, place, cells.shape[2:])
        block = slice(number * channels, (number + 1) * channels)
        yield cells[(slice(None), block, *inside)], (..., *fine)


class _Spread(torch.autograd.Function):
    """Puts the voxels of cells where they belong."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, stride: Stride) -> Tensor:
        ctx.stride = stride
        channels = cells.shape[1] // math.prod(stride)
        shape = [s * (n - s + 1) for s, n in zip(stride, cells.shape[2:], strict=True)]
        made = torch.empty(
            (len(cells), channels, *shape),
            dtype=cells.dtype,
            device=cells.device,
            memory_format=torch.channels_last_3d,
        )
        for block, where in _by_place(cells, stride):
            made[where] = block
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Gather.apply(grad, ctx.stride), None


class _Gather(torch.autograd.Function):
    """Takes voxels into cells, zero outside of the volume: what `_Spread` transposed is."""

    @staticmethod
    def forward(ctx: Any, fine: Tensor, stride: Stride) -> Tensor:
        ctx.stride = stride
        channels = fine.shape[1] * math.prod(stride)
        shape = [n // s + s - 1 for s, n in zip(stride, fine.shape[2:], strict=True)]
        cells = fine.new_zeros(len(fine), *shape, channels).permute(0, 4, 1, 2, 3)
        for block, where in _by_place(cells, stride):
            block.copy_(fine[where])
        return cells

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Spread.apply(grad, ctx.stride), None


def _clear(cells: Tensor, stride: Stride) -> Tensor:
    """Sets what lies outside of the volume to zero, in place."""
    by_place = cells.unflatten(1, (*stride, -1))
    for axis, s in enumerate(stride):
        if s == 2:
            pair = by_place.movedim((1 + axis, 5 + axis), (0, 1))
            pair[0, 0] = 0
            pair[1, -1] = 0
    return cells


class _Inside(torch.autograd.Function):
    """Sets what lies outside of the volume to zero, in the tensor itself where it may.

    Cells come from a convolution, which does not need them any more, and their gradient from that
    of an activation or a convolution, which is a tensor of its own.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, stride: Stride) -> Tensor:
        ctx.stride = stride
        ctx.mark_dirty(cells)
        return _clear(cells, stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            return _Inside.apply(grad.clone(), ctx.stride), None
        return _clear(grad, ctx.stride), None


class FoldedUpsample(Upsample):
    """An `Upsample` that does not compute on what is repeated; the same function and weights."""

    def forward(self, x: Tensor) -> Tensor:
        return repeat_and_convolve(x, self.conv.weight, self.conv.bias, self.stride)


class Folded(nn.Sequential):
    """A ``Sequential`` whose layers at full resolution are computed at half of it.

    Wherever a nearest ``nn.Upsample`` by 2 is followed by a convolution of three taps an axis, the
    two are computed together, and so is a second convolution, of few channels, that follows after
    activations. Children, names of weights and what is computed are those of the plain
    ``Sequential``, up to rounding.

    Example:
        >>> layers = [nn.Upsample(scale_factor=2), nn.Conv3d(2, 4, 3, padding=1), nn.SiLU()]
        >>> x = torch.randn(1, 2, 4, 4, 4)
        >>> torch.allclose(Folded(*layers)(x), nn.Sequential(*layers)(x), atol=1e-5)
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        layers, x = list(self), input
        while layers:
            if len(layers) < 2 or not (_doubles(layers[0]) and _is_plain(layers[1])) or x.ndim != 5:
                x = layers.pop(0)(x)
                continue
            first: Any = layers[1]
            del layers[:2]
            count = next((n for n, e in enumerate(layers) if type(e) not in KEEP_ZERO), len(layers))
            last: Any = layers[count] if count < len(layers) else None
            if last is None or not _is_plain(last) or last.out_channels > FEW:
                x = repeat_and_convolve(x, first.weight, first.bias, (2, 2, 2))
                continue
            x = into_cells(x, first.weight, first.bias, (2, 2, 2))
            x = _Inside.apply(x, (2, 2, 2))
            for activation in layers[:count]:
                x = activation(x)
            x = from_cells(x, last.weight, last.bias, (2, 2, 2))
            del layers[: count + 1]
        return x


def _doubles(layer: nn.Module) -> bool:
    if type(layer) is not nn.Upsample or layer.mode != "nearest" or layer.size is not None:
        return False
    factor: Any = layer.scale_factor
    return tuple(factor if isinstance(factor, tuple) else (factor,) * 3) == (2.0, 2.0, 2.0)


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is a convolution of three taps an axis that keeps the size, and nothing else."""
    return type(layer) is nn.Conv3d and (
        layer.kernel_size == (3, 3, 3)
        and layer.stride == layer.dilation == (1, 1, 1)
        and layer.padding in ((1, 1, 1), "same")
        and layer.groups == 1
        and layer.padding_mode == "zeros"
    )
