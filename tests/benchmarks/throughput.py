"""How many pairs a bundle writes a second, by number of threads, and the memory that takes.

    python tests/benchmarks/throughput.py [BUNDLE ...]

Each line is measured in a process of its own: a batch to warm up, then as many samples as asked,
drawn, checked, compressed and written into a temporary folder. Time to load the bundle is told
apart. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import time

from medvae3d.apps.bundle import load_bundle, shipped_bundles
from medvae3d.evaluation.throughput import in_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="*", help="names or folders; all shipped ones by default")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, os.cpu_count() or 1])
    settings = parser.parse_args()
    print("| bundle | threads | load | pairs a second | peak memory | load of the machine before |")
    print("|---|---|---|---|---|---|")
    for bundle in settings.bundles or shipped_bundles():
        began = time.perf_counter()
        name = load_bundle(bundle).name
        loaded = time.perf_counter() - began
        for threads in sorted(set(settings.threads)):
            os.environ["OMP_NUM_THREADS"] = str(threads)
            arguments = [str(bundle), str(settings.count), str(settings.seed), ""]
            row = in_process(["-m", "medvae3d.apps.figure_speed", *arguments])
            print(
                f"| {name} | {threads} | {loaded:.1f} s | {row['per_second']:.1f} "
                f"| {row['peak_memory_mb']:.0f} MB | {row['load_before']:.1f} |"
            )


if __name__ == "__main__":
    main()
