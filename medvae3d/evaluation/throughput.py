"""How fast samples are written and how much memory that takes.

Memory is measured in a process of its own: what Python says of a child's largest memory includes
that of the parent at the moment it was started.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medvae3d.errors import OutputError
from medvae3d.spreading import lifeline

Write = Callable[[Path, int, int], Any]
"""Writes samples into a folder: which, how many, and the index of the first."""


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def written_per_second(write: Write, count: int, warm_up: int = 8) -> dict[str, Any]:
    """Writes samples into a temporary folder, once to warm up and once to be timed.

    Args:
        write: Writes samples.
        count: Samples that are timed.
        warm_up: Samples before; the first batch is slower.
    """
    import torch  # so that a process that only measures memory stays small

    with tempfile.TemporaryDirectory(prefix="medvae3d-throughput-") as folder:
        if warm_up:
            write(Path(folder) / "warm_up", warm_up, 0)
        began = time.perf_counter()
        write(Path(folder) / "timed", count, warm_up)
        seconds = time.perf_counter() - began
    return {
        "samples": count,
        "seconds": seconds,
        "per_second": count / seconds,
        "peak_memory_mb": peak_memory_mb(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "machine": platform.machine(),
    }


def in_process(arguments: Sequence[str], timeout_s: float = 1800) -> dict[str, Any]:
    """Runs Python with these arguments and reads the JSON object on its last line.

    Args:
        arguments: Such as ``-m`` and the name of a module.
        timeout_s: Longest time it may take.

    Raises:
        OutputError: If it fails.
    """
    with lifeline() as options:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            **options,
        )
    lines = done.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise OutputError(
            f"measuring throughput ended with exit code {done.returncode} and said: {said}. Try "
            f"the same with `medvae3d generate`, which shows more."
        ) from None
    if not isinstance(found, dict):
        raise OutputError(f"measuring throughput printed {lines[-1]!r}; expected a JSON object.")
    return found
