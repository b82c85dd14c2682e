"""How far samples of one seed differ: batch size, threads, instruction set, number format, device.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/same_samples.py --count 4 [--devices cuda]

The same cases are made in several ways, and what would be stored is compared, in steps of its
slope. Prints a table in Markdown for ``docs/reference/reproducibility.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

BUNDLES = ("sts_petct_hvae", "hippocampus_mri_hvae", "sts_petct_pavae", "brain_mri_ms_pavae")
WAYS: dict[str, dict[str, Any]] = {
    "again": {},
    "2 threads": {"threads": 2},
    "batches of 4": {"block": 4},
    "batches of 1": {"block": 1},
    "bfloat16": {"bfloat16": True},
}
# Set before torch is loaded, so each needs a process of its own: as on older CPUs.
MACHINES = {
    "AVX2 at most": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "SSE4.1 at most": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
}


def make(
    name: str,
    count: int,
    block: int | None = None,
    bfloat16: bool = False,
    threads: int = 1,
    device: str = "cpu",
) -> list[Any]:
    """Voxels of each channel in steps of what is stored, before they are rounded, and masks."""
    import torch

    from medvae3d import load_bundle

    torch.set_num_threads(threads)
    bundle = load_bundle(name, device)
    if block is not None:
        synthesis = replace(bundle.recipe.synthesis, block_size=block)
        bundle = replace(bundle, recipe=replace(bundle.recipe, synthesis=synthesis))
    low = torch.autocast(torch.device(device).type, torch.bfloat16)
    with low if bfloat16 else contextlib.nullcontext():
        samples = list(bundle.generate(count, 20))
    slopes = [float(channel.slope or 1) for channel in bundle.recipe.channels]
    steps = np.array(slopes)[:, None, None, None]
    return [(each.image.numpy().astype(np.float64) / steps, each.label.numpy()) for each in samples]


def row(name: str, way: str, one: list[Any], other: list[Any]) -> str:
    """How far two lists of the same cases differ, as a row of the table."""
    pairs = list(zip(one, other, strict=True))
    before = max(float(np.abs(a[0] - b[0]).max()) for a, b in pairs)
    rounded = [np.abs(np.rint(a[0]) - np.rint(b[0])).ravel() for a, b in pairs]
    steps = np.concatenate(rounded).astype(np.int64)
    dice = [
        2 * ((a[1] > 0) & (b[1] > 0)).sum() / max(1, (a[1] > 0).sum() + (b[1] > 0).sum())
        for a, b in pairs
    ]
    masks = sum(np.array_equal(a[1], b[1]) for a, b in pairs)
    cells = (
        f"`{name}`",
        way,
        f"{100 * (steps == 0).mean():.4g} %",
        f"{np.quantile(steps, 0.999):.0f}",
        f"{steps.max()}",
        f"{before:.2g}",
        f"{masks} of {len(pairs)}",
        f"{min(dice):.4f}",
    )
    return f"| {' | '.join(cells)} |"


def elsewhere(names: list[str], count: int, environment: dict[str, str]) -> dict[str, list[Any]]:
    """The cases of several bundles, made by a process with other variables."""
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run(
            [sys.executable, __file__, "--worker", json.dumps([names, count, file.name])],
            env={**os.environ, **environment},
            check=True,
        )
        found: dict[str, list[Any]] = pickle.loads(Path(file.name).read_bytes())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--bundles", default=",".join(BUNDLES))
    parser.add_argument("--devices", default="", help="other devices to compare with the CPU")
    options = parser.parse_args()
    names = options.bundles.split(",")
    ways = WAYS | {each: {"device": each} for each in options.devices.split(",") if each}
    columns = ("bundle", "made", "equal voxels", "99.9 % within", "largest", "before rounding",
               "equal masks", "least Dice")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    first = {}
    for name in names:
        first[name] = make(name, options.count)
        for way, more in ways.items():
            print(row(name, way, first[name], make(name, options.count, **more)), flush=True)
    for machine, environment in MACHINES.items():
        for name, found in elsewhere(names, options.count, environment).items():
            print(row(name, machine, first[name], found), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        asked, number, path = json.loads(sys.argv[2])
        Path(path).write_bytes(pickle.dumps({each: make(each, number) for each in asked}))
    else:
        main()
