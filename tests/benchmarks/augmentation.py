"""Processor time that augmenting a batch takes on one core, as a bundle augments its cases.

    python tests/benchmarks/augmentation.py [--bundle hippocampus_mri_hvae] [--batch 8]

The batch is made up, which changes no operation.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch

from medvae3d.apps.bundle import find_bundle
from medvae3d.apps.settings import read_settings
from medvae3d.data.augmentation import Augmentation
from medvae3d.evaluation.speed import median_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="hippocampus_mri_hvae")
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = read_settings(find_bundle(options.bundle))
    augmentation = Augmentation.from_config(given["train"]["augmentation"]["config"])
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, len(given["channels"]), *given["spatial_shape"])
    image = 2 * torch.rand(shape, generator=generator) - 1
    mask = torch.randint(len(given["labels"]), image[:, :1].shape, generator=generator).float()
    work = partial(augmentation, {"image": image, "mask": mask}, generator)
    seconds = median_seconds(work, 8, clock=time.process_time)
    print(f"{options.bundle}: {1e3 * seconds:.0f} ms for {options.batch} cases")


if __name__ == "__main__":
    main()
