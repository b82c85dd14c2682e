"""Transforms keep place, label values and native units, and can be undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from medvae3d.data.augmentation import Augmentation, RandomIntensity, RandomPose
from medvae3d.data.intensity import IntensityChannels, PercentileIntensity, WindowIntensity
from medvae3d.data.transforms import (
    DenormalizeChannelsd,
    LabelSpacingd,
    LabelValuesd,
    NormalizeChannelsd,
    PadCropd,
    SafeSpacingd,
    one_hot,
    resample_to_grid,
)
from medvae3d.errors import LabelError, SettingError


def volume(shape=(1, 12, 10, 8), spacing=(1.0, 1.0, 2.0), dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(shape, generator=generator) * 100 + 1
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([5.0, -7.0, 11.0])
    return MetaTensor(values.to(dtype), affine=affine, meta={"filename_or_obj": "host.nii.gz"})


def ball_mask(shape=(20, 20, 20), radius=6.0, values=(1, 2)):
    """A ball of the second value with a core of the first, as two nested structures."""
    axes = [torch.arange(n) - (n - 1) / 2 for n in shape]
    distance = sum(a.square() for a in torch.meshgrid(*axes, indexing="ij")).sqrt()
    mask = torch.zeros(1, *shape, dtype=torch.uint8)
    mask[0][distance <= radius] = values[1]
    mask[0][distance <= radius / 2] = values[0]
    return mask


def smooth_image(mask):
    return (mask > 0).float() * 2 - 1


def test_spacing_works_beside_a_path_and_undoes_itself():
    host = volume()
    spacing = SafeSpacingd(keys="image", pixdim=(2.0, 2.0, 2.0))
    data = spacing({"image": host, "image_path": "/data/host.nii.gz", "image_meta_dict": {}})
    assert data["image_path"] == "/data/host.nii.gz"
    assert tuple(data["image"].pixdim.tolist()) == (2.0, 2.0, 2.0)
    undone = Invertd(keys="pred", transform=Compose([spacing]), orig_keys="image")(
        {**data, "pred": MetaTensor(data["image"].clone())}
    )
    assert undone["pred"].shape == host.shape
    torch.testing.assert_close(undone["pred"].affine, host.affine)


def test_plain_spacing_still_fails_beside_a_path():
    """When this starts to pass, MONAI has put it right and SafeSpacingd can go."""
    from monai.transforms import Spacingd

    with pytest.raises(AttributeError, match="update"):
        Spacingd(keys="image", pixdim=(2.0, 2.0, 2.0))({"image": volume(), "image_path": "x"})


def test_padding_is_undone_bit_for_bit():
    host = volume()
    pad = PadCropd(keys="image", spatial_size=(16, 16, 16), mode="constant", value=-1.0)
    padded = pad({"image": host})
    assert padded["image"].shape == (1, 16, 16, 16)
    undone = pad.inverse(padded)["image"]
    assert torch.equal(undone.as_tensor(), host.as_tensor())
    torch.testing.assert_close(undone.affine, host.affine)


def test_cropping_returns_kept_voxels_to_their_places():
    host = volume()
    crop = PadCropd(keys="image", spatial_size=(8, 8, 8))
    undone = crop.inverse(crop({"image": host}))["image"]
    assert undone.shape == host.shape
    assert torch.equal(undone[:, 2:10, 1:9].as_tensor(), host[:, 2:10, 1:9].as_tensor())


@pytest.mark.parametrize("mode", ["label", "nearest"])
@pytest.mark.parametrize("spacing", [0.6, 1.0, 1.7, 3.0])
def test_label_values_survive_resampling(mode, spacing):
    mask = ball_mask(values=(4, 1))
    shape = tuple(int(np.ceil(20 / spacing)) for _ in range(3))
    moved = resample_to_grid(mask, np.eye(4), shape, np.diag([spacing] * 3 + [1.0]), mode)
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= {0, 1, 4}
    assert (moved > 0).any()


@pytest.mark.parametrize("spacing", [0.5, 0.8, 1.3, 2.0])
def test_label_resampling_keeps_the_volume(spacing):
    """Ties go to the background, so that at 2 mm, halfway between voxels, a tenth is lost."""
    mask = ball_mask(shape=(24, 24, 24), radius=7)
    size = int(round(24 / spacing))
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = (spacing - 1) / 2
    moved = resample_to_grid(mask, np.eye(4), (size,) * 3, affine, "label")
    ratio = (moved > 0).sum().item() * spacing**3 / (mask > 0).sum().item()
    assert 0.85 < ratio < 1.04


def test_label_resampling_never_dilates_on_ties():
    mask = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    mask[:, 2:6, 2:6, 2:6] = 1
    affine = np.eye(4)
    affine[0, 3] = 0.5  # new voxels lie exactly between two old ones
    moved = resample_to_grid(mask, np.eye(4), (8, 8, 8), affine, "label")
    assert moved.sum() < mask.sum()


def test_the_same_grid_resamples_to_the_same_voxels():
    image = volume().as_tensor()
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    same = resample_to_grid(image, affine, image.shape[1:], affine)
    torch.testing.assert_close(same, image, atol=1e-4, rtol=1e-5)
    mask = ball_mask()
    assert torch.equal(resample_to_grid(mask, affine, mask.shape[1:], affine, "label"), mask)


def test_outside_of_the_source_lies_the_fill():
    affine = np.eye(4)
    affine[0, 3] = 100.0
    far = resample_to_grid(torch.ones(2, 4, 4, 4), np.eye(4), (3, 3, 3), affine, fill=-1000.0)
    assert (far == -1000).all()
    far = resample_to_grid(ball_mask(), np.eye(4), (3, 3, 3), affine, "label")
    assert (far == 0).all()


def test_resampling_follows_a_flipped_axis():
    image = torch.arange(6.0).view(1, 6, 1, 1).expand(1, 6, 2, 2)
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    affine[0, 3] = 5.0
    flipped = resample_to_grid(image, np.eye(4), (6, 2, 2), affine)
    torch.testing.assert_close(flipped, image.flip(1), atol=1e-5, rtol=0)


def test_unknown_resampling_is_named():
    with pytest.raises(SettingError, match=r"cubic.*linear, nearest or label"):
        resample_to_grid(torch.ones(1, 2, 2, 2), np.eye(4), (2, 2, 2), np.eye(4), "cubic")


def test_label_spacing_keeps_values_and_undoes_its_grid():
    mask = MetaTensor(ball_mask(values=(3, 1)), affine=torch.eye(4, dtype=torch.float64))
    spacing = LabelSpacingd(keys="label", pixdim=(1.5, 1.5, 1.5), values=(1, 3))
    moved = spacing({"label": mask})
    assert set(moved["label"].unique().tolist()) == {0, 1, 3}
    assert moved["label"].dtype == torch.uint8
    undone = spacing.inverse(moved)["label"]
    assert undone.shape == mask.shape
    torch.testing.assert_close(undone.affine, mask.affine)
    overlap = ((undone == 3) & (mask == 3)).sum() * 2 / ((undone == 3).sum() + (mask == 3).sum())
    assert overlap > 0.85


def test_labels_that_nobody_declared_are_named():
    mask = ball_mask(values=(1, 7))
    with pytest.raises(LabelError, match="label holds 7; allowed are 0, 1"):
        LabelValuesd(keys="label", values=(1,))({"label": mask})
    half = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    with pytest.raises(LabelError, match=r"label holds 0\.5"):
        LabelValuesd(keys="label", values=(1,))({"label": half})
    assert LabelValuesd(keys="label", values=(1, 7))({"label": mask})["label"].dtype == torch.uint8


def test_one_hot_adds_up_to_one():
    shares = one_hot(ball_mask(), (0, 1, 2))
    assert torch.equal(shares.sum(0), torch.ones(20, 20, 20))


INTENSITIES = IntensityChannels((WindowIntensity(-200.0, 300.0), PercentileIntensity()))


def test_normalising_is_undone_and_keeps_the_affine():
    host = volume((2, 12, 10, 8))
    normalise = NormalizeChannelsd(keys="image", intensities=INTENSITIES)
    data = normalise({"image": host})
    assert data["image"].min() >= -1
    torch.testing.assert_close(data["image"].affine, host.affine)
    undone = normalise.inverse(data)["image"]
    torch.testing.assert_close(undone[0].as_tensor(), host[0].as_tensor(), atol=1e-3, rtol=1e-5)
    inside = data["image"][1] > -1
    torch.testing.assert_close(
        undone[1][inside].as_tensor(), host[1][inside].as_tensor(), atol=1e-3, rtol=1e-5
    )
    assert undone.applied_operations == []


def test_a_mask_can_be_carried_back_past_the_intensities():
    steps = Compose(
        [
            SafeSpacingd(keys="image", pixdim=(1.0, 1.0, 1.0)),
            NormalizeChannelsd(
                keys="image",
                intensities=[{"kind": "window", "low": -200, "high": 300}],
                invertible=False,
            ),
        ]
    )
    data = steps({"image": volume(), "image_path": "host.nii.gz"})
    data["pred"] = MetaTensor(torch.ones_like(data["image"].as_tensor()))
    undone = Invertd(keys="pred", transform=steps, orig_keys="image")(data)["pred"]
    assert undone.shape == volume().shape
    assert torch.equal(undone.as_tensor(), torch.ones(undone.shape))


def test_a_synthetic_image_returns_in_its_hosts_units():
    host = volume((2, 12, 10, 8))
    data = NormalizeChannelsd(keys="image", intensities=INTENSITIES, invertible=False)(
        {"image": host}
    )
    data["synthetic"] = MetaTensor(torch.ones(2, 4, 4, 4))
    back = DenormalizeChannelsd(keys="synthetic", intensities=INTENSITIES, source_key="image")(data)
    own = np.percentile(host[1].numpy(), 99.5)
    assert back["synthetic"][0].unique().item() == pytest.approx(300)
    assert back["synthetic"][1].max().item() == pytest.approx(own, rel=1e-5)


POSE = {
    "flip_axes": [0],
    "rotation_deg": 12.0,
    "scale": 0.1,
    "anisotropic_scale": 0.05,
    "shear": 0.05,
    "translation": 2.0,
    "elastic": 0.5,
}


def batch():
    mask = torch.stack([ball_mask(shape=(20, 18, 16), values=(5, 2))] * 3)
    image = torch.cat([smooth_image(mask), smooth_image(mask) * 0.5 - 0.5], dim=1)
    return {"image": image, "mask": mask, "case": ["a", "b", "c"]}


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


def test_augmentation_repeats_with_its_generator_and_leaves_the_global_state():
    augment = Augmentation.from_config({"pose": POSE, "intensity": {"gain": 0.1, "noise": 0.02}})
    before = torch.get_rng_state()
    first, second = augment(batch(), generator()), augment(batch(), generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["mask"], second["mask"])
    assert not torch.equal(first["image"], augment(batch(), generator(8))["image"])
    assert first["case"] == ["a", "b", "c"]


def test_augmentation_moves_image_and_mask_together():
    moved = Augmentation.from_config({"pose": {**POSE, "elastic": 1.0}})(batch(), generator())
    inside = moved["image"][:, :1] > 0
    overlap = 2 * (inside & (moved["mask"] > 0)).sum() / (inside.sum() + (moved["mask"] > 0).sum())
    assert overlap > 0.999


def test_augmentation_keeps_label_values_and_their_dtype():
    moved = Augmentation.from_config({"pose": POSE})(batch(), generator())
    assert moved["mask"].dtype == torch.uint8
    assert set(moved["mask"].unique().tolist()) == {0, 2, 5}


def test_flips_alone_are_exact():
    pose = RandomPose(flip_axes=(0, 2))
    image = torch.rand(6, 1, 5, 6, 7)
    moved, _ = pose(image, None, generator())
    for before, after in zip(image, moved, strict=True):
        options = [before, before.flip(1), before.flip(3), before.flip(1, 3)]
        assert any(torch.equal(after, option) for option in options)


def test_a_translation_moves_by_whole_voxels():
    """Every direction drawn is read back from where the voxel went."""
    image = torch.full((1, 1, 9, 9, 9), -1.0)
    image[0, 0, 4, 4, 4] = 1
    moved, _ = RandomPose(translation=(3.0, 0.0, 0.0))(image, None, generator())
    profile = (moved[0, 0] + 1).sum(dim=(1, 2))
    assert profile.sum().item() == pytest.approx(2, abs=1e-4)
    centre = (profile * torch.arange(9)).sum() / profile.sum()
    assert 0.01 < abs(centre.item() - 4) <= 3
    assert (moved[0, 0] + 1).sum(dim=(0, 1)).argmax() == 4


def test_rotation_keeps_millimetres_on_anisotropic_voxels():
    """A ball in mm stays a ball in mm: turned, its mask is nearly the same one."""
    axes = [(torch.arange(n) - (n - 1) / 2) * s for n, s in ((40, 1.0), (40, 1.0), (20, 2.0))]
    distance = sum(a.square() for a in torch.meshgrid(*axes, indexing="ij")).sqrt()
    mask = (distance <= 14).byte().expand(4, 1, -1, -1, -1)
    _, moved = RandomPose(rotation_deg=40.0, spacing_mm=(1, 1, 2))(None, mask, generator())
    _, skewed = RandomPose(rotation_deg=40.0)(None, mask, generator())

    def overlap(other):
        return (2 * (mask & other).sum() / (mask.sum() + other.sum())).item()

    assert overlap(moved) > 0.97
    assert overlap(skewed) < 0.9


def test_fill_and_border_decide_what_lies_outside():
    image = torch.full((1, 1, 8, 8, 8), 0.5)
    move = {"translation": 6.0}
    filled, _ = RandomPose(**move)(image, None, generator())
    assert filled.min().item() == pytest.approx(-1)
    bordered, _ = RandomPose(**move, padding="border")(image, None, generator())
    assert bordered.min().item() == pytest.approx(0.5)


def test_intensity_leaves_the_background_alone():
    image = batch()["image"]
    changed = RandomIntensity(gain=0.2, gamma=0.2, offset=0.1, noise=0.05)(image, generator())
    assert (changed[image == -1] == -1).all()
    assert not torch.equal(changed, image)


def test_half_the_cases_keep_their_pose_at_probability_one_half():
    image = batch()["image"][:1].expand(200, -1, -1, -1, -1)[:, :1]
    moved, _ = RandomPose(translation=2.0, probability=0.5)(image, None, generator())
    same = (moved - image).abs().flatten(1).amax(1) < 1e-4
    assert 70 < same.sum() < 130


def test_an_unknown_setting_is_named():
    with pytest.raises(SettingError, match=r"RandomPose was given \['rotate'\]; allowed are"):
        Augmentation.from_config({"pose": {"rotate": 3}})
    with pytest.raises(SettingError, match="flip_axes"):
        RandomPose(flip_axes=(3,))


def test_augmentation_survives_json():
    import json

    augment = Augmentation.from_config({"pose": POSE, "intensity": {"gain": 0.1}, "values": [1]})
    assert Augmentation.from_config(json.loads(json.dumps(augment.to_config()))) == augment
