"""Paths between latents end where they should and go where they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.models.zoo import icvae, vae
from medvae3d.probability.priors import MixturePrior
from medvae3d.synthesis.exploring import (
    Frame,
    as_classes,
    changes,
    on_sphere,
    path_between,
    straight,
)
from medvae3d.synthesis.recipe import Recipe

CLASSED = Recipe.from_config(
    {
        "channels": [
            {"name": "CT", "unit": "HU", "slope": 1.0, "dtype": "int16",
             "intensity": {"kind": "window", "low": -200, "high": 300}}
        ],
        "labels": {"background": 0, "lesion": 1},
        "spacing": [1.0, 1.0, 1.0],
        "spatial_shape": [8, 8, 8],
        "synthesis": {"kind": "joint", "volume_attribute": "log_volume"},
    }
)  # fmt: skip


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


@pytest.fixture(scope="module")
def told_classes():
    """A model whose decoder listens to what it is told, and one case of class a."""
    torch.manual_seed(0)
    model = icvae(
        (8, 8, 8), attributes=("log_volume",), classes=("a", "b"), channels=(4,), latent_channels=3
    )
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    mask = torch.zeros(6, 1, 8, 8, 8)
    for row, each in enumerate(mask):
        each[0, 2 : 4 + row // 2, 2:5, 2:5] = 1
    statistics = model.statistics
    values = statistics.measure(mask, (1.0, 1.0, 1.0), ["a", "b"] * 3)
    statistics.fit_attributes(values)
    batch = {"image": torch.randn(1, 1, 8, 8, 8), "mask": mask[:1]}
    return model.eval(), batch | {"attributes": statistics.standardise(values[:1])}


def test_a_case_under_its_own_label_is_rebuilt_and_under_another_only_the_label_is_new(
    told_classes,
):
    model, batch = told_classes
    own, other = as_classes(model, CLASSED, ("a", "b"), batch)
    assert (own.title, other.title) == ("a", "b")
    condition = model.condition(batch)
    with torch.no_grad():
        z = model.encode(batch, condition).mode()
        swapped = batch["attributes"].clone()
        swapped[0, 1:] = model.statistics.standardise(torch.tensor([0.0, 0.0, 1.0]))[1:]
        assert (swapped[0, 0], len(swapped[0])) == (batch["attributes"][0, 0], 3)
        for frame, told in ((own, batch["attributes"]), (other, swapped)):
            heads = model.decode(z, model.blank(1, (8, 8, 8), told))
            image = CLASSED.to_native(heads["image"].mode(), model.statistics)[0]
            np.testing.assert_allclose(frame.image, image.numpy(), rtol=1e-4, atol=1e-2)
            assert np.array_equal(frame.label, heads["mask"].mode()[0, 0].numpy())
    assert abs(own.image - other.image).max() > 1


def test_a_draw_as_two_classes_follows_its_seed(told_classes):
    model, _ = told_classes
    one, again, new = (as_classes(model, CLASSED, ("a", "b"), None, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(x.image, y.image) for x, y in zip(one, again, strict=True))
    assert abs(one[0].image - new[0].image).max() > 1
    assert abs(one[0].image - one[1].image).max() > 1


def test_other_classes_need_a_model_that_is_told_them_and_two_names(told_classes):
    model, batch = told_classes
    for names, said in (
        (("a",), "two different"),
        (("a", "a"), "two different"),
        (("a", "c"), "c"),
    ):
        with pytest.raises(SettingError, match=said):
            as_classes(model, CLASSED, names, batch)
    plain = vae((8, 8, 8), channels=(4,), latent_channels=3)
    with pytest.raises(SettingError, match="cvae or icvae"):
        as_classes(plain, CLASSED, ("a", "b"), batch)


def test_changes_are_measured_against_the_first_inside_and_outside_of_the_masks():
    label = np.zeros((2, 2, 2), np.uint8)
    label[0] = 1
    half = label.copy()
    half[0, 0] = 0
    image = np.zeros((1, 2, 2, 2), np.float32)
    (row,) = changes([Frame("a", image, label), Frame("b", image + 3 * label - 1, half)])
    assert row == {
        "volume": "b", "dice": pytest.approx(2 / 3), "change_inside": [2.0], "change_outside": [1.0]
    }  # fmt: skip
