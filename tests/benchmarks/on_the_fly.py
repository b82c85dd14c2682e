"""Time of a training case with a synthetic lesion put in on the fly, beside that of loading it.

    python tests/benchmarks/on_the_fly.py [--bundle brain_mri_ms_pavae] [--shape 182,218,182]
        [--device cpu] [--threads 1] [--cases 8]

The case is a phantom of that shape. Printed are seconds a case for reading it, for finding the
brain, for the transform with and without a given brain mask, and the processor time, which on a
machine with other work says what it would take.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any


def timed(call: Any, count: int) -> tuple[str, Any]:
    """Median seconds by the clock and by the processor, and the last result."""
    clock, processor, made = [], [], None
    for _ in range(count):
        start = time.perf_counter(), time.process_time()
        made = call()
        clock.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return f"{statistics.median(clock):6.2f} s ({statistics.median(processor):.2f} s cpu)", made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="brain_mri_ms_pavae")
    parser.add_argument("--shape", default="182,218,182")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", type=int, default=8)
    options = parser.parse_args()
    import torch
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

    import medvae3d
    from medvae3d.data.phantom import phantom_case
    from medvae3d.data.volumes import write_volume

    torch.set_num_threads(options.threads)
    bundle = medvae3d.load_bundle(options.bundle)
    shape = tuple(int(n) for n in options.shape.split(","))
    made = phantom_case(0, shape, bundle.recipe.spacing, lesions=(1, 1))
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder) / f"{name}.nii.gz") for name in ("image", "label", "brain")}
        write_volume(files["image"], made.image[0] * made.brain, made.grid, slope=0.1)
        write_volume(files["label"], made.label, made.grid)
        write_volume(files["brain"], made.brain, made.grid)
        keys = list(files)
        read = Compose([LoadImaged(keys), EnsureChannelFirstd(keys)])
        seconds, case = timed(lambda: read(files), 3)
    print(f"{options.bundle}, {shape} voxels, {options.device}, {options.threads} threads")
    print(f"reading image, label and brain:      {seconds}")
    for name, brain in (("brain mask given", "brain"), ("brain found in the image", None)):
        add = medvae3d.transforms.RandSynthesizeLesiond(
            "image", options.bundle, prob=1, seed=0, brain_key=brain, device=options.device
        )
        add(case)
        seconds, done = timed(lambda add=add: add(case), options.cases)
        print(f"one lesion, {name:24} {seconds}, {done['image'].meta['synthetic_lesions']} put in")


if __name__ == "__main__":
    main()
