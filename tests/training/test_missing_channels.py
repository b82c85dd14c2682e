"""Cases that lack a channel: what stands in its place reaches no loss, gradient or fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from medvae3d.data.augmentation import Augmentation, RandomIntensity, RandomPose
from medvae3d.data.datalists import MISSING
from medvae3d.data.patches import patch_loader
from medvae3d.models.grain import Grain
from medvae3d.models.latent import LatentModel
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.models.zoo import (
    cvae_fill,
    cvae_multiscale,
    hvae,
    icvae,
    pavae,
    rhvae,
    vae,
    vqvae,
)
from medvae3d.networks.discriminators import PatchDiscriminator
from medvae3d.objectives.codes import code_objective
from medvae3d.objectives.compositions import (
    disc_vae_objective,
    joint_objective,
    texture_objective,
)
from medvae3d.objectives.conditional import fill_objective, multiscale_objective
from medvae3d.objectives.independence import icvae_objective
from medvae3d.objectives.introspective import SoftIntrospection, introspect
from medvae3d.objectives.terms import Objective
from medvae3d.objectives.vae_gan import vae_gan_objectives
from medvae3d.training.fitting import LocationFitter
from medvae3d.training.loading import PatchStream, collate
from medvae3d.training.players import (
    DiscriminatorPlayer,
    ModelPlayer,
    Player,
    Turn,
    with_image,
)
from medvae3d.training.validation import squared_error

SHAPE = (8, 8, 8)
SIZES: dict[str, Any] = {"channels": (4, 8), "latent_channels": 2}
JOINT: dict[str, Any] = {**SIZES, "image_channels": 2, "components": 0}
PLANTED = (torch.nan, 1e6, torch.inf)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(kind: str = "channel") -> dict[str, Any]:
    """Three cases of two channels: the first lacks the second channel, the last the first."""
    image = torch.randn(3, 2, *SHAPE, generator=generator()).clamp(-1, 1)
    mask = torch.zeros(3, 1, *SHAPE)
    mask[:, :, 2:5, 2:6, 3:6] = 1
    valid = torch.ones(3, 2, 1, 1, 1)
    valid[0, 1] = valid[2, 0] = 0
    if kind == "voxel":
        valid = valid.expand(3, 2, *SHAPE).clone()
        valid[1, 0, :2] = 0
    return {"image": image, "mask": mask, "valid": valid, "case": ["a", "b", "c"]}


def planted(batch: dict[str, Any], value: float) -> dict[str, Any]:
    return {**batch, "image": torch.where(batch["valid"] > 0, batch["image"], value)}


def texture(*args: Any, **options: Any) -> LatentModel:
    made: Any = pavae(SHAPE, SHAPE, shape=SIZES, texture=SIZES, image_channels=2)
    return made.texture


def critic() -> PatchDiscriminator:
    torch.manual_seed(1)
    return PatchDiscriminator(3, channels=(4, 8)).eval()


def models() -> dict[str, tuple[Any, Any]]:
    """How each is made, and what it is trained on."""
    drops = {**JOINT, "channel_dropout": 0.5}
    return {
        "vae": (lambda: vae(SHAPE, **drops), lambda m: joint_objective(alpha=0.1)),
        "hvae": (lambda: hvae(SHAPE, **drops), lambda m: joint_objective(overlap_weight=0.3)),
        "rhvae": (lambda: rhvae(SHAPE, **JOINT, hidden=8), lambda m: joint_objective()),
        "vqvae": (lambda: vqvae(SHAPE, **SIZES, image_channels=2, codes=4),
                  lambda m: code_objective()),
        "cvae_fill": (lambda: cvae_fill(SHAPE, **JOINT), lambda m: fill_objective(m)),
        "cvae_multiscale": (lambda: cvae_multiscale(SHAPE, **JOINT, coarse=1),
                            lambda m: multiscale_objective(weights=[0.5])),
        "icvae": (lambda: icvae(SHAPE, **JOINT, classes=("a", "b")), lambda m: icvae_objective(m)),
        "disc_vae": (lambda: vae(SHAPE, **JOINT),
                     lambda m: disc_vae_objective(m, critic(), adversarial_weight=0.5)),
        "vae_gan, encoder": (lambda: vae(SHAPE, **JOINT),
                             lambda m: vae_gan_objectives(m, critic())[0]),
        "vae_gan, decoder": (lambda: vae(SHAPE, **JOINT),
                             lambda m: vae_gan_objectives(m, critic())[1]),
        "pavae": (texture, lambda m: texture_objective(nn.Conv3d(3, 1, 1))),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["channel", "voxel"])
@pytest.mark.parametrize("name", list(models()))
def test_what_stands_in_the_place_of_a_missing_channel_changes_no_gradient(
    name: str, kind: str
) -> None:
    make, judge = models()[name]
    batch = batch_of(kind)
    if name == "pavae":
        batch["attributes"] = torch.zeros(3, 7)
    elif name == "icvae":
        batch["attributes"] = torch.eye(2)[[0, 1, 0]]
    found = []
    for value in (0.0, *PLANTED):
        torch.manual_seed(0)
        model = make().train()
        objective: Objective = judge(model)
        shown = planted(batch, value)
        if name == "pavae":  # scores of a critic that is not one: its features are its logits
            objective = Objective([t for t in objective.terms if t.name in ("nll", "in_mask")])
        loss, _ = objective(model.trace(shown, generator()), shown, 10)
        loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), grads))
    (loss, grads), *others = found
    assert loss.isfinite() and any(bool(g.abs().sum() > 0) for g in grads.values())
    for other_loss, other_grads in others:
        assert torch.equal(loss, other_loss)
        assert grads.keys() == other_grads.keys()
        assert all(torch.equal(grads[n], other_grads[n]) for n in grads)


def test_an_encoder_that_judges_does_not_see_it_either() -> None:
    losses = []
    for value in (0.0, *PLANTED):
        torch.manual_seed(0)
        model = vae(SHAPE, **JOINT).train()
        for role, side in (("encoder", model.encoder), ("decoder", model.decoder)):
            seen = introspect(model, planted(batch_of(), value), generator(), role)
            loss = getattr(SoftIntrospection(), f"{role}_loss")(seen)
            loss.backward()
            grads = [p.grad for p in side.parameters() if p.grad is not None]
            losses.append((loss.detach(), torch.stack([g.norm() for g in grads])))
            model.zero_grad()
    for turn in (0, 1):
        for loss, norms in losses[turn + 2 :: 2]:
            assert torch.equal(loss, losses[turn][0])
            assert torch.equal(norms, losses[turn][1])
    assert losses[0][0].isfinite()


def test_validation_scores_what_was_observed_alone() -> None:
    model = vae(SHAPE, **JOINT).eval()
    with torch.no_grad():
        scores = []
        for value in (0.0, *PLANTED):
            batch = planted(batch_of(), value)
            scores.append(torch.stack(squared_error(model.trace(batch, generator()), batch)))
    assert scores[0].isfinite().all()
    assert all(torch.equal(scores[0], each) for each in scores[1:])


POSE = Augmentation(
    RandomPose(rotation_deg=9, translation=2, elastic=1.0), RandomIntensity(gain=0.1, offset=0.02)
)


@pytest.mark.parametrize("kind", ["channel", "voxel"])
def test_augmentation_keeps_channels_apart_from_what_was_not_observed(kind: str) -> None:
    found = []
    for value in (-1.0, *PLANTED):
        batch = POSE(planted(batch_of(kind), value), generator(3))
        assert batch["image"].shape == (3, 2, *SHAPE)
        assert batch["valid"].shape == (3, 2, *SHAPE)
        found.append(batch)
    first = found[0]
    assert first["image"].isfinite().all()
    assert not first["valid"][0, 1].any() and not first["valid"][2, 0].any()
    assert first["valid"][0, 0].any() and first["valid"][1].flatten(1).any(1).all()
    for other in found[1:]:
        assert all(torch.equal(first[key], other[key]) for key in ("image", "valid", "mask"))


def test_a_channel_that_was_observed_is_augmented_as_if_all_were() -> None:
    whole = {"image": batch_of()["image"], "mask": batch_of()["mask"]}
    pose = Augmentation(RandomPose(rotation_deg=9, translation=2))
    whole, lacking = pose(whole, generator(3)), pose(batch_of(), generator(3))
    torch.testing.assert_close(lacking["image"][0, 0], whole["image"][0, 0])
    torch.testing.assert_close(lacking["image"][1], whole["image"][1])


def items() -> list[dict[str, Any]]:
    label, image = torch.zeros(1, *SHAPE), torch.zeros(2, *SHAPE)
    lacks = torch.stack([torch.ones(SHAPE), torch.zeros(SHAPE)])
    padded = torch.ones(1, *SHAPE)
    padded[:, :2] = 0
    return [
        {"image": image, "label": label, "case": "whole"},
        {"image": image, "label": label, "valid": padded, "case": "padded"},
        {"image": image, "label": label, "valid": lacks, "case": "lacks"},
        {"label": label, "case": "mask"},
    ]


def test_cases_of_all_sorts_share_a_batch() -> None:
    batch = collate(items())
    assert batch["image"].shape == batch["valid"].shape == (4, 2, *SHAPE)
    assert batch["valid"].flatten(2).amax(2).tolist() == [[1, 1], [1, 1], [1, 0], [0, 0]]
    assert not batch["valid"][1, :, :2].any() and batch["valid"][1, :, 2:].all()
    assert collate(items()[:2])["valid"].shape == (2, 1, *SHAPE)
    assert "valid" not in collate(items()[:1])


def test_prepared_cases_of_their_own_size_say_it_by_their_images() -> None:
    """Without one shape for all, no map of what was observed is made beside the image."""
    image = MetaTensor(torch.full((2, *SHAPE), -1.0), meta={MISSING: [1]})
    label = torch.zeros(1, *SHAPE)
    batch = collate([{"image": image, "label": label}, {"image": image[:1].expand(2, -1, -1, -1),
                                                        "label": label}])  # fmt: skip
    assert batch["valid"].flatten(2).amax(2).tolist() == [[1, 0], [1, 0]]
    assert batch["valid"][:, 0].all()


class Patches:
    """Patches whose missing channels hold what is planted there, as a loader of them."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __len__(self) -> int:
        return 1

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        pass

    def __iter__(self) -> Iterator[dict[str, Any]]:
        cases = []
        for number, missing in enumerate(([1], [], [0])):
            image = torch.randn(2, 9, 8, 6, generator=generator(number)).clamp(-1, 1)
            image[missing] = self.value
            mask = torch.zeros(1, 9, 8, 6, dtype=torch.uint8)
            mask[:, 3:6, 2:6, 2:5] = 1
            meta = {MISSING: missing} if missing else {}
            cases.append(
                {"image": MetaTensor(image, meta=meta), "mask": mask, "case": "abc"[number]}
            )
        loader = patch_loader(cases, patch_shape=SHAPE, batch_size=3, seed=1, samples_per_case=1)
        for batch in loader:
            gone = (batch["valid"].flatten(2).amax(2) == 0)[..., None, None, None]
            yield {**batch, "image": torch.where(gone, self.value, batch["image"])}
        loader.close()


