"""Times and memory of a training step by number format and batch, where one device has them all.

    python tests/benchmarks/step_times.py [--device cuda] [--formats float32] [--batches 2,8]

Printed is a table in Markdown: a step at the start of the training, one with the discriminator and
one with the flow as well, of a bundle of one model.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from medvae3d.apps.bench import TrainingStep, peak_mb
from medvae3d.apps.bundle import find_bundle
from medvae3d.apps.settings import read_settings
from medvae3d.evaluation.speed import median_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="sts_petct_hvae")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--formats", default="float32,bfloat16")
    parser.add_argument("--batches", default="2,8")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    root, device = find_bundle(options.bundle), torch.device(options.device)
    given = read_settings(root)
    phases = (0, given["adversarial_start"], given["flow_start"])
    columns = ("format", "cases", "VAE", "and discriminator", "and flow", "memory")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in options.formats.split(","):
        for batch in map(int, options.batches.split(",")):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            step = TrainingStep(root, device, batch_size=batch, precision=name)
            seconds = [
                median_seconds(partial(step, phase), options.rounds, 3, str(device))
                for phase in phases
            ]
            times = " | ".join(f"{1e3 * each:.1f} ms" for each in seconds)
            print(f"| {name} | {batch} | {times} | {peak_mb(device):.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
