"""How near a filled hole of a real scan is to what was there, against means of what is left.

    medvae3d train cvae_fill --datalist LIST --like sts_petct_hvae --out filler ...
    python tests/benchmarks/filling.py --bundle filler --datalist LIST

``docs/how-to/explore.md`` has the rest of the first line. The hole is the lesion
with 2 voxels round it, or a ball where the body is thickest, off the lesion. Steps are mean
absolute differences of neighbours across the border of the hole, in the filled scan and in the
scan as it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage

from medvae3d.apps.bundle import load_bundle
from medvae3d.data.datalists import read_datalist
from medvae3d.errors import MedvaeError
from medvae3d.seeding import derive_generator
from medvae3d.synthesis.filling import fill_region
from medvae3d.synthesis.hosts import read_host

CUBE = np.ones((3, 3, 3))
ROWS = (
    *("filled", "mean of visible", "mean of body", "mean of ring"),
    *("steps, filled", "steps, as it was"),
)


def holes(image: np.ndarray, label: np.ndarray, body: np.ndarray) -> dict[str, np.ndarray]:
    """Regions to fill, ``(I, J, K)``."""
    lesion = ndimage.binary_dilation(label > 0, CUBE, 2)
    free = ndimage.distance_transform_edt(body & ~lesion)
    middle = np.unravel_index(free.argmax(), free.shape)
    far = sum((axis - at) ** 2 for axis, at in zip(np.indices(label.shape), middle, strict=True))
    return {"lesion": lesion, "ball": (far <= 25) & ~lesion}


def steps(image: np.ndarray, hole: np.ndarray) -> float:
    """Mean absolute difference of neighbours of which one lies in the hole."""
    found = []
    for axis in range(3):
        across = np.diff(hole.astype(np.int8), axis=axis) != 0
        found.append(np.abs(np.diff(image, axis=axis))[across])
    return float(np.concatenate(found).mean())


def main() -> None:
    """Prints root mean squared errors and steps across the border, means over cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="of the system cvae_fill")
    parser.add_argument("--datalist", type=Path, required=True)
    parser.add_argument("--body", type=float, default=-300, help="least value of the last channel")
    options = parser.parse_args()
    bundle, listed = load_bundle(options.bundle), read_datalist(options.datalist)
    names = [channel.name for channel in bundle.recipe.channels]
    found: dict[tuple[str, str], list[list[float]]] = {}
    for case in (*listed.split("validation"), *listed.split("testing")):
        host = read_host(case.image[: len(names)], case.label, bundle.recipe)
        body = host.image[-1] > options.body
        for kind, hole in holes(host.image, host.label, body).items():
            ring = ndimage.binary_dilation(hole, CUBE, 3) & ~hole
            try:
                (made,) = fill_region(
                    bundle.network, bundle.recipe, host, hole,
                    [derive_generator(0, "fill", 0)], temperature=0.0,
                )  # fmt: skip
            except MedvaeError as error:
                print(f"{case.name}, {kind}: {error}")
                continue
            assert np.array_equal(made.image[:, ~hole], host.image[:, ~hole])
            for index, name in enumerate(names):
                x, truth = host.image[index], host.image[index][hole]
                guesses = (made.image[index][hole], x[~hole].mean(), x[~hole & body].mean(),
                           x[ring].mean())  # fmt: skip
                errors = [float(np.sqrt(np.mean((guess - truth) ** 2))) for guess in guesses]
                errors += [steps(made.image[index], hole), steps(x, hole)]
                found.setdefault((kind, name), []).append(errors)
                print(f"{case.name}, {kind}, {name}: " + " ".join(f"{e:.3g}" for e in errors))
    print("\n| hole | channel | cases | " + " | ".join(ROWS) + " |")
    print("|---|---|---|" + "---|" * len(ROWS))
    for (kind, name), rows in found.items():
        means = " | ".join(f"{each:.3g}" for each in np.mean(rows, axis=0))
        print(f"| {kind} | {name} | {len(rows)} | {means} |")


if __name__ == "__main__":
    main()
