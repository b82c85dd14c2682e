"""How far samples are from unseen cases and from each other by a perceptual distance.

    PYTHONPATH=. python tests/benchmarks/perceptual_pairs.py BUNDLE ... --datalist LIST

Each sample is compared with unseen cases in an order that a seed draws, as papers do that report
LPIPS of samples, and with the next sample, which says how much samples differ. The same of unseen
cases, each with the next, stands in the first line. Features are those of slices along all axes
under a fixed random network, of another seed and form than the one that generators are trained
with; ``--lpips FILE`` takes AlexNet's instead, with weights that are at hand.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from medvae3d.apps.bundle import load_bundle
from medvae3d.apps.figure_cases import CaseSource
from medvae3d.evaluation.cases import framed_as
from medvae3d.evaluation.lpips import LPIPS
from medvae3d.objectives.perceptual import Distance, RandomFeatureDistance
from medvae3d.seeding import derive_generator

# The perceptual term of objectives is three-dimensional and of seed 0.
SEED = 1


def apart(distance: Distance, one: Tensor, other: Tensor) -> Tensor:
    """Distances of pairs, a few volumes at once."""
    both = zip(one.split(4), other.split(4), strict=True)
    return torch.cat([distance(a, b).reshape(len(a), -1).mean(1) for a, b in both])


@torch.no_grad()
def main() -> None:
    """Prints a line a bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE")
    parser.add_argument("--datalist", required=True, type=Path)
    parser.add_argument("--split", default="validation,testing")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lpips", help="state dict of LPIPS over AlexNet")
    given = parser.parse_args()
    torch.set_num_threads(1)
    distance = LPIPS(given.lpips) if given.lpips else RandomFeatureDistance(dims=2, seed=SEED)
    train = unseen = None
    for name in given.bundles:
        with tempfile.TemporaryDirectory() as folder:
            source = CaseSource(
                load_bundle(name), given.datalist, given.split, Path(folder), given.seed,
                given.samples, lambda text: None,
            )  # fmt: skip
            if train is None or unseen is None:
                train, unseen = source.train, source.unseen
                among = apart(distance, unseen.image, unseen.image.roll(1, 0)).mean()
                print(f"unseen cases: {float(among):.4f} to each other", flush=True)
            made = framed_as(source.with_cases(train, unseen).samples, train, given.seed).image
        generator = derive_generator(given.seed, "pairs")
        rounds = -(-len(made) // len(unseen))
        order = torch.cat([torch.randperm(len(unseen), generator=generator) for _ in range(rounds)])
        far = apart(distance, made, unseen.image[order[: len(made)]]).mean()
        spread = apart(distance, made, made.roll(1, 0)).mean()
        print(
            f"{Path(name).name}: {float(far):.4f} to unseen cases, {float(spread):.4f} to each "
            f"other",
            flush=True,
        )


if __name__ == "__main__":
    main()
