r"""The Gaussian test problem of Caterini, Doucet and Sejdinovic (2018) with our Hamiltonian flow.

One latent is shared by all cases, so its posterior is a thousand times narrower than the prior that
the flow starts from:

.. math:: z \sim \mathcal N(0, I_d), \qquad x_i \mid z \sim \mathcal N(z + \Delta, \mathrm{diag}\,
          \sigma^2), \quad i = 1, \dots, 10\,000

The shift and the scales are learned by the bound; the score is the squared error of both. Only
:math:`z + \Delta` can be seen, so the maximum of the exact likelihood, :math:`\Delta = \bar x`, has
an error of :math:`\|z\|^2`, about :math:`d`, and the score of a good method is that of this maximum
for the same data.

    python tests/benchmarks/gaussian_problem.py --iterations 30000
    python tests/benchmarks/gaussian_problem.py --iterations 30000 --steps 10

Everything in the problem acts on one dimension at a time, so all dimensions and seeds run as one
latent, with the same numbers as one by one; float64, one process.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch

from medvae3d.flows import HamiltonianFlow

CASES = 10_000
REPLICATED = {
    ("tempered", 1): {25: 22.3, 51: 51.3},
    ("not tempered", 1): {25: 26.1, 51: 59.1},
    ("tempered", 10): {25: 22.2, 51: 51.2},
    ("not tempered", 10): {25: 34.8, 51: 76.4},
}
"""Scores of a published replication, at 25 and 50 dimensions, by flow and number of steps."""
SIZES = (25, 51)


class Problem:
    """The data of one dimension and seed, as their sufficient statistics."""

    def __init__(self, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        rank = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        self.shift = rank / 5
        self.scale = 36 * rank.square() / (10 * (size - 1) ** 2) + 0.1
        normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
        self.z = normal(size)
        x = self.z + self.shift + self.scale * normal(CASES, size)
        self.mean = x.mean(0)
        self.squares = (x - self.mean).square().sum(0)

    def error(self, shift: torch.Tensor, scale: torch.Tensor) -> float:
        """Squared error of shift and scales."""
        off = (shift - self.shift).square() + (scale - self.scale).square()
        return float(off.sum())

    @property
    def best_error(self) -> float:
        """The same of the maximum of the exact likelihood."""
        return self.error(self.mean, (self.squares / CASES).sqrt())


def solve(
    problems: list[Problem],
    iterations: int,
    steps: int = 1,
    initial_beta: float = 1 / 25,
    draws: int = 4,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[float]]:
    """Learns shift, scales and step sizes; returns the estimates and bounds on the way."""
    sizes = [len(each.shift) for each in problems]
    mean = torch.cat([each.mean for each in problems])
    squares = torch.cat([each.squares for each in problems])
    shift = torch.zeros_like(mean).requires_grad_()
    log_scale = torch.zeros_like(mean).requires_grad_()
    flow = HamiltonianFlow(
        steps, 0.005, initial_beta, step_shape=(len(mean),), max_step_size=0.5
    ).double()
    optimizer = torch.optim.RMSprop([shift, log_scale, *flow.parameters()], lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)

    def potential(z: torch.Tensor) -> torch.Tensor:
        off = CASES * (z + shift - mean).square() + squares
        fit = 0.5 * off * torch.exp(-2 * log_scale) + CASES * log_scale
        return (fit + 0.5 * z.square()).sum(1) + 0.5 * z.shape[1] * (CASES + 1) * math.log(
            2 * math.pi
        )

    bounds = []
    for iteration in range(iterations):
        z = torch.randn(draws, len(mean), generator=generator, dtype=torch.float64)
        flowed = flow(z, potential, generator)
        start = -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
        loss = (potential(flowed.z) + start - flowed.log_weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (iteration + 1) % max(1, iterations // 10) == 0:
            bounds.append(-float(loss.detach()))
    found = zip(shift.detach().split(sizes), log_scale.detach().exp().split(sizes), strict=True)
    return list(found), bounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="of the flow")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keys = [(size, seed) for size in SIZES for seed in range(given.seeds)]
    problems = [Problem(size, seed) for size, seed in keys]
    for name, beta in {"tempered": 1 / 25, "not tempered": 1.0}.items():
        begun = time.process_time()
        found, bounds = solve(problems, given.iterations, given.steps, beta)
        replicated = REPLICATED.get((name, given.steps), {})
        for size in SIZES:
            rows = [i for i, (each, _) in enumerate(keys) if each == size]
            scores = torch.tensor([problems[i].error(*found[i]) for i in rows])
            print(
                json.dumps(
                    {
                        "flow": name,
                        "dimensions": size,
                        "squared error": [round(score, 2) for score in scores.tolist()],
                        "mean": round(float(scores.mean()), 2),
                        "standard deviation": round(float(scores.std()), 2),
                        "exact maximum": [round(problems[i].best_error, 2) for i in rows],
                        "replicated": replicated.get(size),
                    }
                )
            )
        seconds = time.process_time() - begun
        print(json.dumps({"iterations": given.iterations, "CPU seconds": round(seconds)}))
        print(json.dumps({"bounds": [round(each) for each in bounds]}))


if __name__ == "__main__":
    main()
