"""Claims about warnings in training: each comes with its remedy, and sound runs get none."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine

from medvae3d.networks.discriminators import PatchDiscriminator
from medvae3d.probability.posteriors import DiagonalGaussian
from medvae3d.training.health import latent_health
from medvae3d.training.players import DiscriminatorPlayer
from medvae3d.training.trouble import LatentWatch, TrainingWatch

BUNDLES = Path(__file__).parents[2] / "bundles"


def judge():
    network = PatchDiscriminator(1, (2, 4))
    return DiscriminatorPlayer(network, torch.optim.Adam(network.parameters()))


def warnings_of(rows, every_steps=1, players=()):
    """What is told of a training that logs these rows, one a step."""
    told = []
    engine = Engine(lambda engine, row: row)
    TrainingWatch(players, every_steps, told.append).attach(engine)
    engine.run(list(rows))
    return told


def series(name, values):
    return [{name: value} for value in values]


def validated(*metrics):
    told = []
    watch = LatentWatch(told.append)
    for number, each in enumerate(metrics):
        watch._check(SimpleNamespace(state=SimpleNamespace(epoch=number, metrics=each)))
    return told


def health(mean_scale, elements=1000, active=1000):
    """Metrics of posteriors of which some elements have means of a scale."""
    mean = torch.zeros(8, elements)
    noise = torch.randn(8, active, generator=torch.Generator().manual_seed(0))
    mean[:, :active] = mean_scale * noise
    found = latent_health([DiagonalGaussian(mean, torch.ones_like(mean))])
    return {f"model/latent_{key}": value for key, value in found.to_dict().items()}


def test_a_divergence_is_told_once_with_its_remedy():
    told = warnings_of(series("model/nll", [1e5, 5e4, 1e4, 2e4, 3e6, 4e6]))
    assert len(told) == 1
    assert told[0].startswith("warning: step 5: model diverges")
    assert "1e+04 nats at best and is 3e+06 now" in told[0]
    assert "lower learning_rate" in told[0]


@pytest.mark.parametrize(
    "values",
    [
        [2e5, 1e4, -1e4, 2e5, 1.9e5],  # falls back to where it began
        [5e4, 5e4, 2e5, 3e5],  # gets worse from the start, by less than ten times
    ],
)
def test_a_setback_is_no_divergence(values):
    assert not warnings_of(series("model/nll", values))


def test_one_bad_batch_is_no_divergence():
    values = [1e5 - 10 * step for step in range(200)]
    values[120] = 1e12
    assert not warnings_of(series("model/nll", values), every_steps=50)


def test_a_run_resumed_where_the_likelihood_crosses_zero_is_sound():
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0))
    assert not warnings_of(series("model/nll", (2000 * noise).tolist()), every_steps=50)


def test_each_player_is_warned_of():
    rows = [{"shape/nll": a, "texture/nll": b} for a, b in [(9e3, 9e3), (1e3, 1e3), (1e6, 1e6)]]
    told = warnings_of(rows)
    assert ["shape" in told[0], "texture" in told[1], len(told)] == [True, True, 2]


@pytest.mark.parametrize(("first", "later"), [(5.0, 60.0), (4000.0, 4000.0)])
def test_a_flow_that_loses_its_energy_is_told(first, later):
    rows = [{"model/energy_error": e, "model/kl": 3000.0} for e in (first, later)]
    told = warnings_of(rows)
    assert len(told) == 1
    assert "the flow of model" in told[0] and "smaller network_def#step_size" in told[0]


def test_a_flow_of_small_errors_is_sound():
    rows = [{"model/energy_error": e, "model/kl": 4.0} for e in (0.01, 0.5, 8.0)]
    assert not warnings_of(rows)


def test_a_flow_that_does_nothing_is_told():
    told = warnings_of(series("model/moved", [0.02, 4e-4, 0.002, 4e-4, 3e-4, 3e-4]))
    assert len(told) == 1
    assert told[0].startswith("warning: step 5: the flow of model does nothing")
    assert "network_def#step_size" in told[0]


def test_a_discriminator_too_strong_is_told_after_long():
    accuracies = series("discriminator/accuracy", [0.99] * 12)
    told = warnings_of(accuracies, players=[judge()])
    assert len(told) == 1
    assert told[0].startswith("warning: step 10: discriminator is too strong")
    assert "discriminator_optimizer#lr" in told[0] and "adversarial_start" in told[0]


def test_a_discriminator_that_is_beaten_or_rests_is_sound():
    beaten = ([0.99] * 9 + [0.9]) * 3
    assert not warnings_of(series("discriminator/accuracy", beaten), players=[judge()])
    rests = (series("discriminator/accuracy", [0.99] * 9) + [{}]) * 3
    assert not warnings_of(rests, players=[judge()])


def test_a_sure_classifier_is_no_discriminator():
    assert not warnings_of(series("classifier/accuracy", [1.0] * 30), players=[judge()])


def test_codes_that_collapse_are_told():
    assert not warnings_of(series("model/perplexity", [1.5] * 9 + [40.0] * 9))
    told = warnings_of(series("model/perplexity", [40.0] + [1.2] * 10))
    assert len(told) == 1 and "the codes of model have collapsed" in told[0]


def test_a_collapsed_latent_is_told_at_its_second_validation():
    collapsed = health(0.05)
    assert not validated(collapsed, health(1.0), collapsed)
    told = validated(collapsed, collapsed, collapsed)
    assert len(told) == 1
    assert told[0].startswith("warning: epoch 1: the latent of model has collapsed: 0.0% of its")
    assert "lower beta" in told[0] and "warm_up_steps" in told[0]


def test_a_large_latent_that_carries_much_in_few_elements_is_sound():
    few = health(4.0, active=9)
    assert few["model/latent_active_share"] < LatentWatch.active_share
    assert not validated(few, few, few)


def test_a_latent_without_a_density_is_not_judged():
    none = health(0.0)
    assert none["model/latent_kl_per_element"] == 0
    assert not validated(none, none, none)


def test_the_log_is_told_where_nobody_else_is(caplog):
    engine = Engine(lambda engine, row: row)
    TrainingWatch(every_steps=1).attach(engine)
    engine.run(series("model/nll", [1e4, 1e9]))
    assert any("model diverges" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    "name", sorted(path.parent.parent.name for path in BUNDLES.glob("*/docs/history.csv"))
)
def test_the_shipped_trainings_raise_no_warning(name):
    with (BUNDLES / name / "docs" / "history.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    assert len(rows) >= 40
    assert not warnings_of(rows, players=[judge()])
