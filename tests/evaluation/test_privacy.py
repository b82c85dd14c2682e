"""Claims about copies of training cases, over flips and shifts."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from medvae3d.errors import DataListError, GridMismatchError, SettingError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.copies import by_chance, held_out_ratio
from medvae3d.evaluation.planted import planted_copies, posed
from medvae3d.evaluation.poses import (
    FLIPS,
    KINDS,
    LEAST_SHARED,
    Search,
    all_pairs,
    moved,
    nearest_of,
    shifted_distances,
    spectrum_of,
)
from medvae3d.evaluation.privacy import privacy_section
from medvae3d.evaluation.sections import Light
from medvae3d.evaluation.signatures import likely, signatures

# Small volumes are compared at half their size, so that both steps of the search are at work.
SEARCH = Search(size=6, reach=2, refined=4)


def textures(count, seed, side=12, prefix="case"):
    """Smooth random volumes of two channels, each with a mask of its own."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(count, 3, side, side, side, generator=generator)
    x = torch.nn.functional.avg_pool3d(rough, 3, 1, 1, count_include_pad=False)
    mask = (x[:, 2:] > x[:, 2:].flatten(1).quantile(0.9, 1).view(-1, 1, 1, 1, 1)).float()
    ones = torch.ones_like(mask)
    names = tuple(f"{prefix}{seed}_{i}" for i in range(count))
    return Cases(2 * x[:, :2] - 1, mask, ones, mask, names)


def nearest(cases, others, kind, same=False, search=SEARCH):
    rough = all_pairs(cases, others, kind, search)
    return nearest_of(cases, others, rough, kind, search, same=same)


def brute_force(x, here, y, there, reach):
    """Distance at every shift, voxel by voxel."""
    side = 2 * reach + 1
    found = torch.full((side,) * 3, torch.inf)
    least = LEAST_SHARED * min(here.sum(), there.sum())
    for at in itertools.product(range(-reach, reach + 1), repeat=3):
        total, count = 0.0, 0
        for voxel in itertools.product(*(range(n) for n in y.shape[1:])):
            source = tuple(v - s for v, s in zip(voxel, at, strict=True))
            if any(not 0 <= v < n for v, n in zip(source, x.shape[1:], strict=True)):
                continue
            if here[(0, *source)] and there[(0, *voxel)]:
                total += float((x[(..., *source)] - y[(..., *voxel)]).square().sum())
                count += len(x)
        if count >= least * len(x):
            found[tuple(s + reach for s in at)] = (total / count) ** 0.5
    return found


# -- poses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_full", [True, False])
def test_all_shifts_at_once_are_those_of_brute_force(is_full):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 2, 5, 4, 4, generator=generator)
    here, there = torch.ones(2, 1, 5, 4, 4)
    if not is_full:
        here[0, 0], there[0, :, 3] = 0, 0
    truth = brute_force(x, here, y, there, 1)
    found = shifted_distances(spectrum_of(x, here, 1), spectrum_of(y, there, 1), 1)
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=0)


def test_shifted_masks_have_the_dice_of_brute_force():
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.rand(2, 1, 6, 5, 7, generator=generator) > 0.6).float()
    found = shifted_distances(spectrum_of(x, None, 2), spectrum_of(y, None, 2), 2)
    for at in itertools.product(range(-2, 3), repeat=3):
        dice = 2 * (moved(x, at) * y).sum() / (x.sum() + y.sum())
        assert found[tuple(s + 2 for s in at)] == pytest.approx(float(1 - dice), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [20, 21])
