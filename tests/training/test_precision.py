"""Gradients of convolutions on few voxels, which PyTorch gets wrong in bfloat16 on some CPUs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from medvae3d.networks.discriminators import PatchDiscriminator
from medvae3d.training.precision import keep_thin_in_float32


def gradient(layer: nn.Module, x: torch.Tensor, *, is_mixed: bool) -> torch.Tensor:
    """Of the first weight, for the sum of squares of what the layer makes."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed):
        made = layer(x)
    return torch.autograd.grad(made.float().square().sum(), next(layer.parameters()))[0]


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 4, 6)])
@pytest.mark.parametrize("is_normed", [False, True])
def test_a_level_of_two_voxels_gets_the_gradient_of_float32(shape, is_normed):
    torch.manual_seed(0)
    conv = nn.Conv3d(24, 48, kernel_size=3, padding=1, bias=False)
    layer = spectral_norm(conv).eval() if is_normed else conv
    x = torch.randn(2, 24, *shape)
    wanted = gradient(copy.deepcopy(layer), x, is_mixed=False)
    keep_thin_in_float32(layer)
    torch.testing.assert_close(gradient(layer, x, is_mixed=True), wanted)


@pytest.mark.parametrize("shape", [(3, 2, 2), (4, 4, 4)])
def test_other_levels_stay_as_they_were_to_the_bit(shape):
    torch.manual_seed(0)
    layer, x = nn.Conv3d(4, 8, kernel_size=3, padding=1), torch.randn(1, 4, *shape)
    before = gradient(layer, x, is_mixed=True)
    keep_thin_in_float32(layer)
    assert torch.equal(gradient(layer, x, is_mixed=True), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16


def test_a_discriminator_of_16_voxels_has_finite_gradients_beside_used_memory():
    torch.manual_seed(0)
    for _ in range(10):
        network = PatchDiscriminator(3, channels=(24, 48, 96))
        keep_thin_in_float32(network)
        left = [torch.full((n,), float("nan")) for n in range(10, 60_000, 1500)]
        del left  # memory with something in it, as in a long training
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = network(torch.randn(2, 3, 16, 16, 16))
        made[-1].float().square().mean().backward()
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
