"""Numbers that stay finite: positive scales, Cholesky factors, float32 islands, seeded noise.

Densities of a volume are sums over up to a million voxels. They are taken in float32 at least,
whatever autocast is in force around them, and every random number comes from a generator that the
caller hands in.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from medvae3d.errors import SettingError

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a whole batch, one per sample, or the global state of torch."""


def at_least_float32(x: Tensor) -> Tensor:
    """Lifts half precision (and integers) to float32 and leaves float64 as it is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def float32_island(device_type: str) -> AbstractContextManager[object]:
    """Switches autocast off inside, on the given type of device (``tensor.device.type``)."""
    return torch.autocast(device_type, enabled=False)


def sum_per_sample(x: Tensor) -> Tensor:
    """Sums all but the batch axis, ``(B, ...)`` to ``(B,)``."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def softplus_scale(raw: Tensor, floor: float = 1e-3) -> Tensor:
    """Maps any number to a scale above ``floor``; linear where large, so it cannot overflow."""
    return F.softplus(at_least_float32(raw)) + floor


def inverse_softplus(x: float) -> float:
    """Returns the number whose softplus is ``x``."""
    return x + math.log(-math.expm1(-x))


def safe_log(x: Tensor, floor: float = 1e-12) -> Tensor:
    """Takes the logarithm of a number that may be zero, with zero gradient below ``floor``."""
    return x.clamp_min(floor).log()


def all_finite(*tensors: Tensor) -> bool:
    """Whether no tensor holds a NaN or an infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def jittered_cholesky(matrix: Tensor, first: float = 1e-8, tries: int = 6) -> Tensor:
    """Factors a covariance that rounding may have left a little short of positive definite.

    Jitter is added to the diagonal in steps of ten, relative to its mean, and warned about.

    Args:
        matrix: Symmetric matrices, :math:`(..., n, n)`.
        first: First jitter, relative to the mean of the diagonal.
        tries: How many times it may grow.

    Raises:
        SettingError: If the largest jitter is not enough.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not bool(info.any()):
        return factor
    size = matrix.diagonal(dim1=-2, dim2=-1).abs().mean().clamp_min(1e-12)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    jitter = first
    for _ in range(tries):
        factor, info = torch.linalg.cholesky_ex(matrix + jitter * size * eye)
        if not bool(info.any()):
            warnings.warn(f"covariance not positive definite; added {jitter:.0e} of its diagonal",
                          stacklevel=2)  # fmt: skip
            return factor
        jitter *= 10
    raise SettingError(
        f"a covariance of {matrix.shape[-1]} dimensions is not positive definite, even with "
        f"{jitter / 10:.0e} of its diagonal added. Fit it on more cases or lower its rank."
    )


def _draw(
    function: Callable[..., Tensor],
    shape: Sequence[int],
    generator: Generators,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    shape = tuple(shape)
    if generator is None:
        return function(shape, dtype=dtype, device=device)
    if isinstance(generator, torch.Generator):
        # Drawn where the generator lives: one seed on the CPU serves every device.
        noise = function(shape, generator=generator, dtype=dtype, device=generator.device)
        return noise.to(device)
    if len(generator) != shape[0]:
        raise SettingError(
            f"{len(generator)} generators for {shape[0]} samples; pass one generator per sample."
        )
    rows = [
        function(shape[1:], generator=each, dtype=dtype, device=each.device).to(device)
        for each in generator
    ]
    return torch.stack(rows) if rows else torch.empty(shape, dtype=dtype, device=device)


def standard_normal(
    shape: Sequence[int],
    generator: Generators = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws standard normal noise; with a generator per sample, row ``i`` depends on it alone."""
    return _draw(torch.randn, shape, generator, dtype, device)


def uniform(
    shape: Sequence[int],
    generator: Generators = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws from the open interval (0, 1), so that a quantile function stays finite."""
    smallest = torch.finfo(dtype).eps
    return _draw(torch.rand, shape, generator, dtype, device).clamp(smallest, 1 - smallest)