def stage(seed: int = 0) -> tuple[LatentModel, nn.Module, list[Player]]:
    torch.manual_seed(seed)
    model = texture()
    critic = PatchDiscriminator(3, channels=(4, 8))
    objective = texture_objective(critic, adversarial_weight=0.5, free_nats=0.1)
    learner = torch.optim.SGD(model.parameters(), 0.1)
    judge = torch.optim.SGD(critic.parameters(), 0.1)
    return (
        model,
        critic,
        [
            ModelPlayer(model, objective, learner, clip_norm=1.0),
            DiscriminatorPlayer(critic, judge, clip_norm=1.0),
        ],
    )


@pytest.mark.parametrize("pose", [None, RandomPose(flip_axes=(0, 1)), RandomPose(rotation_deg=9)])
def test_what_stands_in_a_missing_channel_of_a_patch_moves_no_weight(pose: Any) -> None:
    augmentation = None if pose is None else Augmentation(pose, RandomIntensity(gain=0.05))
    found = []
    for value in (-1.0, torch.nan, 1e6):
        batch = next(iter(PatchStream(Patches(value), 3, 1, augmentation)))
        assert batch["valid"].shape == (3, 2, *SHAPE)
        if augmentation is None:  # which would put air there
            stands = batch["image"][batch["valid"].flatten(2).amax(2) == 0]
            torch.testing.assert_close(stands, torch.full_like(stands, value), equal_nan=True)
        batch["attributes"] = torch.zeros(3, 7)
        model, critic, players = stage()
        turn = Turn(batch, 10, generator())
        for player in players:
            player.play(turn, contextlib.nullcontext)
        with torch.no_grad():
            score = torch.stack(squared_error(model.eval().trace(batch, generator()), batch))
        found.append([*model.parameters(), *critic.parameters(), score])
    before = stage()
    assert not torch.equal(found[0][0], next(before[0].parameters()))
    assert not torch.equal(found[0][-2], list(before[1].parameters())[-1])
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


