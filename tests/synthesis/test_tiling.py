"""Claims about decoding tile by tile."""

from __future__ import annotations

import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.models import zoo
from medvae3d.models.latent import Condition
from medvae3d.networks.autoencoders import Decoder
from medvae3d.synthesis.tiling import (
    decode_blended,
    decode_pieces,
    decode_tiled,
    tiles_of,
    tiles_touching,
)


def shaken(model):
    """New blocks are the identity and see nothing; random weights see all that they can."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def local_model(**options):
    options = {"spatial_shape": (16, 16, 16), "channels": (4, 8), "latent_channels": 3} | options
    return shaken(zoo.vae(**options))


def texture_model():
    sizes = {"channels": (4, 8), "latent_channels": 3, "components": 0}
    return shaken(zoo.pavae((16,) * 3, (16,) * 3, shape=sizes, texture=sizes).texture)


def latent(model, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sides = [n // s for n, s in zip(shape, model.decoder.stride, strict=True)]
    return torch.randn(1, model.latent_shape[0], *sides, generator=generator)


@pytest.mark.parametrize(
    ("options", "shape", "tile"),
    [
        ({}, (64, 64, 64), (16, 16, 16)),
        ({"strides": [[1, 2, 2], [2, 2, 1]]}, (16, 128, 16), (16, 32, 16)),
        ({"blocks": 2}, (160, 16, 16), (40, 16, 16)),
        ({"values": (0, 1, 2)}, (40, 32, 24), (12, 20, 17)),
    ],
)
@torch.inference_mode()
def test_tiles_equal_the_whole(options, shape, tile):
    model = local_model(**options)
    z = latent(model, shape)
    whole = model.decode(z, Condition())
    tiled = decode_tiled(model, z, Condition(), tile)
    assert whole["image"].mode().shape[2:] == shape
    for name in ("image", "mask"):
        read = (lambda head: head.mode()) if name == "image" else (lambda head: head.field())
        assert read(whole[name]).std() > 0.1
        assert (read(whole[name]) - read(tiled[name])).abs().max() < 1e-4


@pytest.mark.parametrize("slab", [1, 3, 8, 100])
@torch.inference_mode()
def test_slabs_of_the_last_coarse_level_equal_the_level(slab):
    for strides in (None, [2, 2], [2, (2, 1, 2), 2]):
        channels = (4, 6, 8)[: len(strides) if strides else 3]
        torch.manual_seed(0)
        decoder = Decoder(3, 2, channels=channels, strides=strides)
        for parameter in decoder.parameters():  # new blocks are the identity
            parameter.add_(0.1 * torch.randn(parameter.shape))
        z = torch.randn(2, 3, 9, 2, 2)
        whole, _ = decoder.until_finest(z)
        assert whole.std() > 0.1
        torch.testing.assert_close(decoder.until_finest(z, slab=slab)[0], whole)


@torch.inference_mode()
def test_only_what_is_to_be_kept_of_a_tile_is_kept():
    model = local_model()
    z = latent(model, (16, 16, 16))

    def keep(heads):
        return {"image": heads["image"].mode().half(), "mask": heads["mask"]}

    whole = model.decode(z, Condition())
    kept = decode_tiled(model, z, Condition(), (8, 16, 16), keep=keep)
    assert kept["image"].dtype == torch.float16 and set(kept) == {"image", "mask"}
    torch.testing.assert_close(kept["image"].float(), whole["image"].mode(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(kept["mask"].field(), whole["mask"].field(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((16, 144, 16), (16, 36, 16)),
        pytest.param((64, 64, 64), (16, 16, 16), marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_tiles_equal_the_whole_with_condition_maps(shape, tile):
    model = texture_model()
    mask = torch.zeros(1, 1, *shape)
    mask[..., 5:11, shape[1] // 3 : shape[1] // 2, 4:12] = 1
    image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    condition = model.condition({"mask": mask, "context": image})
    z = latent(model, shape)
    whole = model.decode(z, condition)["image"].mode()
    tiled = decode_tiled(model, z, condition, tile)["image"].mode()
    assert (whole - tiled).abs().max() < 1e-4


@torch.inference_mode()
def test_without_the_halo_tiles_would_differ():
    model = local_model()
    z = latent(model, (32, 16, 16))
    whole = model.decode(z, Condition())["image"].mode()
    half = model.decode(z[:, :, :4], Condition())["image"].mode()
    assert (whole[:, :, :16] - half).abs().max() > 1e-2


@torch.inference_mode()
def test_only_wanted_tiles_are_decoded():
    model = local_model()
    z, box = latent(model, (64, 64, 64)), (slice(10, 20), slice(40, 47), slice(0, 5))
    tiles = tiles_touching(box, (64, 64, 64), (16, 16, 16))
    assert len(tiles) == 2
    whole = model.decode(z, Condition())["image"].mode()
    some = decode_tiled(model, z, Condition(), (16, 16, 16), tiles=tiles)["image"].mode()
    assert (whole[(..., *box)] - some[(..., *box)]).abs().max() < 1e-4
    assert not some[..., 48:, :, :].any()


def test_tiles_cover_each_voxel_once():
    covered = torch.zeros(13, 8, 21)
    for tile in tiles_of(covered.shape, (5, 8, 6)):
        covered[tile.slices] += 1
    assert bool((covered == 1).all())


def test_what_is_decoded_at_once_does_not_grow_with_the_volume():
    model, seen = local_model(), []
    model.decoder.register_forward_hook(lambda _, __, output: seen.append(output.shape[2:].numel()))
    with torch.inference_mode():
        for shape in ((96, 16, 16), (160, 16, 16)):
            z = latent(model, shape)
            for _ in decode_pieces(model, z, Condition(), tiles_of(shape, (16, 16, 16))):
                pass
            assert max(seen) == 16 * 16 * (16 + 2 * 24)  # 24: the radius of 23, in whole latents
            seen.clear()


def test_a_vector_latent_is_not_tiled():
    model = local_model(vector_latent=True)
    with pytest.raises(SettingError, match="vector latent"):
        decode_tiled(model, torch.zeros(1, 3), Condition())


def test_a_tile_of_nothing_is_refused():
    with pytest.raises(SettingError, match="allowed is 1"):
        tiles_of((4, 4, 4), (4, 0, 4))


@torch.inference_mode()
def test_blending_keeps_a_constant_constant():
    """All windows agree where the maps are the same everywhere and no weight reaches the image."""
    sizes = {"channels": (4, 8), "latent_channels": 3, "vector_latent": True, "components": 0}
    model = zoo.pavae((16,) * 3, (16,) * 3, texture=sizes).texture.eval()
    with torch.no_grad():
        model.decoder.output.conv.weight.zero_()
        model.decoder.output.conv.bias.fill_(0.7)
        model.decoder.output.smooth.weight.zero_()
        model.decoder.output.smooth.bias.fill_(0.7)
    condition = model.condition({"mask": torch.zeros(2, 1, 40, 24, 30)})
    made = decode_blended(model, torch.randn(2, 3), condition, (16, 16, 16))
    assert made.shape == (2, 1, 40, 24, 30)
    assert torch.allclose(made, torch.tensor(0.7), atol=1e-5)


@torch.inference_mode()
def test_blending_follows_the_maps_of_its_own_sample():
    model = texture_model()
    masks = torch.zeros(2, 1, 24, 16, 16)
    masks[1, ..., 8:12, 6:10, 6:10] = 1
    condition = model.condition({"mask": masks})
    z = latent(model, (16, 16, 16)).repeat(2, 1, 1, 1, 1)
    both = decode_blended(model, z, condition, (16, 16, 16))
    alone = decode_blended(model, z[1:], Condition(None, condition.maps[1:]), (16, 16, 16))
    assert (both[1:] - alone).abs().max() < 1e-4
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_blending_needs_maps():
    with pytest.raises(SettingError, match="maps"):
        decode_blended(local_model(), torch.zeros(1, 3, 4, 4, 4), Condition(), (16, 16, 16))
