"""What fills a hole after a training by the bound, by the prior network alone, or by both.

    PYTHONPATH=.:tests python tests/benchmarks/prior_network.py [--steps 400]

Volumes of 16 voxels a side with a slope of tissue, of which the middle is made anew. Printed for
each share of the conditional bound in the objective: the root mean squared error in the hole at
temperature 0, the mean absolute difference of two fillings, both in HU, and the divergence of the
recognition network from the prior network in nats, means over unseen cases.
"""

from __future__ import annotations

import argparse

import numpy as np
from small_fillings import RECIPE, cases, divergence, host_of, region, seeded, trained_filler

from medvae3d.synthesis.filling import fill_region

SHARES = {"bound alone": 1.0, "both": 0.7, "prior network alone": 0.0}


def main() -> None:
    """Trains one model for each share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    images, masks = cases(16, 2)
    hole = region()
    hosts = [host_of(*each) for each in zip(images[1::2], masks[1::2], strict=True)]
    means = [np.square(host.image[:, ~hole].mean() - host.image)[:, hole].mean() for host in hosts]
    print(f"mean of what is visible: {np.sqrt(np.mean(means)):.2f}")
    for name, share in SHARES.items():
        model = trained_filler(share, options.steps)
        errors, apart = [], []
        for host in hosts:
            none = host.label * 0
            (made,) = fill_region(
                model, RECIPE, host, hole, seeded(5), wanted=none, temperature=0.0
            )
            one, two = fill_region(model, RECIPE, host, hole, seeded(6, 7), wanted=none)
            errors.append(np.square(made.image - host.image)[:, hole].mean())
            apart.append(np.abs(one.image - two.image)[:, hole].mean())
        print(
            f"{name}: error {np.sqrt(np.mean(errors)):.2f}, two fillings {np.mean(apart):.2f}, "
            f"divergence {float(divergence(model).mean()):.3g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
