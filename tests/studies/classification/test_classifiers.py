"""Classifiers: the same start and steps for all, balanced batches, slices read in order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medvae3d.errors import SettingError
from medvae3d.studies.classification.classifiers import (
    NETWORKS,
    ClassifierSettings,
    Mixture,
    make_classifier,
    probabilities,
    train_classifier,
)
from medvae3d.studies.classification.sequences import (
    SliceLSTM,
    observed_slices,
    shuffle_slices,
)
from medvae3d.studies.classification.tasks import Images, shuffled

SMALL = ClassifierSettings(channels=(4, 8), steps=30, batch_size=8, learning_rate=1e-2)


@pytest.mark.parametrize("network", ["resnet", "slices"])
def test_what_can_be_told_apart_is_told_apart(balls, network):
    settings = ClassifierSettings(network, (4, 8), steps=30, batch_size=8, learning_rate=1e-2)
    trained = train_classifier(Mixture(balls.training(8, 0)), settings)
    unseen = balls.part("testing")
    assert roc_auc_score(unseen.y, probabilities(trained, unseen.x)) > 0.9


def test_nothing_is_learned_from_classes_dealt_out_anew(make_balls):
    task = make_balls(training=10, unseen=20)
    unseen = task.part("testing")
    found = []
    for seed in range(4):
        real = shuffled(task.training(10, 0), seed)
        trained = train_classifier(Mixture(real), SMALL.with_steps(8), seed)
        found.append(roc_auc_score(unseen.y, probabilities(trained, unseen.x)))
    # Which way a classifier turns on such a task is chance; over seeds it evens out.
    assert 0.2 < float(np.mean(found)) < 0.8


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_gives_two_logits_and_all_of_it_learns(network):
    settings = ClassifierSettings(network, (4, 8))
    model = make_classifier(settings, 2)
    x = torch.randn(4, 2, 8, 8, 8)
    logits = model(x)
    assert logits.shape == (4, 2)
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_maps_of_one_voxel_along_an_axis_are_taken(balls):
    flat = Images(balls.images.x[..., :1], balls.images.y)
    trained = train_classifier(Mixture(flat), SMALL.with_steps(2))
    assert probabilities(trained, flat.x[:3]).shape == (3,)


def test_batches_hold_as_many_of_either_class_whatever_they_are_drawn_from():
    # 30 dark and 2 bright real images, 1 dark and 40 bright extra ones.
    real = Images(torch.zeros(32, 1, 2, 2, 2), torch.tensor([0] * 30 + [1] * 2))
    extra = Images(torch.ones(41, 1, 2, 2, 2), torch.tensor([0] + [1] * 40))
    mixture = Mixture(real, extra, least_real=0.5)
    generator = torch.Generator().manual_seed(0)
    batches = [mixture.draw(8, generator) for _ in range(200)]
    assert all(int(batch.y.sum()) == 4 for batch in batches)
    share = float(torch.cat([batch.x[:, 0, 0, 0, 0] for batch in batches]).mean())
    assert share == pytest.approx(1 - mixture.real_share, abs=0.03)
    assert mixture.real_share == 0.5


def test_the_same_seed_gives_the_same_classifier_and_leaves_the_global_state(balls):
    mixture = Mixture(balls.training(4, 0))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, two, other = (train_classifier(mixture, SMALL.with_steps(3), s) for s in (1, 1, 2))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert any(
        not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def test_a_class_that_is_missing_is_refused(balls):
    one = balls.part("training")
    with pytest.raises(SettingError, match="none of class 1"):
        train_classifier(Mixture(one[one.y == 0]), SMALL)


def test_images_that_a_network_cannot_take_are_refused(balls):
    flat = Images(balls.images.x[..., :1], balls.images.y)
    with pytest.raises(SettingError, match="8 x 8 x 1 voxels"):
        train_classifier(Mixture(flat), ClassifierSettings("densenet", (4, 8)))


def test_unknown_networks_and_odd_batches_are_refused():
    with pytest.raises(SettingError, match="resnet, densenet"):
        ClassifierSettings("vgg")
    with pytest.raises(SettingError, match="even"):
        ClassifierSettings(batch_size=5)


def test_padding_slices_say_nothing():
    torch.manual_seed(0)
    model = SliceLSTM(1, (4, 8)).eval()
    short, long = torch.rand(1, 1, 8, 8, 5), torch.rand(1, 1, 8, 8, 9)
    padded = torch.nn.functional.pad(short, (1, 3), value=-1.0)
    # Volumes with other numbers of slices in one batch.
    together = model(torch.cat([padded, long]))
    torch.testing.assert_close(together, torch.cat([model(short), model(long)]))
    assert observed_slices(padded).tolist() == [[False] + [True] * 5 + [False] * 3]


def test_the_order_of_slices_matters_to_the_network_and_not_to_what_it_holds():
    torch.manual_seed(0)
    model = SliceLSTM(1, (4, 8)).eval()
    x = torch.nn.functional.pad(torch.rand(2, 1, 8, 8, 6), (2, 1), value=-1.0)
    mixed = shuffle_slices(x, torch.Generator().manual_seed(1))
    assert not torch.equal(mixed, x)
    assert torch.equal(observed_slices(mixed), observed_slices(x))
    torch.testing.assert_close(mixed.sum(4), x.sum(4))
    with torch.no_grad():
        assert float((model(mixed) - model(x)).abs().max()) > 1e-4
