"""Adaptive sampling: the class that a classifier misses gets more images, and more weight."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.studies.classification import work
from medvae3d.studies.classification.adaptive import FOLDS, counts_of, held_out_recalls
from medvae3d.studies.classification.classifiers import ClassifierSettings, Mixture
from medvae3d.studies.classification.presets import PRESETS
from medvae3d.studies.classification.study import ClassificationOptions, classification_study
from medvae3d.studies.classification.tasks import Images, Task

PRESET = PRESETS["icvae"]
SIZES = {"channels": (4, 8), "latent_channels": 3, "grain_width": 0}


def numbered(count: int, classes: tuple[int, ...] = (0, 1)) -> Images:
    """Images of one voxel each, which is the number of the case."""
    x = torch.arange(float(count * len(classes))).reshape(-1, 1, 1, 1, 1)
    return Images(x, torch.tensor(classes * count))


def test_recalls_are_of_patients_that_a_classifier_has_not_seen():
    real = numbered(10)
    subjects = [f"patient {number // 4}" for number in range(20)]
    judged = []

    def judge(known: Images, held_out: torch.Tensor, number: int) -> np.ndarray:
        rows, others = (x.flatten().int().tolist() for x in (known.x, held_out))
        assert not {subjects[row] for row in rows} & {subjects[row] for row in others}
        judged.extend(others)
        return np.asarray([0.2 + 0.6 * (row in (1, 3)) for row in others])

    recalls = held_out_recalls(real, subjects, judge, 0)
    assert sorted(judged) == list(range(20))
    # All of class 0 and two of ten of class 1, by the rule of succession.
    assert recalls == pytest.approx((11 / 12, 3 / 12))
    assert counts_of(recalls, 40) == (7, 33)


def test_there_are_as_many_folds_as_patients_if_these_are_few():
    folds = set()

    def judge(known: Images, held_out: torch.Tensor, number: int) -> np.ndarray:
        folds.add(number)
        return np.zeros(len(held_out))

    for patients, expected in ((3, 3), (20, FOLDS)):
        folds.clear()
        subjects = [str(number // 2 % patients) for number in range(40)]
        held_out_recalls(numbered(20), subjects, judge, 1)
        assert len(folds) == expected
    with pytest.raises(SettingError, match="by patient, and a class has 1"):
        held_out_recalls(numbered(20), ["one"] * 40, judge, 1)


def test_every_extra_image_counts_alike_and_real_ones_stay_even():
    real, extra = numbered(20), numbered(10, (0, 1, 1, 1))
    mixture = Mixture(real, extra, follows_counts=True)
    generator = torch.Generator().manual_seed(0)
    batches = [mixture.draw(8, generator) for _ in range(500)]
    assert {len(batch) for batch in batches} == {8}
    share = float(torch.cat([batch.y for batch in batches]).float().mean())
    assert mixture.real_share == 0.5
    assert share == pytest.approx(0.5 * 0.5 + 0.5 * 0.75, abs=0.01)


def test_as_many_images_of_each_class_are_uniform_sampling_bit_for_bit():
    real, extra = numbered(6), numbered(9)
    one, two = (Mixture(real, extra, follows_counts=follows) for follows in (True, False))
    for seed in range(5):
        a, b = (m.draw(8, torch.Generator().manual_seed(seed)) for m in (one, two))
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def test_a_class_may_get_no_extra_image_at_all():
    mixture = Mixture(numbered(4), numbered(8, (1,)), follows_counts=True)
    batch = mixture.draw(8, torch.Generator().manual_seed(0))
    assert len(batch) == 8 and set(batch.y.tolist()) == {0, 1}


def study(task: Task, folder, steps=2, generator_steps=3, learning_rate=2e-3, **options):
    preset = replace(
        PRESET,
        classifier=ClassifierSettings(
            channels=(4, 8), steps=steps, batch_size=8, learning_rate=learning_rate
        ),
        generator=replace(PRESET.generator, sizes=SIZES, steps=generator_steps, batch_size=8),
    )
    classification_study(task, folder, ClassificationOptions(**options), preset=preset)
    return json.loads((folder / "study.json").read_text(encoding="utf-8"))


def cell_of(folder, name):
    return json.loads((folder / "cells" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_weaker_class_gets_more_of_as_many_images(make_balls, tmp_path, monkeypatch):
    task, folder = make_balls(training=5, unseen=4), tmp_path / "s"
    given = iter([(0.9, 0.2), (0.5, 0.5)])
    monkeypatch.setattr(work, "held_out_recalls", lambda *_: next(given))
    found = study(task, folder, n=("4",), seeds=2)
    first, second = (cell_of(folder, f"n4_r1_adaptive_s{seed}") for seed in (0, 1))
    uniform, same = (cell_of(folder, f"n4_r1_synthetic_s{seed}") for seed in (0, 1))
    assert uniform["extra_cases"] == [4, 4] and first["extra_cases"] == [2, 6]
    assert first["real_cases"] == [4, 4] and first["recalls"] == [0.9, 0.2]
    assert first["p"] != uniform["p"]
    # Nothing to adapt to: the same cell.
    assert second["extra_cases"] == [4, 4] and second["p"] == same["p"]
    said = {verdict["claim"]: verdict for verdict in found["shown"]["verdicts"]}
    more = said["more images are made of the class that is missed more often (n = 4, ratio 1)"]
    assert (more["light"], more["found"]) == ("green", "in 1 of 2 seeds")
    claim = "adaptive sampling does better than as many images of each class"
    for measure in ("AUC", "balanced accuracy"):
        verdict = said[f"{claim}, by {measure} (n = 4, ratio 1)"]
        assert verdict["found"].endswith("of 2 seeds")
    tables = found["shown"]["tables"]
    row = tables["Recall on held-out training cases, and images made"]["n = 4, ratio 1, seed 0"]
    assert {name: measure["value"] for name, measure in row.items()} == {
        "recall, dark": 0.9, "images, dark": 2, "recall, bright": 0.2, "images, bright": 6,
    }  # fmt: skip
    title = "Recall of the class that is missed more often, on unseen cases"
    beside = ("adaptive", "classical", "synthetic")
    assert sorted(tables[title]) == [f"n = 4, ratio 1, {name}" for name in beside]


def test_arms_without_classes_are_refused_for_a_model_that_is_told_them(make_balls, tmp_path):
    task = make_balls(training=5, unseen=4)
    for arm in ("selected", "self_learning"):
        options = ClassificationOptions("icvae", arms=(arm,), n=("4",))
        with pytest.raises(SettingError, match=f"arm {arm} .* preset, icvae, is told them"):
            classification_study(task, tmp_path / "s", options)
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_a_class_part_of_which_looks_like_the_other_gets_more_images(make_balls, tmp_path):
    task = make_balls(training=24, unseen=20)
    images = task.images
    # The bright ball of every fourth patient is the dark one of another.
    rows = torch.arange(1, len(images), 8)
    x = images.x.clone()
    x[rows] = images.x[rows - 1].roll(1, 0)
    hidden = replace(task, images=Images(x, images.y))
    folder = tmp_path / "s"
    study(
        hidden,
        folder,
        learning_rate=1e-2,
        n=("24",),
        seeds=1,
        steps=60,
        generator_steps=10,
        arms=("synthetic", "adaptive"),
    )
    cell = cell_of(folder, "n24_r1_adaptive_s0")
    dark, bright = cell["recalls"]
    assert dark > bright + 0.05
    assert cell["extra_cases"][1] > cell["extra_cases"][0] + 8
    assert sum(cell["extra_cases"]) == 48
    assert cell_of(folder, "n24_r1_synthetic_s0")["extra_cases"] == [24, 24]
