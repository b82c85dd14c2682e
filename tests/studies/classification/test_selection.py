"""Cycles of selection: bounded, stopped by rule, resumed to the same set, blind to validation."""

from __future__ import annotations

import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.studies.classification.selection import (
    SelectionSettings,
    Tools,
    most_similar,
    select,
)
from medvae3d.studies.classification.tasks import Images


class FarAndNear:
    """Candidates: copies of real images, images a little off, and images far off."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def sample(self, count: int, seed: int) -> Images:
        generator = torch.Generator().manual_seed(seed % 2**31)
        parts = []
        for value in (0, 1):
            x = self.images.of_class(value)
            x = x[torch.arange(count) % len(x)]
            step = torch.tensor([0.0, 1.0, 5.0])[torch.arange(count) % 3].view(-1, 1, 1, 1, 1)
            parts.append(x + step * torch.randn(x.shape, generator=generator))
        return Images(torch.cat(parts), torch.arange(2).repeat_interleave(count))


def real_images(count=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * count, 1, 2, 2, 2, generator=generator)
    y = torch.arange(2).repeat_interleave(count)
    return Images(x + y.view(-1, 1, 1, 1, 1), y)


def tools(brier=lambda kept: 0.2, encode=lambda x: x.flatten(1), fits=None):
    def fit(images, seed):
        if fits is not None:
            fits.append(images)
        return FarAndNear(images)

    return Tools(fit, encode, brier)


def test_similar_images_are_kept_and_near_copies_are_not():
    real = real_images()
    found = select(real, tools(), SelectionSettings(cycles=1), 0)
    distance = torch.cdist(found.images.x.flatten(1), real.x.flatten(1)).amin(1)
    apart = torch.cdist(real.x.flatten(1), real.x.flatten(1))
    apart.fill_diagonal_(torch.inf)
    within = torch.stack([apart[:12, :12].amin(1), apart[12:, 12:].amin(1)])
    assert float(distance.min()) >= 0.99 * float(within.min())
    assert found.cycles[0]["near_copies"] > 0.2  # every third candidate is a copy
    # As many at random hold copies, and images far off.
    at_random = select(real, tools(), SelectionSettings(cycles=1), 0, by="random")
    assert len(at_random.images) == len(found.images)
    far = torch.cdist(at_random.images.x.flatten(1), real.x.flatten(1)).amin(1)
    assert float(far.min()) == 0.0 and float(far.max()) > float(distance.max())


def test_the_cosine_does_not_see_how_far_off_an_image_is():
    real, made = torch.eye(2), torch.tensor([[9.0, 0.0], [1.0, 0.5]])
    free = torch.zeros(2, dtype=torch.bool)
    assert most_similar(made, real, free, "cosine").tolist() == [0, 1]
    assert most_similar(made, real, free, "distance").tolist() == [1, 0]
    assert most_similar(made, real, torch.tensor([False, True]), "distance").tolist() == [0]


def test_all_real_images_stay_and_at_most_half_become_synthetic():
    fits: list[Images] = []
    real = real_images()
    found = select(real, tools(fits=fits), SelectionSettings(cycles=6, growth=0.4), 0)
    for images in fits:
        assert torch.equal(images.x[: len(real)], real.x)
    assert len(found.images) == len(real)
    assert int(found.images.y.sum()) == len(real) // 2
    # What was kept in a cycle is part of what the next generator is fitted on.
    assert [len(images) - len(real) for images in fits[:3]] == [0, 10, 20]


def test_a_cycle_that_harms_on_validation_is_taken_back_and_ends_the_loop():
    def harms(kept):
        return 0.2 if kept is None else 0.15 if len(kept) <= 8 else 0.3

    found = select(real_images(), tools(harms), SelectionSettings(cycles=3), 0)
    assert found.was_halted
    assert [report["accepted"] for report in found.cycles] == [True, False]
    assert len(found.images) == 8
    at_once = select(
        real_images(), tools(lambda k: 0.1 if k is None else 0.2), SelectionSettings(), 0
    )
    assert at_once.images is None and len(at_once.cycles) == 1


def test_a_loop_that_goes_on_from_disk_keeps_the_same_set(tmp_path):
    real, settings = real_images(), SelectionSettings(cycles=2, growth=0.2)
    whole = select(real, tools(), settings, 5, folder=tmp_path / "whole")

    class Stop(Exception):
        pass

    fits: list[Images] = []

    def stops(images, seed):
        fits.append(images)
        if len(fits) == 2:
            raise Stop
        return FarAndNear(images)

    part = tmp_path / "part"
    with pytest.raises(Stop):
        select(real, Tools(stops, lambda x: x.flatten(1), lambda k: 0.2), settings, 5, folder=part)
    assert [path.name for path in part.iterdir()] == ["cycle_1.pt"]
    again = select(real, tools(), settings, 5, folder=part)
    assert torch.equal(again.images.x, whole.images.x)
    assert again.cycles == whole.cycles
    # Nothing is made anew when all is there.
    fits = []
    third = select(real, tools(fits=fits), settings, 5, folder=part)
    assert not fits and torch.equal(third.images.x, whole.images.x)


def test_no_more_is_asked_for_than_half():
    with pytest.raises(SettingError, match="at most half"):
        SelectionSettings(most_synthetic=0.6)
    with pytest.raises(SettingError, match="similarity, random"):
        select(real_images(), tools(), SelectionSettings(), 0, by="chance")
