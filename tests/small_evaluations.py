"""Cases for tests of an evaluation: smooth volumes with a blob for a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from medvae3d.evaluation.cases import Cases


def smooth_cases(
    count: int, *, seed: int = 0, side: int = 16, channels: int = 1, shift: float = 0.0
) -> Cases:
    """Smooth random volumes, each with one or several blobs.

    Args:
        count: Cases.
        seed: Draws them.
        side: Voxels along each axis.
        channels: Channels of the image.
        shift: Added to every intensity.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels + 1, 6, 6, 6, generator=generator)
    fine = F.interpolate(coarse, side, mode="trilinear")
    mask = (fine[:, channels:] > 0.8).float()
    # Every case has a mask.
    mask[..., side // 2, side // 2, side // 2] = 1
    image = 0.3 * fine[:, :channels] + 0.2 * mask + shift
    names = tuple(f"case {index}" for index in range(count))
    return Cases(image.clamp(-1, 1), mask, torch.ones_like(mask), mask, names)
