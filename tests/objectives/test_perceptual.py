from __future__ import annotations

import sys

import pytest
import torch
from small_models import small_batch, small_model, stray_tensors

from medvae3d.errors import SettingError, UnreadableFileError
from medvae3d.objectives import Perceptual, RandomFeatureDistance, TrainedFeatureDistance


def volumes(seed=0, count=3, shape=(2, 12, 10, 14)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[2, 3])
def distance(request):
    return RandomFeatureDistance(dims=request.param)


# 5
def test_identical_volumes_are_at_distance_zero(distance):
    assert torch.equal(distance(volumes(), volumes()), torch.zeros(3))


def test_other_volumes_are_at_a_positive_distance_both_ways(distance):
    there, back = distance(volumes(), volumes().flip(0)), distance(volumes().flip(0), volumes())
    assert (there[[0, 2]] > 0.01).all()
    torch.testing.assert_close(there, back)


def test_two_calls_agree_in_training_mode_too(distance):
    distance.train()
    first = distance(volumes(), volumes(1))
    assert torch.equal(first, distance(volumes(), volumes(1)))
    assert torch.equal(first, distance.eval()(volumes(), volumes(1)))


def test_the_network_is_frozen_and_belongs_to_nobody(distance):
    assert not list(distance.parameters())
    assert not distance.is_trained
    assert not list(stray_tensors(distance))


def test_the_seed_is_the_network():
    make = lambda seed: RandomFeatureDistance(seed=seed)(volumes(), volumes(1))
    torch.manual_seed(1)
    first = make(4)
    torch.manual_seed(2)
    assert torch.equal(first, make(4))
    assert not torch.equal(first, make(5))


def test_a_sample_does_not_depend_on_its_batch(distance):
    whole = distance(volumes(), volumes(1))
    alone = distance(volumes()[1:2], volumes(1)[1:2])
    torch.testing.assert_close(whole[1:2], alone)


def test_blur_is_noticed_more_than_its_absolute_error_says(distance):
    """A shift of grey that costs as much per voxel changes texture less than a blur does."""
    x = volumes(shape=(1, 16, 16, 16))
    blurred = torch.nn.functional.avg_pool3d(x, 3, 1, 1)
    shifted = x + (blurred - x).abs().mean()
    assert (distance(x, blurred) > distance(x, shifted)).all()


def test_the_gradient_is_finite_where_both_are_constant(distance):
    x = torch.zeros(1, 1, 8, 8, 8, requires_grad=True)
    distance(x, torch.zeros(1, 1, 8, 8, 8)).sum().backward()
    assert x.grad.isfinite().all()


def test_the_gradient_leads_back(distance):
    target = volumes(shape=(1, 8, 8, 8))
    x = volumes(1, shape=(1, 8, 8, 8)).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    first = distance(target, x).mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        distance(target, x).mean().backward()
        optimizer.step()
    assert distance(target, x).mean().item() < 0.3 * first


def test_autocast_changes_no_bit(distance):
    plain = distance(volumes(), volumes(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(distance(volumes(), volumes(1)), plain)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 2, 9), (2, 5, 5, 5)])
def test_thin_volumes_have_a_distance(distance, shape):
    assert distance(volumes(shape=shape), volumes(1, shape=shape)).isfinite().all()


@pytest.mark.parametrize("options", [{"dims": 1}, {"widths": ()}, {"slice_step": 0}])
def test_settings_without_meaning_are_refused(options):
    with pytest.raises(SettingError, match="allowed"):
        RandomFeatureDistance(**options)


def test_the_term_is_the_distance_times_the_size_of_the_image(distance):
    batch = small_batch()
    trace = small_model().trace(batch, torch.Generator().manual_seed(1))
    expected = batch["image"][0].numel() * distance(batch["image"], trace.heads["image"].mode())
    torch.testing.assert_close(Perceptual(distance)(trace, batch), expected)


def test_missing_weights_are_not_downloaded(tmp_path):
    with pytest.raises(UnreadableFileError, match="nothing is downloaded"):
        TrainedFeatureDistance(tmp_path / "resnet50.pth")


def test_missing_torchvision_is_named(tmp_path, monkeypatch):
    path = tmp_path / "resnet50.pth"
    torch.save({"weight": torch.ones(1)}, path)

    def refuse(**options):
        raise ImportError("No module named 'torchvision'")

    monkeypatch.setattr(sys.modules["monai.losses"], "PerceptualLoss", refuse)
    with pytest.raises(SettingError, match="torchvision"):
        TrainedFeatureDistance(path)


class Difference(torch.nn.Module):
    """Stands for a trained network of slices with three channels."""

    def __init__(self, **options):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, other):
        assert x.shape[1] == other.shape[1] == 3
        return (self.weight * (x - other)).abs().mean((1, 2, 3), keepdim=True)


def test_a_trained_network_judges_each_channel_of_each_sample_alone(tmp_path, monkeypatch):
    module = sys.modules["monai.losses.perceptual"]
    monkeypatch.setattr(module, "TorchvisionModelPerceptualSimilarity", Difference)
    path = tmp_path / "resnet50.pth"
    torch.save({"weight": torch.ones(1)}, path)
    distance = TrainedFeatureDistance(path, slice_ratio=0.5).train()
    assert distance.is_trained
    assert not list(distance.parameters())
    assert not distance.state_dict()
    state = torch.get_rng_state()
    whole = distance(volumes(), volumes(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(whole, distance(volumes(), volumes(1)))
    torch.testing.assert_close(whole[1:2], distance(volumes()[1:2], volumes(1)[1:2]))
    assert torch.equal(distance(volumes(), volumes()), torch.zeros(3))


def test_weights_of_something_else_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "resnet50.pth"
    path.write_bytes(b"not weights")
    refuse = lambda **options: torch.load(path, weights_only=True)
    monkeypatch.setattr(sys.modules["monai.losses"], "PerceptualLoss", refuse)
    with pytest.raises(UnreadableFileError, match=r"resnet50\.pth does not hold"):
        TrainedFeatureDistance(path)


def test_local_weights_are_used_frozen(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    path = tmp_path / "resnet50.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), path)
    distance = TrainedFeatureDistance(path, slice_ratio=0.5)
    assert distance.is_trained
    assert not list(distance.parameters())
    x, other = volumes(shape=(1, 32, 32, 32), count=2), volumes(1, shape=(1, 32, 32, 32), count=2)
    found = distance.train()(x, other)
    assert found.shape == (2,)
    assert torch.equal(found, distance(x, other))
    assert distance(x, x).abs().max() == 0
