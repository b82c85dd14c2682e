"""Which number format to train in, by what the device can do."""

from __future__ import annotations

import torch

from medvae3d.errors import SettingError

FORMATS = ("auto", "float32", "bfloat16", "float16")


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
