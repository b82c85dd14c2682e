r"""Steps from slice to slice of generated volumes beside those of unseen real ones.

    python tests/benchmarks/slices.py BUNDLE LIST [--count 24] [--split testing]

Volumes that are put together slice by slice step too far from one slice to the next. Here

.. math:: d_a = \overline{|x_{k+1} - x_k|}

over all pairs of neighbouring observed voxels along axis :math:`a`, of normalised intensities, is
that of each case; given are means over cases with a 95 % interval over them, their ratio, and the
largest :math:`d_a` of a case over its smallest.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from medvae3d.apps.bundle import load_bundle
from medvae3d.apps.figure_cases import CaseSource
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.intervals import mean_error


def steps(cases: Cases) -> Tensor:
    """Mean absolute steps along each axis, ``(N, C, 3)``."""
    found = []
    for axis in (2, 3, 4):
        size = cases.image.shape[axis] - 1
        both = cases.valid.narrow(axis, 0, size) * cases.valid.narrow(axis, 1, size)
        step = cases.image.diff(dim=axis).abs() * both
        found.append(step.flatten(2).sum(2) / both.flatten(2).sum(2))
    return torch.stack(found, 2)


def interval(values: Tensor) -> list[float]:
    """Mean, and half of the width of its interval."""
    found = mean_error(values)
    return [round(found["mean"], 4), round(1.96 * found["standard_error"], 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("datalist", type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--split", default="testing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(given.bundle)
    with tempfile.TemporaryDirectory() as folder:
        source = CaseSource(
            bundle, given.datalist, given.split, Path(folder), 0, given.count, lambda _: None
        )
        real, made = source.unseen, source.samples
    found = steps(real), steps(made)
    for number, channel in enumerate(bundle.recipe.channels):
        for axis, name in enumerate("IJK"):
            of = [each[:, number, axis] for each in found]
            row = {"channel": channel.name, "axis": name}
            row |= {"real": interval(of[0]), "made": interval(of[1])}
            print(json.dumps({**row, "ratio": round(float(of[1].mean() / of[0].mean()), 3)}))
        apart = [each[:, number].amax(1) / each[:, number].amin(1) for each in found]
        print(json.dumps({"largest over smallest": [interval(each) for each in apart]}))
    print(json.dumps({"real cases": len(real), "samples": len(made)}))


if __name__ == "__main__":
    main()
