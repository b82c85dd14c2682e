"""Claims about exported networks: other runtimes give the bundle's numbers, or there is no file."""

from __future__ import annotations

import json
import resource
from unittest import mock

import numpy as np
import pytest
import torch

from medvae3d.apps import model_export
from medvae3d.apps.bundle import load_bundle
from medvae3d.models.latent import Condition


@pytest.fixture(scope="module")
def balls(bundles):
    """A small joint bundle whose latents have a scale of their own."""
    loaded = load_bundle(bundles / "balls")
    loaded.network.latent_scale.fill_(0.5)
    return loaded


def decoded(bundle, u, volume):
    """What the bundle itself makes of a latent in units of the prior and of a natural attribute."""
    told = bundle.statistics.standardise(volume)
    heads = bundle.network.decode(u / bundle.network.latent_scale, Condition(told))
    return heads["image"].mode(), heads["mask"].logits


@pytest.mark.parametrize("format", [pytest.param("pt2", marks=pytest.mark.slow), "torchscript"])
def test_torch_files_give_the_numbers_of_the_bundle(tmp_path, balls, format):
    path = tmp_path / "new" / f"m{model_export.SUFFIXES[format]}"
    facts = model_export.export_model(balls, path, decoder_only=True)
    assert sorted(each.name for each in path.parent.iterdir()) == sorted([path.name, "m.json"])
    assert json.loads((path.parent / "m.json").read_text()) == facts
    load = torch.jit.load if format == "torchscript" else lambda f: torch.export.load(f).module()
    u, volume = torch.randn(5, *balls.network.latent_shape), torch.full((5, 1), 3.0)
    for ours, theirs in zip(decoded(balls, u, volume), load(str(path))(u, volume), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    assert facts["latent_scale"] == {"z": 0.5}
    assert [each["name"] for each in facts["channels"]] == ["PET", "CT"]
    assert facts["parts"]["decoder"]["inputs"]["z"] == ["batch", 4]


@pytest.mark.slow
def test_onnx_runs_in_onnxruntime_to_the_same_numbers(tmp_path, balls):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    facts = model_export.export_model(balls, tmp_path / "m.onnx")
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "m.json", "m.onnx", "m_encoder.onnx"
    ]  # fmt: skip
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {o.version for o in model.opset_import if not o.domain} == {model_export.OPSET}
    run = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    u, volume = torch.randn(5, *balls.network.latent_shape), torch.full((5, 1), 3.0)
    image, logits = run.run(["made_image", "mask_logits"],
                            {"z": u.numpy(), "attributes": volume.numpy()})  # fmt: skip
    for ours, theirs in zip(decoded(balls, u, volume), (image, logits), strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=0, atol=1e-4)
    assert facts["parts"]["encoder"]["outputs"] == ["latent_mean", "latent_deviation"]
    assert max(part["largest_difference"] for part in facts["parts"].values()) <= 1e-4


@pytest.mark.slow
def test_all_parts_of_two_stages_are_written(tmp_path, bundles):
    facts = model_export.export_model(load_bundle(bundles / "stages"), tmp_path / "m.pt2")
    assert list(facts["parts"]) == ["decoder", "encoder", "shape_decoder", "shape_encoder"]
    assert facts["parts"]["decoder"]["inputs"].keys() == {"z", "mask", "image"}
    loaded = torch.export.load(str(tmp_path / "m_shape_decoder.pt2")).module()
    network = load_bundle(bundles / "stages").network
    u, told = torch.randn(1, *network.shape.latent_shape), network.statistics.mean[None].clone()
    wanted = network.shape.decode(u, Condition(torch.zeros_like(told)))["mask"].logits
    torch.testing.assert_close(loaded(u, told)[0], wanted, rtol=0, atol=1e-4)


def test_a_file_that_gives_other_numbers_is_not_written(cli, tmp_path, bundles):
    def wrong(path):
        loaded = torch.jit.load(str(path))
        return lambda tensors: [each + 1e-3 for each in loaded(*tensors)]

    words = ("export", bundles / "balls", "--out", tmp_path / "a" / "m.ts", "--decoder-only")
    with mock.patch.dict(model_export.RUNNERS, torchscript=wrong):
        done = cli(*words)
    assert done.code == 2 and "differs by 0.001 from what the bundle gives" in done.error
    assert list(tmp_path.iterdir()) == []
    assert cli(*words).code == 0
    again = cli(*words)
    assert again.code == 2 and "exist already" in again.error


@pytest.mark.parametrize(
    "ending", [".ts", *(pytest.param(e, marks=pytest.mark.slow) for e in (".pt2", ".onnx"))]
)
def test_a_full_disk_leaves_with_2_and_nothing(cli, tmp_path, bundles, ending):
    """Torch's own writer ends the process there."""
    words = ("export", bundles / "balls", "--out", tmp_path / "new" / f"m{ending}")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        done = cli(*words, "--decoder-only")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.code == 2 and f"m{ending} cannot be written: File too large" in done.error
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_named(cli, tmp_path, bundles):
    for words, said in (
        (("--out", tmp_path / "m.zip"), "ending is none of"),
        (("--out", tmp_path / "m.onnx", "--format", "tflite"), "allowed are onnx"),
        (("--out", tmp_path / "m", "--format", "pt2"), "with an ending"),
    ):
        done = cli("export", bundles / "balls", *words)
        assert done.code == 2 and said in " ".join(done.error.split())
    with mock.patch.dict("sys.modules", onnxruntime=None):
        done = cli("export", bundles / "balls", "--out", tmp_path / "m.onnx")
    assert done.code == 2 and "medvae3d[export]" in done.error
    assert list(tmp_path.iterdir()) == []
