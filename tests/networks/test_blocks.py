"""Blocks: what they are at the start, and how far they see."""

import pytest
import torch
from torch import nn

from medvae3d.networks.blocks import (
    ChannelNorm,
    Downsample,
    Modulation,
    ResidualBlock,
    SubPixelOutput,
    Upsample,
    as_stride,
    channels_last,
    shuffle_voxels,
)


def test_channels_of_each_voxel_get_unit_mean_square():
    x = torch.randn(2, 8, 3, 4, 5) * 7
    power = ChannelNorm()(x).square().mean(1)
    torch.testing.assert_close(power, torch.ones_like(power), rtol=1e-3, atol=0)


def test_a_new_block_is_the_identity():
    x = torch.randn(2, 8, 4, 4, 4)
    vector, maps = torch.randn(2, 5), torch.randn(2, 3, 4, 4, 4)
    torch.testing.assert_close(ResidualBlock(8, 5, 3)(x, vector, maps), x)


@pytest.mark.parametrize(("vector_features", "map_channels"), [(5, 0), (0, 3), (5, 3)])
def test_a_new_modulation_changes_nothing_whatever_the_condition(vector_features, map_channels):
    """Embeddings start as plain normalisation."""
    h = torch.randn(2, 8, 4, 4, 4)
    modulation = Modulation(8, vector_features, map_channels)
    vector = torch.randn(2, vector_features) * 100 if vector_features else None
    maps = torch.randn(2, map_channels, 4, 4, 4) * 100 if map_channels else None
    torch.testing.assert_close(modulation(h, vector, maps), h)


def test_a_condition_that_is_missing_is_refused():
    with pytest.raises(ValueError, match="attributes"):
        Modulation(4, 3)(torch.zeros(1, 4, 2, 2, 2), None, None)


@pytest.mark.parametrize("stride", [1, 2, (2, 2, 1), (1, 2, 2)])
def test_down_and_up_meet_again(stride):
    x = torch.randn(1, 2, 8, 8, 8)
    low = Downsample(2, 3, stride)(x)
    assert low.shape[2:] == tuple(8 // s for s in as_stride(stride))
    assert Upsample(3, 2, stride)(low).shape == x.shape


def test_shuffling_moves_channels_into_their_own_voxels():
    x = torch.arange(8.0).reshape(1, 8, 1, 1, 1)
    assert shuffle_voxels(x, (2, 2, 2))[0, 0].flatten().tolist() == list(range(8))


def test_a_constant_comes_out_constant_so_that_no_grid_is_there_at_the_start():
    out = SubPixelOutput(4, 2, 2)(torch.ones(1, 4, 8, 8, 8))
    inner = out[:, :, 4:-4, 4:-4, 4:-4]
    assert inner.std(dim=(2, 3, 4)).max() < 1e-6


def test_strides_other_than_one_and_two_are_refused():
    with pytest.raises(ValueError, match="1 or 2"):
        as_stride(3)


def test_layout_leaves_step_sizes_alone():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(2, 2, 3)
            self.steps = nn.Parameter(torch.ones(2, 1, 1, 1))

    network = channels_last(Steps())
    assert network.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
