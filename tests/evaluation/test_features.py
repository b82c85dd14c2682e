"""Claims about what cases are compared by, and about networks with weights from a file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_evaluations import smooth_cases

from medvae3d.errors import SettingError, UnreadableFileError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.feature_networks import (
    MedicalNet,
    RadImageNet,
    _resnet,
    depth_of,
    trained_features,
)
from medvae3d.evaluation.features import (
    Features,
    FixedNetwork,
    Radiomics,
    Remembered,
    included_features,
    mask_or_body,
)
from medvae3d.evaluation.lpips import LPIPS

SPACING = (1.0, 1.0, 2.0)
INCLUDED = ("radiomics", "fixed network", "fixed network, 2.5-D")


@pytest.mark.parametrize("name", INCLUDED)
def test_features_of_a_case_do_not_depend_on_its_batch_or_on_what_was_not_observed(name):
    (features,) = included_features([name])
    cases = smooth_cases(5, channels=2)
    cases.valid[..., :3] = 0
    rows = features(cases, SPACING)
    assert isinstance(features, Features)
    assert np.isfinite(rows).all()
    hidden = Cases(
        torch.where(cases.valid > 0, cases.image, 7.0),
        cases.mask,
        cases.valid,
        cases.region,
        cases.names,
    )
    np.testing.assert_allclose(features(hidden[3:4], SPACING)[0], rows[3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", INCLUDED)
def test_a_case_of_which_nothing_was_observed_has_no_features(name):
    (features,) = included_features([name])
    cases = smooth_cases(3)
    cases.valid[1] = 0
    assert np.isfinite(features(cases, SPACING)).all(1).tolist() == [True, False, True]


def test_radiomic_columns_have_names_and_know_the_spacing():
    cases = smooth_cases(2, channels=2)
    features = Radiomics()
    names = features.feature_names(2)
    rows = features(cases, SPACING)
    assert rows.shape == (2, len(names)) and len(set(names)) == len(names)
    volume = names.index("shape: volume")
    assert rows[0, volume] == 2 * float(cases.mask[0].sum())
    shift = [i for i, name in enumerate(names) if name == "channel 1, whole: statistics: mean"]
    expected = (cases.image[:, 1].double().mean((1, 2, 3)) + 1) / 2
    np.testing.assert_allclose(rows[:, shift[0]], expected, rtol=1e-6)


def test_the_body_stands_in_for_an_empty_mask_and_the_whole_for_an_empty_body():
    cases = smooth_cases(2)
    cases.mask.zero_()
    cases.image.fill_(-1)
    cases.image[0, :, 2:5, 2:5, 2:5] = 0.5
    assert int(mask_or_body(cases, 0).sum()) == 27
    assert bool(mask_or_body(cases, 1).all())
    assert np.isfinite(Radiomics()(cases, SPACING)).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_fixed_network_sees_texture_and_is_the_same_everywhere(dims):
    cases = smooth_cases(4)
    rows = FixedNetwork(dims)(cases, SPACING)
    np.testing.assert_array_equal(rows, FixedNetwork(dims)(cases, SPACING))
    assert np.abs(rows - FixedNetwork(dims, seed=1)(cases, SPACING)).max() > 0.01
    blurred = Cases(
        F.avg_pool3d(cases.image, 3, 1, 1), cases.mask, cases.valid, cases.region, cases.names
    )
    between = np.linalg.norm(FixedNetwork(dims)(blurred, SPACING) - rows, axis=1).mean()
    assert between > 2 * np.linalg.norm(rows - rows.mean(0), axis=1).mean()


def test_features_are_computed_once_for_each_set_of_cases():
    calls = []

    class Counting(Radiomics):
        def __call__(self, cases, spacing_mm):
            calls.append(len(cases))
            return super().__call__(cases, spacing_mm)

    features, one, two = Remembered(Counting()), smooth_cases(2), smooth_cases(3)
    first = features(one, SPACING)
    assert features(one, SPACING) is first
    features(two, SPACING)
    features(one, (1.0, 1.0, 1.0))
    assert calls == [2, 3, 2]


def test_unknown_features_are_named():
    with pytest.raises(SettingError, match="'wavelets' are unknown; allowed are 'radiomics'"):
        included_features(["wavelets"])
    with pytest.raises(SettingError, match="'inception' is unknown; allowed: medicalnet"):
        trained_features("inception", "weights.pt")


@pytest.fixture(scope="module")
def medicalnet(tmp_path_factory):
    """A file as MedicalNet's: random weights, under ``state_dict``, with ``module.``."""
    torch.manual_seed(0)
    state = _resnet(10, 3, 1, "B", False).state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet_10.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


