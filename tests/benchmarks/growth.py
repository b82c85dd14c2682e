"""How time and memory of a training step grow, and the time of samples; draws the plot.

    python tests/benchmarks/growth.py --out docs/images/growth.png

Steps against the edge of a patch, the batch, the steps of the flow, the channels and the cases of a
Riemannian metric; samples against their number, insertions against the size of the host. Each point
is a process of its own, so that its peak memory is its own. Dotted
lines are what grows in proportion, from the first point on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PLANS: dict[str, list[int]] = {
    "edge": [32, 48, 64, 96, 128],
    "batch": [1, 2, 4, 8],
    "flow steps": [0, 1, 2, 4, 6],
    "channels": [12, 24, 36, 48],
    "cases of the metric": [16, 64, 256, 1024],
    "samples": [4, 8, 16, 32],
    "host edge": [96, 128, 160, 192],
}
LABELS = {"edge": "voxels of a patch", "host edge": "voxels of the host"}
BUNDLE = "sts_petct_hvae"


def training(what: str, value: int, repeats: int) -> dict[str, float]:
    import torch

    from medvae3d.apps.bench import TrainingStep, peak_mb
    from medvae3d.apps.bundle import find_bundle
    from medvae3d.evaluation.speed import median_seconds

    device, changes = torch.device("cpu"), {}
    if what == "flow steps":
        changes["network_def#num_steps"] = value
    elif what == "channels":
        changes["network_def#channels"] = [value, 2 * value, 4 * value]
    step = TrainingStep(
        find_bundle(BUNDLE),
        device,
        [value] * 3 if what == "edge" else None,
        value if what == "batch" else None,
        changes,
    )
    first = None if what == "flow steps" else 0
    before = peak_mb(device)
    seconds = median_seconds(lambda: step(first), repeats, clock=time.process_time)
    return {"seconds": seconds, "memory_mb": peak_mb(device) - before}


def metric(cases: int, repeats: int) -> dict[str, float]:
    """A step of the Riemannian model whose metric is made of so many cases."""
    import torch

    from medvae3d.evaluation.speed import median_seconds
    from medvae3d.evaluation.throughput import peak_memory_mb
    from medvae3d.models import zoo
    from medvae3d.objectives.terms import elbo

    model = zoo.rhvae((32, 32, 32), latent_channels=16, channels=(8, 16), queue=cases).train()
    factors = torch.eye(16).expand(cases, -1, -1)
    model.flow.pairs.fit(torch.randn(cases, 16), factors, [str(n) for n in range(cases)])
    image = torch.rand(2, 1, 32, 32, 32)
    batch = {"image": image, "mask": (image > 0.9).float(), "case": ["one", "other"]}

    def step() -> None:
        model.zero_grad()
        (-elbo(model.trace(batch), batch).mean()).backward()

    before = peak_memory_mb()
    seconds = median_seconds(step, repeats, clock=time.process_time)
    return {"seconds": seconds, "memory_mb": peak_memory_mb() - before}


def sampling(what: str, value: int) -> dict[str, float]:
    from medvae3d.apps.bundle import load_bundle
    from medvae3d.evaluation.throughput import peak_memory_mb

    if what == "samples":
        bundle = load_bundle(BUNDLE)
        next(iter(bundle.generate(1)))
        before, began = peak_memory_mb(), time.process_time()
        for _ in bundle.generate(value):
            pass
    else:
        import tempfile

        from medvae3d.data.phantom import phantom_case
        from medvae3d.data.volumes import write_volume

        bundle = load_bundle("brain_mri_ms_pavae")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "host.nii.gz"
            spacing = (182 / value,) * 3
            case = phantom_case(0, (value,) * 3, spacing, lesions=(0, 0))
            write_volume(path, case.image[0] * case.brain, case.grid, slope=0.1)
            before, began = peak_memory_mb(), time.process_time()
            for _ in bundle.generate(1, hosts=[path], lesions=(3, 3)):
                pass
    return {"seconds": time.process_time() - began, "memory_mb": peak_memory_mb() - before}


def measure(what: str, value: int, repeats: int) -> dict[str, float]:
    if what == "cases of the metric":
        return metric(value, repeats)
    if what in ("samples", "host edge"):
        return sampling(what, value)
    return training(what, value, repeats)


def draw(found: dict[str, list[dict[str, Any]]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = len(found)
    figure, axes = plt.subplots(
        2, columns, figsize=(2.6 * columns, 5), squeeze=False, layout="constrained"
    )
    for column, (what, rows) in enumerate(found.items()):
        is_cube = what in LABELS
        sizes = [row["value"] ** 3 if is_cube else row["value"] for row in rows]
        for line, (key, unit) in enumerate((("seconds", "s"), ("memory_mb", "MB"))):
            axis, values = axes[line][column], [row[key] for row in rows]
            axis.plot(sizes, values, "o-", ms=4)
            if values[-1] > 0:
                start = next((n for n, v in zip(sizes, values, strict=True) if n and v > 0), 1)
                base = values[sizes.index(start)] / start
                axis.plot(sizes, [base * n for n in sizes], ":", color="grey")
            axis.set_ylim(0, 1.15 * max(*values, 1e-3))
            axis.grid(alpha=0.3)
            axis.set_xlabel(LABELS.get(what, what))
            if column == 0:
                axis.set_ylabel("processor time, s" if unit == "s" else "memory beyond start, MB")
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("growth.png"))
    parser.add_argument("--only", nargs="*", choices=PLANS, default=list(PLANS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--point", nargs=2, help="measure one point, here: WHAT VALUE")
    parser.add_argument("--results", type=Path, help="JSON of points; those in it are kept")
    settings = parser.parse_args()
    if settings.point:
        what, value = settings.point
        print(json.dumps(measure(what, int(value), settings.repeats)))
        return
    kept = settings.results
    found = json.loads(kept.read_text()) if kept is not None and kept.exists() else {}
    for what in settings.only:
        rows = found.setdefault(what, [])
        for value in PLANS[what]:
            if any(row["value"] == value for row in rows):
                continue
            command = [sys.executable, *sys.argv, "--point", what, str(value)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"value": value, **json.loads(done.stdout.splitlines()[-1])})
            print(what, rows[-1], flush=True)
            if kept is not None:
                kept.write_text(json.dumps(found))
    draw({what: found[what] for what in PLANS if what in found}, settings.out)


if __name__ == "__main__":
    main()
