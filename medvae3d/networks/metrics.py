"""A matrix for each case, from the features of its encoder: what a learned metric is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MetricNetwork(nn.Module):
    r"""Turns features into a lower Cholesky factor, :math:`M = L L^\top`.

    The diagonal of :math:`L` is :math:`e^a` with :math:`a` bounded smoothly, so that neither a
    vanishing nor an infinite matrix can come out. It starts near the identity.

    Args:
        channels: Channels :math:`W` of the features.
        size: Elements :math:`d` of a latent.
        hidden: Units of the hidden layer.
        pooled: Cells along each axis that the features are averaged to.
        limit: Bound of the log diagonal.

    Shape:
        - input: :math:`(B, W, i, j, k)`; output: :math:`(B, d, d)`
    """

    def __init__(
        self, channels: int, size: int, hidden: int = 400, pooled: int = 2, limit: float = 5.0
    ) -> None:
        super().__init__()
        self.size = size
        self.limit = limit
        self.body = nn.Sequential(
            nn.AdaptiveAvgPool3d(pooled),
            nn.Flatten(),
            nn.Linear(channels * pooled**3, hidden),
            nn.SiLU(),
        )
        self.output = nn.Linear(hidden, size * (size + 1) // 2)
        with torch.no_grad():
            self.output.weight.mul_(0.1)
            self.output.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        values = self.output(self.body(features))
        log_diagonal, below = values.split([self.size, values.shape[1] - self.size], dim=1)
        diagonal = (self.limit * torch.tanh(log_diagonal / self.limit)).exp()
        rows, columns = torch.tril_indices(self.size, self.size, -1, device=values.device)
        factor = torch.diag_embed(diagonal)
        factor[:, rows, columns] = below
        return factor


class FixedMetric(nn.Module):
    """The same matrix for every case, a multiple of the identity: what a learned metric is held to.

    Args:
        size: Elements :math:`d` of a latent.
        scale: Diagonal of the factor.
    """

    def __init__(self, size: int, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("factor", scale * torch.eye(size))

    def forward(self, features: Tensor) -> Tensor:
        factor: Tensor = self.factor  # type: ignore[assignment]
        return factor.expand(len(features), -1, -1)
