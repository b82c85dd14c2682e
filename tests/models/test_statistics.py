"""What is remembered of a training set."""

import pytest
import torch

from medvae3d.errors import RangeError, SettingError
from medvae3d.models.statistics import TrainingStatistics


def fitted():
    statistics = TrainingStatistics(("log_volume", "sphericity"))
    volumes = torch.tensor([1.0, 2.0, 4.0, 8.0]).log()
    statistics.fit_attributes(torch.stack([volumes, torch.linspace(0.5, 0.8, 4)], dim=1))
    return statistics


def test_standardised_attributes_have_mean_zero_and_unit_spread():
    statistics = fitted()
    values = statistics.standardise(statistics.example_values[:4])
    torch.testing.assert_close(values.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(values.std(0), torch.ones(2))


def test_a_range_is_refused_with_the_range_that_was_seen():
    with pytest.raises(RangeError, match=r"1 to 8 ml"):
        fitted().require_within("log_volume", 0.5, 4.0)
    fitted().require_within("log_volume", 1.0, 8.0)


def test_draws_stay_within_the_training_set_and_repeat():
    statistics = fitted()
    draw = lambda: statistics.draw([torch.Generator().manual_seed(i) for i in range(50)], 0.5)
    values = draw()
    assert (values >= statistics.low).all()
    assert (values <= statistics.high).all()
    torch.testing.assert_close(values, draw(), rtol=0, atol=0)


def test_nothing_is_drawn_from_statistics_that_saw_nothing():
    with pytest.raises(SettingError, match="[Tt]rain"):
        TrainingStatistics(("log_volume",)).draw([torch.Generator()])


def test_they_travel_with_the_weights():
    statistics, other = fitted(), TrainingStatistics(("log_volume", "sphericity"))
    other.load_state_dict(statistics.state_dict())
    assert other.is_fitted
    torch.testing.assert_close(other.high, statistics.high)
