"""Which number format to train in, by what the device can do."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from medvae3d.errors import SettingError

FORMATS = ("auto", "float32", "bfloat16", "float16")
# Voxels along the first axis for which PyTorch 2.13 on CPUs that multiply bfloat16 gives wrong
# gradients of the weights of a 3 x 3 x 3 convolution, sometimes NaN: it reads memory that nobody
# wrote. Seen at 2 alone, whatever the other axes; at 1, 3, 4, 6 and 8 gradients are right.
THIN = 2


def autocast_dtype(device: torch.device | str, precision: str = "auto") -> torch.dtype | None:
    """The format for autocast, or ``None`` for float32 throughout.

    ``auto`` takes bfloat16 where the device multiplies it in hardware, float16 on GPUs that do
    not, and float32 on CPUs that do not (emulated bfloat16 is slower than float32 there).

    Raises:
        SettingError: If the name is unknown or the device lacks the format.
    """
    if precision not in FORMATS:
        raise SettingError(f"precision is one of {', '.join(FORMATS)}; found {precision!r}")
    kind = torch.device(device).type
    if precision == "auto":
        if kind == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if kind == "cpu" and _cpu_multiplies_bfloat16() else None
    if precision == "float16" and kind == "cpu":
        raise SettingError("float16 trains on GPUs only; use bfloat16, float32 or auto on the CPU")
    return None if precision == "float32" else getattr(torch, precision)


def _cpu_multiplies_bfloat16() -> bool:
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def keep_thin_in_float32(network: nn.Module) -> None:
    """Has convolutions of bfloat16 on a CPU compute in float32 where there are `THIN` voxels.

    Deep levels of small volumes get there, such as those of 16 voxels after three strides of 2.
    Elsewhere nothing changes, not a bit.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
            module.forward = partial(_convolved, module)  # type: ignore[method-assign]


def _convolved(layer: nn.Conv3d, x: Tensor) -> Tensor:
    convolve = partial(type(layer).forward, layer)
    if x.shape[2] != THIN or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return convolve(x)
    with torch.autocast("cpu", enabled=False):
        return convolve(x.float())
