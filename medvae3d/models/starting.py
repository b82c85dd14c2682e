"""Where the outputs of a model start: near the prior, and near an empty volume."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from medvae3d.networks.autoencoders import Decoder, Encoder


@torch.no_grad()
def start_gently(
    encoder: Encoder | None,
    decoder: Decoder,
    heads: nn.ModuleDict,
    coarse_heads: Iterable[nn.ModuleDict] = (),
) -> None:
    """Starts near the prior and near an empty volume, where most voxels are.

    Without it, the first hundreds of steps go into undoing random outputs, whose likelihood is
    millions of nats off.
    """
    head = list(encoder.head.modules())[-1] if encoder is not None else None
    if isinstance(head, nn.Conv3d | nn.Linear):
        head.weight.mul_(0.1)
    output = decoder.output
    outputs = [(output.conv, math.prod(output.stride), heads)]
    low = zip(getattr(decoder, "coarse_out", ()), coarse_heads, strict=True)
    outputs += [(conv, 1, each) for conv, each in low]
    for conv, repeats, each in outputs:
        _start_output(conv, repeats, each)


def _start_output(conv: Any, repeats: int, heads: nn.ModuleDict) -> None:
    bias: Tensor = conv.bias
    start = 0
    for each in heads.values():
        logits: Any = each
        stop = start + int(logits.features) * repeats
        conv.weight[start:stop].mul_(0.3)
        bias[start:stop] = -0.8 if logits.output == "image" else 0.0
        if logits.output == "mask":  # background likely: one low logit, or the first one high
            single = int(logits.features) == 1
            bias[start : stop if single else start + repeats] = -2.0 if single else 2.0
        start = stop
