"""Every scheme comes back to native units where it did not clip."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medvae3d.data.intensity import (
    IntensityChannels,
    PercentileIntensity,
    PowerIntensity,
    WindowIntensity,
    intensity_from_config,
)
from medvae3d.errors import IntensityError, SettingError

SCHEMES = [
    WindowIntensity(-200, 300),
    PowerIntensity(20.0),
    PowerIntensity(15.0, exponent=0.35, headroom=0.1),
    PercentileIntensity(),
    PercentileIntensity(1, 99, headroom=0.5),
]


def native(scheme):
    """Values all over the scheme's range, and beyond on both sides."""
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(8, 8, 8, generator=generator)
    return share * 700 - 300 if scheme.kind == "window" else share * 40 - 2


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
class TestEveryScheme:
    def test_comes_back_where_it_did_not_clip(self, scheme):
        x = native(scheme)
        y, params = scheme.normalize_with(x)
        kept = (y > -1) & (y < y.max())
        assert kept.float().mean() > 0.3
        torch.testing.assert_close(
            scheme.denormalize(y, params)[kept], x[kept], atol=2e-3, rtol=1e-4
        )

    def test_is_the_identity_on_what_the_network_makes(self, scheme):
        y = torch.linspace(-1, 1, 41)
        params = (2.0, 30.0)
        back = scheme.denormalize(y, params)
        if scheme.kind == "percentile":
            again = (back - 2) / 28 * 2 - 1
        else:
            again = scheme.normalize(back)
        torch.testing.assert_close(again, y, atol=1e-5, rtol=1e-4)

    def test_keeps_order_and_starts_at_minus_one(self, scheme):
        x = native(scheme).flatten().sort().values
        y = scheme.normalize(x)
        assert (y.diff() >= 0).all()
        assert y.min().item() == pytest.approx(-1)
        assert y.max().item() <= 1 + 2 * 0.5

    def test_minus_one_and_one_are_the_params(self, scheme):
        _, (low, high) = scheme.normalize_with(native(scheme))
        ends = scheme.denormalize(torch.tensor([-1.0, 1.0]), (low, high))
        assert ends.tolist() == pytest.approx([low, high], rel=1e-5, abs=1e-6)

    def test_reads_integers_as_it_reads_floats(self, scheme):
        x = native(scheme).round()
        assert torch.equal(scheme.normalize(x.to(torch.int16)), scheme.normalize(x))

    def test_survives_json(self, scheme):
        channels = IntensityChannels((scheme,))
        assert (
            IntensityChannels.from_config(json.loads(json.dumps(channels.to_config()))) == channels
        )

    def test_refuses_nan(self, scheme):
        x = native(scheme)
        x[0, 0, 0] = float("nan")
        with pytest.raises(IntensityError, match=r"pet\.nii holds 1 voxels that are NaN"):
            scheme.check(x, what="pet.nii")


def test_a_window_clips_at_both_ends():
    y = WindowIntensity(-200, 300).normalize(torch.tensor([-1000.0, -200, 50, 300, 2000]))
    assert y.tolist() == pytest.approx([-1, -1, 0, 1, 1])


def test_a_square_root_gives_faint_uptake_its_share():
    y = PowerIntensity(16.0, exponent=0.5).normalize(torch.tensor([-1.0, 0, 1, 4, 16, 100]))
    assert y.tolist() == pytest.approx([-1, -1, -0.5, 0, 1, 1.4])


def test_percentiles_are_of_the_foreground():
    x = torch.zeros(10, 10, 10)
    x[2:8] = torch.linspace(50, 150, 600).view(6, 10, 10)
    _, (low, high) = PercentileIntensity(0, 100).normalize_with(x)
    assert (low, high) == pytest.approx((50, 150))


def test_percentiles_are_of_the_mask_where_there_is_one():
    x = torch.linspace(1, 1000, 1000).view(10, 10, 10)
    mask = torch.zeros(10, 10, 10, dtype=torch.bool)
    mask[:5] = True
    _, (low, high) = PercentileIntensity(0, 100).normalize_with(x, mask)
    assert (low, high) == pytest.approx((1, 500))


def test_bright_lesions_keep_their_head_room():
    x = torch.linspace(1, 100, 1000).view(10, 10, 10).clone()
    x[0, 0, 0] = 115
    scheme = PercentileIntensity()
    y, params = scheme.normalize_with(x)
    assert y.max() > 1
    assert scheme.denormalize(y, params)[0, 0, 0].item() == pytest.approx(115, rel=1e-4)


