"""The grain is drawn as it was found: deviation by intensity, correlation by distance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.models.grain import BINS, Grain
from medvae3d.models.zoo import vae

SIZE = 40


def known_grain() -> Grain:
    """Smooth over three voxels along I, stronger where it is bright, none in the dark."""
    grain = Grain(1, 5)
    kernel = torch.zeros(5, 5, 5)
    kernel[1:4, 2, 2] = torch.tensor([0.5, 1.0, 0.5])
    grain.kernel[0, 0] = kernel / kernel.norm()
    grain.deviation[0] = torch.linspace(0, 0.2, BINS)
    return grain


def ramp() -> Tensor:
    """All intensities, each in many places, ``(1, I, J, K)``."""
    return torch.linspace(-1, 1, SIZE)[None, None, None].expand(1, SIZE, SIZE, SIZE).contiguous()


def neighbour(field: Tensor, axis: int) -> float:
    """Correlation of neighbours along an axis."""
    a, b = field.narrow(axis, 0, SIZE - 1), field.narrow(axis, 1, SIZE - 1)
    return float((a * b).mean() / field.square().mean())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_is_drawn_before_it_is_fitted() -> None:
    grain = Grain(2)
    assert not grain.is_fitted
    assert not grain.draw(torch.rand(2, 8, 8, 8), generator()).any()


def test_deviation_follows_the_intensity() -> None:
    drawn = known_grain().draw(ramp(), generator())
    spread = drawn.flatten(0, 2).std(0)
    wanted = torch.linspace(0, 0.2, SIZE)
    assert (spread - wanted).abs().max() < 0.02


def test_fitting_finds_the_deviation_and_the_correlation_that_were_drawn() -> None:
    truth, image = known_grain(), ramp()
    drawn = torch.stack([truth.draw(image, generator(seed)) for seed in range(4)])
    made = image.expand(4, -1, -1, -1, -1)
    found = Grain(1, 5)
    found.fit(made, made + drawn)
    inner = slice(1, -1)  # what is left is never beyond the border of the scale
    # Calm voxels and fast errors are a part of all, so that a little less is found.
    ratio = found.deviation[0, inner] / truth.deviation[0, inner]
    assert ratio[3:].min() > 0.65
    assert ratio[3:].max() < 1.1
    flat = torch.full((1, SIZE, SIZE, SIZE), 0.5)
    again = found.draw(flat, generator(9))[0]
    first = truth.draw(flat, generator(9))[0]
    assert neighbour(first, 0) > 0.6
    assert neighbour(again, 0) == pytest.approx(neighbour(first, 0), abs=0.12)
    assert abs(neighbour(again, 1)) < 0.05
    assert float(again.std()) == pytest.approx(float(first.std()), rel=0.35)


def test_what_was_not_observed_is_not_learned_from() -> None:
    image = ramp()[None]
    real = image + 0.1 * torch.randn(image.shape, generator=generator())
    real[..., :20, :, :] = 50.0
    valid = torch.ones_like(image)
    valid[..., :20, :, :] = 0
    grain = Grain(1, 3)
    grain.fit(image, real, valid)
    assert float(grain.deviation.max()) < 0.15


def test_the_same_generator_draws_the_same_grain() -> None:
    grain, image = known_grain(), ramp()
    first, again = grain.draw(image, generator(3)), grain.draw(image, generator(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, grain.draw(image, generator(4)))


def test_it_is_stored_with_the_weights() -> None:
    sizes = {"channels": (4, 8), "latent_channels": 2, "components": 0, "grain_width": 3}
    model, other = (vae((8, 8, 8), **sizes) for _ in range(2))
    model.grain.deviation.fill_(0.1)
    other.load_state_dict(model.state_dict())
    assert other.grain.is_fitted


@pytest.mark.parametrize("width", [0, 1, 4])
def test_an_even_or_tiny_kernel_is_refused(width: int) -> None:
    with pytest.raises(SettingError, match="odd numbers from 3"):
        Grain(1, width)