def test_the_pose_of_a_copy_is_found(kind, side):
    """Every flip, each with another shift; blocks of 2 voxels fill 20 voxels and not 21."""
    train = textures(8, 0, side)
    mask = torch.zeros_like(train.mask)
    mask[..., 3:-3, 3:-3, 3:-3] = train.mask[..., 3:-3, 3:-3, 3:-3]
    train = replace(train, mask=mask)
    shifts = [[2, -1, 1], [0, 0, 0], [-2, -2, 2], [1, 0, 0], [0, 2, -2], [-1, 1, 1], [2, 2, 2]]
    copies = [
        posed(train[[row]], axes, shift)
        for row, (axes, shift) in enumerate(zip(FLIPS, [*shifts, [0, -1, 0]], strict=True))
    ]
    for row, copy in enumerate(copies):
        found = nearest(copy, train, kind, search=Search(size=11))
        assert found.index.tolist() == [row]
        assert float(found.distance) == pytest.approx(0, abs=1e-6)


def test_copies_of_one_small_lesion_are_found_in_a_large_volume():
    """Boxes of 2 to 4 voxels a side in 48: the blocks of 3 voxels that are averaged blur them."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(8, 1, 48, 48, 48)
    for each in mask:
        corner = torch.randint(6, 36, (3,), generator=generator)
        far = corner + torch.randint(2, 5, (3,), generator=generator)
        i, j, k = (slice(*ends) for ends in zip(corner.tolist(), far.tolist(), strict=True))
        each[0, i, j, k] = 1
    train = Cases(-torch.ones_like(mask), mask, mask, mask, tuple("abcdefgh"))
    for row, axes in enumerate(FLIPS):
        copy = posed(train[[row]], axes, [2, -1, 1])
        assert float(nearest(copy, train, "mask", search=Search()).distance) == 0


def test_signatures_do_not_change_when_a_volume_is_moved_mirrored_or_brightened():
    generator = torch.Generator().manual_seed(3)
    x = torch.zeros(2, 2, 14, 12, 16)
    x[..., 4:10, 3:9, 5:11] = torch.rand(2, 2, 6, 6, 6, generator=generator)
    known = signatures(lambda row: x[row], 2)
    for number, axes in enumerate(FLIPS):
        made = 1.3 * x[1].flip(axes).roll((2, -1, 1), (1, 2, 3))
        one = signatures(lambda row: made, 1)  # noqa: B023
        found = likely(one, known, 1)[0].tolist()
        assert found[0][1] == 1 and number in [flip for flip, _ in found]
    assert likely(known, known, 1, same=True)[:, 0, 1].tolist() == [1, 0]


def test_copies_of_small_lesions_are_found_among_many_like_them():
    """Three lesions of 2 or 3 voxels a side each, of which averages of blocks leave little."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(60, 1, 40, 40, 40)
    for each, _ in itertools.product(mask, range(3)):
        corner = torch.randint(4, 32, (3,), generator=generator)
        far = corner + torch.randint(2, 4, (3,), generator=generator)
        i, j, k = (slice(*ends) for ends in zip(corner.tolist(), far.tolist(), strict=True))
        each[0, i, j, k] = 1
    train = Cases(-torch.ones_like(mask), mask, mask, mask, tuple(map(str, range(60))))
    copies = planted_copies(train, 0)
    search = Search(size=8, refined=4)
    poses = nearest(copies, train, "mask", search=search)
    assert float(poses.distance.max()) == 0
    blocks = nearest(copies, train, "mask", search=replace(search, alike=0))
    assert float(blocks.distance.max()) > 0.5, "or this test says nothing of signatures"


def test_distances_of_all_pairs_are_exact_where_nothing_is_averaged():
    cases, others = textures(2, 0, 6), textures(3, 1, 6)
    found = all_pairs(cases, others, "image", Search(size=6, reach=1)).distance
    for row, column in itertools.product(range(2), range(3)):
        x, y = (cases.image[row] + 1) / 2, (others.image[column] + 1) / 2
        best = np.inf
        for axes in FLIPS:
            for at in itertools.product((-1, 0, 1), repeat=3):
                shared = moved(torch.ones(1, 6, 6, 6), at)
                gap = (moved(x.flip(axes), at) - y).square() * shared
                best = min(best, float((gap.sum() / (2 * shared.sum())).sqrt()))
        assert float(found[row, column]) == pytest.approx(best, abs=1e-4)


