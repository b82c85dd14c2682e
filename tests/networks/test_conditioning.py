"""Condition maps: what they hide, and how far they reach."""

import torch

from medvae3d.networks.conditioning import LesionContext, dilate, gaussian_blur


def ball(size=16, radius=3):
    axis = torch.arange(size) - size / 2 + 0.5
    distance = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None] ** 2
    return (distance < radius**2).float()[None, None]


def test_a_blur_keeps_the_sum_of_what_lies_inside():
    mask = ball()
    torch.testing.assert_close(gaussian_blur(mask, 1.0).sum(), mask.sum(), rtol=1e-4, atol=0)


def test_the_lesion_is_hidden_from_its_own_context():
    mask, image = ball(), torch.randn(1, 2, 16, 16, 16)
    context = LesionContext(2, dilation=2)
    maps = context(mask, image)
    assert maps.shape[1] == context.channels
    hidden = dilate(mask, 2)[0, 0] > 0
    assert maps[0, 3:][:, hidden].abs().max() == 0
    torch.testing.assert_close(maps[0, 3:5][:, ~hidden], image[0][:, ~hidden])


def test_what_is_under_the_mask_changes_no_map():
    mask, image = ball(), torch.randn(1, 1, 16, 16, 16)
    other = torch.where(mask > 0, image + 5, image)
    context = LesionContext(1)
    torch.testing.assert_close(context(mask, image), context(mask, other))


def test_without_an_image_nothing_is_known():
    maps = LesionContext(2)(ball())
    assert maps[:, 3:].abs().max() == 0


def test_samples_without_context_are_those_not_kept():
    mask = ball().repeat(2, 1, 1, 1, 1)
    maps = LesionContext(1)(mask, torch.ones(2, 1, 16, 16, 16), torch.tensor([1.0, 0.0]))
    assert maps[0, -1].max() == 1
    assert maps[1, -2:].abs().max() == 0


def test_maps_reach_no_further_than_they_say():
    mask = torch.zeros(1, 1, 41, 41, 41)
    mask[0, 0, 20, 20, 20] = 1
    context = LesionContext(1, dilation=2, deviations=(1.0, 3.0))
    image = torch.ones(1, 1, 41, 41, 41)
    changed = (context(mask, image) - context(torch.zeros_like(mask), image)).abs().sum(1)[0] > 0
    reach = (changed.nonzero() - 20).abs().max()
    assert reach <= context.radius


def test_a_mask_that_is_not_told_changes_nothing_but_what_it_hides():
    image = torch.randn(1, 1, 16, 16, 16)
    context = LesionContext(1, dilation=2, with_mask=False)
    maps = context(ball(), image)
    assert maps[:, :3].abs().max() == 0
    torch.testing.assert_close(maps[:, 3:], LesionContext(1, dilation=2)(ball(), image)[:, 3:])
