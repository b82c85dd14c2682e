"""Patches a second out of torchio's queue at its defaults and out of the patch loader, by turns.

    python tests/benchmarks/patches_a_second.py

Epochs of both take turns in one process. torchio's ``Queue`` is as its documentation has it: a
``LabelSampler``, no workers. Ours makes nothing ahead here, as that would be done in the other's
time; cases stay in memory after the first epoch, are read at each visit, or lie uncompressed on a
disk (or in what the system keeps of it in memory). Then what a trainer
waits for the patch loader, with a step of fixed length that takes no processor, as on a GPU; the
first epoch, which reads the files, counts apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from patch_queue import files_of, our_batches, plain_batches, write_cases

PATCHES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 144, 128))
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step-ms", type=float, default=120)
    parser.add_argument("--workers", type=int, default=0)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_cases(Path(folder), settings.cases, tuple(settings.shape))
        given = (files_of(Path(folder)), (settings.patch,) * 3, 4, PATCHES, 64, settings.workers)
        epochs, count = settings.rounds + 1, settings.cases * PATCHES
        ways = {
            "torchio": plain_batches(*given, epochs),
            "ours": our_batches(*given, epochs, prefetch=False),
            "ours without cache": our_batches(*given, epochs, prefetch=False, cache_mb=0),
            "ours unpacked on disk": our_batches(
                *given, epochs, prefetch=False, cache_mb=0, disk_cache_mb=4096
            ),
        }
        batches, wall, used = -(-count // 4), {}, {}
        for epoch in range(epochs):
            for name, way in ways.items():
                began, processor = time.perf_counter(), time.process_time()
                for _ in range(batches):
                    next(way)
                if epoch:
                    wall.setdefault(name, []).append(time.perf_counter() - began)
                    used.setdefault(name, []).append(time.process_time() - processor)
        for what, found in (("wall", wall), ("processor", used)):
            rate = {name: count / statistics.median(each) for name, each in found.items()}
            told = ", ".join(
                f"{name} {value:.1f} ({value / rate['torchio']:.1f})"
                for name, value in rate.items()
            )
            print(f"patches a second of {what} time (ratio): {told}")
        waits, stream = [], our_batches(*given, 3)
        began = time.perf_counter()
        for batch in range(3 * batches):
            asked = time.perf_counter()
            next(stream)
            waits.append(time.perf_counter() - asked)
            time.sleep(settings.step_ms / 1000)
            if batch == batches - 1:
                first, began, waits = sum(waits), time.perf_counter(), []
        whole = time.perf_counter() - began
        print(
            f"waiting: {sum(waits) / whole:.1%} of {len(waits)} steps of {settings.step_ms:.0f} ms "
            f"(longest {1e3 * max(waits):.0f} ms); {first:.2f} s in the first epoch, which reads"
        )


if __name__ == "__main__":
    main()
