"""What every flow promises."""

from __future__ import annotations

import io

import pytest
import torch
from small_models import generators, stray_tensors

from medvae3d.flows import MCLACHLAN, YOSHIDA, HamiltonianFlow, Identity, RiemannianFlow


def riemannian(**options):
    """A flow along a metric of five cases, in the 24 elements of the latent below."""
    flow = RiemannianFlow(24, **{"step_size": 0.05, "queue": 0, "bandwidth": 3.0, **options})
    generator = torch.Generator().manual_seed(5)
    factors = 0.5 * torch.eye(24) + 0.05 * torch.randn(5, 24, 24, generator=generator).tril(-1)
    centres = torch.randn(5, 24, generator=generator)
    flow.pairs.fit(centres, factors, list("abcde"))
    return flow


FLOWS = {
    "identity": Identity,
    "no steps": lambda: HamiltonianFlow(0),
    "no movement": lambda: HamiltonianFlow(2, 0.0),
    "one step": lambda: HamiltonianFlow(1, 0.1),
    "tempered": lambda: HamiltonianFlow(3, 0.1, 0.3),
    "untempered": lambda: HamiltonianFlow(3, 0.1, 1.0),
    "per channel": lambda: HamiltonianFlow(2, 0.1, step_shape=(3, 1, 1, 1)),
    "first order": lambda: HamiltonianFlow(2, 0.1, first_order=True),
    "bounded": lambda: HamiltonianFlow(2, 0.1, max_step_size=0.2),
    "mclachlan": lambda: HamiltonianFlow(2, 0.1, coefficients=MCLACHLAN),
    "yoshida": lambda: HamiltonianFlow(2, 0.1, coefficients=YOSHIDA),
    "riemannian": riemannian,
    "riemannian, first order": lambda: riemannian(first_order=True),
}


@pytest.fixture(params=FLOWS)
def flow(request):
    return FLOWS[request.param]()


def quartic(z):
    return (0.25 * z**4 + 0.5 * z**2).flatten(1).sum(1)


def latent(count=2):
    return torch.randn(count, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def test_latent_and_weight_have_their_shapes(flow):
    flowed = flow(latent(), quartic, seeded())
    assert flowed.z.shape == latent().shape
    assert flowed.log_weight.shape == (2,)
    assert flowed.z.isfinite().all()
    assert flowed.log_weight.isfinite().all()


def test_the_same_generator_flows_the_same(flow):
    first, again = (flow(latent(), quartic, seeded()) for _ in range(2))
    assert torch.equal(first.z, again.z)
    assert torch.equal(first.log_weight, again.log_weight)


def test_modes_of_the_module_change_nothing(flow):
    train = flow.train()(latent(), quartic, seeded())
    assert torch.equal(train.z, flow.eval()(latent(), quartic, seeded()).z)


def test_a_sample_flows_on_its_own(flow):
    whole = flow(latent(4), quartic, generators(*range(4)))
    alone = flow(latent(4)[2:3], quartic, generators(2))
    torch.testing.assert_close(whole.z[2:3], alone.z)
    torch.testing.assert_close(whole.log_weight[2:3], alone.log_weight)


def test_weights_of_a_normal_average_to_one(flow):
    """q = p: with z drawn from the density itself, the mean of p(z_K) w / q(z_0) is 1."""
    if getattr(flow, "log_step_size", None) is not None and flow.log_step_size.ndim:
        flow = HamiltonianFlow(2, 0.1, step_shape=(1,))
    z = torch.randn(40_000, 2, generator=seeded(0)).double()
    if isinstance(flow, RiemannianFlow):
        flow = RiemannianFlow(2, step_size=0.1, queue=0)
        flow.pairs.fit(z[:5], 0.7 * torch.eye(2).expand(5, 2, 2), list("abcde"))
    flow = flow.double()
    well = lambda z: 0.5 * z.square().sum(1)
    with torch.no_grad():
        flowed = flow(z, well, seeded())
    weights = (well(z) - well(flowed.z) + flowed.log_weight).exp()
    assert weights.mean().item() == pytest.approx(1, abs=5 * weights.std().item() / 200 + 1e-12)


def test_the_latent_keeps_its_gradient(flow):
    z = latent().requires_grad_()
    flowed = flow(z, quartic, seeded())
    (gradient,) = torch.autograd.grad(flowed.z.square().sum() + flowed.log_weight.sum(), z)
    assert gradient.isfinite().all()
    assert gradient.abs().min() > 0


def test_every_parameter_gets_a_gradient(flow):
    flowed = flow(latent(), quartic, seeded())
    total = flowed.z.square().sum() + flowed.log_weight.sum()
    for parameter in flow.parameters():
        (gradient,) = torch.autograd.grad(total, parameter, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.abs().min() > 0


def test_no_gradient_is_left_on_what_the_potential_holds(flow):
    weight = torch.ones(1, requires_grad=True)
    flow(latent(), lambda z: (weight * z.square()).flatten(1).sum(1), seeded())
    assert weight.grad is None


def test_every_tensor_is_in_the_state_dict_and_loads_again(flow, request):
    assert not list(stray_tensors(flow))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1
    file = io.BytesIO()
    torch.save(flow.state_dict(), file)
    file.seek(0)
    new = FLOWS[request.node.callspec.params["flow"]]()
    new.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(new(latent(), quartic, seeded()).z, flow(latent(), quartic, seeded()).z)


def test_parameters_survive_an_average_and_decay(flow):
    """What an EMA or weight decay does to a parameter leaves it finite."""
    for parameter in flow.parameters():
        torch.lerp(parameter, parameter * 0.99, 0.5).sum().item()
        assert torch.lerp(parameter, parameter * 0.99, 0.5).isfinite().all()
    assert all(value.isfinite().all() for value in flow.state_dict().values())


def test_a_half_precision_latent_is_lifted(flow):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        flowed = flow(latent().bfloat16(), quartic, seeded())
    assert flowed.log_weight.dtype == torch.float32
    assert flowed.log_weight.isfinite().all()


def test_it_describes_itself(flow):
    assert type(flow).__name__ in repr(flow)
