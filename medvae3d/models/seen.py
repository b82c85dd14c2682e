"""What an encoder is shown of a batch, and what is hidden from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medvae3d.models.traces import Batch
from medvae3d.networks.conditioning import coin


def stacked(
    batch: Batch,
    maps: Tensor | None,
    inputs: Sequence[str],
    values: Sequence[int],
    *,
    channel_dropout: float = 0.0,
    mask_dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Stacks what an encoder reads, each part with channels that say what was observed of it.

    Args:
        batch: See `medvae3d.models.latent.LatentModel`.
        maps: Condition maps, which come last.
        inputs: What is read, ``image``, ``mask`` or both.
        values: Label values of the mask, background first.
        channel_dropout: Share of the channels of images that are hidden; never all of an image.
        mask_dropout: Share of the samples whose mask is hidden.
        generator: Source of what is hidden.

    Shape:
        - output: :math:`(B, 2 C + N + M, I, J, K)` with image, mask and :math:`M` maps
    """
    parts = []
    if "image" in inputs:
        image = batch["image"].float()
        valid = batch.get("valid")
        valid = torch.ones_like(image) if valid is None else valid.to(image).expand_as(image)
        if channel_dropout:
            valid = valid * _kept_channels(valid, 1 - channel_dropout, generator)
        parts += [_seen(image, valid), valid]
    if "mask" in inputs:
        mask = batch.get("mask")
        if mask is None:
            like = batch["image"]
            mask = torch.zeros_like(like[:, :1])
            seen = torch.zeros_like(mask)
        else:
            seen = torch.ones_like(mask, dtype=torch.float32)
            if batch.get("mask_valid") is not None:
                seen = seen * batch["mask_valid"].to(seen)
            if mask_dropout:
                keep = coin(1 - mask_dropout, mask, generator)
                seen = seen * keep.reshape(-1, 1, 1, 1, 1)
        labels = batch.get("mask_probability")
        if labels is None:
            labels = torch.cat([(mask == value).float() for value in values[1:]], dim=1)
        parts += [_seen(labels, seen), seen]
    if maps is not None:
        parts.append(maps)
    return torch.cat(parts, dim=1).contiguous(memory_format=torch.channels_last_3d)


def _seen(x: Tensor, valid: Tensor) -> Tensor:
    """0 where nothing was observed; a product would carry on a NaN that lies there."""
    return torch.where(valid > 0, x, torch.zeros_like(x))


def _kept_channels(valid: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Which channels an encoder sees, ``(B, C, 1, 1, 1)``: at least one of those observed."""
    draw = torch.rand(valid.shape[:2], generator=generator, device=valid.device)
    observed = valid.flatten(2).amax(2) > 0
    draw = torch.where(observed, draw, torch.full_like(draw, 2.0))
    least = draw.amin(1, keepdim=True)
    return ((draw < share) | (draw == least)).to(valid)[..., None, None, None]
