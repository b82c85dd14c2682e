"""What the two-stage model must show after a short training on phantoms' lesions."""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import spearmanr

from medvae3d.data.attributes import mask_attributes
from medvae3d.models.latent import Condition
from medvae3d.models.zoo import MASK_ATTRIBUTES, pavae
from medvae3d.objectives.compositions import mask_objective, texture_objective
from medvae3d.objectives.terms import nll
from medvae3d.training.health import latent_health
from medvae3d.training.optimizers import adamw, cosine

SHAPE = (16, 16, 16)
STEPS = 400


def ellipsoids(count, generator):
    """Masks of random ellipsoids in the middle, ``(B, 1, I, J, K)``."""
    axis = torch.arange(16) - 7.5
    radii = 2 + 4 * torch.rand(count, 3, generator=generator)
    square = [(axis[None] / radii[:, i : i + 1]) ** 2 for i in range(3)]
    distance = square[0][:, :, None, None] + square[1][:, None, :, None] + square[2][:, None, None]
    return (distance < 1).float()[:, None]


def textures(mask, generator):
    """Bright lesions of varying brightness on a dark, noisy ground."""
    level = 0.3 + 0.6 * torch.rand(len(mask), 1, 1, 1, 1, generator=generator)
    noise = 0.05 * torch.randn(mask.shape, generator=generator)
    return torch.where(mask > 0, level, torch.full_like(level, -0.6)) + noise


def batch_of(statistics, count, generator):
    mask = ellipsoids(count, generator)
    values = mask_attributes(mask, (1.0, 1.0, 1.0), MASK_ATTRIBUTES)
    return {
        "image": textures(mask, generator),
        "mask": mask,
        "attributes": statistics.standardise(values),
        "natural": values,
    }


@pytest.fixture(scope="module")
def trained():
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"channels": (8, 16), "components": 4, "rank": 8}
        model = pavae(
            SHAPE,
            SHAPE,
            shape={**sizes, "latent_channels": 8},
            texture={**sizes, "latent_channels": 2},
            context_dilation=1,
        )
    values = mask_attributes(ellipsoids(256, generator), (1.0, 1.0, 1.0), MASK_ATTRIBUTES)
    model.statistics.fit_attributes(values)
    parts = [
        (model.shape, mask_objective(warm_up_steps=100), adamw(model.shape, 4e-3)),
        (
            model.texture,
            texture_objective(warm_up_steps=300, free_nats=0.1),
            adamw(model.texture, 4e-3),
        ),
    ]
    rate = cosine(STEPS)
    for step in range(STEPS):
        batch = batch_of(model.statistics, 8, generator)
        for part, objective, optimizer in parts:
            for group in optimizer.param_groups:
                group["lr"] = 4e-3 * rate(step)
            loss, _ = objective(part.trace(batch, generator), batch, step)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(part.parameters(), 5.0)
            optimizer.step()
    model.eval()
    with torch.no_grad():
        latents, told = [], []
        for _ in range(16):
            batch = batch_of(model.statistics, 16, generator)
            posterior = model.shape.encode(batch, model.shape.condition(batch))
            latents.append(posterior.rsample(generator))
            told.append(batch["attributes"])
        model.shape.sampling_prior.fit(torch.cat(latents), torch.cat(told), seed=0)
    held_out = batch_of(model.statistics, 48, torch.Generator().manual_seed(99))
    return SimpleNamespace(model=model, batch=held_out)


def draw(model, attributes, seed=0):
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(attributes))]
    z = model.shape.sample_latent(len(attributes), attributes, generators)
    return model.shape.decode(z, Condition(attributes))["mask"].mode()


@pytest.mark.slow
@torch.no_grad()
def test_masks_follow_the_attributes_that_were_asked(trained):
    made = draw(trained.model, trained.batch["attributes"])
    assert made.flatten(1).any(1).all()
    measured = mask_attributes(made, (1.0, 1.0, 1.0), MASK_ATTRIBUTES)
    asked = trained.batch["natural"]
    assert spearmanr(asked[:, 0], measured[:, 0]).statistic > 0.8
    for column in (1, 2, 3):
        assert spearmanr(asked[:, column], measured[:, column]).statistic > 0.5


