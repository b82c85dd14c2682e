"""Attributes of masks agree with geometry that can be written down."""

from __future__ import annotations

import json
import math

import pytest
import torch

from medvae3d.data.attributes import (
    MEASURES,
    AttributeSpec,
    mask_attributes,
    surface_area,
)
from medvae3d.errors import LabelError, RangeError, SettingError


def ellipsoid(semi_axes, spacing=(1.0, 1.0, 1.0), offset=(0.0, 0.0, 0.0)):
    """A solid with semi-axes in mm, its centre ``offset`` voxels off the grid's."""
    square = 0.0
    sizes = [2 * math.ceil(a / s) + 5 for a, s in zip(semi_axes, spacing, strict=True)]
    axes = [
        ((torch.arange(n) - n // 2 + o) * s / a).square()
        for n, o, s, a in zip(sizes, offset, spacing, semi_axes, strict=True)
    ]
    square = sum(torch.meshgrid(*axes, indexing="ij"))
    return (square <= 1)[None, None]


def box(i, j, k):
    mask = torch.zeros(1, 1, i + 4, j + 4, k + 4, dtype=torch.bool)
    mask[:, :, 2 : 2 + i, 2 : 2 + j, 2 : 2 + k] = True
    return mask


def measured(mask, name, spacing=(1.0, 1.0, 1.0)):
    return mask_attributes(mask, spacing, (name,)).item()


@pytest.mark.parametrize("radius", [4, 5, 6, 7, 8, 9, 10])
@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.3, 0.1, 0.2)])
def test_area_of_a_ball_is_within_5_percent(radius, offset):
    area = surface_area(ellipsoid((radius,) * 3, offset=offset), (1, 1, 1)).item()
    assert area == pytest.approx(4 * math.pi * radius**2, rel=0.05)


@pytest.mark.parametrize("spacing", [(1, 1, 2), (1, 1, 3), (0.7, 0.9, 2.0), (3, 1, 1)])
def test_area_of_a_ball_in_mm_does_not_depend_on_the_voxels(spacing):
    radius = 5 * max(spacing)
    area = surface_area(ellipsoid((radius,) * 3, spacing), spacing).item()
    assert area == pytest.approx(4 * math.pi * radius**2, rel=0.05)


@pytest.mark.parametrize("sides", [(10, 10, 10), (10, 20, 30), (5, 5, 5), (40, 40, 40)])
def test_area_of_a_box_is_under_and_within_a_fifth(sides):
    i, j, k = sides
    area = surface_area(box(*sides), (1, 1, 1)).item()
    assert 0.8 < area / (2 * (i * j + j * k + k * i)) < 1


@pytest.mark.parametrize("radius", [4, 6, 10])
def test_a_ball_is_round_and_longer_bodies_are_less(radius):
    ball = measured(ellipsoid((radius,) * 3), "sphericity")
    long = measured(ellipsoid((radius, radius, 3 * radius)), "sphericity")
    rod = measured(box(radius, radius, 6 * radius), "sphericity")
    assert ball == pytest.approx(1, abs=0.06)
    assert ball > long > rod


def test_volume_is_in_ml_whatever_the_spacing():
    mask = box(10, 10, 10)
    assert math.exp(measured(mask, "log_volume")) == pytest.approx(1)
    assert math.exp(measured(mask, "log_volume", (2.0, 1.0, 0.5))) == pytest.approx(1)
    assert math.exp(measured(mask, "log_volume", (2.0, 2.0, 2.0))) == pytest.approx(8)


def test_extent_is_the_bounding_box_in_mm():
    mask = box(3, 5, 7)
    for axis, extent in zip("ijk", (3 * 2.0, 5 * 1.0, 7 * 0.5), strict=True):
        found = math.exp(measured(mask, f"log_extent_{axis}", (2.0, 1.0, 0.5)))
        assert found == pytest.approx(extent)


def test_axis_ratios_of_a_box_are_those_of_its_sides():
    """Voxels count as boxes, so the ratios are exact even for a mask one voxel thick."""
    assert measured(box(20, 10, 5), "axis_ratio_2") == pytest.approx(0.5, abs=1e-6)
    assert measured(box(20, 10, 5), "axis_ratio_3") == pytest.approx(0.25, abs=1e-6)
    assert measured(box(20, 10, 1), "axis_ratio_3") == pytest.approx(0.05, abs=1e-6)
    assert measured(box(10, 10, 5), "axis_ratio_3", (1, 1, 2)) == pytest.approx(1, abs=1e-6)


def test_axis_ratios_of_an_ellipsoid_are_those_of_its_axes():
    mask = ellipsoid((6, 12, 18))
    assert measured(mask, "axis_ratio_2") == pytest.approx(2 / 3, abs=0.01)
    assert measured(mask, "axis_ratio_3") == pytest.approx(1 / 3, abs=0.01)


def test_axis_ratios_do_not_depend_on_the_direction():
    def rod(turn):
        grid = torch.stack(torch.meshgrid(*[torch.arange(40.0) - 19.5] * 3, indexing="ij"))
        places = torch.einsum("ab,bijk->aijk", torch.tensor(turn), grid)
        return (places.abs() <= torch.tensor([12.0, 4.0, 4.0]).view(3, 1, 1, 1)).all(0)[None, None]

    upright = measured(rod([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), "axis_ratio_2")
    turned = measured(rod([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]]), "axis_ratio_2")
    assert upright == pytest.approx(1 / 3)
    assert turned == pytest.approx(upright, abs=0.02)


