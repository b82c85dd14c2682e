"""Whether a latent tells a class: 0 and 1 where it should be, and it can be taken out."""

from __future__ import annotations

import torch
from torch import nn

from medvae3d.objectives.independence import hsic


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_latents_that_are_the_class_depend_on_it_wholly():
    classes = torch.arange(40) % 2
    far = 100.0 * classes[:, None].float().expand(-1, 3)
    far = far + 1e-3 * torch.randn(40, 3, generator=seeded())
    assert float(hsic(far, classes)) > 0.95


def test_latents_apart_from_the_class_hardly_depend_on_it():
    classes = torch.arange(200) % 2
    z = torch.randn(200, 4, generator=seeded())
    apart = float(hsic(z, classes))
    told = float(hsic(z + 2.0 * classes[:, None], classes))
    assert 0 <= apart < 0.05
    assert told > 5 * apart


def test_the_measure_does_not_know_the_unit_of_a_latent():
    classes = torch.arange(30) % 3
    z = torch.randn(30, 4, generator=seeded()) + classes[:, None]
    torch.testing.assert_close(hsic(z, classes), hsic(1000 * z, classes))


def test_one_class_alone_tells_nothing():
    z = torch.randn(8, 3, generator=seeded(), requires_grad=True)
    value = hsic(z, torch.zeros(8, dtype=torch.long))
    value.backward()
    assert float(value.detach()) == 0
    assert not z.grad.any()


def test_going_down_the_measure_takes_the_class_out_of_a_latent():
    classes = torch.arange(64) % 2
    first = torch.randn(64, 2, generator=seeded()) + 2.0 * classes[:, None]
    shift = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.Adam([shift], lr=0.05)
    before = float(hsic(first, classes))
    for _ in range(150):
        optimizer.zero_grad()
        hsic(first + shift[classes], classes).backward()
        optimizer.step()
    assert float(hsic(first + shift[classes], classes).detach()) < 0.1 * before
