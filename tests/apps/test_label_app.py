"""The folder of the MONAI Label application, and the scores that it offers scans by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from label_studies import write_host
from monai.bundle import ConfigParser
from small_bundles import NAMES, config
from torch import nn
from typer.testing import CliRunner

from medvae3d.apps.cli import app
from medvae3d.apps.label import MOST_VOXELS, LoadHostd
from medvae3d.apps.label_folder import write_app
from medvae3d.apps.label_scores import SegmenterJudge, prepared
from medvae3d.apps.segmenter_bundle import SUFFIX, window_of, write_segmenter
from medvae3d.errors import GridError, OutputError, SettingError, UnreadableFileError

BUNDLES = Path(__file__).parents[2] / "bundles"


def test_folder_holds_bundles_segmenters_and_an_entry(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["label-app", "--out", str(tmp_path / "app")])
    assert done.exit_code == 0, done.output
    assert "start_server --app" in done.stdout
    model = tmp_path / "app" / "model"
    assert sorted(path.name for path in model.iterdir()) == [
        "hippocampus_mri_hvae",
        "hippocampus_mri_hvae_segmenter",
    ]
    assert "SyntheticDataApp" in (tmp_path / "app" / "main.py").read_text()
    assert not list((model / "hippocampus_mri_hvae_segmenter" / "models").iterdir())
    with pytest.raises(OutputError):
        write_app(tmp_path / "app", ["sts_petct_hvae"])
    with pytest.raises(SettingError, match="Name each once"):
        write_app(tmp_path / "other", ["sts_petct_hvae", "sts_petct_hvae"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", NAMES)
def test_segmenter_sees_what_its_generator_makes(name: str, tmp_path: Path) -> None:
    folder = write_segmenter(BUNDLES / name, tmp_path / f"{name}{SUFFIX}")
    made, facts = {}, config(name, "inference")
    for file in ("metadata", "inference", "train"):
        made[file] = json.loads((folder / "configs" / f"{file}.json").read_text())
    for file in ("inference", "train"):
        for key in ("channels", "labels", "spacing"):
            assert made[file][key] == facts[key]
    assert made["train"]["network_def"] == made["inference"]["network_def"]
    outputs = made["metadata"]["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert outputs == {str(value): label for label, value in facts["labels"].items()}
    parser = ConfigParser(made["inference"])
    window = made["inference"]["window"]
    image = torch.zeros(1, len(facts["channels"]), *window)
    network = parser.get_parsed_content("network_def").eval()
    assert network(image).shape == (1, len(facts["labels"]), *window)


def test_window_suits_the_network() -> None:
    assert window_of([32, 41, 48]) == [40, 48, 48]


class Fixed(nn.Module):
    """Logits of one label: sure in a cube, unsure beside it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(x), 2, *x.shape[2:])
        logits[:, 0] = 20.0
        logits[:, :, 4:8, 4:8, 4:8] = torch.tensor([0.0, 20.0]).view(1, 2, 1, 1, 1)
        logits[:, :, 8:12, 4:8, 4:8] = 0.0
        return logits


def test_uncertainty_is_the_entropy_of_what_is_or_might_be_a_label(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([2.0, 2, 2, 1])), tmp_path / "a.nii.gz")
    channels = [{"intensity": {"kind": "percentile", "low": 1, "high": 99}}]
    labels = {"background": 0, "lesion": 1}
    judge = SegmenterJudge(Fixed(), channels, labels, (2.0, 2.0, 2.0), (16, 16, 16))
    found = judge.find(str(tmp_path / "a.nii.gz"))
    assert found.volume_ml["lesion"] == pytest.approx(64 * 8 / 1000)
    assert found.uncertainty == pytest.approx(np.log(2) / 2, abs=1e-4)


def host(folder: Path) -> Path:
    return write_host(folder, "hippocampus_mri_hvae", "plain")


def load(path: Path, **changes: Any) -> Any:
    return LoadHostd("image", wishes=("lesions", "seed"), **changes)({"image": str(path)})


def test_host_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    assert MOST_VOXELS == 100_000_000
    with pytest.raises(GridError, match="allowed are 0 million. Crop it"):
        load(host(tmp_path), most_voxels=1000)
    assert load(host(tmp_path))["image"].shape == (40, 54, 38)


def test_broken_hosts_are_named_with_their_cause(tmp_path: Path) -> None:
    path = host(tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UnreadableFileError, match="cannot be read to its end"):
        load(path)
    path.write_bytes(b"words")
    with pytest.raises(UnreadableFileError, match="is no NIfTI volume"):
        load(path)
    with pytest.raises(UnreadableFileError, match="does not exist"):
        load(tmp_path / "absent.nii.gz")
    with pytest.raises(UnreadableFileError, match="Correct it, or take it out"):
        prepared(lambda files: 1 / 0, image="x.nii.gz")  # type: ignore[arg-type]


def test_names_that_look_like_a_wish_are_refused_and_others_are_named(tmp_path: Path) -> None:
    asked = {"image": str(host(tmp_path)), "image_path": "x", "client_id": "me"}
    read = LoadHostd("image", wishes=("lesions", "seed"))
    with pytest.raises(SettingError, match="'lesion'; did you mean 'lesions'"):
        read({**asked, "lesion": 3})
    assert "result" not in read(asked)
    assert read({**asked, "flavour": 1})["result"] == {"ignored_parameters": ["flavour"]}
