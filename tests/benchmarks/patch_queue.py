"""Plain torchio queue at its defaults against the patch loader, in one run.

    python tests/benchmarks/patch_queue.py

Writes cases as .nii.gz into a temporary folder, then runs each way in a process of its own, with
a training step that takes a fixed time and no processor, as on a GPU, or with ``--busy`` a core of
the same machine. Prints a table of the time that training waits for patches, its longest single
stall, and the memory that the process took at its peak beyond its imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torchio as tio

from medvae3d.data.patches import patch_loader

WAYS = {
    "torchio, 0 workers": ("plain", 0, {}),
    "torchio, 2 workers": ("plain", 2, {}),
    "ours, 0 workers": ("ours", 0, {}),
    "ours, 2 workers": ("ours", 2, {}),
    "ours, 2 workers, no cache": ("ours", 2, {"cache_mb": 0}),
    "ours, 0 workers, no cache": ("ours", 0, {"cache_mb": 0}),
    "ours, 0 workers, no cache, no thread": ("ours", 0, {"cache_mb": 0, "prefetch": False}),
}


def write_cases(folder: Path, count: int, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    for case in range(count):
        image = random.normal(100, 20, shape).astype(np.float32)
        mask = np.zeros(shape, np.uint8)
        place = [int(random.integers(8, n - 16)) for n in shape]
        mask[tuple(slice(p, p + 8) for p in place)] = 1
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"case{case}_mr.nii.gz")
        nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / f"case{case}_mask.nii.gz")


def files_of(folder: Path) -> list[dict[str, str]]:
    return [
        {"image": str(f), "label": str(f).replace("_mr", "_mask"), "case": f.name}
        for f in sorted(folder.glob("*_mr.nii.gz"))
    ]


def plain_batches(files, patch, batch_size, samples, length, workers, epochs):
    subjects = [
        tio.Subject(image=tio.ScalarImage(f["image"]), mask=tio.LabelMap(f["label"])) for f in files
    ]
    queue = tio.Queue(
        tio.SubjectsDataset(subjects),
        length,
        samples,
        tio.LabelSampler(patch, "mask", {0: 0.2, 1: 0.8}),
        num_workers=workers,
    )
    loader = tio.SubjectsLoader(queue, batch_size=batch_size, num_workers=0)
    for _ in range(epochs):
        yield from loader


def our_batches(files, patch, batch_size, samples, length, workers, epochs, **settings):
    loader = patch_loader(
        files,
        patch_shape=patch,
        batch_size=batch_size,
        seed=0,
        samples_per_case=samples,
        label_probabilities={0: 0.2, 1: 0.8},
        max_length=length,
        num_workers=workers,
        drop_last=False,
        **settings,
    )
    for _ in range(epochs):
        yield from loader
    loader.close()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step(step_s: float, busy: bool) -> None:
    if not busy:
        return time.sleep(step_s)
    weight = torch.ones(256, 256)
    until = time.thread_time() + step_s
    while time.thread_time() < until:
        weight @ weight
    return None


def measure(batches, step_s: float, busy: bool) -> dict[str, float]:
    """Time spent waiting in all, the first wait, and the longest wait after it."""
    before = torch.get_rng_state()
    imported_mb = peak_mb()
    waits = []
    started = time.perf_counter()
    while True:
        asked = time.perf_counter()
        if next(batches, None) is None:
            break
        waits.append(time.perf_counter() - asked)
        step(step_s, busy)
    return {
        "batches": len(waits),
        "total_s": time.perf_counter() - started,
        "first_s": waits[0],
        "wait_s": sum(waits),
        "stall_s": max(waits[1:]),
        "peak_mb": peak_mb() - imported_mb,
        "global_state_kept": torch.equal(before, torch.get_rng_state()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 144, 128))
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--step-ms", type=float, default=120)
    parser.add_argument("--busy", action="store_true", help="the step takes a core, not only time")
    parser.add_argument("--way", choices=WAYS, help="measure one way, in this process")
    parser.add_argument("--folder", type=Path, help="cases written before")
    settings = parser.parse_args()
    if settings.way:
        kind, workers, extra = WAYS[settings.way]
        make = plain_batches if kind == "plain" else our_batches
        shape = (settings.patch,) * 3
        batches = make(
            files_of(settings.folder),
            shape,
            settings.batch_size,
            settings.samples,
            settings.length,
            workers,
            settings.epochs,
            **extra,
        )
        print(json.dumps(measure(batches, settings.step_ms / 1000, settings.busy)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_cases(Path(folder), settings.cases, tuple(settings.shape))
        rows = {}
        for way in WAYS:
            command = [sys.executable, *sys.argv, "--way", way, "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows[way] = json.loads(done.stdout.splitlines()[-1])
    base = rows["torchio, 0 workers"]
    print("| | waiting | ratio | first batch | longest stall | peak memory | global state kept |")
    print("|---|---|---|---|---|---|---|")
    for way, row in rows.items():
        print(
            f"| {way} | {row['wait_s']:.1f} of {row['total_s']:.1f} s "
            f"| {row['wait_s'] / base['wait_s']:.2f} | {row['first_s']:.2f} s "
            f"| {row['stall_s']:.2f} s | {row['peak_mb']:.0f} MB "
            f"| {'yes' if row['global_state_kept'] else 'no'} |"
        )


if __name__ == "__main__":
    main()