def test_a_case_is_not_its_own_neighbour():
    train = textures(5, 0)
    found = nearest(train, train, "image", same=True)
    assert (found.index != torch.arange(5)).all() and (found.distance > 0.01).all()


def test_what_was_not_observed_keeps_no_copy_apart():
    train = textures(4, 0)
    half = torch.ones_like(train.valid)
    half[..., 8:] = 0
    padded = replace(train, image=torch.where(half > 0, train.image, 5.0), valid=half)
    for first, second in ((train, padded), (padded, train)):
        assert nearest(first, second, "image").distance.numpy() == pytest.approx(0, abs=1e-6)


def test_sets_on_other_grids_are_refused():
    with pytest.raises(GridMismatchError, match="12, 12, 12"):
        all_pairs(textures(2, 0), textures(2, 1, 10), "image")


# -- the ratio ------------------------------------------------------------------------------------


def test_a_larger_training_set_is_no_sign_of_copies():
    """Points of one distribution, 90 in training and 30 held out."""
    rng = np.random.default_rng(0)
    train, held, made = (torch.tensor(rng.normal(size=(n, 4))) for n in (90, 30, 200))
    ratio, split = held_out_ratio(torch.cdist(made, train), torch.cdist(made, held), 0)
    assert split.low < 0.5 < split.high and ratio.low < 1 < ratio.high
    assert split.value == pytest.approx(0.5, abs=0.1)
    naive = torch.cdist(made, train).amin(1) < torch.cdist(made, held).amin(1)
    assert naive.double().mean() > 0.65


def test_samples_round_training_cases_are_told_by_the_ratio():
    rng = np.random.default_rng(1)
    train, held = torch.tensor(rng.normal(size=(2, 40, 4)))
    made = train.repeat(5, 1) + 0.1 * torch.tensor(rng.normal(size=(200, 4)))
    ratio, split = held_out_ratio(torch.cdist(made, train), torch.cdist(made, held), 0)
    assert split.low > 0.55 and ratio.high < 1


def test_chance_is_wider_for_few_training_cases():
    assert by_chance(200, 50) > by_chance(200, 1000) >= 6
    assert by_chance(0, 50) == 0


# -- the section ----------------------------------------------------------------------------------


def section_of(train, made, held, **options):
    return privacy_section(train, made, held, seed=2, search=SEARCH, **options)


@pytest.fixture(scope="module")
def sets():
    """Training cases, samples of the same distribution, held-out cases."""
    return textures(24, 0), textures(20, 1, prefix="made"), textures(22, 2)


def test_planted_copies_are_mirrored_moved_and_changed():
    train = textures(12, 0)
    copies = planted_copies(train, 0)
    assert len(copies) == 10 and len({*copies.names}) == 10
    poses = nearest(copies, train, "image")
    named = [f"copy of {train.names[int(i)]}" for i in poses.index]
    assert named == list(copies.names)
    assert poses.shift.abs().amin() == 1 and poses.shift.abs().amax() == 2
    assert len(set(poses.flip.tolist())) > 2
    assert (poses.distance > 0.001).all()


def test_all_planted_copies_are_found_and_held_out_cases_let_go(sets):
    done = []
    section = section_of(
        *sets,
        # What has left the volume on its way cannot come back: latents of the middle alone.
        encode=lambda cases: cases.image[:, :, 2:-2, 2:-2, 2:-2],
        progress=lambda step, steps: done.append((step, steps)),
    )
    for name in ("image", "mask", "latent"):
        row = section.tables["Self-test"][name]
        assert row["planted copies flagged"].note == "10 of 10", name
        assert row["held-out cases flagged"].value <= 0.15, name
    lights = [verdict.light for verdict in section.verdicts]
    assert Light.RED not in lights and lights.count(Light.GREEN) >= 5
    assert done == [(step, 8) for step in range(1, 9)]
    json.dumps(section.to_dict(), allow_nan=False)


