r"""What a flow of a latent model moves against, :math:`U(z) = -\log p(x, m, z \mid c)` in nats."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medvae3d.models.traces import Batch, Condition

if TYPE_CHECKING:
    from medvae3d.models.latent import LatentModel


class Potential:
    """The potential as a function of ``z``; remembers what it decoded last.

    Args:
        model: Its decoder and prior.
        batch: What was observed.
        condition: What the model is told.
    """

    def __init__(self, model: LatentModel, batch: Batch, condition: Condition) -> None:
        # The flow switches autocast off. Convolutions may have it back, since they hold nearly
        # all of the work; log densities are float32 in the heads themselves.
        device = next(model.parameters()).device.type
        dtype = torch.get_autocast_dtype(device)
        enabled = model.flow_autocast and torch.is_autocast_enabled(device)
        self.precision = partial(torch.autocast, device, dtype=dtype, enabled=enabled)
        self.model, self.batch, self.condition = model, batch, condition
        self.prior = model.prior_given(condition)
        self.last: tuple[Tensor, dict[str, Any]] | None = None

    def __call__(self, z: Tensor) -> Tensor:
        with self.precision():
            heads = self.model.decode(z, self.condition)
        self.last = z, heads
        return -self.model.log_likelihood(heads, self.batch) - self.prior.log_prob(z)

    def decoded_at(self, z: Tensor) -> dict[str, Any] | None:
        """The heads at ``z``, if they were decoded last, and as part of the same graph."""
        exact = not getattr(self.model.flow, "first_order", True) and torch.is_grad_enabled()
        if self.last is None or not exact or not z.requires_grad:
            return None
        last, heads = self.last
        return heads if torch.equal(last, z) else None
