"""What it costs a VQ-VAE of balls that what it decodes is encoded to the same codes again.

    PYTHONPATH=.:tests python tests/benchmarks/returned_codes.py --start 600

The training is that of ``tests/small_codes.py``; without ``--start`` the term counts from the
first step and dead codes are revived to the end.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from small_codes import Trained, balls

from medvae3d.objectives.codes import returned
from medvae3d.training.loading import CaseLoader
from medvae3d.training.validation import mask_dice, squared_error

STEPS = 900


@torch.no_grad()
def figures(trained: Any, cases: int = 96) -> dict[str, float]:
    """On unseen balls."""
    unseen = trained.preparation(next(iter(CaseLoader(balls(cases, 1), cases))), "cpu")
    trace = trained.network.trace(unseen, with_flow=False)
    error, norm = squared_error(trace, unseen)
    return {
        "codes that come back": float(returned(trained.network, trace, unseen).mean()),
        "NMSE": float((error / norm).mean()),
        "Dice": float(mask_dice(trace, unseen).mean()),
        "perplexity": float(torch.stack(trace.posterior.perplexity).amin()),
    }


def main() -> None:
    """Prints a line a seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--start", type=int, help="first step of the term and of settled codes")
    parser.add_argument("--revive", action="store_true", help="revive dead codes to the end")
    parser.add_argument("--rise", type=int, default=STEPS // 15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 5])
    given = parser.parse_args()
    torch.set_num_threads(1)
    late = {} if given.start is None else {"return_start": given.start, "return_rise": given.rise}
    for seed in given.seeds:
        trained = Trained(
            steps=STEPS,
            prior_steps=0,
            seed=seed,
            settle=given.start if given.weight and not given.revive else None,
            return_weight=given.weight,
            **late,
        )
        found = figures(trained)
        print(f"seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    main()
