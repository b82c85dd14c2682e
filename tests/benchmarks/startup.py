"""How long it takes until something is seen: importing the package, its help, its list.

    python tests/benchmarks/startup.py

Each in a new interpreter, by turns; processor time of the process beside the wall time, as the
latter is that of a busy machine. That torch is not imported is a test (``tests/apps/test_cli.py``).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

WAYS = {
    "python alone": ["-c", "pass"],
    "import medvae3d": ["-c", "import medvae3d"],
    "medvae3d --help": ["-m", "medvae3d", "--help"],
    "medvae3d list": ["-m", "medvae3d", "list"],
}


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _ in range(settings.rounds):
        for name, words in WAYS.items():
            began, used = time.perf_counter(), processor_seconds()
            subprocess.run([sys.executable, *words], capture_output=True, check=True)
            found[name].append((time.perf_counter() - began, processor_seconds() - used))
    print("| | wall time | processor time |")
    print("|---|---|---|")
    for name, pairs in found.items():
        wall, used = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| {name} | {wall:.2f} s | {used:.2f} s |")


if __name__ == "__main__":
    main()
