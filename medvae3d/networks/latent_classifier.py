"""A small classifier of latents, for telling whether they say what they should not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class LatentClassifier(nn.Module):
    """Class of a case from its latent.

    Args:
        latent_shape: Shape of one latent, :math:`(L,)` or :math:`(L, i, j, k)`.
        classes: Number of classes :math:`K`.
        features: Width of the hidden layer.

    Shape:
        - input: :math:`(B, L, ...)`; output: logits, :math:`(B, K)`
    """

    def __init__(self, latent_shape: Sequence[int], classes: int, features: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(latent_shape), features),
            nn.SiLU(),
            nn.Linear(features, classes),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z.float())
