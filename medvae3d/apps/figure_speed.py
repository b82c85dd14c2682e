"""How fast a bundle writes samples and what memory it takes, measured in a process of its own.

``python -m medvae3d.apps.figure_speed FOLDER COUNT SEED WEIGHTS`` prints it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from medvae3d.apps.bundle import load_bundle
from medvae3d.evaluation.throughput import in_process, written_per_second
from medvae3d.spreading import end_with_parent


def throughput(
    bundle_root: Path, count: int, seed: int, weights: str | Path | None
) -> dict[str, Any]:
    """Pairs a second, and memory, of a process that writes so many."""
    arguments = [str(bundle_root), str(count), str(seed), str(weights or "")]
    return in_process(["-m", "medvae3d.apps.figure_speed", *arguments])


def measure(bundle_root: str, count: int, seed: int, weights: str) -> None:
    """Prints how fast a bundle writes samples and what memory it takes."""
    bundle = load_bundle(bundle_root, weights=weights or None)
    options: dict[str, Any] = {}
    warm_up = 8
    if bundle.recipe.synthesis.kind == "insertion":
        count, warm_up = max(1, count // 16), 1

    def write(folder: Path, number: int, start: int) -> None:
        bundle.write(folder, number, seed, start=start, preview=False, **options)

    print(json.dumps(written_per_second(write, count, warm_up)))


if __name__ == "__main__":
    end_with_parent()
    measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
