"""What a model that fills regions is told: what is left, and nothing of what was taken out."""

from __future__ import annotations

import torch

from medvae3d.networks.regions import RegionContext


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def volume():
    image = torch.randn(2, 2, 8, 9, 10, generator=seeded())
    mask = torch.zeros(2, 1, 8, 9, 10)
    mask[:, :, 3:5, 4:6, 5:7] = 1
    return image, mask


def test_what_is_left_is_told_as_it_is_and_what_was_taken_out_is_not():
    image, mask = volume()
    region = (torch.rand(2, 1, 8, 9, 10, generator=seeded(1)) > 0.5).float()
    maps, used = RegionContext(2).eval().collect({"image": image, "mask": mask, "region": region})
    other = torch.where(region > 0, torch.full_like(image, 7.0), image)
    again, _ = RegionContext(2).eval().collect({"image": other, "mask": mask, "region": region})
    assert torch.equal(used, region)
    assert torch.equal(maps[:, :2], image * (1 - region))
    assert torch.equal(maps, again)
    assert torch.equal(maps[:, 2:4], (1 - region).expand_as(image))


def test_a_channel_that_was_not_observed_is_never_read():
    image, mask = volume()
    image[:, 1] = float("nan")
    valid = torch.ones(2, 2, 1, 1, 1)
    valid[:, 1] = 0
    context = RegionContext(2).eval()
    region = torch.zeros(2, 1, 8, 9, 10)
    maps, _ = context.collect({"image": image, "mask": mask, "valid": valid, "region": region})
    assert maps.isfinite().all()
    assert (maps[:, 1] == 0).all()
    assert (maps[:, 3] == 0).all()


def test_labels_are_told_where_they_are_wanted_and_to_a_share_of_training_cases():
    image, mask = volume()
    batch = {"image": image, "mask": mask}
    plain, _ = RegionContext(2).eval().collect(batch, seeded())
    assert (plain[:, 4:] == 0).all()
    wanted, _ = RegionContext(2).eval().collect({**batch, "wanted": mask}, seeded())
    assert torch.equal(wanted[:, 4:5], mask)
    assert (wanted[:, 5] == 1).all()
    training = RegionContext(2, told=0.5).train()
    many = {name: value[:1].expand(400, *value.shape[1:]) for name, value in batch.items()}
    maps, _ = training.collect(many, seeded(2))
    assert 0.4 < float(maps[:, 5, 0, 0, 0].mean()) < 0.6


def test_regions_follow_their_generator_and_now_and_then_are_everything():
    _, mask = volume()
    context = RegionContext(1, whole=0.2)
    many = mask[:1].expand(300, -1, -1, -1, -1)
    first, again = (context.draw(many, seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    shares = first.flatten(1).mean(1)
    assert 0.12 < float((shares == 1).float().mean()) < 0.28
    assert float(shares.min()) > 0
    assert torch.equal(context.draw(mask, None), torch.ones_like(mask))
