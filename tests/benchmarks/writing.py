"""Whether compressing and writing NIfTI holds generation back, and what each gzip level costs.

    python tests/benchmarks/writing.py [--bundle sts_petct_hvae]

The same samples are drawn and thrown away, or drawn and written as ``medvae3d generate`` does, by
turns. Levels are compared on a volume that the bundle made, as it is stored.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from medvae3d.apps.bundle import load_bundle
from medvae3d.data.nifti import GZIP_LEVEL, pack
from medvae3d.evaluation.speed import by_turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="sts_petct_hvae")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true", help="on a busy machine")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    clock = time.process_time if settings.processor_time else time.perf_counter
    bundle = load_bundle(settings.bundle)
    sample = next(iter(bundle.generate(1)))
    stored = [
        np.round(channel.numpy() / recipe.slope).astype(np.int16).tobytes(order="F")
        for channel, recipe in zip(sample.image, bundle.recipe.channels, strict=True)
    ]
    print("| gzip level | a pair | bytes |")
    print("|---|---|---|")
    levels = {
        level: lambda level=level: [pack(s, level=level) for s in stored] for level in range(1, 10)
    }
    seconds = by_turns({str(n): work for n, work in levels.items()}, settings.rounds, clock=clock)
    for level, work in levels.items():
        size = sum(len(part) for parts in work() for part in parts)
        chosen = " (chosen)" if level == GZIP_LEVEL else ""
        ms = 1e3 * statistics.median(seconds[str(level)])
        print(f"| {level}{chosen} | {ms:.1f} ms | {size} |")

    def draw() -> None:
        for _ in bundle.generate(settings.count):
            pass

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            bundle.write(Path(folder) / "made", settings.count, preview=False)

    found = by_turns({"drawn": draw, "drawn and written": write}, settings.rounds, clock=clock)
    median = {name: statistics.median(each) / settings.count for name, each in found.items()}
    for name, value in median.items():
        print(f"{name}: {1e3 * value:.1f} ms a pair")
    print(f"ratio: {median['drawn and written'] / median['drawn']:.2f}")


if __name__ == "__main__":
    main()
