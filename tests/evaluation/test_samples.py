"""Claims about control, agreement, copies and speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_bundles as tiny
import torch

from medvae3d.data.preparation import FILL
from medvae3d.errors import OutputError
from medvae3d.evaluation.agreement import (
    SegmenterSettings,
    agreement,
    as_segment,
    derangement,
    train_segmenter,
)
from medvae3d.evaluation.cases import Cases, framed_as
from medvae3d.evaluation.control import (
    control_before_level,
    rank_correlation,
    volume_control,
)
from medvae3d.evaluation.privacy import copy_check, nearest
from medvae3d.evaluation.throughput import in_process, peak_memory_mb, written_per_second


def ball_cases(count, seed=0, noise=0.1, side=tiny.SIDE):
    """Balls that are brighter than what surrounds them, anywhere in the volume."""
    generator = torch.Generator().manual_seed(seed)
    masks = (tiny.balls(count, generator) > 0).float()
    shifts = torch.randint(-3, 4, (count, 3), generator=generator).tolist()
    moved = [torch.roll(m, s, (1, 2, 3)) for m, s in zip(masks, shifts, strict=True)]
    mask = torch.stack(moved)
    image = 0.8 * mask - 0.4 + noise * torch.randn(mask.shape, generator=generator)
    names = tuple(f"ball_{seed}_{i}" for i in range(count))
    return Cases(image, mask, torch.ones_like(mask), mask, names)


# -- control --------------------------------------------------------------------------------------


def test_ranks_agree_when_larger_requests_give_larger_masks():
    asked = [1.0, 2.0, 3.0, 4.0]
    assert rank_correlation(asked, [v**3 for v in asked]) == 1
    assert rank_correlation(asked, asked[::-1]) == -1
    assert rank_correlation(asked, [1.0] * 4) is None


def test_the_worst_volume_is_told():
    found = volume_control([1.0, 2.0, 4.0], [1.0, 2.2, 4.0])
    assert found["worst_relative_error"] == pytest.approx(0.1)
    assert found["median_relative_error"] == 0
    assert found["spearman"] == pytest.approx(1)


def test_a_network_that_follows_its_attributes_is_seen_to():
    """Its decoder was taught balls of the volume that it is told."""
    network = tiny.taught()
    found = control_before_level(network, network.statistics, tiny.SPACING, 24)
    assert found["spearman"]["log_volume"] > 0.6
    with torch.no_grad():  # the same without what it is told
        network.embedding.body[0].weight.zero_()
    deaf = control_before_level(network, network.statistics, tiny.SPACING, 24)
    heard = deaf["spearman"]["log_volume"]
    assert heard is None or heard < 0.4


# -- agreement ------------------------------------------------------------------------------------


def bright(image):
    """A perfect segmenter of balls."""
    return (image > 0).float()


def test_shuffled_pairs_score_less_with_a_perfect_segmenter():
    real, made = ball_cases(6, noise=0), ball_cases(12, seed=1, noise=0)
    found = agreement(bright, real, made)
    rows = found["rows"]
    assert found["ratio"] == 1
    assert rows["synthetic"]["dice"]["mean"] == rows["real, unseen"]["dice"]["mean"] == 1
    assert rows["synthetic, shuffled"]["dice"]["high"] < 0.9


def test_an_image_that_shows_something_else_lowers_the_ratio():
    real, made = ball_cases(6, noise=0), ball_cases(12, seed=1, noise=0)
    other = replace(made, image=made.image.flip(2))
    assert agreement(bright, real, other)["ratio"] < 0.9


def test_samples_larger_than_all_unseen_cases_are_told_apart():
    """A segmenter that misses what is large lowers the ratio, not that at like volumes."""
    real = ball_cases(6, noise=0)
    made = ball_cases(12, seed=1, noise=0)
    huge = torch.zeros_like(made.mask[:4])
    huge[..., 1:-1, 1:-1, 1:-1] = 1
    both = replace(
        made,
        image=torch.cat([made.image[:8], -torch.ones_like(huge)]),
        mask=torch.cat([made.mask[:8], huge]),
    )
    found = agreement(bright, real, both)
    assert found["ratio"] == pytest.approx(8 / 12)
    assert found["ratio_at_volumes_of_the_unseen"] == 1


def test_voxels_that_were_not_observed_do_not_count():
    real = ball_cases(4, noise=0)
    half = torch.ones_like(real.valid)
    half[..., 8:] = 0
    image = torch.where(half > 0, real.image, -real.image)
    found = agreement(bright, real, replace(real, image=image, valid=half))
    assert found["ratio"] == 1


def test_samples_get_the_padding_of_a_real_case_and_no_other():
    made, real = ball_cases(6), ball_cases(2, seed=1)
    whole = framed_as(made, real)
    assert whole is made
    real.valid[0, :, :3] = 0
    real.valid[1, :, -4:] = 0
    framed = framed_as(made, real, seed=3)
    assert {3, 4} == {int((each[0, :, 0, 0] == 0).sum()) for each in framed.valid}
    outside = (framed.valid == 0).expand_as(framed.image)
    assert (framed.image[outside] == FILL).all()
    assert not framed.mask[framed.valid == 0].any()
    assert torch.equal(framed.image[~outside], made.image[~outside])
    assert torch.equal(framed_as(made, real, seed=3).valid, framed.valid)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_shuffling_leaves_no_pair_together(count):
    order = derangement(count, seed=4)
    assert sorted(order) == list(range(count))
    assert all(place != other for place, other in enumerate(order))


@pytest.mark.slow
def test_a_segmenter_learns_balls_and_is_the_same_for_the_same_seed():
    settings = SegmenterSettings(channels=(8, 16, 32), steps=100, batch_size=4)
    train = ball_cases(24)
    network = train_segmenter(train, 2, settings, seed=1)
    found = agreement(as_segment(network), ball_cases(8, seed=2), ball_cases(16, seed=3))
    assert found["rows"]["real, unseen"]["dice"]["mean"] > 0.8
    assert found["ratio"] > 0.8
    assert found["rows"]["synthetic, shuffled"]["dice"]["high"] < 0.8
    short = replace(settings, steps=3)
    first, again = (train_segmenter(train, 2, short, seed=1).state_dict() for _ in "ab")
    assert all(torch.equal(first[key], again[key]) for key in first)


# -- copies ---------------------------------------------------------------------------------------


def texture_cases(count, seed):
    made = ball_cases(count, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    return replace(made, image=torch.rand(made.image.shape, generator=generator) * 2 - 1)


def test_planted_copies_are_found_and_new_cases_are_not():
    """Ten of ten, each mirrored along some axes; cases from elsewhere are let go."""
    train, unseen = texture_cases(20, 0), texture_cases(20, 1)
    flips = [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4), (2,), (3,)]
    copied = train[:10]
    image = torch.cat([copied.image[i : i + 1].flip(f) for i, f in enumerate(flips)])
    mask = torch.cat([copied.mask[i : i + 1].flip(f) for i, f in enumerate(flips)])
    copies = replace(copied, image=image + 0.01, mask=mask)
    found = copy_check(copies, train, unseen)["rows"]
    assert found["image"]["share of samples below"] == 1
    assert found["image"]["share of unseen below"] <= 0.1
    assert found["mask"]["samples to training"] == 0


def test_distances_are_root_mean_squares_and_dice():
    train = texture_cases(3, 0)
    moved = replace(train, image=train.image + 0.2)
    assert nearest(moved, train)["image"].numpy() == pytest.approx(0.1, abs=1e-3)
    assert nearest(train, train)["mask"].numpy() == pytest.approx(0, abs=1e-6)
    assert (nearest(train, train, same=True)["image"] > 0.1).all()


def test_what_was_not_observed_keeps_no_copy_apart():
    train = texture_cases(3, 0)
    half = torch.ones_like(train.valid)
    half[..., 8:] = 0
    padded = replace(train, image=torch.where(half > 0, train.image, -1.0), valid=half)
    assert nearest(train, padded)["image"].numpy() == pytest.approx(0, abs=1e-3)
    assert nearest(padded, train)["image"].numpy() == pytest.approx(0, abs=1e-3)


def test_one_training_case_says_nothing_of_copies():
    assert "rows" not in copy_check(texture_cases(2, 1), texture_cases(1, 0))


# -- speed ----------------------------------------------------------------------------------------


def test_samples_a_second_are_those_after_the_warm_up():
    asked = []

    def write(folder: Path, count: int, start: int) -> None:
        asked.append((folder.name, count, start))

    found = written_per_second(write, 5, warm_up=2)
    assert asked == [("warm_up", 2, 0), ("timed", 5, 2)]
    assert found["per_second"] == pytest.approx(5 / found["seconds"])


def test_memory_of_a_process_is_its_own():
    """What this process holds does not count, what the other one holds does."""
    held = np.ones(100 * 2**20, dtype=np.uint8)
    code = (
        "import json\n"
        "from medvae3d.evaluation.throughput import peak_memory_mb\n"
        "held = bytearray(b'1') * ({} * 2**20)\n"
        "print(json.dumps({{'mb': peak_memory_mb()}}))"
    )
    small, large = (in_process(["-c", code.format(mb)])["mb"] for mb in (1, 200))
    assert 150 < large - small < 250
    assert small < peak_memory_mb() and held.all()


def test_a_measurement_that_fails_says_why():
    with pytest.raises(OutputError, match="no such thing"):
        in_process(["-c", "raise SystemExit('no such thing')"])
