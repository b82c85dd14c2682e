"""What a report costs: 200 real and 200 synthetic phantoms of 48 voxels a side.

    python tests/benchmarks/evaluate.py [--cases 200] [--side 48] [--profile FILE] [-- OPTIONS]

Phantoms are made in a temporary folder, a fifth as many again as unseen cases. Then `medvae3d
evaluate` judges them in a process of its own, with all sections and whatever follows `--`. Told are
seconds on the clock, seconds of all cores together, and the largest memory, beside the aim: five
minutes on two cores are 600 seconds of them. On a busy machine only the seconds of cores say
anything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medvae3d.data.phantom import write_phantoms

AIM_SECONDS, AIM_CORES = 300, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--side", type=int, default=48)
    parser.add_argument("--threads", type=int, default=AIM_CORES)
    parser.add_argument("--profile", type=Path, help="file for the profile of the process")
    parser.add_argument("--out", type=Path, help="folder of the report; temporary by default")
    parser.add_argument("options", nargs="*", help="further options of medvae3d evaluate")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medvae3d-benchmark-") as folder:
        root = Path(folder)
        size = {"shape": (settings.side,) * 3, "spacing": (192 / settings.side,) * 3}
        unseen = settings.cases // 5
        shares = (settings.cases, 0, unseen)
        real = write_phantoms(root / "real", settings.cases + unseen, 1, splits=shares, **size)
        made = write_phantoms(root / "made", settings.cases, 2, **size)
        out = settings.out or root / "report"
        words = ["evaluate", "--real", str(real), "--synthetic", str(made), "--out", str(out)]
        profile = ["-m", "cProfile", "-o", str(settings.profile)] if settings.profile else []
        began, load = time.perf_counter(), os.getloadavg()[0]
        subprocess.run(
            [sys.executable, *profile, "-m", "medvae3d", *words, *settings.options],
            env=os.environ | {"OMP_NUM_THREADS": str(settings.threads)},
            check=True,
        )
        wall = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    counts = ", ".join(f"{each['cases']} {name}" for name, each in report["inputs"].items())
    print(f"{counts} cases of {settings.side} voxels a side, {settings.threads} threads")
    print(f"load of the machine before: {load:.1f}")
    for part, seconds in report["times"]["seconds"].items():
        print(f"{part:>10} {seconds:8.1f} s")
    print(f"on the clock: {wall:.0f} s; aim {AIM_SECONDS} s")
    print(f"of all cores: {used.ru_utime + used.ru_stime:.0f} s; aim {AIM_SECONDS * AIM_CORES} s")
    print(f"largest memory: {used.ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
