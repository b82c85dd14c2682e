r"""What every prior promises, and the standard normal.

A model is trained against the standard normal. What its encoder then makes of the training set, the
aggregated posterior, is never quite that, and latents drawn from the gap decode to grey fog. The
other priors of this package are fitted on those latents after training, and keep what they found in
parameters and buffers, so that it travels with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from medvae3d.errors import SettingError
from medvae3d.numerics import Generators, at_least_float32, standard_normal, sum_per_sample

LOG_2_PI = math.log(2 * math.pi)

HeldOut = Tensor | tuple[Tensor, Tensor | None]
"""Latents that a fit does not see, alone or with their attributes."""


@runtime_checkable
class Prior(Protocol):
    """A density over latents that can be drawn from, told attributes or not."""

    @property
    def is_standard(self) -> bool:
        """Whether this is the standard normal, for which the KL has a closed form."""

    def log_prob(self, z: Tensor, attributes: Tensor | None = None) -> Tensor:
        """Log density in nats, ``(B,)``."""

    def sample(
        self,
        count: int,
        attributes: Tensor | None = None,
        generators: Generators = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws ``count`` latents; with a generator per sample, each depends on its own alone."""


@runtime_checkable
class FittedPrior(Prior, Protocol):
    """A prior that is fitted after training; the standard normal, or noise, until then.

    One that needs more than latents has a method ``fit_posterior(aggregate, *, seed)`` besides,
    which is called with an :class:`Aggregate` in the place of ``fit``.

    Attributes:
        attributes: Number of attributes that it is told; 0 for none.
        keeps_scale: Whether it is fitted on latents as they are. Others see latents of unit size,
            and the model undoes the scale when it draws from them.
    """

    attributes: int
    keeps_scale: bool

    def fit(
        self,
        latents: Tensor,
        attributes: Tensor | None = None,
        *,
        seed: int,
        validation: HeldOut | None = None,
    ) -> Any:
        """Fits the prior on latents of the training set, ``(N, ...)``, and returns it."""


@dataclass(frozen=True)
class Aggregate:
    """The aggregated posterior of a training set, for priors that need more than draws from it.

    Attributes:
        latents: One draw for each pass over each case, ``(N, ...)``.
        means: Means of the posteriors that they were drawn from, ``(N, ...)``.
        scales: Standard deviations of the same, ``(N, ...)``.
        attributes: What the cases are told, ``(N, F)``.
        inputs: What the encoder read of the first of them, ``(M, C, I, J, K)``.
        encode: Gives mean and scale of the posterior of such inputs, told attributes
            ``(B, F)``; differentiable. Everything is in the scale that the prior is fitted in.
    """

    latents: Tensor
    means: Tensor
    scales: Tensor
    attributes: Tensor | None
    inputs: Tensor
    encode: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


def standard_log_prob(z: Tensor) -> Tensor:
    """Log density of the standard normal in nats, ``(B,)``."""
    return sum_per_sample(-0.5 * (at_least_float32(z).square() + LOG_2_PI))


class StandardNormal(nn.Module):
    """The standard normal; attributes tell it nothing.

    Args:
        shape: Shape of one latent, ``(L, i, j, k)`` or ``(L,)``. Needed only to sample.
    """

    location: Tensor

    def __init__(self, shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.shape = tuple(shape)
        # Says on which device to sample.
        self.register_buffer("location", torch.zeros(()))

    @property
    def is_standard(self) -> bool:
        return True

    def log_prob(self, z: Tensor, attributes: Tensor | None = None) -> Tensor:
        return standard_log_prob(z)

    def sample(
        self,
        count: int,
        attributes: Tensor | None = None,
        generators: Generators = None,
        temperature: float = 1.0,
    ) -> Tensor:
        noise = standard_normal((count, *self.shape), generators, device=self.location.device)
        return temperature * noise


# -- what fits and draws have in common ------------------------------------------------------------


def checked_latents(
    latents: Tensor,
    attributes: Tensor | None,
    shape: Sequence[int],
    features: int,
    least: int = 3,
) -> tuple[Tensor, Tensor | None]:
    """Latents ``(N, size)`` and attributes ``(N, F)`` to fit on, float64 on the CPU.

    Raises:
        SettingError: If the sizes do not fit, a value is not finite, or there are too few cases.
    """
    z = latents.detach().double().cpu().flatten(1)
    size = math.prod(shape)
    given = 0 if attributes is None else attributes.shape[1]
    if z.shape[1] != size or given != features or len(z) < least:
        raise SettingError(
            f"{len(z)} latents of {z.shape[1]} elements with {given} attributes; this prior "
            f"needs at least {least} latents of {size} elements (shape {tuple(shape)}) "
            f"with {features} attributes."
        )
    a = None
    if attributes is not None and features:
        a = attributes.detach().double().cpu()
    if not z.isfinite().all() or (a is not None and not a.isfinite().all()):
        raise SettingError(
            "latents or attributes hold NaN or infinities; look for the cases that cause them "
            "before fitting a prior."
        )
    return z, a


def require_sizes(kind: str, **sizes: tuple[int, int]) -> None:
    """Checks sizes of a prior, each given as what it is and the least that it may be.

    Raises:
        SettingError: If one is less.
    """
    if any(value < least for value, least in sizes.values()):
        given = ", ".join(f"{name}={value}" for name, (value, _) in sizes.items())
        allowed = ", ".join(f"{name} >= {least}" for name, (_, least) in sizes.items())
        raise SettingError(f"{kind}({given}): allowed are {allowed}.")


def require_attributes(attributes: Tensor, wanted: int) -> None:
    """Checks that rows of attributes, ``(B, F)``, are as long as a prior was made for.

    Raises:
        SettingError: If they are not.
    """
    if attributes.shape[1] != wanted:
        raise SettingError(
            f"{attributes.shape[1]} attributes given, this prior was made for {wanted}; pass all "
            f"of them, standardised, in their order."
        )


def one_by_one(
    count: int,
    told: Sequence[Tensor | None],
    generators: Generators,
    draw: Callable[..., Tensor],
    nothing: Tensor,
) -> Tensor:
    """Draws samples one after the other, so that none depends on the size of its batch.

    Args:
        count: How many.
        told: What they should be, each ``(count, ...)``; attributes first.
        generators: One for all, or one for each.
        draw: Gives one sample for one row, ``(1, ...)``, of each of ``told`` and its generator.
        nothing: What no samples are, a tensor of length 0.

    Raises:
        SettingError: If there are not as many generators or attribute rows as samples.
    """
    rows = [
        draw(*(None if each is None else each[i : i + 1] for each in told), generator)
        for i, generator in enumerate(one_each(count, told[0], generators))
    ]
    return torch.stack(rows) if rows else nothing


def one_each(
    count: int, attributes: Tensor | None, generators: Generators
) -> Sequence[torch.Generator | None]:
    """One generator for each of the samples; one for all is handed to each in turn.

    Raises:
        SettingError: If there are not as many generators or attribute rows as samples.
    """
    each: Sequence[torch.Generator | None]
    if isinstance(generators, torch.Generator) or generators is None:
        each = [generators] * count
    else:
        each = generators
    if len(each) != count or (attributes is not None and len(attributes) != count):
        raise SettingError(
            f"{count} samples asked for with {len(each)} generators and "
            f"{'no' if attributes is None else len(attributes)} attribute rows; pass one each."
        )
    return each