def test_no_term_asks_for_a_channel_that_a_patch_lacks() -> None:
    """Likelihood, error inside of the mask, score and features of what is made there."""
    batch = next(iter(PatchStream(Patches(torch.nan))))
    batch["attributes"] = torch.zeros(3, 7)
    model, critic, _ = stage()
    objective = texture_objective(critic, free_nats=0.1)
    trace = model.train().trace(batch, generator())
    made = trace.heads["image"].mean
    there = batch["valid"].expand_as(made) > 0
    for term in objective.terms:
        if term.name in ("kl", "free_bits"):
            continue
        (gradient,) = torch.autograd.grad(term.value(trace, batch).sum(), made, retain_graph=True)
        assert not gradient[~there].any(), term.name
        assert gradient[there].any(), term.name
    share = {"a": 0.375, "b": 0.75, "c": 0.375}  # a quarter of each patch lies outside
    assert there.float().flatten(1).mean(1).tolist() == [share[case] for case in batch["case"]]


def test_the_second_stage_sees_cases_with_an_image_and_which_channels_they_have() -> None:
    picked = with_image(collate(items()))
    assert picked["case"] == ["whole", "padded", "lacks"]
    assert picked["valid"].shape == (3, 2, 1, 1, 1)
    assert picked["valid"].flatten(1).tolist() == [[1, 1], [1, 1], [1, 0]]
    assert "valid" not in with_image(collate([items()[1], items()[3]]))


