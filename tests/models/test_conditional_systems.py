"""What models that are told a class show once trained: it is there, and apart from the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from small_classes import CLASSES, balls_of_classes, played, unseen_of
from small_trainings import SHAPE, SPACING, psnr

from medvae3d.data.attributes import CLASS
from medvae3d.models.traces import Condition
from medvae3d.models.zoo import cvae, cvae_multiscale, icvae
from medvae3d.objectives.compositions import joint_objective
from medvae3d.objectives.conditional import coarser, multiscale_objective
from medvae3d.objectives.independence import icvae_objective
from medvae3d.training.fitting import PriorFitter
from medvae3d.training.loading import BatchPreparation, StepLoader
from medvae3d.training.optimizers import adamw, cosine
from medvae3d.training.players import ModelPlayer

SIZES = {"channels": (8, 16), "latent_channels": 6, "vector_latent": True, "components": 4}
STEPS = 700
pytestmark = pytest.mark.slow


def player(network, objective, steps=STEPS):
    optimizer = adamw(network, 3e-3)
    return ModelPlayer(network, objective, optimizer, clip_norm=5.0, rate=cosine(steps))


def as_class(network, name, count):
    statistics = network.statistics
    return Condition(statistics.standardise(statistics.of_class(name)).expand(count, -1))


def fit_prior(network, cases):
    loader = StepLoader(cases, 8, seed=0)
    preparation = BatchPreparation(network.statistics, SPACING)
    PriorFitter({"model": network}, loader, preparation, passes=1).fit()


def classes_of(cases):
    return np.array([CLASSES.index(case["class"]) for case in cases])


@pytest.fixture(scope="module")
def cases():
    return balls_of_classes(128, 0), balls_of_classes(48, 1)


def brightness(images, masks):
    """Mean intensity within the mask and around it, ``(B, 2)``."""
    inside = (masks > 0).flatten(1).float()
    rows = images.flatten(1)
    means = [(rows * part).sum(1) / part.sum(1).clamp_min(1) for part in (inside, 1 - inside)]
    return torch.stack(means, 1).numpy()


def classifier():
    return make_pipeline(StandardScaler(), LogisticRegression())


@pytest.fixture(scope="module")
def judge(cases):
    """A classifier of real images and masks, which knows unseen ones."""
    stacks = [
        [torch.stack([case[n] for case in some]) for n in ("image", "label")] for some in cases
    ]
    known, unseen = (brightness(*each) for each in stacks)
    judge = classifier().fit(known, classes_of(cases[0]))
    assert balanced_accuracy_score(classes_of(cases[1]), judge.predict(unseen)) > 0.95
    return lambda heads: judge.predict(brightness(heads["image"].mode(), heads["mask"].mode()))


@pytest.fixture(scope="module")
def told(cases):
    torch.manual_seed(0)
    network = cvae(SHAPE, classes=CLASSES, **SIZES)
    played(network, [player(network, joint_objective())], cases[0], STEPS)
    fit_prior(network, cases[0])
    return network


@torch.no_grad()
def in_both_classes(network, z):
    return [network.decode(z, as_class(network, name, len(z))) for name in CLASSES]


def test_a_classifier_of_real_images_recognises_the_class_that_was_asked_for(told, judge):
    right = []
    for number, name in enumerate(CLASSES):
        z = told.sample_latent(40, generators=torch.Generator().manual_seed(number))
        with torch.no_grad():
            made = told.decode(z, as_class(told, name, 40))
        right.append(np.mean(judge(made) == number))
    assert np.mean(right) > 0.8, "balanced accuracy; 0.5 is chance"


def require_same_volume_otherwise(dark, bright, inside):
    """The masks agree, and the images differ in the ball."""
    first, second = (each["mask"].mode() > 0 for each in (dark, bright))
    both = (first & second).flatten(1).sum(1)
    dice = 2 * both / (first.flatten(1).sum(1) + second.flatten(1).sum(1)).clamp_min(1)
    assert dice.mean() > 0.8
    change = (bright["image"].mode() - dark["image"].mode()).abs()
    assert change[~inside].mean() < 0.1 * change[inside].mean()


def test_another_label_at_the_same_latent_changes_the_class_and_little_else(told, cases, judge):
    batch = unseen_of(told, cases[1])
    with torch.no_grad():
        z = told.encode(batch, told.condition(batch)).mean
    dark, bright = in_both_classes(told, z)
    assert np.mean(judge(dark) == 0) > 0.8
    assert np.mean(judge(bright) == 1) > 0.8
    require_same_volume_otherwise(dark, bright, batch["mask"] > 0)


@pytest.fixture(scope="module")
def apart():
    torch.manual_seed(0)
    network = icvae(SHAPE, classes=CLASSES, **SIZES)
    # A step takes a quarter longer than that of the others.
    steps = STEPS * 4 // 5
    objective = icvae_objective(network, independence=0.0, counterfactual=5.0, start=60)
    played(network, [player(network, objective, steps)], balls_of_classes(1024, 0), steps)
    return network


@pytest.mark.parametrize(
    "judge",
    [LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"), SVC()],
    ids=["linear", "kernel"],
)
def test_an_independent_latent_does_not_tell_the_class(apart, judge):
    """Within 5 points of chance; over 800 unseen cases, a standard error is 1.8 points."""
    unseen = balls_of_classes(800, 2)
    batch = unseen_of(apart, unseen)
    with torch.no_grad():
        z = apart.encode(batch, apart.condition(batch)).mean.flatten(1).numpy()
    kinds = classes_of(unseen)
    found = cross_val_predict(make_pipeline(StandardScaler(), judge), z, kinds, cv=8)
    assert abs(balanced_accuracy_score(kinds, found) - 0.5) < 0.05


def test_what_an_independent_latent_is_decoded_to_tells_the_class_that_was_asked_for(apart, cases):
    batch = unseen_of(apart, cases[1])
    with torch.no_grad():
        condition = apart.condition(batch)
        z = apart.encode(batch, condition).mean
        rebuilt = apart.decode(z, condition)
    made = in_both_classes(apart, z)
    rows = [brightness(each["image"].mode(), each["mask"].mode()) for each in made]
    kinds = np.repeat([0, 1], len(z))
    found = cross_val_predict(classifier(), np.concatenate(rows), kinds, cv=8)
    assert balanced_accuracy_score(kinds, found) > 0.9
    change = rows[1][:, 0] - rows[0][:, 0]
    assert (change > 0).all(), "one latent, brighter as a bright one"
    inside = brightness(rebuilt["image"].mode(), rebuilt["mask"].mode())[:, 0]
    real = classes_of(cases[1])
    assert change.mean() > 0.9 * (inside[real == 1].mean() - inside[real == 0].mean())
    require_same_volume_otherwise(*made, batch["mask"] > 0)


@pytest.fixture(scope="module")
def scales(cases):
    torch.manual_seed(0)
    sizes = {"channels": (16, 32), "latent_channels": 4, "components": 0}
    network = cvae_multiscale(SHAPE, classes=CLASSES, coarse=1, **sizes)
    objective = multiscale_objective(weights=(0.5,))
    played(network, [player(network, objective)], cases[0], STEPS)
    return network


def test_a_fine_output_that_is_made_coarse_agrees_with_the_coarse_one(scales, cases):
    batch = unseen_of(scales, cases[1])
    with torch.no_grad():
        condition = scales.condition(batch)
        z = scales.encode(batch, condition).mean
        fine, coarse = scales.decode_scales(z, condition)
    ((stride, low),) = coarse.items()
    made = {"image": fine["image"].mode(), "mask": fine["mask"].mode()}
    small = coarser(made, stride, (0, 1))
    found, wanted = low["image"].mode(), coarser(batch, stride, (0, 1))["image"]
    error = (small["image"] - found).square().mean()
    assert error < 0.3 * (wanted - wanted.mean(0)).square().mean()
    first, second = small["mask"] > 0, low["mask"].mode() > 0
    assert 2 * (first & second).sum() / (first.sum() + second.sum()) > 0.85


def test_coarse_outputs_do_not_cost_the_fine_one_its_error(scales, told, cases):
    """That they lower it is not shown on balls of 12 voxels; see the page on models."""
    found = []
    for network in (scales, told):
        batch = unseen_of(network, cases[1])
        with torch.no_grad():
            condition = network.condition(batch)
            heads = network.decode(network.encode(batch, condition).mean, condition)
        found.append(psnr(heads["image"].mode(), batch["image"]))
    assert found[0] > found[1] - 0.5


def test_classes_are_attributes_by_name(told):
    assert told.statistics.names == tuple(CLASS + name for name in CLASSES)
