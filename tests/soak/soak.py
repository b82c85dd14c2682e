"""Thousands of pairs and steps in one process: memory, descriptors, threads, files that stay.

    PYTHONPATH=.:tests .venv/bin/python tests/soak/soak.py --pairs 2000 --steps 2000

Generates with a tiny bundle and trains the shipped configuration with a small network, and looks
at the process every hundredth. Leaves with 1 if resident memory after the first fifth grows by more
than 5 %, or if descriptors, threads, child processes or temporary files are left. Prints JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import small_bundles as small
import tiny_bundles as tiny
import torch

from medvae3d.apps.bundle import load_bundle
from medvae3d.apps.training import train

MOST_GROWTH = 0.05
SAMPLES = 100


class Watch:
    """What the process holds, looked at now and then."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.resident: list[int] = []
        self.descriptors: list[int] = []
        self.before = self.held()
        self.begun = time.monotonic()

    def look(self) -> None:
        self.resident.append(resident_bytes())
        self.descriptors.append(len(os.listdir("/proc/self/fd")))

    def held(self) -> dict[str, Any]:
        gc.collect()
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        scratch = Path(tempfile.gettempdir()).glob("*medvae3d*")
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "children": len(children),
            "temporary": len([path for path in scratch if path != self.root]),
            "hidden": len([path for path in self.root.rglob(".*")]),
        }

    def report(self, count: int) -> dict[str, Any]:
        settled = self.resident[len(self.resident) // 5 :]
        after = self.held()
        seconds = time.monotonic() - self.begun
        return {
            "count": count,
            "a second": round(count / seconds, 1),
            "resident MB after a fifth": round(settled[0] / 1e6, 1),
            "resident MB at most after that": round(max(settled) / 1e6, 1),
            "growth": round(max(settled) / settled[0] - 1, 4),
            "most descriptors": max(self.descriptors),
            "left": {key: after[key] - self.before[key] for key in after},
        }


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def generation(root: Path, pairs: int) -> dict[str, Any]:
    loose = {"max_attempts": 200, "max_components": 10**6, "allow_border": True}
    bundle = load_bundle(tiny.write_bundle(root / "balls", **loose))
    bundle.write(root / "first", 20, 1)
    watch = Watch(root)
    every = max(1, pairs // SAMPLES)

    def advance(done: int, wanted: int, rejected: Mapping[str, int]) -> None:
        if done % every == 0:
            watch.look()

    bundle.write(root / "made", pairs, 1, progress=advance)
    made = len(list((root / "made" / "labelsTr").glob("*.nii.gz")))
    return watch.report(made)


def training(root: Path, steps: int) -> dict[str, Any]:
    source = small.small_copy("hippocampus_mri_hvae", root / "source")
    content = small.read(source / "configs" / "train.json")
    content |= {"epoch_length": 50, "max_epochs": steps // 50, "flow_start": steps // 2}
    (source / "configs" / "train.json").write_text(json.dumps(content))
    cases = small.write_cases(root / "cases", content)
    train(source, cases, root / "warm", changes=["max_epochs=1", "epoch_length=10"])
    watch = Watch(root)
    every = max(1, steps // SAMPLES)
    outcome = train(
        source,
        cases,
        root / "run",
        advance=lambda done, wanted, words: done % every or watch.look(),
    )
    return watch.report(outcome.steps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="medvae3d-soak-") as folder:
        root = Path(folder)
        found = {}
        for name, work, count in (
            ("generation", generation, options.pairs),
            ("training", training, options.steps),
        ):
            found[name] = work(root, count)
            print(json.dumps({name: found[name]}, indent=1), flush=True)
    return int(
        any(
            each["growth"] > MOST_GROWTH or any(count > 0 for count in each["left"].values())
            for each in found.values()
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