def test_copies_among_samples_are_red_and_named(sets):
    train, made, held = sets
    copies = planted_copies(train, 7, 3)
    mixed = replace(
        made,
        image=torch.cat([copies.image, made.image[3:]]),
        mask=torch.cat([copies.mask, made.mask[3:]]),
    )
    section = section_of(train, mixed, held)
    assert section.verdicts[0].light is section.verdicts[1].light is Light.RED
    for row in range(3):
        numbers = section.cases["synthetic"][made.names[row]]
        named = section.facts["nearest"][made.names[row]]["image"]
        assert numbers["image flagged"] == 1 and f"copy of {named}" == copies.names[row]
        assert train.names[int(numbers["image nearest row"])] == named
    assert section.cases["synthetic"][made.names[9]]["image flagged"] == 0


def test_a_model_that_only_knows_its_training_cases_gives_them_away(sets):
    train, made, held = sets

    def overfit(cases):
        return -torch.cdist(cases.image.flatten(1), train.image.flatten(1)).amin(1)

    section = section_of(train, made, held, log_likelihood=overfit)
    assert section.tables["Membership inference"]["likelihood"]["AUC"].value == 1
    assert section.verdicts[-1].light is Light.RED

    def honest(cases):
        return cases.image.flatten(1).mean(1)

    row = section_of(train, made, held, log_likelihood=honest).tables["Membership inference"]
    assert row["likelihood"]["AUC"].low < 0.5 < row["likelihood"]["AUC"].high
    assert row["nearest sample, image"]["AUC"].low < 0.5

    with pytest.raises(SettingError, match="one number a case"):
        section_of(train[:2], made[:1], held[:2], log_likelihood=lambda cases: cases.image)


def test_samples_that_lie_round_training_cases_give_them_away(sets):
    train, _, held = sets
    section = section_of(train, replace(train[:20], image=train.image[:20] + 0.02), held)
    assert section.tables["Membership inference"]["nearest sample, image"]["AUC"].low > 0.65
    split = section.tables["Training against held-out cases"]["image"]["share nearer to training"]
    assert split.value > 0.6
    assert section.verdicts[-1].light is Light.RED


def test_a_held_out_case_that_was_trained_on_is_named(sets):
    train, made, held = sets
    with pytest.raises(DataListError, match=r"case0_3 \(same name\)"):
        section_of(train, made, replace(held[:2], names=("case0_3", "x")))
    with pytest.raises(DataListError, match=r"y \(same voxels as case0_5\)"):
        section_of(train, made, replace(train[[5]], names=("y",)))


def test_without_held_out_cases_the_rest_is_still_there(sets):
    train, made, _ = sets
    section = section_of(train[:8], made[:3], None)
    row = section.tables["Training against held-out cases"]["image"]["distance ratio"]
    assert row.value is None and row.note and section.warnings
    assert section.tables["Self-test"]["image"]["planted copies flagged"].n == 8
    json.dumps(section.to_dict(), allow_nan=False)


def test_constant_images_and_empty_masks_leave_rows_with_a_note(sets):
    train, made, held = (
        replace(each[:6], image=0 * each.image[:6], mask=0 * each.mask[:6]) for each in sets
    )
    section = section_of(train, made, held)
    for kind in KINDS:
        row = section.tables["Distance to the nearest training case"][kind]
        assert row["share of samples below"].value is None and row["limit"].note
    assert section.cases["synthetic"][made.names[0]]["mask distance"] is None
    assert all(verdict.light is Light.GREY for verdict in section.verdicts)
    json.dumps(section.to_dict(), allow_nan=False)


def test_masks_without_images_are_compared_by_their_masks(sets):
    train, made, held = (replace(each, valid=0 * each.valid) for each in sets)
    section = section_of(train, made, held)
    assert section.tables["Distance to the nearest training case"]["image"]["limit"].value is None
    assert "10 of 10" in section.verdicts[3].found and "(mask)" in section.verdicts[3].claim


def test_one_training_case_says_nothing(sets):
    train, made, _ = sets
    assert section_of(train[:1], made, None).not_computed
    assert section_of(train, made[[]], None).not_computed
