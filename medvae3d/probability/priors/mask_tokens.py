"""A mask as tokens for a transformer over codes: one for each place of the grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskTokens(nn.Module):
    """Shares of labels around each place of a grid of codes, embedded together with the place.

    A place of the mask has the embedding of the code that is drawn there, at the size of a
    standardised feature: with that of its first weights, 0.02, attention did not find it.

    Args:
        values: Label values, background first, :math:`N` of them.
        grids: Grids of codes, in the order that they are drawn in, :math:`T` places in all.
        width: Features :math:`W` of a token.
    """

    def __init__(self, values: Sequence[int], grids: Sequence[Sequence[int]], width: int) -> None:
        super().__init__()
        self.values = tuple(values)
        self.grids = tuple(tuple(grid) for grid in grids)
        # The last entry says that the mask is known.
        self.embed = nn.Linear(len(self.values), width)

    def shares(self, mask: Tensor, order: Tensor) -> Tensor:
        """Shares of the labels but background, and a 1, of masks by place, ``(B, T, N)``.

        Args:
            mask: Label maps, :math:`(B, 1, I, J, K)`.
            order: Places of the grids in the order that codes are drawn in, ``(T,)``.
        """
        labels = torch.cat([(mask == value).float() for value in self.values[1:]], 1)
        found = [F.adaptive_avg_pool3d(labels, (i, j, k)).flatten(2) for i, j, k in self.grids]
        shares = torch.cat(found, 2).movedim(1, 2)[:, order.to(mask.device)]
        return torch.cat([shares, torch.ones_like(shares[..., :1])], 2)

    def forward(self, shares: Tensor | None, places: Tensor, count: int) -> Tensor:
        """Tokens, ``(B, T, W)``; those of places alone where no mask is known.

        Args:
            shares: See `shares`; zeros for cases whose mask is not known.
            places: Embeddings of the places, ``(T, W)``.
            count: Number of cases :math:`B`.
        """
        weight = self.embed.weight
        if shares is None:
            shares = weight.new_zeros(count, len(places), len(self.values))
        tokens: Tensor = self.embed(shares.to(weight))
        return tokens + F.layer_norm(places, places.shape[-1:])
