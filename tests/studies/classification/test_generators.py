"""Generators: one a class, the same for the same seed, blind to all but their images."""

from __future__ import annotations

import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.studies.classification.generators import (
    GeneratorSettings,
    fit_generator,
    fit_generators,
    models,
    strides_for,
)
from medvae3d.studies.classification.work import copying, noise_like

SIZES = {"channels": (4, 8), "latent_channels": 4}
FAST = GeneratorSettings(sizes=SIZES, steps=3)


@pytest.fixture(scope="module")
def fitted(balls):
    settings = GeneratorSettings(sizes=SIZES, steps=60, learning_rate=5e-3)
    return fit_generators(balls.training(8, 0), settings, 0)


def test_images_of_a_class_look_like_that_class(balls, fitted):
    made = fitted.sample(12, 1)
    assert made.y.tolist() == [0] * 12 + [1] * 12
    real = balls.training(8, 0)

    def brightness(x):
        return x[..., 3:5, 3:5, 3:5].mean()

    dark, bright = (brightness(real.of_class(v)) for v in (0, 1))
    middle = (dark + bright) / 2
    assert brightness(made.of_class(0)) < middle < brightness(made.of_class(1))


def test_images_depend_on_seed_and_number_alone(fitted):
    few, many = fitted.each[0].sample(2, 3), fitted.each[0].sample(40, 3)
    torch.testing.assert_close(many[:2], few, rtol=0, atol=1e-5)
    assert float((many[0] - many[1]).abs().mean()) > 1e-3
    assert not torch.equal(fitted.each[0].sample(2, 4), few)


def test_the_same_seed_gives_the_same_weights(balls):
    x = balls.training(4, 0).of_class(1)
    one, two = (fit_generator(x, FAST, 7) for _ in range(2))
    for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_generator_is_any_model_of_the_zoo_with_one_latent(balls):
    assert set(models()) >= {"vae", "hvae", "latent_model"} and "pavae" not in models()
    x = balls.training(4, 0).of_class(0)
    sizes = {**SIZES, "num_steps": 1}
    assert (
        fit_generator(x, GeneratorSettings("hvae", sizes, steps=1), 0).sample(1, 0).isfinite().all()
    )
    with pytest.raises(SettingError, match="no model of the zoo.*vae"):
        GeneratorSettings("gan")


def test_too_few_images_are_refused(balls):
    with pytest.raises(SettingError, match="2 images to fit a generator on"):
        fit_generator(balls.images.x[:2], FAST, 0)


def test_strides_halve_even_sides_and_leave_single_voxels():
    assert strides_for([16, 20, 1], 3) == [[2, 2, 1], [2, 2, 1], [1, 1, 1]]


def test_copies_are_found_and_noise_is_none(balls):
    real, unseen = balls.training(8, 0), balls.part("testing")
    assert copying(real, real, unseen)["samples"] == 1.0
    noise = noise_like(real, 5, 0)
    assert copying(noise, real, unseen)["samples"] == 0.0
    assert noise.y.tolist() == [0] * 5 + [1] * 5
    assert float(noise.x.mean()) == pytest.approx(float(real.x.mean()), abs=0.05)
