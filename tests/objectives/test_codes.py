"""The objective of models of codes."""

from __future__ import annotations

import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.models.zoo import vqvae
from medvae3d.objectives.codes import Return, code_objective, returned

SHAPE = (8, 8, 8)


def model(values=(0, 1)):
    torch.manual_seed(0)
    sizes = {"channels": (4, 8), "codes": 8, "latent_channels": 4, "mask_dropout": 0.5}
    return vqvae(SHAPE, values=values, prior_width=8, prior_depth=1, prior_heads=1, **sizes)


def batch(values=(0, 1)):
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(len(values), (3, 1, *SHAPE), generator=generator)
    image = torch.randn(3, 1, *SHAPE, generator=generator)
    return {"image": image, "mask": torch.tensor(values)[mask].float()}


@pytest.mark.parametrize("values", [(0, 1), (0, 3, 7)])
def test_asking_for_the_same_codes_moves_no_code_and_draws_no_number(values):
    network, data = model(values).train(), batch(values)
    trace = network.trace(data, torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in network.named_buffers()}
    state = torch.get_rng_state()
    found = Return(network)(trace, data)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())
    found.sum().backward()
    assert found.shape == (3,) and (found > 0).all()
    for part in (network.encoder, network.decoder):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())


def test_a_weight_of_0_is_the_objective_without_the_term_and_others_need_the_model():
    network, data = model().eval(), batch()
    trace = network.trace(data, torch.Generator().manual_seed(0))
    plain, _ = code_objective()(trace, data, 0)
    none, _ = code_objective(network)(trace, data, 0)
    some, values = code_objective(network, return_weight=0.5)(trace, data, 0)
    assert torch.equal(plain, none)
    assert float((some - plain).detach()) == pytest.approx(0.5 * float(values["return"]), rel=1e-3)
    later = code_objective(network, return_weight=0.5, return_start=10, return_rise=4)
    before, values_before = later(trace, data, 9)
    assert torch.equal(plain, before) and values_before["return"] == 0
    half = later(trace, data, 12)[0]
    assert float((half - plain).detach()) == pytest.approx(float((some - plain).detach()) / 2)
    with pytest.raises(SettingError, match="model"):
        code_objective(return_weight=0.1)


@torch.no_grad()
@pytest.mark.parametrize("levels", [1, 2])
def test_the_share_of_codes_that_come_back_is_that_of_a_second_encoding(levels):
    torch.manual_seed(0)
    sizes = {"channels": (4, 8), "codes": 8, "latent_channels": 4, "levels": levels}
    network = vqvae(SHAPE, prior_width=8, prior_depth=1, prior_heads=1, **sizes)
    data = batch()
    network.train().trace(data)  # gives the codebook its first codes
    trace = network.eval().trace(data)
    shown = {"image": trace.heads["image"].mode(), "mask": trace.heads["mask"].mode()}
    again = network.encode(shown, network.condition(data)).indices
    places = sum(index[0].numel() for index in again)
    pairs = zip(trace.posterior.indices, again, strict=True)
    kept = sum((a == b).flatten(1).sum(1) for a, b in pairs)
    found = returned(network, trace, data)
    torch.testing.assert_close(found, kept / places)
    assert 0 < found.mean() < 1
