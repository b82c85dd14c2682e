"""``medvae3d study zoo`` trains, judges, keeps its cells and goes on."""

from __future__ import annotations

import csv
import json

import pytest

SMALL = (
    "max_epochs=1", "epoch_length=2", "batch_size=2", "prior_passes=1", "val_interval=1",
    "network_def#channels=[4,8]", "network_def#latent_channels=2",
)  # fmt: skip


@pytest.mark.integration
def test_systems_are_trained_judged_and_kept(cli, phantom_list, tmp_path):
    out = tmp_path / "zoo"
    words = ("study", "zoo", "--datalist", phantom_list, "--out", out, "--samples", 4, "--draws", 2)
    words += ("--judged", 2)
    done = cli(*words, "--systems", "vae;principal components", *SMALL)
    assert done.code == 0, done.error
    with (out / "cells.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert float(rows["vae"]["cpu_seconds_a_step"]) > 0
    assert float(rows["vae"]["log_likelihood"]) < 10
    assert float(rows["principal components"]["nmse"]) < float(rows["vae"]["nmse"])
    kept = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    again = cli(*words, "--systems", "vae;principal components;dcgan", *SMALL)
    assert again.code == 0, again.error
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    dcgan = json.loads(next((out / "cells").glob("*dcgan*")).read_text())
    assert "nmse" not in dcgan["means"]  # it has no encoder to rebuild with


def test_other_settings_in_the_same_folder_are_refused(cli, refused, phantom_list, tmp_path):
    out = tmp_path / "zoo"
    words = ("study", "zoo", "--datalist", phantom_list, "--out", out)
    told = refused(*words, "--systems", "nothing", out=out)
    assert "nothing" in told
