"""Paths between latents end where they should and go where they say."""

from __future__ import annotations

import math

import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.models.zoo import vae
from medvae3d.probability.priors import MixturePrior
from medvae3d.synthesis.exploring import on_sphere, path_between, straight


def ends(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 2, 2, 2, generator=generator)


@pytest.mark.parametrize("path", [straight, on_sphere])
def test_a_path_begins_and_ends_at_its_ends(path):
    a, b = ends()
    found = path(a, b, [0.0, 0.5, 1.0])
    torch.testing.assert_close(found[0], a)
    torch.testing.assert_close(found[2], b)


def test_a_path_on_the_sphere_keeps_the_length_and_turns_evenly():
    a, b = ends()
    a, b = a / a.norm(), b / b.norm()
    found = on_sphere(a, b, [index / 4 for index in range(5)]).flatten(1).double()
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5, dtype=torch.float64))
    angles = [math.acos(float(x @ y)) for x, y in zip(found[:-1], found[1:], strict=True)]
    assert max(angles) - min(angles) < 1e-6


def test_a_geodesic_needs_a_metric_and_a_way_a_name():
    model = vae((8, 8, 8), channels=(4,), latent_channels=3)
    a, b = ends()
    with pytest.raises(SettingError, match="rhvae"):
        path_between(model, a, b, 3, "geodesic")
    with pytest.raises(SettingError, match="linear, spherical, geodesic"):
        path_between(model, a, b, 3, "curved")


def test_the_slope_of_a_prior_is_how_latents_go_with_an_attribute():
    generator = torch.Generator().manual_seed(0)
    told = torch.randn(400, 1, generator=generator)
    direction = torch.tensor([2.0, -1.0, 0.0])
    z = told * direction + 0.1 * torch.randn(400, 3, generator=generator)
    prior = MixturePrior((3,), components=1, rank=3, attributes=1).fit(z, told, seed=0)
    torch.testing.assert_close(prior.slope[0].float(), direction, atol=0.05, rtol=0.05)
