"""``medvae3d study zoo`` trains, judges, keeps its cells and goes on."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import pytest

from medvae3d.apps.zoo_training import is_trained

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
    assert (out / "comparison.png").is_file()
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


@pytest.mark.integration
def test_masks_of_training_cases_and_balls_are_filled_by_one_trained_pair(
    cli, phantom_list, tmp_path
):
    out = tmp_path / "zoo"
    words = ("study", "zoo", "--datalist", phantom_list, "--out", out, "--samples", 3, "--draws", 2)
    small = (*SMALL[:5], "network_def#channels=[8,16]", "network_def#latent_channels=2")
    done = cli(*words, "--systems", "masks of pavae", *small)
    assert done.code == 0, done.error
    trained = sorted(path.parent.name for path in (out / "trained").glob("*/timing.json"))
    assert len(trained) == 1
    with (out / "cells.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    real, balls = (
        rows[f"pavae, {name}"] for name in ("masks of training cases", "balls for masks")
    )
    assert float(real["cpu_seconds"]) == float(balls["cpu_seconds"]) > 1
    assert float(real["accepted"]) == float(balls["accepted"]) == 1
    made = [
        [nib.load(path).get_fdata() for path in sorted((out / "trained").glob(pattern))]
        for pattern in ("*cases*/samples/*/labelsTr/*", "*balls*/samples/*/labelsTr/*")
    ]
    assert [len(labels) for labels in made] == [3, 3]
    for one, other in zip(*made, strict=True):
        assert (one > 0).sum() == (other > 0).sum() > 0
        assert (one != other).any()


TRAIN = """
import signal
import sys
from pathlib import Path
from medvae3d.apps.zoo_training import train_apart

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run with `&`
datalist, root, *changes = sys.argv[1:]
train_apart("vae", "vae", Path(datalist), Path(root), like=None, seed=0, changes=changes)
"""


@pytest.mark.integration
@pytest.mark.timeout(900)  # ten seconds of processor time, more beside other work
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_training_of_a_stopped_study_ends_with_it_and_goes_on_later(
    number, phantom_list, tmp_path
):
    root = tmp_path / "vae"
    changes = ("max_epochs=2000", *SMALL[1:])
    call = [sys.executable, "-c", TRAIN, phantom_list, root, *changes]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*map(str, call)], env=env, stdout=subprocess.PIPE) as study:
        try:
            state, end = root / "models" / "train_state.pt", time.monotonic() + 600
            while not state.exists():
                assert study.poll() is None and time.monotonic() < end
                time.sleep(0.1)
            study.send_signal(number)
            # Both have it, so it ends with the training: after its step, long before its 4000th.
            study.communicate(timeout=200)
        finally:
            study.kill()
    assert study.returncode == -number
    assert not is_trained(root)
    history = (root / "eval" / "validation.jsonl").read_text().splitlines()
    assert 0 < len(history) < 2000
