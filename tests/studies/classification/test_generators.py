"""Generators: one a class, the same for the same seed, blind to all but their images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monai.data import MetaTensor

from medvae3d.errors import SettingError
from medvae3d.models.traces import Condition
from medvae3d.seeding import derive_generator, derive_seed
from medvae3d.studies.classification.generators import (
    GeneratorSettings,
    fit_generator,
    fit_generators,
    models,
)
from medvae3d.studies.classification.presets import PRESETS, parts_of
from medvae3d.studies.classification.quality import quality_of, step_size
from medvae3d.studies.classification.recipes import RECIPES, strides_for
from medvae3d.studies.classification.tasks import Images
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


BARE = {"channels": (4, 8), "latent_channels": 3, "grain_width": 0}
HOW = {
    "bound": GeneratorSettings(sizes=BARE),
    "riemannian": GeneratorSettings("rhvae", {**BARE, "hidden": 8}, recipe="riemannian"),
    "disc_vae": GeneratorSettings(sizes=BARE, recipe="disc_vae"),
    "gan": GeneratorSettings("dcgan", BARE, recipe="gan"),
    "noise_gan": GeneratorSettings("vae_noise_gan", BARE, recipe="noise_gan"),
    "noise_gan_posterior": GeneratorSettings(
        "vae_noise_gan", BARE, recipe="noise_gan_posterior", noise="posterior"
    ),
    "icvae": GeneratorSettings("icvae", BARE, recipe="icvae"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_and_gives_the_same_images_for_the_same_seed(balls, recipe):
    settings = replace(HOW[recipe], steps=4, batch_size=4)
    real = balls.training(6, 0)
    x = real.of_class(0)
    if settings.is_told:
        one, two = (fit_generators(real, settings, 5).each[0] for _ in range(2))
    else:
        one, two = (fit_generator(x, settings, 5) for _ in range(2))
    made = one.sample(3, 1)
    assert made.shape == (3, *x.shape[1:]) and bool(torch.isfinite(made).all())
    assert torch.equal(made, two.sample(3, 1))
    assert not torch.equal(made, one.sample(3, 2))


def test_a_discriminator_of_no_weight_leaves_the_vae_as_it_is_bit_for_bit(balls):
    x = balls.training(6, 0).of_class(1)
    settings = replace(HOW["disc_vae"], steps=6, adversarial_weight=0.0)
    one = fit_generator(x, settings, 3)
    two = fit_generator(x, replace(HOW["bound"], steps=6), 3)
    assert torch.equal(one.sample(4, 0), two.sample(4, 0))
    weighed = fit_generator(x, replace(settings, adversarial_weight=1.0), 3)
    assert not torch.equal(weighed.sample(4, 0), two.sample(4, 0))


def test_the_encoder_rests_while_the_gan_of_its_noise_learns(balls):
    x = balls.training(6, 0).of_class(0)
    one, two = (
        fit_generator(x, replace(HOW[name], steps=4), 0)
        for name in ("noise_gan", "noise_gan_posterior")
    )
    # The first stage is the same; from another noise, the second teaches the decoder other things.
    assert torch.equal(one.encode(x), two.encode(x))
    decoders = [torch.cat([p.flatten() for p in g.model.decoder.parameters()]) for g in (one, two)]
    assert not torch.equal(*decoders)
    assert one.start_from is None and two.start_from is not None and two.twice(0) > 0
    with pytest.raises(SettingError, match="start from a prior"):
        one.twice(0)


@pytest.mark.parametrize("function", ["icvae", "cvae"])
def test_a_generator_that_is_told_the_class_draws_one_latent_as_both(balls, function):
    recipe = "icvae" if function == "icvae" else "bound"
    settings = GeneratorSettings(function, {**BARE, "components": 2}, steps=3, recipe=recipe)
    real = balls.training(6, 0)
    both = fit_generators(real, settings, 0)
    dark, bright = both.each
    assert dark.model is bright.model and not torch.equal(dark.told, bright.told)
    assert dark.model.statistics.classes == ("0", "1")
    made = both.sample(3, 1)
    noise = [derive_generator(derive_seed(1, "class", 0), "image", i) for i in range(3)]
    latents = dark.model.sample_latent(3, None, noise)
    for value, one in enumerate(both.each):
        heads = one.model.decode(latents, Condition(one.told.expand(3, -1)))
        torch.testing.assert_close(made.of_class(value), heads["image"].mode().clamp_min(-1))
    assert not torch.equal(made.of_class(0), made.of_class(1))
    assert both.seconds == pytest.approx(2 * dark.seconds)


def test_a_generator_that_is_told_the_class_needs_it(balls):
    with pytest.raises(SettingError, match="'icvae' is told the class of each image"):
        fit_generator(balls.training(6, 0).x, HOW["icvae"], 0)
    with pytest.raises(SettingError, match="2 images to fit a generator on"):
        fit_generators(balls.training(2, 0), HOW["icvae"], 0)
    with pytest.raises(SettingError, match="'vae' is told no class.*cvae, icvae"):
        GeneratorSettings("vae", recipe="icvae")


def test_generators_of_one_preset_have_decoders_of_one_size(balls):
    x = balls.training(3, 0).of_class(0)
    for name in ("disc_vae", "vae_noise_gan", "rhvae_small_sample"):
        preset = PRESETS[name]
        sizes = {
            sum(p.numel() for p in preset.of_arm(arm).build(x).decoder.parameters())
            for arm in preset.arms
            if parts_of(arm)[0].startswith("synthetic")
        }
        assert len(sizes) == 1, name


def test_quality_tells_smooth_images_from_sharp_ones(balls):
    real = balls.training(6, 0)
    assert step_size(torch.zeros(2, 1, 4, 4, 1)) == 0
    ramp = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 4, 1)
    assert step_size(ramp) == pytest.approx(0.5)
    generators = fit_generators(real, replace(HOW["bound"], steps=3), 0)
    made = generators.sample(6, 0)
    found = quality_of(generators, made, real, balls.training(4, 1), 0)
    assert 0 < found["sharpness"] < 1 and found["twice"] is None and found["psnr"] > 0
    assert quality_of(generators, real, real, real, 0)["sharpness"] == 1


@pytest.mark.parametrize("recipe", ["bound", "noise_gan_posterior"])
def test_images_that_are_made_do_not_carry_the_grid_of_those_that_were_read(balls, recipe):
    read = Images(MetaTensor(balls.images.x[:6]), torch.tensor([0, 1] * 3))
    made = fit_generators(read, replace(HOW[recipe], steps=2), 0).sample(2, 0)
    assert type(made.x) is torch.Tensor


def test_unknown_recipes_and_noises_are_named():
    with pytest.raises(SettingError, match="recipe 'gann'; allowed are bound"):
        GeneratorSettings(recipe="gann")
    with pytest.raises(SettingError, match="noise 'white'; allowed are prior, posterior"):
        GeneratorSettings(noise="white")
