"""Claims about layers that repeat voxels and convolve without computing on what is repeated."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medvae3d.flows.twice import TwiceDifferentiable
from medvae3d.networks.autoencoders import Decoder
from medvae3d.networks.blocks import channels_last, repeat_voxels
from medvae3d.networks.folding import Folded, from_cells, into_cells, repeat_and_convolve

STRIDES = [(2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 2), (1, 1, 1)]


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def decoder(last=1, activation=nn.SiLU, kind=nn.Sequential):
    torch.manual_seed(0)
    return kind(
        nn.Linear(3, 4 * 8), nn.Unflatten(1, (4, 2, 2, 2)),
        nn.Upsample(scale_factor=2), nn.Conv3d(4, 3, 3, padding=1), activation(),
        nn.Upsample(scale_factor=2), nn.Conv3d(3, 2, 3, padding=1), activation(),
        nn.Conv3d(2, last, 3, padding=1),
    )  # fmt: skip


@pytest.mark.parametrize("stride", STRIDES)
def test_it_is_repeating_and_convolving_with_both_derivatives(stride):
    x, weight, bias = drawn(2, 3, 2, 3, 2), drawn(2, 3, 3, 3, 3, seed=1), drawn(2, seed=2)
    plain = F.conv3d(repeat_voxels(x, stride), weight, bias, padding=1)
    ours = repeat_and_convolve(x, weight, bias, stride)
    torch.testing.assert_close(ours, plain)
    assert torch.autograd.gradcheck(
        lambda *a: repeat_and_convolve(*a, stride), (x, weight, bias), fast_mode=True
    )
    assert torch.autograd.gradgradcheck(
        lambda *a: repeat_and_convolve(*a, stride), (x, weight, bias), fast_mode=True
    )


@pytest.mark.parametrize("stride", STRIDES)
def test_a_convolution_reads_cells_as_it_reads_voxels(stride):
    x, one, other = drawn(1, 2, 2, 3, 2), drawn(3, 2, 3, 3, 3, seed=1), drawn(2, 3, 3, 3, 3, seed=2)
    plain = F.conv3d(F.conv3d(repeat_voxels(x, stride), one, padding=1), other, padding=1)
    cells = into_cells(x, one, None, stride)
    inside = torch.ones_like(x[:, :1]).repeat(1, 1, 1, 1, 1)
    pattern = torch.zeros(1, 1, 3, 3, 3, dtype=x.dtype)
    pattern[..., 1, 1, 1] = 1  # makes ones of the fine voxels of the volume, by cells
    outside = _outside(inside, pattern, stride)
    ours = from_cells(cells * ~outside.repeat_interleave(3, dim=1), other, None, stride)
    torch.testing.assert_close(ours, plain)


def _outside(ones, pattern, stride):
    """True in the places of cells that no voxel of the volume lies in, from where they came from.

    A voxel of the volume is reached by the middle tap from a coarse voxel; one outside is not.
    """
    return into_cells(ones, pattern, None, stride) == 0


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Tanh, nn.Identity])
@pytest.mark.parametrize("last", [1, 5])
@pytest.mark.parametrize("mode", [contextlib.nullcontext, TwiceDifferentiable])
def test_a_folded_decoder_is_the_plain_one_in_values_gradients_and_second_gradients(
    activation, last, mode
):
    plain, folded = decoder(last, activation).double(), decoder(last, activation, Folded).double()
    assert list(plain.state_dict()) == list(folded.state_dict())
    z = drawn(2, 3)

    def everything(net):
        with mode():
            made = net(z)
            (force,) = torch.autograd.grad(made.square().sum(), z, create_graph=True)
            loss = force.square().sum() + made.sin().sum()
        return [made, force, *torch.autograd.grad(loss, [z, *net.parameters()])]

    for one, other in zip(everything(folded), everything(plain), strict=True):
        torch.testing.assert_close(one, other)


def test_in_float32_a_folded_decoder_agrees_to_1e_5():
    plain, folded = channels_last(decoder()), channels_last(decoder(kind=Folded))
    z = 20 * torch.randn(2, 3)
    made, wanted = folded(z), plain(z)
    assert wanted.std() > 0.1 and (made - wanted).abs().max() < 1e-5


def test_a_folded_convolution_takes_less_than_half_the_products():
    counts = []
    for kind in (nn.Sequential, Folded):
        net = kind(nn.Upsample(scale_factor=2), nn.Conv3d(4, 3, 3, padding=1), nn.SiLU())
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, 4, 12, 12, 12))
        counts.append(counter.get_total_flops())
    assert counts[1] < 0.5 * counts[0]


@pytest.mark.parametrize(
    "layer",
    [nn.Conv3d(2, 2, 3, padding=1, groups=2), nn.Conv3d(2, 2, 1), nn.Conv3d(2, 2, 3),
     nn.Conv3d(2, 2, 3, padding=1, padding_mode="circular"), nn.Softmax(1)],
)  # fmt: skip
@pytest.mark.parametrize("up", [nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=3)])
def test_layers_that_do_not_fold_are_run_as_they_are(layer, up):
    x = torch.randn(1, 2, 4, 4, 4)
    layers = (up, layer, nn.Conv3d(2, 2, 3, padding=1), nn.Sigmoid(), nn.Conv3d(2, 1, 3, padding=1))
    torch.testing.assert_close(Folded(*layers)(x), nn.Sequential(*layers)(x))


def test_it_works_without_gradients_and_under_inference_mode_first():
    net = decoder(kind=Folded)
    z = torch.randn(1, 3)
    with torch.inference_mode():
        made = net(z)
    with torch.no_grad():
        assert torch.equal(net(z), made)
    net(z).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("strides", [None, [2, (2, 2, 1), (1, 2, 2)]])
def test_a_folded_trunk_takes_the_weights_of_the_plain_one_and_makes_the_same(strides):
    torch.manual_seed(0)
    plain = Decoder(3, 2, channels=(4, 6, 8), strides=strides)
    with torch.no_grad():
        for parameter in plain.parameters():  # new blocks are the identity
            parameter.add_(0.1 * torch.randn(parameter.shape))
    folded = Decoder(3, 2, channels=(4, 6, 8), strides=strides, folded=True)
    folded.load_state_dict(plain.state_dict())
    z = torch.randn(2, 3, 2, 2, 2)
    made, wanted = folded(z), plain(z)
    assert wanted.std() > 0.1 and (made - wanted).abs().max() < 1e-5
    for one, other in zip(
        torch.autograd.grad(made.square().mean(), list(folded.parameters())),
        torch.autograd.grad(wanted.square().mean(), list(plain.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