def test_a_scale_of_units_changes_nothing_in_percentiles():
    x = native(PercentileIntensity())
    torch.testing.assert_close(
        PercentileIntensity().normalize(x),
        PercentileIntensity().normalize(7 * x),
        atol=1e-5,
        rtol=0,
    )


def test_fit_takes_the_median_image():
    images = [torch.linspace(1, top, 1000).view(10, 10, 10) for top in (100, 200, 900)]
    fitted = PercentileIntensity(0, 100).fit(images)
    assert (fitted.reference_low, fitted.reference_high) == pytest.approx((1, 200))
    assert fitted.denormalize(torch.tensor([1.0])).item() == pytest.approx(200)
    with pytest.raises(IntensityError, match="at least one"):
        PercentileIntensity().fit([])


def test_percentiles_without_reference_need_a_host():
    with pytest.raises(IntensityError, match="PercentileIntensity.fit"):
        PercentileIntensity().denormalize(torch.zeros(1))


def test_images_without_foreground_or_contrast_are_named():
    with pytest.raises(IntensityError, match="no voxel above 0"):
        PercentileIntensity().normalize(torch.zeros(4, 4, 4))
    with pytest.raises(IntensityError, match="no voxel in the given mask"):
        PercentileIntensity().normalize_with(torch.ones(4, 4, 4), torch.zeros(4, 4, 4))
    with pytest.raises(IntensityError, match="needs contrast"):
        PercentileIntensity().normalize(torch.ones(4, 4, 4))


CT = torch.linspace(-1000, 1500, 1000).view(10, 10, 10)
SUV = torch.linspace(0, 12, 1000).view(10, 10, 10)
MR = torch.linspace(0, 900, 1000).view(10, 10, 10)


@pytest.mark.parametrize(
    ("scheme", "wrong"),
    [
        (WindowIntensity(-200, 300), CT / 2500 + 0.4),
        (PowerIntensity(20.0), CT),
        (PowerIntensity(20.0), SUV * 4000),
        (PercentileIntensity(), CT),
    ],
)
def test_another_unit_is_refused(scheme, wrong):
    with pytest.raises(IntensityError, match=r"channel 0, .*expect"):
        IntensityChannels((scheme, scheme)).check(torch.stack([wrong, wrong]), what="host")


@pytest.mark.parametrize(
    ("scheme", "right"),
    [(WindowIntensity(-200, 300), CT), (PowerIntensity(20.0), SUV), (PercentileIntensity(), MR)],
)
def test_the_right_unit_passes(scheme, right):
    scheme.check(right)


CHANNELS = IntensityChannels(
    (PowerIntensity(20.0), WindowIntensity(-200, 300), PercentileIntensity())
)


def test_channels_go_their_own_ways():
    x = torch.stack([SUV, CT, MR])
    y, params = CHANNELS.normalize_with(x)
    for channel, spec in enumerate(CHANNELS.specs):
        torch.testing.assert_close(y[channel], spec.normalize(x[channel]))
    assert params.shape == (3, 2)
    assert params[2, 1].item() == pytest.approx(np.percentile(MR[MR > 0].numpy(), 99.5))


def test_a_batch_goes_like_its_cases():
    x = torch.stack([torch.stack([SUV, CT, MR]), torch.stack([SUV / 2, CT, MR * 3])])
    y, params = CHANNELS.normalize_with(x)
    torch.testing.assert_close(y[1], CHANNELS.normalize(x[1]))
    assert params.shape == (2, 3, 2)
    back = CHANNELS.denormalize(y, params)
    inside = (y > -1) & (y < 1)
    torch.testing.assert_close(back[inside], x[inside], atol=2e-2, rtol=1e-4)


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(IntensityError, match="expect 3 channels"):
        CHANNELS.normalize(torch.zeros(2, 4, 4, 4))


def test_bad_settings_are_refused():
    with pytest.raises(SettingError, match="'gamma' is unknown; it is one of window, power"):
        intensity_from_config({"kind": "gamma"})
    with pytest.raises(SettingError, match="allowed are low, high"):
        intensity_from_config({"kind": "window", "low": 0, "top": 1})
    with pytest.raises(SettingError, match="low must be lower"):
        WindowIntensity(3, 2)
    with pytest.raises(SettingError, match="positive"):
        PowerIntensity(0)
    with pytest.raises(SettingError, match="percentiles are 5 and 1"):
        PercentileIntensity(5, 1)
