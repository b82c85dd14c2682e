from __future__ import annotations

import math

import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.numerics import (
    all_finite,
    at_least_float32,
    float32_island,
    inverse_softplus,
    jittered_cholesky,
    safe_log,
    softplus_scale,
    standard_normal,
    sum_per_sample,
    uniform,
)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8])
def test_low_precision_is_lifted(dtype):
    assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_enough_precision_is_left_alone(dtype):
    x = torch.ones(2, dtype=dtype)
    assert at_least_float32(x) is x


def test_an_island_computes_in_float32_within_autocast():
    a = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with float32_island("cpu"):
            assert (a @ a).dtype == torch.float32


def test_a_scale_is_positive_and_finite_for_any_feature():
    raw = torch.tensor([-1e4, -100.0, 0.0, 100.0, 6e4], dtype=torch.float16)
    scale = softplus_scale(raw, 1e-3)
    assert all_finite(scale)
    assert scale.min().item() == pytest.approx(1e-3)


@pytest.mark.parametrize("x", [1e-3, 0.5, 1.0, 30.0])
def test_softplus_has_its_inverse(x):
    assert math.log1p(math.exp(inverse_softplus(x))) == pytest.approx(x)


def test_the_logarithm_of_zero_and_its_gradient_are_finite():
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    safe_log(x).sum().backward()
    assert all_finite(safe_log(x), x.grad)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_seen(bad):
    assert not all_finite(torch.ones(3), torch.tensor([0.0, bad]))


def test_sums_are_per_sample():
    x = torch.ones(2, 3, 4)
    assert sum_per_sample(x).tolist() == [12, 12]
    assert sum_per_sample(x[:, 0, 0]).tolist() == [1, 1]


def test_a_good_covariance_gets_no_jitter():
    factor = torch.tril(torch.rand(4, 4).double()) + torch.eye(4)
    torch.testing.assert_close(jittered_cholesky(factor @ factor.T), factor)


def test_jitter_is_added_in_steps_and_named():
    vector = torch.arange(1.0, 5).double()
    singular = torch.outer(vector, vector) - 1e-9 * torch.eye(4)
    with pytest.warns(UserWarning, match="added 1e-0"):
        factor = jittered_cholesky(singular)
    torch.testing.assert_close(factor @ factor.T, singular, atol=1e-4, rtol=0)


def test_a_hopeless_covariance_is_refused():
    with pytest.raises(SettingError, match="3 dimensions"):
        jittered_cholesky(-torch.eye(3))


@pytest.mark.parametrize("draw", [standard_normal, uniform])
def test_a_row_depends_on_its_own_generator(draw):
    both = draw((2, 3, 4), [generator(1), generator(2)])
    assert torch.equal(both[1:], draw((1, 3, 4), [generator(2)]))
    assert torch.equal(draw((2, 3), generator(5)), draw((2, 3), generator(5)))


def test_a_wrong_number_of_generators_is_refused():
    with pytest.raises(SettingError, match="2 generators for 3 samples"):
        standard_normal((3, 1), [generator(0), generator(1)])


def test_uniform_noise_has_a_finite_logit():
    u = uniform((200_000,), generator(0))
    assert all_finite(torch.logit(u))
    assert u.mean().item() == pytest.approx(0.5, abs=5e-3)
