"""``medvae3d bench`` measures a training that is the bundle's own, and says what fits."""

from __future__ import annotations

import json

import pytest
import torch

from medvae3d.apps import bench
from medvae3d.apps.bench import TrainingStep, largest_edge
from medvae3d.errors import BundleError
from tests.small_bundles import small_copy

CPU = torch.device("cpu")


@pytest.fixture
def bundle(tmp_path):
    return small_copy("sts_petct_hvae", tmp_path / "small_hvae")


def test_its_step_teaches_the_players_that_train_at_that_step(bundle):
    step = TrainingStep(bundle, CPU)
    before = {p.name: [w.clone() for w in p.parameters()] for p in step.players}

    def changed():
        return {
            p.name
            for p in step.players
            if any(
                not torch.equal(a, b) for a, b in zip(before[p.name], p.parameters(), strict=True)
            )
        }

    step(0)
    assert changed() == {"model"}
    step()
    assert changed() == {p.name for p in step.players} != {"model"}


def test_a_bundle_of_two_models_is_refused_with_advice(tmp_path):
    bundle = small_copy("sts_petct_pavae", tmp_path / "small_pavae")
    with pytest.raises(BundleError, match="Name another bundle"):
        TrainingStep(bundle, CPU)


def test_the_largest_patch_fits_and_the_next_one_does_not():
    edge = largest_edge(fixed_mb=100, per_voxel_mb=0.01, room=2000, step=8)
    assert edge == 56
    assert 100 + 0.01 * edge**3 <= 2000 < 100 + 0.01 * (edge + 8) ** 3
    assert largest_edge(fixed_mb=100, per_voxel_mb=0.01, room=50, step=8) == 0


def test_the_command_prints_what_was_measured_as_json(cli, bundle, monkeypatch):
    monkeypatch.setattr(bench, "matrix_rate", lambda *_, **__: 1e9)
    monkeypatch.setattr(bench, "load_bundle", lambda root, device: None)
    monkeypatch.setattr(bench, "written_per_second", lambda write, **_: {"per_second": 3.0})
    done = cli("bench", str(bundle), "--json", "--rounds", "1")
    assert done.code == 0, done.error
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert rows["pairs written"]["value"] == 3.0
    assert rows["matrix products"]["value"] == 1.0
    assert rows["training step, last"]["value"] > 0
    assert rows["largest patch that trains"]["value"] % 4 == 0
