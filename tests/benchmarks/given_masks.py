"""Whether a bundle whose codes are told a mask draws volumes that have it.

    PYTHONPATH=. python tests/benchmarks/given_masks.py BUNDLE --datalist LIST

For the mask of each unseen case, spread over the split: the Dice of what is drawn with the mask
that was given, and with that of the next case, which says what masks have in common anyway. Both
are whole masks, without their labels.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from medvae3d.apps.bundle import load_bundle
from medvae3d.data.datalists import read_datalist
from medvae3d.data.volumes import read_mask
from medvae3d.evaluation.cases import spread
from medvae3d.synthesis.conditions import fit_mask


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / max(1, int(one.sum() + other.sum()))


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--datalist", required=True)
    parser.add_argument("--split", default="testing")
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--draws", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(given.bundle)
    listed = read_datalist(given.datalist).split(given.split)
    chosen = [listed[index] for index in spread(len(listed), given.cases)]
    masks = [fit_mask(read_mask(case.label), bundle.recipe)[0] > 0 for case in chosen]
    own, others = [], []
    for index, case in enumerate(chosen):
        for sample in bundle.generate(given.draws, seed=index, mask=case.label, extrapolate=True):
            made = sample.label[0].numpy() > 0
            own.append(dice(made, masks[index]))
            others.append(dice(made, masks[(index + 1) % len(masks)]))
    print(
        f"{given.bundle}: Dice with the given mask {np.mean(own):.3f}, "
        f"with that of another case {np.mean(others):.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
