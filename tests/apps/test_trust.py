"""Claims about bundles from elsewhere: nothing is executed that was not agreed to."""

from __future__ import annotations

import json
import os

import pytest
import tiny_bundles as tiny
import torch

from medvae3d.apps.bundle import load_bundle
from medvae3d.apps.catalogue import shipped_bundles
from medvae3d.apps.trust import foreign, require_own_weights
from medvae3d.errors import BundleError


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def with_entries(folder, **entries):
    """A small bundle whose configuration has more in it."""
    root = tiny.write_bundle(folder)
    config = root / "configs" / "inference.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | entries))
    return root


def hostile(trace, kind, folder):
    """Entries that make a folder when MONAI resolves them."""
    call = f"__import__('os').mkdir({str(trace)!r})"
    if kind == "expression":
        return {"spacing": f"$[4.0, 4.0, 4.0] if {call} is None else 0"}
    if kind == "import":
        return {"imports": ["$import math", f"${call}"]}
    if kind == "target":
        return {"labels": {"_target_": "os.mkdir", "path": str(trace)}}
    other = folder / "other.json"
    other.write_text(json.dumps({"value": f"${call}"}))
    return {"labels": f"%{other}::value"}


@pytest.mark.parametrize("kind", ["expression", "import", "target", "macro"])
def test_what_a_strange_bundle_would_execute_is_listed_and_not_executed(refused, tmp_path, kind):
    trace = tmp_path / "trace"
    root = with_entries(tmp_path / "strange", **hostile(trace, kind, tmp_path))
    words = ("generate", root, "--count", 1, "--out", tmp_path / "out")
    error = refused(*words, out=tmp_path)
    assert "--trust" in error
    assert "inference.json: " in error
    assert not trace.exists()


def test_a_trusted_bundle_executes_what_it_asks_for(cli, tmp_path):
    trace = tmp_path / "trace"
    root = with_entries(tmp_path / "strange", **hostile(trace, "expression", tmp_path))
    done = cli("generate", root, "--count", 1, "--out", tmp_path / "out", "--trust")
    assert done.code == 0, done.error
    assert trace.is_dir()


def test_trust_in_python_holds_for_one_bundle(tmp_path):
    root = with_entries(tmp_path / "strange", spacing="$[4.0] * 3")
    assert load_bundle(root, trust=True).recipe.grid.spacing == (4.0, 4.0, 4.0)
    with pytest.raises(BundleError, match="would execute"):
        load_bundle(root)


def test_trust_cannot_be_given_by_a_file(refused, tmp_path):
    root = with_entries(tmp_path / "strange", spacing="$[4.0] * 3")
    options = tmp_path / "options.json"
    options.write_text(json.dumps({"trust": True}))
    words = ("generate", root, "--count", 1, "--out", tmp_path / "out", "--config", options)
    assert "no option 'trust'" in refused(*words, out=tmp_path)


@pytest.mark.parametrize("name", sorted(shipped_bundles()))
def test_a_shipped_bundle_is_known_and_has_the_hash_of_its_weights(name):
    root = shipped_bundles()[name]
    weights = root / "models" / "model.pt"
    assert foreign(root) == {}
    assert weights.with_name("model.pt.sha256").read_text().split()[1] == "model.pt"
    assert len(require_own_weights(weights)) == 64


def test_weights_that_are_not_those_of_the_bundle_are_refused(tmp_path):
    root = tiny.write_bundle(tmp_path / "balls")
    (root / "models" / "model.pt.sha256").write_text(f"{'0' * 64}  model.pt\n")
    with pytest.raises(BundleError, match="not the weights that the bundle came with"):
        load_bundle(root)


def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(refused, tmp_path):
    trace = tmp_path / "trace"
    root = tiny.write_bundle(tmp_path / "balls")
    torch.save({"weight": Bomb(trace)}, root / "models" / "model.pt")
    words = ("generate", root, "--count", 1, "--out", tmp_path / "out")
    assert "cannot be read as weights" in refused(*words, out=tmp_path)
    assert not trace.exists()
