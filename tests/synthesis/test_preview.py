"""Claims about the pictures of samples."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medvae3d.data.phantom import phantom_case
from medvae3d.errors import SettingError
from medvae3d.geometry import Grid
from medvae3d.synthesis.preview import Panel, contact_sheet, preview_insertion, section, shade
from medvae3d.synthesis.recipe import Channel

MR = Channel.from_config({"name": "FLAIR", "intensity": {"kind": "percentile"}})
PET = Channel.from_config({"name": "PET", "intensity": {"kind": "power", "scale": 10}})
CT = Channel.from_config({"name": "CT", "intensity": {"kind": "window", "low": -100, "high": 300}})
SHAPE = (24, 28, 20)


def panel(title="case", affine=None):
    image = np.zeros((1, *SHAPE), np.float32)
    image[:, 4:20, 4:24, 4:16] = np.linspace(20, 80, 20)[:, None]
    image[:, 15:18, 20:23, 12:15] = 100  # right, front, top
    label = (image[0] == 100).astype(np.uint8)
    return Panel(title, image, label, Grid(SHAPE, np.eye(4) if affine is None else affine))


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        contact_sheet([panel("one"), panel("two"), panel("three")], [MR], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_picture_does_not_say_what_made_it(tmp_path):
    contact_sheet([panel()], [MR], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert not {"Software", "Creation Time"} & set(picture.info)


def test_the_outline_is_drawn_in_colour(tmp_path):
    contact_sheet([panel()], [MR], tmp_path / "with.png")
    empty = Panel("case", panel().image, np.zeros(SHAPE, np.uint8), panel().grid)
    contact_sheet([empty], [MR], tmp_path / "without.png")
    coloured = [
        np.ptp(pixels(tmp_path / n), axis=2).max() > 60 for n in ("with.png", "without.png")
    ]
    assert coloured == [True, False]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR"])
def test_orientation_does_not_change_the_picture(codes, tmp_path):
    """The same patient on differently stored axes looks the same."""
    import nibabel as nib

    known = panel()
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    affine = nib.orientations.inv_ornt_aff(turn, SHAPE)
    image = nib.orientations.apply_orientation(known.image[0], turn)
    label = nib.orientations.apply_orientation(known.label, turn)
    moved = Panel("case", image[None], label, Grid(image.shape, affine))
    assert "".join(nib.aff2axcodes(affine)) == codes
    contact_sheet([known], [MR], tmp_path / "a.png")
    contact_sheet([moved], [MR], tmp_path / "b.png")
    assert (pixels(tmp_path / "a.png") == pixels(tmp_path / "b.png")).all()


def test_the_patients_right_is_on_the_left_and_the_front_on_top(tmp_path):
    contact_sheet([panel()], [MR], tmp_path / "a.png")
    picture = pixels(tmp_path / "a.png")
    first = picture[:, : picture.shape[1] // 3]
    bright = np.argwhere((first == 255).all(2))[:, 1]
    grey = np.argwhere((np.ptp(first, axis=2) == 0) & (first[..., 0] > 60) & (first[..., 0] < 200))
    assert bright.mean() < grey[:, 1].mean()


def test_pet_is_dark_where_uptake_is_high_and_ct_has_its_window():
    assert shade(np.array([0.0, 2.5, 5.0, 50.0]), PET).tolist() == [1, 0.5, 0, 0]
    assert shade(np.array([-500.0, -100.0, 100.0, 300.0]), CT).tolist() == [0, 0, 0.5, 1]


def test_planes_go_through_the_largest_section():
    assert section(panel().label) == (15, 20, 12)
    assert section(np.zeros(SHAPE, np.uint8)) == (12, 14, 10)


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(SettingError, match="no sample to draw"):
        contact_sheet([], [MR], tmp_path / "a.png")


def test_before_and_after_differ_where_a_lesion_is(tmp_path):
    host = phantom_case(0, (32, 36, 32), (5.0, 5.0, 5.0), lesions=(0, 0))
    mask = np.zeros(host.grid.shape, np.uint8)
    mask[18:22, 18:22, 18:22] = 1
    before = host.image[:1]
    after = np.where(mask, before.max(), before)
    for name, made in (("same.png", before), ("changed.png", after)):
        preview_insertion(before, made, mask, host.grid, [MR], tmp_path / name, title="0")
    same, changed = (pixels(tmp_path / name) for name in ("same.png", "changed.png"))
    assert same.shape == changed.shape
    columns = np.abs(same - changed).sum((0, 2)).nonzero()[0]
    # "Before", the first third, stays as it is.
    assert columns.min() > same.shape[1] * 0.3
