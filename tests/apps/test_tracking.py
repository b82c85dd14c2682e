"""A training in MLflow: numbers in a file of its own, without a server."""

from __future__ import annotations

import socket

import pytest

from medvae3d.apps.training import train
from medvae3d.errors import SettingError
from medvae3d.training import tracking


def test_mlflow_that_is_not_installed_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "optional_import", lambda name: (None, False))
    with pytest.raises(SettingError, match=r"pip install 'medvae3d\[mlflow\]'"):
        tracking.mlflow_log(f"sqlite:///{tmp_path}/eval/mlflow.db", "mine")
    assert not (tmp_path / "eval").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_training_is_one_run_of_mlflow_and_needs_no_network(
    trainable, cases, tmp_path, monkeypatch
):
    mlflow = pytest.importorskip("mlflow")

    def refuse(*words):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    said: list[str] = []
    out = tmp_path / "mine"
    changes = ("mlflow=true", "epoch_length=10")
    train(trainable, cases, out, recipe="small", changes=changes, say=said.append)
    uri = f"sqlite:///{out.resolve()}/eval/mlflow.db"
    assert any(f"mlflow ui --backend-store-uri {uri}" in line for line in said)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("medvae3d").experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert {"model/nll", "model/kl", "loss"} <= set(run.data.metrics)
    assert {"model/latent_active_share", "model/dice"} <= set(run.data.metrics)
    steps = [each.step for each in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == [10, 20]
    assert client.list_artifacts(run.info.run_id) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_pictures_are_artifacts_of_the_run_where_that_is_asked_for(trainable, cases, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    out = tmp_path / "mine"
    train(
        trainable, cases, out, recipe="small",
        changes=("mlflow=true", "mlflow_grids=true", "epoch_length=10"),
    )  # fmt: skip
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out.resolve()}/eval/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("medvae3d").experiment_id])
    drawn = sorted(each.name for each in (out / "eval" / "grids").iterdir())
    found = client.list_artifacts(run.info.run_id, "grids")
    assert drawn
    assert [each.path for each in found] == [f"grids/{name}" for name in drawn]