def test_a_batch_measures_like_its_cases():
    masks = []
    for mask in (box(3, 5, 7), box(10, 10, 10), ellipsoid((4, 6, 8))):
        i, j, k = (30 - n for n in mask.shape[2:])
        masks.append(torch.nn.functional.pad(mask, (0, k, 0, j, 0, i)))
    together = mask_attributes(torch.cat(masks), (1, 1, 2), MEASURES)
    alone = torch.cat([mask_attributes(m, (1, 1, 2), MEASURES) for m in masks])
    assert together.shape == (3, 7)
    assert torch.equal(together, alone)


def test_a_label_value_is_measured_alone():
    mask = box(4, 4, 4).byte()
    mask[:, :, 0:1] = 2
    whole = mask_attributes(mask != 0, (1, 1, 1), ("log_volume",))
    found = mask_attributes(mask, (1, 1, 1), ("log_volume:1", "log_volume", "log_volume:2")).exp()
    assert found[0, 0].item() == pytest.approx(0.064)
    assert found[0, 2].item() == pytest.approx(0.064)
    assert found[0, 1].item() == pytest.approx(0.128)
    assert found[0, 1].log() == pytest.approx(whole.item())


def test_an_empty_mask_has_finite_attributes_smaller_than_one_voxel():
    empty = mask_attributes(torch.zeros(1, 1, 4, 4, 4), (1, 1, 1), MEASURES)
    voxel = torch.zeros(1, 1, 4, 4, 4)
    voxel[..., 0, 0, 0] = 1
    assert empty.isfinite().all()
    assert (empty[0, :4] < mask_attributes(voxel, (1, 1, 1), MEASURES)[0, :4]).all()


@pytest.mark.parametrize("name", ["volume", "log_volume:", "log_volume:x", "log_extent_z"])
def test_an_unknown_attribute_is_named(name):
    with pytest.raises(SettingError, match="is unknown"):
        mask_attributes(box(2, 2, 2), (1, 1, 1), (name,))


def test_masks_of_several_channels_and_flat_spacing_are_refused():
    with pytest.raises(LabelError, match=r"\(1, 2, 4, 4, 4\)"):
        mask_attributes(torch.zeros(1, 2, 4, 4, 4), (1, 1, 1), ("log_volume",))
    with pytest.raises(SettingError, match="spacing"):
        mask_attributes(torch.zeros(1, 1, 4, 4, 4), (1, 0, 1), ("log_volume",))


@pytest.fixture
def spec():
    values = torch.tensor([[math.log(2.0), 0.5], [math.log(8.0), 0.7], [math.log(4.0), 0.9]])
    return AttributeSpec.fit(values, ("log_volume", "sphericity"))


def test_standardising_is_undone(spec):
    values = torch.tensor([[1.0, 0.6], [2.0, 0.8]])
    torch.testing.assert_close(spec.undo(spec.standardise(values)), values)


def test_the_training_set_standardises_to_mean_0_and_deviation_1():
    values = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 3 + 5
    standard = AttributeSpec.fit(values, ("log_volume", "sphericity")).standardise(values)
    torch.testing.assert_close(standard.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(0, unbiased=False), torch.ones(2))


def test_a_constant_attribute_standardises_to_zero():
    spec = AttributeSpec.fit(torch.full((4, 1), 3.0), ("log_volume",))
    assert spec.standardise(torch.full((1, 1), 3.0)).item() == 0


def test_values_out_of_range_are_refused_in_ml(spec):
    spec.check(torch.tensor([math.log(2.0), 0.9]))
    spec.check(spec.undo(spec.standardise(torch.tensor([[math.log(8.0), 0.5]]))))
    with pytest.raises(RangeError, match=r"volume 20 ml was asked; .* 2 to 8 ml.*--extrapolate"):
        spec.check(torch.tensor([[math.log(20.0), 0.6]]))
    with pytest.raises(RangeError, match=r"sphericity 0\.3 was asked"):
        spec.check(torch.tensor([math.log(4.0), 0.3]))
    with pytest.raises(RangeError, match="nan"):
        spec.check(torch.tensor([math.nan, 0.6]))


def test_the_spec_survives_json(spec):
    assert AttributeSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_record_has_names_with_units():
    spec = AttributeSpec.fit(torch.zeros(1, 3), ("log_volume:2", "log_extent_i", "sphericity"))
    record = spec.natural(torch.tensor([math.log(3.0), math.log(12.0), 0.8]))
    assert record == {
        "volume_ml_label_2": pytest.approx(3),
        "extent_i_mm": pytest.approx(12),
        "sphericity": pytest.approx(0.8),
    }


def test_lengths_that_do_not_fit_are_refused():
    with pytest.raises(SettingError, match="scale has 1 entries for 2 names"):
        AttributeSpec(("log_volume", "sphericity"), (0, 0), (1,), (0, 0), (1, 1))
    with pytest.raises(SettingError, match="shape"):
        AttributeSpec.fit(torch.zeros(0, 1), ("log_volume",))
