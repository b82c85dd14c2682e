"""A transformer of MONAI token by token, for drawing sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class CachedWalk:
    """A transformer token by token: keys and values of what came before are kept.

    The arithmetic is that of the blocks' own ``forward``, at a cost that grows with the length of
    the sequence in the place of its square.
    """

    def __init__(self, transformer: Any, context: Tensor | None) -> None:
        self.transformer = transformer
        self.keys: list[Tensor | None] = [None] * len(transformer.blocks)
        self.values: list[Tensor | None] = [None] * len(transformer.blocks)
        self.read: list[tuple[Tensor, Tensor]] = []
        for block in transformer.blocks if context is not None else ():
            cross = block.cross_attn
            k, v = (cross.input_rearrange(f(context)) for f in (cross.to_k, cross.to_v))
            self.read.append((k, v))

    def step(self, token: Tensor, position: int) -> Tensor:
        """Logits of what follows, ``(1, 1, V)``."""
        net = self.transformer
        x = net.token_embeddings(token) + net.position_embeddings.embedding.weight[position]
        for number, block in enumerate(net.blocks):
            attention = block.attn
            h = block.norm1(x)
            q, k, v = (
                attention.input_rearrange(f(h))
                for f in (attention.to_q, attention.to_k, attention.to_v)
            )
            old_k, old_v = self.keys[number], self.values[number]
            k = k if old_k is None else torch.cat([old_k, k], 2)
            v = v if old_v is None else torch.cat([old_v, v], 2)
            self.keys[number], self.values[number] = k, v
            x = x + _attend(attention, q, k, v)
            if block.with_cross_attention:
                cross = block.cross_attn
                q = cross.input_rearrange(cross.to_q(block.norm_cross_attn(x)))
                x = x + _attend(cross, q, *self.read[number])
            x = x + block.mlp(block.norm2(x))
        logits: Tensor = net.to_logits(x)
        return logits


def _attend(block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (torch.einsum("blxd,blyd->blxy", q, k) * block.scale).softmax(-1)
    mixed = torch.einsum("bhxy,bhyd->bhxd", weights, v)
    out: Tensor = block.out_proj(block.out_rearrange(mixed))
    return out
