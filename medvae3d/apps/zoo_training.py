"""The training of a cell of the study of all systems: in a process of its own, and what it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from medvae3d.apps.bundle import load_bundle
from medvae3d.apps.trust import is_trusting, trusting
from medvae3d.data.volumes import write_bytes
from medvae3d.errors import OutputError, SettingError
from medvae3d.spreading import end_with_parent, lifeline
from medvae3d.studies.cells import read_object

TIMING = "timing.json"
# Steps that the clock leaves out: the first ones compile kernels and fill caches.
WARM_UP = 5


def is_trained(root: Path) -> bool:
    """Whether a folder holds a model whose training has ended."""
    return (root / TIMING).is_file()


def train_apart(
    name: str,
    system: str,
    datalist: Path,
    root: Path,
    *,
    like: str | None,
    seed: int,
    changes: Sequence[str],
) -> None:
    """Trains in a process of its own, and notes the memory and processor time of all of it.

    Where this process is stopped or killed, the training saves its state and ends as well.

    Raises:
        SettingError: If it could not be trained.
    """
    order = {
        "system": system,
        "datalist": str(datalist),
        "out": str(root),
        "like": like,
        "trust": is_trusting(),
        "seed": seed,
        "changes": [*changes],
    }
    call = [sys.executable, "-m", "medvae3d.apps.zoo_training", json.dumps(order)]
    process: subprocess.Popen[str] | None = None
    try:
        with lifeline() as options:
            process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True, **options)
            # Before waiting: a full pipe would keep it from ending.
            told = cast(IO[str], process.stderr).read()
    except BaseException:
        if process is not None:
            process.communicate()  # until its state is saved
        raise
    cast(IO[str], process.stderr).close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not is_trained(root):
        last = told.strip().splitlines()[-1:] or ["no message"]
        raise SettingError(
            f"{name} with seed {seed} could not be trained: {last[0]}. What is done is kept; leave "
            f"it out with --systems, or put the cause right."
        )
    found = json.loads((root / TIMING).read_text())
    # Kilobytes on Linux.
    found["memory_gb"] = usage.ru_maxrss * 1024 / 1e9
    if not found.pop("resumed"):  # what was done before the stop is not in this process
        found["cpu_seconds"] = usage.ru_utime + usage.ru_stime
    write_bytes(root / TIMING, json.dumps(found).encode() + b"\n")


def read_timing(root: Path) -> dict[str, float | None]:
    """What a training took: parameters in millions, seconds, and memory where it is known.

    Raises:
        OutputError: If the file is of another form.
    """
    timing = read_object(root / TIMING)
    names = ("parameters", "cpu_seconds_a_step", "seconds_a_step")
    if not all(isinstance(timing.get(name), int | float) for name in names):
        raise OutputError(
            f"{root / TIMING} does not hold {', '.join(names)}. Delete {root}, and the model is "
            f"trained again."
        )
    return {
        "parameters": timing["parameters"] / 1e6,
        "cpu_seconds": timing.get("cpu_seconds"),
        "cpu_seconds_a_step": timing["cpu_seconds_a_step"],
        "seconds_a_step": timing["seconds_a_step"],
        "memory_gb": timing.get("memory_gb"),
    }


def train_one(order: Mapping[str, Any]) -> None:
    """Trains one cell and leaves what it took beside its weights; in a process of its own."""
    from medvae3d.apps.training import train

    marks: list[tuple[int, float, float]] = []

    def advance(done: int, wanted: int, words: str) -> None:
        marks.append((done, time.process_time(), time.perf_counter()))

    is_resumed = Path(order["out"]).exists()
    outcome = train(
        order["system"], order["datalist"], order["out"], like=order["like"], seed=order["seed"],
        resume=True, changes=order["changes"], advance=advance,
    )  # fmt: skip
    if outcome.signal is not None:
        raise SystemExit("it was stopped, and its state is kept")
    counted = marks[min(WARM_UP, len(marks) // 2) :]
    (first, cpu, wall), (last, cpu_end, wall_end) = counted[0], counted[-1]
    steps = max(1, last - first)
    network = load_bundle(order["out"]).network
    content = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": marks[-1][0],
        "cpu_seconds_a_step": (cpu_end - cpu) / steps,
        "seconds_a_step": (wall_end - wall) / steps,
        "resumed": is_resumed,
    }
    write_bytes(Path(order["out"]) / TIMING, json.dumps(content).encode() + b"\n")


if __name__ == "__main__":
    end_with_parent()
    given = json.loads(sys.argv[1])
    with trusting(given["trust"]):
        train_one(given)
