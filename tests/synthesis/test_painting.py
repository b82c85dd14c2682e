"""The second stage paints boxes as it would the whole, and blends them into the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_insertions import insert, network, recipe, sharing
from torch import nn

from medvae3d.models.latent import Condition
from medvae3d.synthesis import blending, painting
from medvae3d.synthesis.hosts import HostScan, phantom_host
from medvae3d.synthesis.insertion import insert_lesions
from medvae3d.synthesis.recipe import Recipe


def test_boxes_are_painted_as_the_whole_would_be() -> None:
    """A volume that is no multiple of the stride, with lesions at its border and in it."""
    model = network().texture
    shape = (37, 30, 42)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, *shape, generator=generator) * 2 - 1
    mask = torch.zeros(1, 1, *shape)
    mask[..., 2:6, 3:7, 2:5] = mask[..., 30:36, 20:24, 36:41] = 1
    z = painting.draw_latents(model, (10, 8, 11), generator, 1.0)
    boxes = [
        (slice(0, 12), slice(0, 13), slice(0, 11)),
        (slice(24, 37), slice(14, 30), slice(30, 42)),
    ]
    with torch.inference_mode():
        wide = [0, 2, 0, 2, 0, 3]
        padded = nn.functional.pad(image, wide, value=-1.0)
        maps = model.condition({"mask": nn.functional.pad(mask, wide), "context": padded})
        whole = model.decode(z, maps)["image"].mode()[0]
        for box, part in painting.paint_boxes(model, image, mask, z, boxes):
            torch.testing.assert_close(part, whole[(slice(None), *box)], atol=1e-4, rtol=0)


def test_boxes_are_painted_in_parts_as_in_one(
    phantom: HostScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    whole = insert(phantom, model, lesions=(2, 2))
    monkeypatch.setattr(painting, "LARGEST_WINDOW", 1)
    cut = insert(phantom, model, lesions=(2, 2))
    np.testing.assert_array_equal(cut.label, whole.label)
    # A step of storage is 0.1: rounding may fall to either side.
    np.testing.assert_allclose(cut.image, whole.image, atol=0.11)


def test_boxes_are_joined_where_that_is_cheaper() -> None:
    shape, halo = (200, 200, 200), (8, 8, 8)
    near = painting.group_boxes([box(20, 20, 20), box(32, 20, 20)], halo, shape)
    assert near == [(slice(20, 42), slice(20, 30), slice(20, 30))]
    far = [box(20, 20, 20), box(150, 150, 150)]
    assert painting.group_boxes(far, halo, shape) == far
    chain = [box(20, 20, 20), box(28, 28, 28), box(36, 36, 36)]
    assert painting.join_overlapping(chain) == [box(20, 20, 20, size=26)]


def test_only_the_surroundings_of_lesions_are_decoded() -> None:
    """A lesion in the corner of a large host costs its box and halo, not the host."""
    model = network().texture
    seen = []
    decode = model.decode

    def counted(z: torch.Tensor, condition: Condition) -> Any:
        seen.append(z.shape[2:].numel())
        return decode(z, condition)

    model.decode = counted  # type: ignore[method-assign]
    mask = torch.zeros(1, 1, 160, 160, 160)
    mask[..., 80:84, 80:84, 80:84] = 1
    z = torch.zeros(1, 4, 40, 40, 40)
    with torch.inference_mode():
        list(painting.paint_boxes(model, mask - 1, mask, z, [box(76, 76, 76, size=12)]))
    reach = [-(-r // 4) for r in model.decoder.radius]
    assert seen == [np.prod([3 + 2 * r for r in reach])]


def box(*starts: int, size: int = 10) -> Any:
    return tuple(slice(s, s + size) for s in starts)


def test_nothing_is_darker_than_the_host(phantom: HostScan) -> None:
    """A lesion at the lower end of the scale, in a scan whose darkest tissue is there too."""
    volume = phantom.volumes[0]
    least = float(np.percentile(volume.array[phantom.brain], 30))
    array = np.maximum(volume.array, least)
    header = volume.header.copy()
    header.set_data_dtype(np.float32)
    header["scl_slope"], header["scl_inter"] = 1, 0
    raised = replace(volume, array=array, header=header, dtype=np.dtype(np.float32))
    made = insert(replace(phantom, volumes=(raised,)), sharing(network(), -3.0), lesions=(2, 2))
    assert (made.image[0][made.added] == least).any()
    assert made.image.min() == least


@pytest.mark.parametrize("seed", range(3))
def test_there_is_no_seam(seed: int) -> None:
    """Across the border of the zone, gradients are those of the host's own tissue."""
    told = recipe(phantom_shape=[80, 92, 76], phantom_spacing=[2, 2, 2])
    told = Recipe(told.channels, told.labels, (2.0, 2.0, 2.0), told.spatial_shape, told.synthesis)
    host = phantom_host(told, seed, 0)
    made = insert_lesions(host, sharing(network()), told, seed=seed, lesions=(3, 3))
    for each in made.lesions:
        contrast = each["contrast"]["FLAIR"]
        assert contrast["after"] > contrast["before"] + 20
    border = np.argwhere(blending.border_of(made.zone) & host.brain)
    tissue = np.argwhere(host.brain & ~made.zone)
    spacing = host.grid.spacing
    low, high = np.percentile(blending.gradient_at(host.image[0], tissue, spacing), (1, 99))
    before = blending.gradient_at(host.image[0], border, spacing)
    after = blending.gradient_at(made.image[0], border, spacing)
    outside = [((g < low) | (g > high)).mean() for g in (before, after)]
    assert outside[1] <= outside[0] + 0.01
    assert np.abs(after - before).max() < 0.5 * high
    seam = made.record["checks"]["seam"]["FLAIR"]
    assert seam["after"] < 1.05 * max(seam["before"], seam["tissue"])
