"""What a model is told: classes, conditional priors, hidden channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medvae3d.data.datalists import read_datalist
from medvae3d.errors import DataListError, SettingError
from medvae3d.models import zoo
from medvae3d.models.latent import Condition
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.objectives.terms import analytic_kl, free_bits, one_sample_kl
from medvae3d.probability.posteriors import DiagonalGaussian
from medvae3d.training.loading import BatchPreparation, collate

SIZES = {"channels": [4, 8], "latent_channels": 3, "components": 0}
NAMES = ("log_volume", "class:a", "class:b", "class:c")


class OnePrior(nn.Module):
    """A Gaussian around a learned mean, whatever the condition says."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.full(shape, 0.7))

    def forward(self, condition: Condition) -> DiagonalGaussian:
        rows = 2 if condition.attributes is None else len(condition.attributes)
        mean = self.mean.expand(rows, *self.mean.shape)
        return DiagonalGaussian(mean, torch.full_like(mean, 0.5))


def batch(count: int = 2, channels: int = 1, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(count, channels, 8, 8, 8, generator=generator),
        "mask": (torch.rand(count, 1, 8, 8, 8, generator=generator) > 0.8).float(),
    }


def test_kl_between_gaussians_equals_monte_carlo():
    torch.manual_seed(0)
    q = DiagonalGaussian(torch.randn(1, 4).double(), 0.3 + torch.rand(1, 4).double())
    p = DiagonalGaussian(torch.randn(1, 4).double(), 0.5 + torch.rand(1, 4).double())
    many = DiagonalGaussian(q.mean.expand(200_000, 4), q.scale.expand(200_000, 4))
    z = many.rsample(torch.Generator().manual_seed(1))
    draws = many.log_prob(z) - p.log_prob(z)
    error = float(draws.std() / len(draws) ** 0.5)
    assert float(q.kl_to(p).sum()) == pytest.approx(float(draws.mean()), abs=4 * error)
    standard = DiagonalGaussian(torch.zeros(1, 4).double(), torch.ones(1, 4).double())
    torch.testing.assert_close(q.kl_to(standard), q.kl_per_element())
    assert float(q.kl_to(q).abs().sum()) == 0


def test_a_conditional_prior_replaces_the_standard_normal_everywhere():
    torch.manual_seed(0)
    model = zoo.vae([8, 8, 8], conditional_prior=OnePrior((3, 2, 2, 2)), **SIZES)
    plain = zoo.vae([8, 8, 8], **SIZES)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "conditional" not in k})
    x = batch()
    trace, other = (m.trace(x, torch.Generator().manual_seed(1)) for m in (model, plain))
    prior = model.prior_given(Condition())
    assert not trace.prior.is_standard
    torch.testing.assert_close(
        analytic_kl(trace, x), trace.posterior.kl_to(prior).flatten(1).sum(1)
    )
    shift = plain.prior.log_prob(other.first_z) - prior.log_prob(other.first_z)
    torch.testing.assert_close(one_sample_kl(trace, x), one_sample_kl(other, x) + shift)
    expected = (5.0 - trace.posterior.kl_to(prior)).clamp_min(0).flatten(1).sum(1)
    torch.testing.assert_close(free_bits(5.0)(trace, x), expected)
    z = trace.first_z
    torch.testing.assert_close(
        model.log_joint(z, x, Condition()) - plain.log_joint(z, x, Condition()),
        prior.log_prob(z) - plain.prior.log_prob(z),
        atol=1e-2,
        rtol=0,
    )
    drawn = model.sample_latent(2, temperature=0.0)
    torch.testing.assert_close(drawn, prior.mean)
    assert model.sampling_prior is None


def fitted() -> TrainingStatistics:
    statistics = TrainingStatistics(NAMES)
    rows = [[1.0 + i, *(float(i % 3 == c) for c in range(3))] for i in range(9)]
    statistics.fit_attributes(torch.tensor(rows))
    return statistics


def test_a_class_is_one_hot_and_a_drawn_example_keeps_its_own():
    statistics = fitted()
    mask = batch()["mask"]
    values = statistics.measure(mask, (1, 1, 1), ["c", None])
    assert values[0, 1:].tolist() == [0, 0, 1]
    torch.testing.assert_close(values[1, 1:], statistics.mean[1:])
    drawn = statistics.draw([torch.Generator().manual_seed(i) for i in range(20)])
    assert set(drawn[:, 1:].flatten().tolist()) == {0.0, 1.0}
    assert (drawn[:, 1:].sum(1) == 1).all()
    with pytest.raises(SettingError, match="told the classes a, b, c"):
        statistics.of_class("d")


def test_a_dropped_label_is_no_class_and_leaves_the_other_attributes():
    model = zoo.vae([8, 8, 8], attributes=NAMES, label_dropout=0.5, **SIZES)
    model.statistics.load_state_dict(fitted().state_dict())
    told = model.statistics.standardise(torch.tensor([[2.0, 0, 1, 0]] * 400))
    condition = model.train().condition({"attributes": told}, torch.Generator().manual_seed(0))
    natural = condition.attributes * model.statistics.scale + model.statistics.mean
    torch.testing.assert_close(natural[:, 0], torch.full((400,), 2.0))
    dropped = natural[:, 1:].abs().sum(1) < 1e-5
    assert 0.4 < float(dropped.float().mean()) < 0.6
    torch.testing.assert_close(natural[~dropped][:, 2], torch.ones(int((~dropped).sum())))
    assert model.eval().condition({"attributes": told}).attributes is told


def test_hidden_channels_are_not_read_and_one_always_is():
    model = zoo.vae([8, 8, 8], image_channels=3, channel_dropout=0.7, **SIZES).train()
    x = {**batch(200, 3), "valid": torch.ones(200, 3, 1, 1, 1)}
    x["valid"][:, 2] = 0
    read = model.encoder_input(x, Condition(), torch.Generator().manual_seed(0))
    seen = read[:, 3:6].flatten(2).amax(2)
    assert (seen[:, 2] == 0).all() and (seen.sum(1) >= 1).all()
    assert 0.3 < float(seen[:, :2].mean()) < 0.7
    assert (read[:, :3].abs().flatten(2).amax(2)[seen == 0] == 0).all()
    again = model.eval().encoder_input(x, Condition())
    torch.testing.assert_close(again[:, 3:5], torch.ones(200, 2, 8, 8, 8))


def test_a_data_list_without_the_class_that_a_model_needs_is_refused(tmp_path):
    item = {"image": torch.zeros(1, 8, 8, 8), "label": torch.zeros(1, 8, 8, 8), "case": "ax"}
    prepare = BatchPreparation(fitted(), (1.0, 1.0, 1.0))
    with pytest.raises(DataListError, match="case ax has no class; .* Add 'class': 'a'"):
        prepare(collate([item]), "cpu")
    with pytest.raises(DataListError, match="case ax is of class 'd'; .*'class:d'"):
        prepare(collate([{**item, "class": "d"}]), "cpu")
    assert prepare(collate([{**item, "class": "b"}]), "cpu")["attributes"].shape == (1, 4)
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "list.json").write_text(
        '{"training": [{"image": "a.nii.gz", "label": "a.nii.gz"}]}'
    )
    from medvae3d.apps.data_for_training import require_trainable

    settings = {"labels": {"background": 0}, "network_def": {"attributes": list(NAMES)}}
    with pytest.raises(DataListError, match=r"list\.json: case a of training has no class"):
        require_trainable(read_datalist(tmp_path / "list.json"), settings)