def test_native_units_are_those_of_the_cases_that_have_the_channel() -> None:
    params = torch.tensor([
        [[0.0, 10.0], [1.0, 5.0]],
        [[2.0, 30.0], [torch.nan, torch.nan]],
        [[4.0, 20.0], [3.0, 9.0]],
    ])  # fmt: skip
    params = torch.cat([params, torch.full((3, 1, 2), torch.nan)], 1)
    statistics = TrainingStatistics(image_channels=3)
    statistics.fit_references(params)
    assert statistics.image_low.tolist() == [2.0, 1.0, 0.0]
    assert statistics.image_high.tolist() == [20.0, 5.0, 1.0]


def grainy(seed: int, count: int = 4) -> Tensor:
    return 0.2 * torch.randn(count, 2, 16, 16, 16, generator=generator(seed))


def test_the_grain_of_a_channel_is_that_of_the_cases_that_have_it() -> None:
    real, made = grainy(0), torch.zeros(4, 2, 16, 16, 16)
    valid = torch.ones(4, 2, 16, 16, 16)
    valid[2:, 1] = 0
    lacking, fewer, whole = Grain(2, 3), Grain(2, 3), Grain(2, 3)
    lacking.fit(made, torch.where(valid > 0, real, torch.nan), valid)
    fewer.fit(made[:2], real[:2])
    whole.fit(made, real)
    torch.testing.assert_close(lacking.deviation[1], fewer.deviation[1])
    torch.testing.assert_close(lacking.kernel[1], fewer.kernel[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(lacking.deviation[0], whole.deviation[0])
    valid[:, 1] = 0
    never = Grain(2, 3)
    never.fit(made, real, valid)
    assert never.deviation[0].any() and not never.deviation[1].any()


def test_a_brain_is_told_by_the_first_channel_that_is_there() -> None:
    label = torch.zeros(1, *SHAPE)
    label[:, 3:5, 3:5, 3:5] = 1
    brain = torch.full(SHAPE, -1.0)
    brain[1:7, 1:7, 1:7] = 0.5
    valid = torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)])
    maps = []
    for image, seen in ((torch.stack([brain, brain]), None),
                        (torch.stack([torch.full(SHAPE, -1.0), brain]), valid)):  # fmt: skip
        case = {"image": image, "label": label, "case": "a"}
        statistics = TrainingStatistics(location_size=4)
        LocationFitter(statistics, [case if seen is None else {**case, "valid": seen}]).fit()
        maps.append(statistics.location_map)
    assert maps[0].any()
    assert torch.equal(*maps)
