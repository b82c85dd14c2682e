"""Claims about ``medvae3d fill``: one scan with a lesion taken out, as volumes and as pictures."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medvae3d.apps.training import train
from medvae3d.data.datalists import read_datalist

SMALL = (
    "max_epochs=1", "epoch_length=2", "batch_size=2", "prior_passes=1", "val_interval=1",
    "tensorboard=false", "network_def#channels=[4,8]", "network_def#latent_channels=2",
)  # fmt: skip


@pytest.mark.integration
def test_a_lesion_is_taken_out_of_a_scan_as_volumes_an_animation_and_a_sheet(
    cli, phantom_list, tmp_path
):
    train("cvae_fill", phantom_list, tmp_path / "filler", seed=1, changes=list(SMALL))
    case = read_datalist(phantom_list).split("validation")[0]
    out = tmp_path / "without"
    words = [word for path in case.image for word in ("--image", path)]
    words += ["--label", case.label, "--healthy", "--count", 2, "--out", out]
    done = cli("fill", tmp_path / "filler", *words, "--json")
    assert done.code == 0, done.error
    lesion = np.asarray(nib.load(case.label).dataobj) > 0
    for path in sorted((out / "labels").glob("*.nii.gz")):
        assert not np.asarray(nib.load(path).dataobj)[lesion].any()
    first, second = sorted((out / "images").glob("*_0000.nii.gz"))
    before, *after = (np.asarray(nib.load(path).dataobj) for path in (case.image[0], first, second))
    for made in after:
        assert (made != before)[lesion].mean() > 0.5
        assert np.array_equal(made[0], before[0]), "a plane far from any lesion"
    assert not np.array_equal(*after)
    with Image.open(json.loads(done.out)["animation"]) as animation:
        assert animation.n_frames == 4  # the scan, two fillings, and back
    with Image.open(out / "path.png") as sheet:
        assert min(sheet.size) > 50
