"""Training with two processes under ``torchrun``, with gloo on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from small_bundles import JOINT, NAMES, run, small_copy, workflow

ROOT = Path(__file__).parents[2]
NAME = JOINT[0]
STEPS = {"max_epochs": 4, "epoch_length": 10, "batch_size": 2}
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def command_line(
    bundle: Path, datalist: Path, processes: int, options: Sequence[str] = (), **changes: object
) -> list[str]:
    """How a user trains a bundle in several processes."""
    overlay = ["multi_gpu_train"] if processes > 1 else []
    configs = [str(bundle / "configs" / f"{file}.json") for file in ["train", *overlay]]
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    torchrun += [*options, "-m"]
    command = [sys.executable, "-m", *(torchrun if processes > 1 else []), "monai.bundle", "run"]
    command += ["--config_file", str(configs), "--bundle_root", str(bundle)]
    command += ["--datalist", str(datalist), "--device", "cpu"]
    for key, value in changes.items():
        command += [f"--{key}", str(value)]
    return command


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(bundle: Path, datalist: Path, processes: int, **changes: object) -> str:
    """Trains a bundle in processes of its own; what they print."""
    done = subprocess.run(
        command_line(bundle, datalist, processes, **changes),
        env=environment(), cwd=bundle.parent, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def quiet(cases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes train that nobody disturbs."""
    bundle = small_copy(NAME, tmp_path_factory.mktemp("quiet") / NAME)
    launch(bundle, cases(NAME), 2, **STEPS)
    return bundle


def scores(bundle: Path) -> list[float]:
    lines = (bundle / "eval" / "validation.jsonl").read_text().splitlines()
    return [float(json.loads(line)["score"]) for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train(name: str, cases: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = small_copy(name, tmp_path / name)
    said = launch(bundle, cases(name), 2, max_epochs=2, epoch_length=3)
    assert len(scores(bundle)) == 2, "one line a validation: only the first process writes"
    assert said.count("training ended at step 6") == 1
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert not any(key.startswith("module.") for key in state)
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())


def test_two_processes_learn_what_one_learns_from_twice_the_batch(
    quiet: Path, cases: Callable[[str], Path], tmp_path: Path
) -> None:
    """Same cases in each step; noise and augmentation differ, so the way there differs a little."""
    bundles = [small_copy(NAME, tmp_path / NAME), quiet]
    launch(bundles[0], cases(NAME), 1, **{**STEPS, "batch_size": 2 * STEPS["batch_size"]})
    one, two = (scores(bundle) for bundle in bundles)
    learned = one[-1] - one[0]
    assert learned > 0
    assert abs(two[-1] - one[-1]) < 0.2 * learned
    states = [torch.load(b / "models" / "model.pt", weights_only=True) for b in bundles]
    keys = [key for key in states[0] if key.startswith("statistics.")]
    counts = [state["statistics.example_count"] for state in states]
    assert keys and counts[0] > 0 and counts[1] > 0


def test_equal_weights_have_equal_metrics_whatever_the_number_of_processes(
    cases: Callable[[str], Path], tmp_path: Path
) -> None:
    """With a learning rate of 0 both validate the same weights; every process validates all cases."""
    name, still = NAME, {"learning_rate": 0.0, "max_epochs": 1, "epoch_length": 1}
    one, two = (small_copy(name, tmp_path / each / name) for each in ("one", "two"))
    made = workflow(one / "configs" / "train.json", datalist=str(cases(name)), **still)
    run(made)
    launch(two, cases(name), 2, **still)
    found = [(each / "eval" / "validation.jsonl").read_text() for each in (one, two)]
    assert found[0] == found[1] and len(scores(one)) == 1


def ranks_of(parent: int) -> list[int]:
    """Processes that a process has started."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(each) for each in found]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are found in /proc")
def test_after_a_killed_rank_all_go_on_from_the_last_state(
    quiet: Path, cases: Callable[[str], Path], tmp_path: Path
) -> None:
    """``torchrun --max-restarts`` starts all ranks anew; the weights are those of a quiet run."""
    bundle = small_copy(NAME, tmp_path / NAME)
    command = command_line(bundle, cases(NAME), 2, ["--max-restarts=2"], resume=True, **STEPS)
    # Otherwise ranks of the second start read the addresses of the first one, and wait for ever:
    # pytorch issue 135712.
    own_store = {**environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            command, env=own_store, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
        ) as torchrun,
    ):
        end = time.monotonic() + 400
        state = bundle / "models" / "train_state.pt"
        while not state.exists():
            assert torchrun.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        os.kill(ranks_of(torchrun.pid)[-1], signal.SIGKILL)
        assert torchrun.wait(timeout=400) == 0, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert "resumed after step" in said, "the second start has to go on, not to begin anew"
    wanted, found = (
        torch.load(each / "models" / "model.pt", weights_only=True) for each in (quiet, bundle)
    )
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
