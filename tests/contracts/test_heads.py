"""What every head, and the distribution that it makes, promises."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from small_models import generators, stray_tensors

from medvae3d.probability import (
    BernoulliHead,
    GaussianHead,
    LabelHead,
    LaplaceHead,
    LogisticHead,
)

IMAGE_HEADS = {
    "gaussian": lambda: GaussianHead(2),
    "gaussian, fixed": lambda: GaussianHead(2, learn_scale=False),
    "laplace": lambda: LaplaceHead(2, scale=0.3),
    "logistic": lambda: LogisticHead(2, scale=0.3),
}
MASK_HEADS = {
    "bernoulli": BernoulliHead,
    "two labels": lambda: LabelHead((0, 1)),
    "odd labels": lambda: LabelHead([0, 4, 2, 255]),
}
HEADS = {**IMAGE_HEADS, **MASK_HEADS}
SPACE = (3, 4, 5)


@pytest.fixture(params=HEADS)
def head(request):
    return HEADS[request.param]()


@pytest.fixture(params=IMAGE_HEADS)
def image_head(request):
    return IMAGE_HEADS[request.param]()


@pytest.fixture(params=MASK_HEADS)
def mask_head(request):
    return MASK_HEADS[request.param]()


def features(head, count=2, space=SPACE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, head.features, *space, generator=generator)


def target(head, count=2, space=SPACE, seed=1):
    generator = torch.Generator().manual_seed(seed)
    if head.output == "image":
        return torch.randn(count, head.features, *space, generator=generator)
    index = torch.randint(len(head.values), (count, 1, *space), generator=generator)
    return torch.tensor(head.values)[index].float()


def test_the_log_likelihood_is_one_number_a_sample(head):
    found = head(features(head)).log_prob(target(head))
    assert found.shape == (2,)
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def test_it_knows_what_it_makes(head):
    assert head.output == head(features(head)).output
    assert head.output in ("image", "mask")


def test_an_image_density_normalises_to_one(image_head):
    x = torch.linspace(-30, 30, 600_001).double()
    made = image_head(torch.zeros(1, 2, 1, 1, 1).double())
    for scale in made.scale:
        # A batch of all values that one voxel may take.
        values = x.reshape(-1, 1, 1, 1, 1)
        each = type(made)(torch.zeros_like(values), scale).log_prob(values)
        assert torch.trapezoid(each.exp(), x).item() == pytest.approx(1, abs=1e-6)


def test_the_probabilities_of_all_masks_add_up_to_one(mask_head):
    made = mask_head(features(mask_head, 1, (2, 1, 1)))
    total = 0.0
    for values in itertools.product(mask_head.values, repeat=2):
        mask = torch.tensor(values).reshape(1, 1, 2, 1, 1)
        total += math.exp(made.log_prob(mask).item())
    assert total == pytest.approx(1, abs=1e-5)


def test_the_mode_is_the_likeliest(head):
    made = head(features(head))
    best = made.log_prob(made.mode().float())
    assert (best >= made.log_prob(target(head))).all()
    assert (best >= made.log_prob(made.sample(generators(0, 1)).float())).all()


def test_samples_and_modes_look_like_targets(head):
    made = head(features(head))
    for volume in (made.mode(), made.sample(generators(0, 1))):
        assert volume.shape == target(head).shape
        assert volume.dtype == (torch.float32 if head.output == "image" else torch.uint8)


def test_label_values_are_those_of_the_data(mask_head):
    space = (12, 12, 12)
    sample = mask_head(features(mask_head, 1, space)).sample(generators(0))
    assert sample.unique().tolist() == sorted(mask_head.values)


def test_a_mask_that_is_certain_comes_back(mask_head):
    mask = target(mask_head)
    logits = [(mask == value).float() for value in mask_head.values]
    certain = torch.cat(logits[1:] if mask_head.features == 1 else logits, 1)
    certain = 100 * (certain - 0.5)
    assert torch.equal(mask_head(certain).mode(), mask.to(torch.uint8))
    torch.testing.assert_close(mask_head(certain).log_prob(mask), torch.zeros(2), atol=1e-6, rtol=0)


def test_foreground_and_encoding_lie_channel_on_channel(mask_head):
    made, mask = mask_head(features(mask_head)), target(mask_head)
    assert made.foreground().shape == made.encode(mask).shape
    assert set(made.encode(mask).unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(made.encode(mask).sum(1, keepdim=True) > 0, mask > 0)
    assert (made.foreground().sum(1) <= 1 + 1e-6).all()


def test_the_field_is_positive_inside_of_the_mode(mask_head):
    made = mask_head(features(mask_head))
    assert torch.equal(made.field() > 0, made.mode() > 0)
    assert torch.equal(made.mode(1e9), torch.zeros_like(made.mode()))


def test_the_log_likelihood_adds_up_over_voxels(head):
    f, x = features(head), target(head)
    parts = [head(f[:, :, :2]).log_prob(x[:, :, :2]), head(f[:, :, 2:]).log_prob(x[:, :, 2:])]
    torch.testing.assert_close(head(f).log_prob(x), parts[0] + parts[1])


def test_the_log_likelihood_of_a_sample_does_not_depend_on_the_batch(head):
    f, x = features(head), target(head)
    torch.testing.assert_close(
        head(f).log_prob(x)[1:], head(f[1:]).log_prob(x[1:]), rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(2, 1, *SPACE), (2, 1, 1, 1, 1)])
def test_what_was_not_observed_does_not_count(head, shape):
    f, x = features(head), target(head)
    valid = torch.ones(shape)
    torch.testing.assert_close(head(f).log_prob(x, valid), head(f).log_prob(x))
    assert torch.equal(head(f).log_prob(x, torch.zeros(shape)), torch.zeros(2))
    valid[1] = 0
    found = head(f).log_prob(x, valid)
    torch.testing.assert_close(found[0], head(f).log_prob(x)[0])
    assert found[1] == 0


def test_half_a_volume_that_was_observed_counts_as_that_half(head):
    f, x = features(head), target(head)
    valid = torch.zeros(2, 1, *SPACE)
    valid[:, :, :2] = 1
    half = head(f[:, :, :2]).log_prob(x[:, :, :2])
    torch.testing.assert_close(head(f).log_prob(x, valid), half)


def test_not_a_number_where_nothing_was_observed_reaches_no_gradient(head):
    f, x = features(head).requires_grad_(), target(head)
    valid = torch.ones(2, 1, *SPACE)
    valid[0, :, 0] = 0
    x[0, :, 0] = math.nan
    found = head(f).log_prob(x, valid)
    assert found.isfinite().all()
    gradients = torch.autograd.grad(found.sum(), [f, *head.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][0, :, 0].any()


def test_a_channel_that_was_not_observed_leaves_the_other(image_head):
    f, x = features(image_head), target(image_head)
    valid = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1, 1).expand(2, 2, 1, 1, 1)
    other = x.clone()
    other[:, 1] = 99.0
    assert torch.equal(image_head(f).log_prob(x, valid), image_head(f).log_prob(other, valid))


def test_the_features_get_a_finite_gradient(head):
    f = features(head).requires_grad_()
    (gradient,) = torch.autograd.grad(head(f).log_prob(target(head)).sum(), f)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_stay_finite(head, dtype):
    f = (1000 * features(head)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(f).log_prob(target(head))
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def test_double_precision_is_kept(head):
    assert head(features(head).double()).log_prob(target(head).double()).dtype == torch.float64


def test_a_sample_depends_on_its_own_generator_alone(head):
    made, alone = head(features(head)), head(features(head)[1:])
    assert torch.equal(made.sample(generators(3, 4))[1:], alone.sample(generators(4)))
    assert torch.equal(made.sample(generators(3, 4)), made.sample(generators(3, 4)))


def test_every_tensor_is_in_the_state_dict(head):
    assert not list(stray_tensors(head))


def test_modes_of_the_module_change_nothing(head):
    f, x = features(head), target(head)
    assert torch.equal(head.train()(f).log_prob(x), head.eval()(f).log_prob(x))
