"""Self-learning: sure labels of both views, balanced, with the noise that they have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medvae3d.data.augmentation import Augmentation, RandomIntensity
from medvae3d.errors import SettingError
from medvae3d.studies.classification.self_learning import (
    Labels,
    SelfLearningSettings,
    label,
    label_noise,
    learn,
    trusted,
)
from medvae3d.studies.classification.tasks import Images

NOTHING = Augmentation()


class Brightness(nn.Module):
    """As sure as an image is far from 0 on the whole."""

    def forward(self, x):
        mean = 10 * x.mean((1, 2, 3, 4))
        return torch.stack([-mean, mean], 1)


def images(*values):
    return torch.tensor(values).view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 2).contiguous()


def test_labels_need_both_views_and_the_threshold():
    x = images(-0.5, -0.05, 0.05, 0.5)
    found = label(Brightness(), x, NOTHING, 0.9, 0)
    assert found.y.tolist() == [0, 0, 1, 1]
    assert found.is_sure.tolist() == [True, False, False, True]
    # A view that turns an image round makes the label unsure, however sure each is.
    wild = Augmentation(intensity=RandomIntensity(offset=1.0))
    sure = [label(Brightness(), images(0.2), wild, 0.9, seed).is_sure.item() for seed in range(20)]
    assert 0 < sum(sure) < 20


def test_kept_are_the_surest_and_as_many_of_either_class():
    x = images(0.1, 0.2, 0.3, 0.4, 0.5)
    found = Labels(
        torch.tensor([0, 0, 0, 1, 1]),
        torch.tensor([0.95, 0.99, 0.97, 0.92, 0.5]),
        torch.tensor([True, True, True, True, False]),
    )
    kept = trusted(x, found)
    assert kept.y.tolist() == [0, 1]
    torch.testing.assert_close(kept.x[:, 0, 0, 0, 0], torch.tensor([0.2, 0.4]))
    none = Labels(found.y, found.confidence, torch.zeros(5, dtype=torch.bool))
    assert trusted(x, none) is None


def test_noise_of_labels_is_the_share_of_sure_ones_that_is_wrong():
    found = Labels(
        torch.tensor([0, 1, 1, 0]), torch.full((4,), 0.95), torch.tensor([True, True, True, False])
    )
    assert label_noise(found, torch.tensor([0, 0, 1, 1])) == {"sure": 0.75, "wrong": 1 / 3}


def test_rounds_add_what_is_trusted_and_report_with_and_without_it():
    seen = []

    def train(added, seed):
        seen.append((added, seed))
        return Brightness()

    def judge(network):
        return {"accuracy": 1.0}

    held_out = Images(images(-0.5, 0.5), torch.tensor([0, 0]))
    pool = images(-0.6, -0.5, 0.5, 0.01)
    settings = SelfLearningSettings(rounds=2)
    _, rounds = learn(pool, train, held_out, NOTHING, settings, 3, judge)
    _, without = learn(None, train, held_out, NOTHING, settings, 3, judge)
    assert [r["added"] for r in rounds] == [0, 2, 2]
    assert [r["added"] for r in without] == [0, 0, 0]
    assert rounds[1]["labels"] == {"sure": 1.0, "wrong": 0.5}
    # Both go round with the same seeds, so that only the images differ.
    assert [seed for _, seed in seen[:3]] == [seed for _, seed in seen[3:]]


def test_at_most_three_rounds():
    with pytest.raises(SettingError, match="1 to 3 rounds"):
        SelfLearningSettings(rounds=4)