@pytest.mark.slow
@torch.no_grad()
def test_the_condition_and_the_latent_both_change_the_mask(trained):
    small, large = trained.batch["attributes"][:1], trained.batch["attributes"][:1].clone()
    large[:, 0] += 2
    one, other = draw(trained.model, small), draw(trained.model, large)
    assert not torch.equal(one, other)
    again = draw(trained.model, small, seed=50)
    assert not torch.equal(one, again)
    volume, other_volume = float(one.sum()), float(again.sum())
    assert abs(volume - other_volume) < 0.5 * volume


@pytest.mark.slow
@torch.no_grad()
def test_a_change_of_the_mask_changes_the_image_there(trained):
    texture, batch = trained.model.texture, trained.batch
    other = batch["mask"].roll(3, dims=2)
    z = torch.zeros(len(other), *texture.latent_shape)
    context = torch.full_like(batch["image"], -0.6)
    images = [
        texture.decode(z, texture.condition({"mask": mask, "context": context}))["image"].mode()
        for mask in (batch["mask"], other)
    ]
    change = (images[0] - images[1]).abs()
    inside = batch["mask"] != other
    assert change[inside].mean() > 5 * change[~inside].mean()


@pytest.mark.slow
@torch.no_grad()
def test_without_its_mask_the_lesion_gets_lost(trained):
    texture, batch = trained.model.texture, trained.batch
    inside = batch["mask"] > 0
    errors = []
    for mask in (batch["mask"], torch.zeros_like(batch["mask"])):
        told = {"mask": mask, "image": batch["image"], "context": torch.full_like(mask, -0.6)}
        condition = texture.condition(told)
        z = torch.zeros(len(mask), *texture.latent_shape)
        made = texture.decode(z, condition)["image"].mode()
        errors.append(float((made - batch["image"])[inside].abs().mean()))
    assert errors[1] > 2 * errors[0]


@pytest.mark.slow
@torch.no_grad()
def test_neither_latent_has_collapsed(trained):
    """At least a tenth of the elements carry more than 0.05 nat.

    The second stage is kept awake by free nats, which it may spend on a narrower posterior: the
    width of its aggregate says nothing. That of the first, which has none, is the prior's.
    """
    for part in (trained.model.shape, trained.model.texture):
        posterior = part.encode(trained.batch, part.condition(trained.batch))
        assert latent_health([posterior]).active_share >= 0.1
    shape = trained.model.shape
    posterior = shape.encode(trained.batch, shape.condition(trained.batch))
    assert 0.7 < latent_health([posterior]).mean_square < 1.3


@pytest.mark.slow
@torch.no_grad()
def test_lesions_of_either_origin_are_filled(trained):
    """Real masks, first-stage masks and spheres: inside is brighter than outside for all."""
    model, batch = trained.model, trained.batch
    axis = torch.arange(16) - 7.5
    ball = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2 < 16).float()
    masks = {
        "real": batch["mask"],
        "first stage": draw(model, batch["attributes"]).float(),
        "sphere": ball[None, None],
    }
    for mask in masks.values():
        condition = model.texture.condition({"mask": mask, "context": torch.full_like(mask, -0.6)})
        z = torch.zeros(len(mask), *model.texture.latent_shape)
        made = model.texture.decode(z, condition)["image"].mode()
        assert made[mask > 0].mean() > made[mask == 0].mean() + 0.5


@torch.no_grad()
def test_the_balance_of_kl_and_likelihood_does_not_depend_on_the_size_of_a_patch():
    """Twice the edge with constant content: eight times both terms, up to the border."""
    ratios = []
    for edge in (16, 32):
        torch.manual_seed(0)
        model = pavae((16, 16, 16), (edge,) * 3, texture={"channels": (8, 16), "rank": 4}).texture
        mask = torch.ones(1, 1, edge, edge, edge)
        batch = {"image": torch.zeros_like(mask), "mask": mask}
        condition = model.condition(batch)
        posterior = model.encode(batch, condition)
        trace = model.trace(batch, torch.Generator().manual_seed(0))
        ratios.append(float(posterior.kl() / nll(trace, batch)))
    assert ratios[1] == pytest.approx(ratios[0], rel=0.15)
