"""Trunks: shapes, and the distance over which one voxel can reach another."""

import pytest
import torch

from medvae3d.networks.autoencoders import Decoder, Encoder
from medvae3d.networks.discriminators import PatchDiscriminator

TRUNKS = [
    {"channels": (4, 8)},
    {"channels": (4, 8, 8), "blocks": 2},
    {"channels": (4, 8), "strides": [(2, 2, 1), (2, 2, 2)]},
]


def random_weights(network, scale=0.2):
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(scale * noise)
    return network


@pytest.mark.parametrize("trunk", TRUNKS)
def test_encoder_and_decoder_share_their_shapes(trunk):
    encoder, decoder = Encoder(3, 6, **trunk), Decoder(3, 2, **trunk)
    features = encoder(torch.randn(2, 3, 16, 16, 16))
    assert features.shape[2:] == tuple(16 // s for s in decoder.stride)
    assert decoder(features[:, :3]).shape == (2, 2, 16, 16, 16)


def test_a_vector_latent_goes_through_its_own_layers():
    encoder = Encoder(1, 10, channels=(4, 8), vector_from=(2, 2, 2))
    decoder = Decoder(5, 1, channels=(4, 8), vector_from=(2, 2, 2))
    features = encoder(torch.randn(3, 1, 8, 8, 8))
    assert features.shape == (3, 10)
    assert decoder(features[:, :5]).shape == (3, 1, 8, 8, 8)
    assert not decoder.is_local


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("maps", [0, 2])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_nothing_beyond_the_radius_reaches_a_voxel(trunk, maps, axis):
    """The tiler takes its halo from this number: it may be too large, never too small."""
    decoder = random_weights(Decoder(2, 1, map_channels=maps, **trunk).double())
    radius, stride = decoder.radius[axis], decoder.stride[axis]
    size = [3, 3, 3]
    size[axis] = 2 * (radius // stride) + 5
    z = torch.randn(1, 2, *size, dtype=torch.float64)
    full = [n * s for n, s in zip(size, decoder.stride, strict=True)]
    condition = torch.randn(1, maps, *full, dtype=torch.float64) if maps else None
    before = decoder(z, None, condition)
    middle = [n // 2 for n in size]
    z[(0, 0, *middle)] += 10
    moved = (decoder(z, None, condition) - before)[0, 0].abs() > 1e-9
    where = moved.nonzero()[:, axis]
    first = middle[axis] * stride
    assert where.min() >= first - radius
    assert where.max() <= first + stride - 1 + radius


def test_no_layer_transposes_a_convolution():
    decoder = Decoder(2, 1, channels=(4, 8, 8), map_channels=2)
    assert not any("Transpose" in type(module).__name__ for module in decoder.modules())


def test_samples_do_not_see_their_neighbours_in_a_batch():
    decoder = random_weights(Decoder(2, 1, channels=(4, 8)).double())
    z = torch.randn(3, 2, 4, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(decoder(z)[1:2], decoder(z[1:2]))


def test_checkpointing_changes_no_gradient():
    plain = random_weights(Decoder(2, 1, channels=(4, 8)).double())
    saving = Decoder(2, 1, channels=(4, 8), checkpointing=True).double()
    saving.load_state_dict(plain.state_dict())
    z = torch.randn(1, 2, 4, 4, 4, dtype=torch.float64)
    for decoder in (plain, saving):
        decoder(z.clone().requires_grad_()).square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_discriminator_ends_in_one_logit_a_patch():
    features = PatchDiscriminator(3, channels=(4, 8))(torch.randn(2, 3, 16, 16, 16))
    assert len(features) == 3
    assert features[-1].shape == (2, 1, 4, 4, 4)
