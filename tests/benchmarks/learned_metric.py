"""A Riemannian VAE with a learned metric beside fixed ones, on balls in grain.

    PYTHONPATH=tests python tests/benchmarks/learned_metric.py [--seeds 3] [--steps 400]

Four systems of one size, with as many steps, on the same 64 balls of 12 voxels a side: matrices
from a network (``learned``), the identity for every case (``identity``), a plain VAE that is drawn
from by the inverse covariances of its posteriors (``posterior``), and the same VAE drawn from by
the standard normal (``normal``). Flows run from the middle of the training on, as in ``medvae3d
train``.

Of each seed: the importance-weighted log-likelihood of 48 unseen balls in nats, the distance of 96
draws to them (energy distance of images and masks), the share of draws that are copies, the
acceptance of the sampler; of learned matrices the logarithms of their eigenvalues, and the norm of
the network's gradient in the first and in the last fifth of the steps with a flow.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from small_trainings import (
    RATE,
    SHAPE,
    SIZES,
    SPACING,
    balls,
    copied,
    dice,
    drawn,
    energy_distance,
    played,
    rebuilt,
    seeded,
    whole,
)

from medvae3d.evaluation.evidence import log_likelihood
from medvae3d.flows.riemannian import RiemannianFlow
from medvae3d.models.latent import LatentModel
from medvae3d.models.zoo import rhvae, vae
from medvae3d.objectives.compositions import joint_objective
from medvae3d.training.loading import BatchPreparation
from medvae3d.training.metrics import fit_metric
from medvae3d.training.optimizers import adamw, cosine
from medvae3d.training.players import ModelPlayer

TRAINING, UNSEEN = balls(64, 0), whole(balls(48, 1))
DRAWS = 200
"""Importance draws of each case."""


def systems(step_size: float) -> dict[str, tuple[Any, dict[str, Any]]]:
    """How each is made."""
    riemannian = {"hidden": 64, "step_size": step_size}
    return {
        "learned": (rhvae, riemannian),
        "identity": (rhvae, {**riemannian, "learn_metric": False}),
        "posterior": (vae, {"vector_latent": True, "prior": "geometric"}),
        "normal": (vae, {"vector_latent": True, "components": 0}),
    }


def share(values: list[float], last: bool) -> float:
    """Mean of the first or of the last fifth."""
    size = max(1, len(values) // 5)
    part = values[-size:] if last else values[:size]
    return sum(part) / len(part)


def trained(network: LatentModel, steps: int, seed: int) -> dict[str, list[float]]:
    """Trains as a run does, and fits the metric; gives the log."""
    is_learned = isinstance(network.flow, RiemannianFlow)
    player = ModelPlayer(
        network,
        joint_objective(warm_up_steps=steps // 5),
        adamw(network, RATE),
        flow_start=steps // 2,
        watch={"metric": network.flow.network} if is_learned else None,
        rate=cosine(steps, 20),
        clip_norm=5.0,
    )
    logs = played(network, [player], TRAINING, steps)
    fit_metric(network, TRAINING, BatchPreparation(network.statistics, SPACING), seed)
    return logs


def figures(name: str, network: LatentModel, logs: dict[str, list[float]]) -> dict[str, Any]:
    """All that is compared."""
    weighted = log_likelihood(network, [UNSEEN], DRAWS)
    made = drawn(network, 96)
    known = whole(TRAINING)
    found = {
        "log likelihood": round(weighted["log likelihood"]["mean"], 1),
        "error of draws": round(weighted["error of draws"], 2),
        "effective samples": round(weighted["effective samples"]["median"], 1),
        "energy distance, image": round(energy_distance(made["image"], UNSEEN["image"]), 2),
        "energy distance, mask": round(energy_distance(made["mask"], UNSEEN["mask"]), 2),
        "copies": round(copied(made["image"], known["image"]), 3),
        "dice of unseen": round(dice(rebuilt(network, UNSEEN)["mask"], UNSEEN["mask"]), 3),
    }
    if hasattr(network.sampling_prior, "acceptance"):
        found["acceptance"] = round(float(network.sampling_prior.acceptance), 3)
    if name == "learned":
        factors = network.flow.pairs.factors
        eigenvalues = torch.linalg.eigvalsh(factors @ factors.mT).log()
        norms = [each for each in logs["model/metric_gradient_norm"] if each > 0]
        found["log eigenvalues, 5 %, median, 95 %"] = [
            round(float(eigenvalues.quantile(q)), 2) for q in (0.05, 0.5, 0.95)
        ]
        found["spread between cases"] = round(float(eigenvalues.mean(1).std()), 3)
        found["gradient norm, first and last"] = [
            float(f"{share(norms, last):.2e}") for last in (False, True)
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--step-size", type=float, default=1e-3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(given.seeds):
        for name, (make, options) in systems(given.step_size).items():
            begun = time.process_time()
            network = seeded(make, SHAPE, seed=seed, **SIZES, **options)
            logs = trained(network, given.steps, seed)
            seconds = round(time.process_time() - begun)
            row = {"system": name, "seed": seed, **figures(name, network, logs)}
            print(json.dumps({**row, "CPU seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
