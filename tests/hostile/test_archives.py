"""Claims about archives and weights: nothing is written elsewhere, run, or made out of nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hostile import commands, make_archives

PACKAGE = Path(__file__).parents[2] / "medvae3d"
BUNDLE_CALLS, WEIGHTS_CALLS = commands.bundle_calls(), commands.weights_calls()


def sources_that(match):
    """Modules of the package in whose text something occurs."""
    files = PACKAGE.rglob("*.py")
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in files
        if re.search(match, path.read_text(encoding="utf-8"))
    }


def test_what_archives_would_write_elsewhere_is_not_written(runner, tmp_path):
    from medvae3d.data.datalists import read_datalist

    outside = tmp_path / "outside"
    outside.mkdir()
    for number, (name, content) in enumerate(make_archives.escaping(outside)):
        path, out = tmp_path / name, tmp_path / f"out_{number}"
        path.write_bytes(content)
        done = runner.run(["data", "import", path, "--out", out])
        assert done.raised is None, (name, done)
        assert done.code in (0, 1), (name, done.error)
        (case,) = read_datalist(out / "datalist.json").cases
        assert case.image[0].is_relative_to(out)
        assert not any(part.is_symlink() for part in out.rglob("*"))
        assert list(outside.iterdir()) == [], name


def test_damaged_and_hostile_archives_are_refused(runner, tmp_path):
    out, faults = tmp_path / "out", {}
    out.mkdir()
    for name, content in make_archives.refused_tars():
        path = tmp_path / name
        path.write_bytes(content)
        faults[name] = runner.faults(["data", "import", path, "--out", out / "o"], out)
    assert {name: found for name, found in faults.items() if found} == {}


def test_archives_are_opened_in_one_place():
    opening = r"tarfile\.open|zipfile\.|unpack_archive|extractall|extractfile"
    # Writing shards is no unpacking.
    assert sources_that(opening) == {
        "data/importing/archives.py", "apps/export_shards.py", "models/weights.py",
    }  # fmt: skip


def test_weights_are_read_in_one_place():
    unpickling = r"torch\.load\(|pickle\.loads?\(|joblib|torch\.jit\.load\(|np\.load\(|dill"
    # A TorchScript file that was just written is run, to compare it with its original; cases that
    # this very process unpacked into a private folder are mapped, which a check sum would undo.
    own = {"apps/model_export.py", "data/unpacked.py"}
    assert sources_that(unpickling) - own == {"models/weights.py"}


@pytest.fixture(scope="module")
def hostile_weights(good, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    state = torch.load(good.joint / "models" / "model.pt", weights_only=True)
    for name, content in make_archives.weights(folder / "trace", state):
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", WEIGHTS_CALLS)
def test_weights_with_code_and_without_sense_are_refused(
    runner, hostile_weights, good, tmp_path, name
):
    faults = {
        path.name: runner.faults(WEIGHTS_CALLS[name](path, tmp_path, good), tmp_path, path.name)
        for path in sorted(hostile_weights.glob("*.pt"))
    }
    assert {name: found for name, found in faults.items() if found} == {}
    assert not (hostile_weights / "trace").exists()


def test_an_evaluation_refuses_such_weights_and_goes_on(hostile_weights, good, tmp_path, runner):
    from medvae3d.errors import MedvaeError
    from medvae3d.evaluation.feature_networks import trained_features
    from medvae3d.evaluation.lpips import LPIPS

    for path in sorted(hostile_weights.glob("*.pt")):
        for load in (
            lambda file: trained_features("medicalnet", file),
            lambda file: trained_features("radimagenet", file),
            LPIPS,
        ):
            with pytest.raises(MedvaeError, match=re.escape(path.name)) as caught:
                load(path)
            assert "\n" not in str(caught.value)
    words = ["evaluate", "--real", good.datalist, "--synthetic", good.datalist, "--out",
             tmp_path / "o", "--viewer-cases", 0, "--sections", "realism",
             "--features", f"medicalnet={hostile_weights / 'trap.pt'}"]  # fmt: skip
    done = runner.run(words)
    assert (done.code, done.raised) == (0, None), done
    assert "trap.pt" in (tmp_path / "o" / "report.json").read_text()
    assert not (hostile_weights / "trace").exists()


def test_bundles_with_such_weights_are_refused(runner, hostile_weights, good, tmp_path):
    root, out, faults = shutil.copytree(good.joint, tmp_path / "b"), tmp_path / "out", {}
    out.mkdir()
    for path in sorted(hostile_weights.glob("*.pt")):
        shutil.copyfile(path, root / "models" / "model.pt")
        words = ["generate", root, "--count", 1, "--out", out / "o"]
        faults[path.name] = runner.faults(words, out, "model.pt")
    assert {name: found for name, found in faults.items() if found} == {}
    assert not (hostile_weights / "trace").exists()


def test_a_state_of_training_with_code_is_refused(hostile_weights):
    from medvae3d.errors import BundleError
    from medvae3d.training.checkpoints import load_state

    for name in ("trap.pt", "trap_old_form.pt", "trap_as_key.pt", "pickle.pt", "module.pt"):
        with pytest.raises(BundleError, match=re.escape(name)):
            load_state(hostile_weights / name)
    assert not (hostile_weights / "trace").exists()


@pytest.mark.parametrize("name", BUNDLE_CALLS)
@pytest.mark.parametrize("kind", ["train", "inference"])
def test_every_command_that_takes_a_bundle_asks_for_trust(runner, good, tmp_path, name, kind):
    root, out = shutil.copytree(good.joint, tmp_path / "b"), tmp_path / "out"
    out.mkdir()
    trace = tmp_path / "trace"
    code = f"$__import__('os').mkdir({str(trace)!r})"
    config = root / "configs" / "inference.json"
    (root / "configs" / f"{kind}.json").write_text(
        json.dumps({**json.loads(config.read_text()), "spacing": code})
    )
    found = runner.faults(BUNDLE_CALLS[name](root, out, good), out, "would execute", lines=True)
    assert found == []
    assert not trace.exists()


def test_links_out_of_a_bundle_are_not_copied(runner, good, tmp_path):
    root, out = shutil.copytree(good.joint, tmp_path / "b"), tmp_path / "out"
    out.mkdir()
    metadata = root / "configs" / "metadata.json"
    stated = {"network_data_format": {"inputs": {"image": {"num_channels": 1}}}}
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | stated))
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (root / "docs" / "inner.txt").symlink_to("data_license.txt")
    assert runner.run(["label-app", "--bundle", root, "--out", tmp_path / "app"]).code == 0
    (root / "docs" / "card.txt").symlink_to(secret)
    for name in ("label-app", "train"):
        words = BUNDLE_CALLS[name](root, out, good)
        assert runner.faults(words, out, "outside of the bundle") == []
