"""Claims about layers that are differentiated twice."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medvae3d.flows.integrators import slope
from medvae3d.flows.twice import TwiceDifferentiable, convolve


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"stride": 2, "padding": 1}, {"padding": (0, 1, 0), "groups": 2},
     {"dilation": 2, "padding": 2}],
)  # fmt: skip
def test_second_derivatives_of_a_convolution_are_right(options):
    x, bias = drawn(2, 4, 3, 4, 3), drawn(2, seed=1)
    weight = drawn(2, 4 // options.get("groups", 1), 3, 3, 3, seed=2)
    if "groups" in options:
        x = drawn(2, 4, 5, 4, 5)

    def function(x, weight, bias):
        return convolve(x, weight, bias, **options)

    assert torch.equal(function(x, weight, bias), F.conv3d(x, weight, bias, **options))
    assert torch.autograd.gradgradcheck(function, (x, weight, bias))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv3d(4, 4, 3, padding=1), nn.SiLU(),
        nn.Conv3d(4, 1, 1),
    ).double()  # fmt: skip


def taught_through_force(net, z):
    (force,) = torch.autograd.grad(net(z).square().sum(), z, create_graph=True)
    return torch.autograd.grad(force.square().sum(), [z, *net.parameters()])


def test_a_loss_of_a_force_has_the_gradients_of_pytorch():
    net, z = network(), drawn(2, 2, 4, 4, 4)
    plain = taught_through_force(net, z)
    with TwiceDifferentiable():
        ours = taught_through_force(net, z)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_under_autocast_convolutions_keep_its_format():
    net, z = network().float(), drawn(1, 2, 4, 4, 4).detach().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = net(z)
        with TwiceDifferentiable():
            ours = net(z)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, plain)


def test_a_force_in_the_graph_comes_from_these_layers():
    """Otherwise nothing would be gained: the second derivative has a name of its own."""
    net, z = network(), drawn(1, 2, 4, 4, 4)
    force = slope(lambda point: net(point).flatten(1).sum(1), z).force
    seen, todo = set(), [force.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node.name() not in seen:
            seen.add(node.name())
            todo += [each for each, _ in node.next_functions]
    assert {"_ToInputBackward", "_SiluSlopeBackward"} <= seen
    assert not {name for name in seen if name.startswith("ConvolutionBackward")}


def test_a_force_takes_no_gradient_of_weights():
    net, counts = network(), []
    z = 1 * drawn(1, 2, 4, 4, 4)  # what counts operations does not take a leaf
    for mode in (contextlib.nullcontext(), TwiceDifferentiable()):
        with FlopCounterMode(display=False) as counter, mode:
            torch.autograd.grad(net(z).sum(), z, create_graph=True)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
