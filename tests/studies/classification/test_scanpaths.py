"""Scanpaths: drawn the same each time, where the eye was, through the same models as volumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medvae3d.studies.classification.generators import GeneratorSettings, fit_generators
from medvae3d.studies.classification.scanpaths import Scanpath, render, scanpath_task
from medvae3d.studies.classification.tasks import simplest_rule

PATH = Scanpath(np.array([[0.2, 0.2], [0.8, 0.3], [0.5, 0.9]]), np.array([100.0, 400.0, 50.0]))


def test_the_renderer_is_deterministic():
    assert torch.equal(render(PATH), render(PATH))
    assert torch.equal(scanpath_task(1, 4, 2, 2).images.x, scanpath_task(1, 4, 2, 2).images.x)
    assert not torch.equal(scanpath_task(1, 4, 2, 2).images.x, scanpath_task(2, 4, 2, 2).images.x)


def test_the_longest_fixation_is_the_brightest_and_lies_where_it_was():
    dwell = render(PATH)[0, :, :, 0]
    assert float(dwell.max()) == pytest.approx(1.0)
    place = divmod(int(dwell.argmax()), 32)
    np.testing.assert_allclose((np.asarray(place) + 0.5) / 32, [0.8, 0.3], atol=0.03)


def test_speed_is_drawn_along_the_path_and_is_that_of_the_path():
    path = Scanpath(np.array([[0.1, 0.5], [0.9, 0.5]]), np.array([1.0, 1.0]))
    speed = (render(path)[1, :, :, 0] + 1) / 2
    assert float(speed[16, 16]) == pytest.approx(0.8, abs=0.02)  # 0.8 of the side in one go
    assert float(speed[16, 4]) == 0.0


def test_one_fixation_has_no_speed():
    one = render(Scanpath(np.array([[0.5, 0.5]]), np.array([200.0])))
    assert float(one[1].max()) == -1.0
    assert bool(torch.isfinite(one).all())


def test_groups_differ_and_overlap():
    task = scanpath_task(0, 40, 2, 40, side=16)
    unseen = task.part("testing")
    auc = roc_auc_score(unseen.y, simplest_rule(task.part("training"), unseen))
    assert 0.5 < auc < 0.95


def test_maps_go_through_a_model_of_volumes():
    real = scanpath_task(0, 8, 2, 2, side=8).training(4, 0)
    settings = GeneratorSettings(sizes={"channels": (4, 8), "latent_channels": 2}, steps=2)
    made = fit_generators(real, settings, 0).sample(3, 0)
    assert made.x.shape == (6, 2, 8, 8, 1)
    assert made.y.tolist() == [0, 0, 0, 1, 1, 1]
