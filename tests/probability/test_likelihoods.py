from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from medvae3d.errors import LabelError, SettingError
from medvae3d.probability import (
    BernoulliMask,
    GaussianHead,
    GaussianImage,
    LabelHead,
    LabelMap,
    LaplaceImage,
    LogisticImage,
)

REFERENCES = {
    GaussianImage: lambda sd: stats.norm(0, sd),
    LaplaceImage: lambda sd: stats.laplace(0, sd / math.sqrt(2)),
    LogisticImage: lambda sd: stats.logistic(0, sd * math.sqrt(3) / math.pi),
}


@pytest.mark.parametrize(("image", "reference"), REFERENCES.items())
def test_density_and_standard_deviation_agree_with_scipy(image, reference):
    x = torch.linspace(-2, 2, 41).double().reshape(41, 1, 1, 1, 1)
    mean = torch.zeros_like(x)
    expected = reference(0.3)
    assert expected.std() == pytest.approx(0.3)
    found = image(mean, torch.tensor(0.3).double()).log_prob(x)
    assert found.tolist() == pytest.approx(expected.logpdf(x.flatten()).tolist(), rel=1e-6)


@pytest.mark.parametrize("image", REFERENCES)
def test_samples_follow_their_density(image):
    mean = torch.full((1, 1, 40, 40, 40), 2.0)
    sample = image(mean, torch.tensor(0.5)).sample(torch.Generator().manual_seed(0))
    test = stats.kstest((sample.flatten() - 2.0).numpy(), REFERENCES[image](0.5).cdf)
    assert test.pvalue > 1e-3


def test_a_scale_per_channel_reaches_its_own_channel():
    head = GaussianHead(2, scale=0.5)
    with torch.no_grad():
        head.log_scale[1] = math.log(2.0 - 0.01)
    x = torch.ones(1, 2, 1, 1, 1)
    found = head(torch.zeros(1, 2, 1, 1, 1)).log_prob(x).item()
    expected = sum(stats.norm(0, sd).logpdf(1.0) for sd in (0.5, 2.0))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_learned_scale_finds_the_error_and_keeps_its_floor():
    head = GaussianHead(1, scale=0.5, min_scale=0.05)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    x = 0.2 * torch.randn(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    for factor, expected in ((1.0, 0.2), (0.0, 0.05)):
        for _ in range(300):
            optimizer.zero_grad()
            (-head(torch.zeros_like(x)).log_prob(factor * x).mean() / x.numel()).backward()
            optimizer.step()
        scale = head(x).scale.item()
        assert scale == pytest.approx(expected, rel=0.05)
        assert scale > 0.05


def test_a_fixed_scale_is_exact_and_no_parameter():
    head = GaussianHead(1, scale=0.01, learn_scale=False)
    assert head(torch.zeros(1, 1, 1, 1, 1)).scale.item() == pytest.approx(0.01)
    assert not list(head.parameters())


@pytest.mark.parametrize(
    ("channels", "scale"), [(0, 0.1), (1, 0.0), (1, -1.0), (1, 0.01), (1, math.nan)]
)
def test_a_scale_at_its_floor_is_refused(channels, scale):
    with pytest.raises(SettingError, match="min_scale"):
        GaussianHead(channels, scale=scale, min_scale=0.01)


@pytest.mark.parametrize("values", [(0,), (1, 2), (0, 1, 1), (0, 256), (0, -1), ()])
def test_label_values_without_meaning_are_refused(values):
    with pytest.raises(SettingError, match="0 first"):
        LabelHead(values)


def test_a_label_that_the_head_does_not_know_is_named():
    head = LabelMap(torch.zeros(1, 3, 2, 2, 2), (0, 1, 4))
    mask = torch.zeros(1, 1, 2, 2, 2)
    mask[0, 0, 0, 0, 0] = 2
    with pytest.raises(LabelError, match=r"\[2\.0\].*\[0, 1, 4\]"):
        head.log_prob(mask)


def test_a_label_that_the_head_does_not_know_may_stand_where_nothing_was_observed():
    head = LabelMap(torch.zeros(1, 3, 2, 2, 2), (0, 1, 4))
    mask = torch.full((1, 1, 2, 2, 2), 7.0)
    valid = torch.zeros(1, 1, 1, 1, 1)
    assert head.log_prob(mask, valid).item() == 0


def test_bernoulli_and_two_labels_are_the_same_density():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 3, 3, 3, generator=generator)
    mask = (torch.rand(2, 1, 3, 3, 3, generator=generator) > 0.5).float()
    two = LabelMap(torch.cat([torch.zeros_like(logits), logits], 1), (0, 1))
    one = BernoulliMask(logits)
    torch.testing.assert_close(one.log_prob(mask), two.log_prob(mask))
    torch.testing.assert_close(one.foreground(), two.foreground())
    torch.testing.assert_close(one.field(), two.field())
    assert torch.equal(one.mode(), two.mode())


def test_every_label_but_background_is_foreground_to_bernoulli():
    logits = torch.randn(1, 1, 2, 2, 2)
    mask = torch.tensor([0.0, 1, 2, 4, 0, 0, 3, 1]).reshape(1, 1, 2, 2, 2)
    head = BernoulliMask(logits)
    assert torch.equal(head.log_prob(mask), head.log_prob((mask > 0).float()))


def test_raising_the_level_of_the_field_takes_voxels_away_one_by_one():
    logits = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    head = LabelMap(logits, (0, 1, 4))
    best = torch.tensor([0, 1, 4], dtype=torch.uint8)[logits.argmax(1, keepdim=True)]
    assert torch.equal(head.mode(), best)
    levels = head.field().flatten().sort().values
    for kept in (0, 1, 10, 63):
        level = levels[-kept - 1].item()
        assert int((head.mode(level) > 0).sum()) == kept


def test_samples_of_labels_have_their_probabilities():
    logits = torch.tensor([0.0, 1.0, -1.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 40, 40, 40)
    sample = LabelMap(logits, (0, 2, 5)).sample(torch.Generator().manual_seed(0))
    expected = logits[0, :, 0, 0, 0].softmax(0)
    for value, probability in zip((0, 2, 5), expected.tolist(), strict=True):
        assert (sample == value).float().mean().item() == pytest.approx(probability, abs=0.01)
