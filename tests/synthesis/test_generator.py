"""Claims about making samples without a host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_bundles as tiny
import torch
from scipy import ndimage, stats
from torch import nn

from medvae3d.data.volumes import Volume
from medvae3d.errors import (
    BundleError,
    GridMismatchError,
    LabelError,
    RangeError,
    RejectionError,
    SettingError,
)
from medvae3d.geometry import Grid
from medvae3d.models.grain import Grain
from medvae3d.probability.likelihoods import BernoulliMask
from medvae3d.synthesis.generator import Request, generate
from medvae3d.synthesis.levels import allowed_error

KINDS = [tiny.JOINT, tiny.TWO_STAGE, tiny.TWO_LABELS]


def samples(network, count, seed=0, recipe=None, **request):
    recipe = recipe or tiny.recipe(network)
    return list(generate(tiny.taught(network), recipe, Request(count, seed, **request)))


def same(a, b):
    return torch.equal(a.image, b.image) and torch.equal(a.label, b.label) and a.record == b.record


@pytest.mark.parametrize("network", KINDS)
def test_a_sample_depends_on_seed_and_index_alone(network):
    """Other counts, starts and blocks around it change no bit of a sample."""
    whole = samples(network, 11, seed=5)
    alone = samples(network, 1, seed=5, start=9)
    part = samples(network, 7, seed=5, start=3)
    assert same(alone[0], whole[9])
    assert all(same(a, b) for a, b in zip(part, whole[3:10], strict=True))


def grained(network):
    """The taught network with a grain that cannot be overlooked."""
    model = tiny.taught(network)
    part = model.texture if hasattr(model, "texture") else model
    part.grain = Grain(model.image_channels, 3)
    part.grain.deviation.fill_(0.2)
    return model


@pytest.mark.parametrize("network", KINDS)
def test_grain_of_a_sample_depends_on_seed_and_index_alone(network):
    recipe, model = tiny.recipe(network), grained(network)
    whole = list(generate(model, recipe, Request(5, 3)))
    (alone,) = generate(model, recipe, Request(1, 3, start=4))
    assert same(alone, whole[4])


@pytest.mark.parametrize("network", KINDS)
def test_grain_changes_images_and_leaves_masks(network):
    recipe, model = tiny.recipe(network), grained(network)
    plain = replace(recipe, synthesis=replace(recipe.synthesis, options={"grain": False}))
    for with_it, without in zip(
        generate(model, recipe, Request(3, 3)), generate(model, plain, Request(3, 3)), strict=True
    ):
        assert torch.equal(with_it.label, without.label)
        assert not torch.equal(with_it.image, without.image)


def test_nothing_is_drawn_at_temperature_zero():
    recipe, model = tiny.recipe(tiny.JOINT), grained(tiny.JOINT)
    grainy, smooth = (
        next(iter(generate(each, recipe, Request(1, 3, temperature=0.0))))
        for each in (model, tiny.taught(tiny.JOINT))
    )
    assert torch.equal(grainy.image, smooth.image)


@pytest.mark.parametrize("network", KINDS)
def test_other_seeds_and_indices_give_other_samples(network):
    first, second = samples(network, 2, seed=1)
    (other,) = samples(network, 1, seed=2)
    assert not torch.equal(first.label, second.label)
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize("network", KINDS)
def test_samples_are_what_the_recipe_says(network):
    recipe = tiny.recipe(network)
    for sample in samples(network, 3):
        assert sample.image.shape == (len(recipe.channels), 16, 16, 16)
        assert sample.image.dtype == torch.float32
        assert sample.label.shape == (1, 16, 16, 16) and sample.label.dtype == torch.uint8
        assert set(sample.label.unique().tolist()) == set(recipe.values)
        assert sample.grid == Grid.centred((16, 16, 16), (4, 4, 4))
        assert sample.record["kind"] == recipe.synthesis.kind


def test_images_come_in_native_units():
    """Taught: a network value of 0.3 inside the mask, which is 4.2 SUV and 125 HU."""
    means = [sample.record["checks"]["mean_inside"] for sample in samples(tiny.JOINT, 4)]
    rims = [sample.record["checks"]["mean_rim"] for sample in samples(tiny.JOINT, 4)]
    assert all(0.5 < mean["PET"] < 10 and -200 <= mean["CT"] <= 300 for mean in means)
    assert all(m["CT"] > r["CT"] for m, r in zip(means, rims, strict=True))


def test_the_mean_inside_is_that_of_image_and_mask():
    (sample,) = samples(tiny.JOINT, 1)
    inside = sample.image[1][sample.label[0] > 0].double().mean()
    assert sample.record["checks"]["mean_inside"]["CT"] == pytest.approx(float(inside), rel=1e-5)


@pytest.mark.parametrize("network", KINDS)
@pytest.mark.parametrize("asked", [(6.0, 30.0), (12.0, 12.5), None])
def test_the_asked_volume_is_made(network, asked):
    for sample in samples(network, 10, volume_ml=asked):
        checks = sample.record["checks"]
        voxels = checks["volume_asked_ml"] / 0.064
        inside = sample.label[0].numpy() > 0
        assert abs(inside.sum() - voxels) <= allowed_error(inside, voxels)
        if asked is not None:
            assert asked[0] * 0.999 <= checks["volume_asked_ml"] <= asked[1] * 1.001
        assert checks["volume_ml"] == pytest.approx(inside.sum() * 0.064)


def test_asked_and_made_volumes_rank_alike():
    made = samples(tiny.JOINT, 50, volume_ml=(5.0, 40.0))
    asked = [sample.record["checks"]["volume_asked_ml"] for sample in made]
    reached = [float(sample.label.sum()) for sample in made]
    assert stats.spearmanr(asked, reached).statistic > 0.95


def test_each_label_can_be_asked_for():
    request = {"front": (9.0, 10.0), "back": (4.0, 5.0)}
    for sample in samples(tiny.TWO_LABELS, 6, volume_ml=request):
        for value, (low, high) in enumerate(request.values(), start=1):
            made = sample.label[0].numpy() == value
            slack = allowed_error(made, made.sum()) * 0.064
            assert low - slack <= made.sum() * 0.064 <= high + slack


@pytest.mark.parametrize("network", KINDS)
def test_masks_are_one_piece_off_the_border_without_holes(network):
    for sample in samples(network, 8):
        mask = sample.label[0].numpy() > 0
        assert ndimage.label(mask, np.ones((3, 3, 3)))[1] == 1
        assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
        assert not mask[..., [0, -1]].any()
        assert (ndimage.binary_fill_holes(mask) == mask).all()


def test_the_record_says_what_was_asked_and_reached():
    (sample,) = samples(tiny.TWO_STAGE, 1, seed=4, start=2, volume_ml=(10.0, 20.0))
    record = sample.record
    assert record["seed"] == 4 and record["index"] == 2 and record["device"] == "cpu"
    asked, reached = record["condition"]["asked"], record["condition"]["reached"]
    assert set(asked) == set(reached) and "sphericity" in asked
    assert reached["volume_ml"] == pytest.approx(asked["volume_ml"], rel=0.2)
    assert record["options"]["volume_ml"] == [10.0, 20.0]
    assert record["attempts"] == 1 and record["rejected"] == {}


# -- rejection --------------------------------------------------------------------------------


class EmptyAtFirst(nn.Module):
    """A head whose first two masks of the first sample are empty."""

    features, output = 1, "mask"

    def __init__(self, inner, calls):
        super().__init__()
        self.inner, self.calls = inner, calls

    def forward(self, features):
        head = self.inner(features)
        self.calls.append(len(features))
        if len(self.calls) > 2:
            return head
        logits = head.logits.clone()
        logits[0] = -9.0
        return BernoulliMask(logits)


def half_broken():
    network = tiny.taught(tiny.JOINT)
    calls: list[int] = []
    network.heads["mask"] = EmptyAtFirst(network.heads["mask"], calls)
    return network, calls


def unconditioned_recipe(**synthesis):
    return tiny.recipe(tiny.JOINT, volume_attribute=[], **synthesis)


def test_an_empty_mask_is_drawn_again():
    network, calls = half_broken()
    made = list(generate(network, tiny.recipe(), Request(2)))
    assert made[0].record["attempts"] == 3
    assert made[0].record["rejected"] == {"empty": 2}
    assert made[1].record["attempts"] == 1
    assert calls == [8, 2, 2]


def test_a_redrawn_sample_is_another_draw():
    plain = samples(tiny.JOINT, 1)
    (again,) = generate(half_broken()[0], tiny.recipe(), Request(1))
    assert not torch.equal(plain[0].image, again.image)


def test_too_many_rejections_end_with_their_reasons():
    network = tiny.taught(tiny.JOINT)
    with torch.no_grad():
        network.decoder.output.smooth.bias[2] = -99.0
    recipe = unconditioned_recipe(max_attempts=4)
    with pytest.raises(RejectionError, match=r"sample 0: all 4 draws .* empty \(4\)"):
        list(generate(network, recipe, Request(1)))


def test_progress_is_told_of_each_sample_and_rejection():
    network, _ = half_broken()
    told = []
    list(generate(network, tiny.recipe(), Request(2), progress=lambda *step: told.append(step)))
    assert told == [(1, 2, {"empty": 2}), (2, 2, {"empty": 2})]


# -- bad requests, refused before anything is made ------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"count": -1},
        {"start": -1},
        {"seed": -1},
        {"volume_ml": (5.0, 2.0)},
        {"volume_ml": (0.0, 2.0)},
        {"volume_ml": {"tumour": (float("nan"), 2.0)}},
        {"temperature": -0.1},
        {"temperature": float("nan")},
    ],
)
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(SettingError, match="allowed"):
        Request(**{"count": 1, **wrong})


def test_volumes_outside_of_training_are_refused_with_the_range():
    network = tiny.taught(tiny.JOINT)
    low, high = (float(edge.exp()) for edge in (network.statistics.low, network.statistics.high))
    with pytest.raises(RangeError, match=f"{low:.3g} to {high:.3g} ml.*--extrapolate"):
        generate(network, tiny.recipe(), Request(1, volume_ml=(5.0, 900.0)))


@pytest.mark.parametrize("request_ml", [(1.0, 90.0), {"front": (1.0, 200.0), "back": (5.0, 6.0)}])
def test_volumes_of_labels_outside_of_training_are_refused(request_ml):
    with pytest.raises(RangeError, match="trained on"):
        samples(tiny.TWO_LABELS, 1, volume_ml=request_ml)


def test_extrapolation_is_allowed_when_it_is_asked_for():
    (sample,) = samples(tiny.JOINT, 1, volume_ml=(55.0, 56.0), extrapolate=True)
    assert float(sample.label.sum()) * 0.064 == pytest.approx(55.5, rel=0.03)


def test_unknown_labels_are_refused():
    with pytest.raises(SettingError, match=r"front, back"):
        samples(tiny.TWO_LABELS, 1, volume_ml={"tumour": (1.0, 2.0)})


def test_volumes_need_weights_that_are_told_them():
    with pytest.raises(SettingError, match="not told any"):
        samples(tiny.JOINT, 1, recipe=unconditioned_recipe(), volume_ml=(5.0, 9.0))


def test_a_recipe_of_another_network_is_refused():
    with pytest.raises(BundleError, match="agree with network_def"):
        samples(tiny.JOINT, 1, recipe=tiny.recipe(tiny.TWO_LABELS))
    wide = replace(tiny.recipe(), spatial_shape=(20, 16, 16))
    with pytest.raises(BundleError, match="spatial_shape"):
        samples(tiny.JOINT, 1, recipe=wide)


def test_weights_that_make_nan_are_refused():
    network = tiny.taught(tiny.JOINT)
    with torch.no_grad():
        network.decoder.output.smooth.bias[2] = float("nan")
    with pytest.raises(BundleError, match="NaN"):
        list(generate(network, tiny.recipe(), Request(1)))


def test_a_network_without_masks_is_refused():
    with pytest.raises(SettingError, match="does not make volumes"):
        generate(nn.Linear(1, 1), tiny.recipe(), Request(1))


# -- a given mask -----------------------------------------------------------------------------


def given(array, affine=None, path="lesion.nii.gz"):
    grid = Grid(array.shape, np.diag([4.0, 4, 4, 1]) if affine is None else affine)
    return Volume(array, grid, array.dtype, None, tiny.Path(path))


def block(shape=(16, 16, 16), start=5, size=5):
    array = np.zeros(shape, np.uint8)
    array[start : start + size, start : start + size, start : start + size] = 1
    return array


def test_a_given_mask_is_filled_as_it_is():
    mask = given(block())
    made = samples(tiny.TWO_STAGE, 2, mask=mask)
    assert all((sample.label[0].numpy() == mask.array).all() for sample in made)
    assert all(sample.grid == mask.grid for sample in made)
    assert not torch.equal(made[0].image, made[1].image)


@pytest.mark.parametrize(
    ("shape", "affine", "voxels"),
    [
        ((40, 12, 30), None, 125),
        ((16, 16, 16), np.diag([-4.0, -4, 4, 1]), 125),
        ((20, 20, 20), np.diag([2.0, 4, 4, 1]), 63),
    ],
)
def test_a_given_mask_keeps_its_place_in_the_patient(shape, affine, voxels):
    mask = given(block(shape), affine)
    (sample,) = samples(tiny.TWO_STAGE, 1, mask=mask)
    assert sample.grid.axcodes == "RAS" and sample.grid.spacing == (4.0, 4.0, 4.0)
    made = sample.label[0].numpy()
    assert made.sum() == pytest.approx(voxels, rel=0.25)
    centre = mask.grid.to_world(np.argwhere(mask.array)).mean(0)
    assert np.abs(sample.grid.to_world(np.argwhere(made)).mean(0) - centre).max() <= 2.01


@pytest.mark.parametrize(
    ("mask", "error", "said"),
    [
        (block() * 3, LabelError, r"values \[0, 3\]; allowed are \[0, 1\]"),
        (block() * 0, LabelError, "not background alone"),
        (block((30, 30, 30), 3, 24), GridMismatchError, "spans 24 voxels"),
    ],
)
def test_masks_that_cannot_be_filled_are_refused(mask, error, said):
    with pytest.raises(error, match=said):
        samples(tiny.TWO_STAGE, 1, mask=given(mask))


def test_a_joint_model_takes_no_mask():
    with pytest.raises(SettingError, match="two-stage bundle"):
        samples(tiny.JOINT, 1, mask=given(block()))


def test_a_model_of_codes_draws_for_a_given_mask_and_says_how_near_it_came():
    codes = {**tiny.JOINT, "_target_": "medvae3d.models.zoo.vqvae", "codes": 8, "told_mask": True}
    codes |= {"vector_latent": False, "prior_width": 8, "prior_depth": 1, "prior_steps": 4}
    network = tiny.built({k: v for k, v in codes.items() if k not in ("num_steps", "attributes")})
    prior, masks = network.sampling_prior, torch.zeros(6, 1, 16, 16, 16)
    prior.fit(network.posterior.sample(6), seed=0, shares=prior.mask_shares(masks))
    loose = tiny.recipe(max_components=10**6, allow_border=True, volume_attribute=[])
    request = Request(2, 0, mask=given(block()))
    first, second = generate(network, loose, request)
    assert first.record["options"]["mask"]["file"] == "lesion.nii.gz"
    dice = first.record["checks"]["dice_with_given_mask"]
    made = first.label[0].numpy() > 0
    both = (made & (block() > 0)).sum()
    assert dice == pytest.approx(2 * both / (made.sum() + 125))
    assert made.sum() == pytest.approx(125, rel=0.1), "as large as what was given"
    assert not torch.equal(first.image, second.image)


def test_a_mask_has_its_volume_already():
    with pytest.raises(SettingError, match="its volume already"):
        Request(1, mask=given(block()), volume_ml=(1.0, 2.0))