def test_medicalnet_features_are_those_of_the_network_in_the_file(medicalnet):
    cases = smooth_cases(2, channels=2)
    features = trained_features("medicalnet", medicalnet, depth=10)
    rows = features(cases, SPACING)
    assert rows.shape == (2, 2 * 512)
    network = _resnet(10, 3, 1, "B", False)
    state = torch.load(medicalnet, weights_only=True)["state_dict"]
    network.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    x = cases.image[:, 1:]
    x = (x - x.mean((2, 3, 4), keepdim=True)) / x.std((2, 3, 4), keepdim=True, correction=0)
    with torch.no_grad():
        expected = network.eval()(x)
    np.testing.assert_allclose(rows[:, 512:], expected.numpy(), rtol=1e-3, atol=1e-4)


def test_weights_of_another_depth_are_refused_with_the_keys(medicalnet):
    with pytest.raises(UnreadableFileError, match=r"resnet18: of \d+ keys, .* missing \(layer1.1"):
        MedicalNet(medicalnet, depth=18)
    assert MedicalNet(medicalnet).depth == 10, "the depth of the file, if none is named"
    with pytest.raises(SettingError, match="depth is 11; allowed are 10, 18, 34, 50"):
        MedicalNet(medicalnet, depth=11)


def test_files_that_are_no_weights_are_refused(tmp_path):
    with pytest.raises(UnreadableFileError, match=r"none.pth not found; nothing is downloaded"):
        MedicalNet(tmp_path / "none.pth")
    path = tmp_path / "bad.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UnreadableFileError, match="cannot be read as a plain state dict"):
        MedicalNet(path)
    torch.save([1, 2], path)
    with pytest.raises(UnreadableFileError, match="hold list, not a state dict"):
        MedicalNet(path)


@pytest.mark.parametrize("depth", [10, 18, 34, 50])
def test_the_depth_of_a_network_is_seen_in_its_weights(depth):
    assert depth_of(_resnet(depth, 3, 1, "B", False).state_dict()) == depth


@pytest.mark.slow
def test_radimagenet_reads_its_own_names_and_torchvisions(tmp_path):
    """The children of torchvision's network by their place, or by their name."""
    torch.manual_seed(0)
    state = _resnet(50, 2, 3, "B", False).state_dict()
    place = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    own = {f"backbone.{place[k.split('.')[0]]}.{k.split('.', 1)[1]}": v for k, v in state.items()}
    torch.save(own, tmp_path / "own.pt")
    torch.save(state | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pt")
    cases = smooth_cases(2)
    one, two = (
        RadImageNet(tmp_path / name, slice_step=8)(cases, SPACING)
        for name in ("own.pt", "torchvision.pt")
    )
    assert one.shape == (2, 2048)
    np.testing.assert_array_equal(one, two)
    del own["backbone.0.weight"]
    torch.save(own, tmp_path / "own.pt")
    with pytest.raises(UnreadableFileError, match=r"1 missing \(conv1.weight\)"):
        RadImageNet(tmp_path / "own.pt")


def lpips_state(calibration):
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]
    state = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for index, (out, into, kernel) in enumerate(shapes):
        layer = ("1.0", "2.3", "3.6", "4.8", "5.10")[index]
        weight = torch.randn(out, into, kernel, kernel, generator=generator)
        state[f"net.slice{layer}.weight"] = weight / (into * kernel**2) ** 0.5
        state[f"net.slice{layer}.bias"] = torch.zeros(out)
        state[f"lin{index}.model.1.weight"] = torch.full((1, out, 1, 1), calibration)
        state[f"lins.{index}.model.1.weight"] = torch.full((1, out, 1, 1), calibration)
    return state


def test_lpips_is_zero_for_equal_images_and_scales_with_its_calibration(tmp_path):
    made, real = smooth_cases(2).image[..., :16], smooth_cases(2, seed=1).image[..., :16]
    found = {}
    for calibration in (1.0, 0.5):
        torch.save(lpips_state(calibration), tmp_path / "alex.pth")
        distance = LPIPS(tmp_path / "alex.pth", slice_step=8)
        assert distance(real, real).abs().max() == 0
        found[calibration] = distance(made, real)
        torch.testing.assert_close(distance(real, made), found[calibration])
    assert found[1.0].shape == (2, 1) and (found[1.0] > 0.01).all()
    torch.testing.assert_close(found[0.5], 0.5 * found[1.0])


def test_lpips_refuses_a_trunk_without_its_calibration(tmp_path):
    state = {k: v for k, v in lpips_state(1.0).items() if not k.startswith("lin")}
    torch.save(state, tmp_path / "alex.pth")
    with pytest.raises(UnreadableFileError, match=r"5 missing \(calibrations.0.weight"):
        LPIPS(tmp_path / "alex.pth")
