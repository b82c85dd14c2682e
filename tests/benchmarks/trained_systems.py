"""What adversarial and introspective systems come to on balls, by the seed of their first weights.

    PYTHONPATH=.:tests python tests/benchmarks/trained_systems.py --seeds 0 5 6

The trainings are those of ``tests/training/test_trained_systems.py``, which holds the first seed.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from small_systems import (
    HINGE,
    PACE,
    SOFT,
    START,
    TRAINING,
    UNSEEN,
    trained_by_noise,
    trained_introspective,
    trained_vae,
    trained_vae_gan,
)
from small_trainings import (
    RATE,
    SHAPE,
    SIZES,
    balls,
    copied,
    drawn,
    energy_distance,
    late,
    plain,
    psnr,
    rebuilt,
    seeded,
    spread,
    unsharpness,
    whole,
)
from torch import Tensor

from medvae3d.models.zoo import vae
from medvae3d.training.fitting import PriorFitter
from medvae3d.training.loading import BatchPreparation, StepLoader

REAL, MASKS = UNSEEN["image"], UNSEEN["mask"]
MANY = whole(balls(192, 1))["image"]


def roughness(x: Tensor) -> float:
    """Mean absolute difference of neighbours over three axes."""
    return float(sum(x.diff(dim=axis).abs().mean() for axis in (2, 3, 4)))


def recall(real: Tensor, made: Tensor) -> float:
    """Share of real shapes that lie within reach of a made one, by its third neighbour."""
    real, made = plain(real).flatten(1), plain(made).flatten(1)
    within = torch.cdist(made, made).kthvalue(4, 1).values
    return float((torch.cdist(real, made) <= within).any(1).float().mean())


def in_use(network: Any) -> Any:
    """A copy that draws from a prior fitted on its posteriors, as trained systems do."""
    found = seeded(vae, SHAPE, components=4, rank=8, **SIZES)
    found.load_state_dict(network.state_dict(), strict=False)
    return with_prior(found)


@torch.no_grad()
def mean_square(network: Any) -> float:
    """Of latents of unseen cases, 1 if these are spread like the standard normal."""
    posterior = network.encode(UNSEEN, network.condition(UNSEEN))
    return float((posterior.mean.square() + posterior.scale.square()).mean())


def figures_of(network: Any) -> dict[str, float]:
    """How a model rebuilds unseen cases, and how its draws compare with them."""
    again, made = rebuilt(network, UNSEEN), drawn(network)
    used = in_use(network)
    return {
        "PSNR": psnr(again["image"], REAL),
        "squared error": float((again["image"] - REAL).square().mean()),
        "unsharpness rebuilt": unsharpness(again["image"], REAL),
        "unsharpness drawn": unsharpness(made["image"], REAL),
        "energy distance": energy_distance(made["image"], REAL),
        "energy distance of masks": energy_distance(made["mask"], MASKS),
        "spread": spread(made["image"]),
        "recall": recall(REAL, made["image"]),
        "recall, fitted prior": recall(REAL, drawn(used)["image"]),
        "recall of 192, fitted prior": recall(MANY, drawn(used, len(MANY))["image"]),
        "mean square of latents": mean_square(network),
    }


def with_prior(network: Any) -> Any:
    """A copy that draws from a prior fitted on its posteriors."""
    found = copy.deepcopy(network)
    preparation = BatchPreparation(found.statistics, (1.0, 1.0, 1.0))
    loader = StepLoader(TRAINING, 8, seed=0)
    PriorFitter({"model": found}, loader, preparation, passes=8).fit()
    return found


def logged(logs: dict[str, list[float]], *names: str) -> dict[str, float]:
    """Means over the last fifth of a training."""
    return {name: late(logs[name]) for name in names}


def by_system(seed: int) -> dict[str, dict[str, float]]:
    """All figures of one seed."""
    found = {"vae": figures_of(trained_vae(seed))}
    network, logs = trained_vae_gan(seed)
    names = ("decoder/real_cost", "decoder/fake_cost", "discriminator/accuracy")
    found["vae_gan"] = figures_of(network) | logged(logs, *names)
    network, logs = trained_vae_gan(seed, features=0.3, scores=0.05, start=START)
    found["vae_gan, weights of a run"] = figures_of(network) | logged(logs, *names)
    found["vae, slowing down"] = figures_of(trained_vae(seed, peak=2 * RATE, **PACE))
    network, logs = trained_introspective(SOFT, seed)
    low, high = logs["encoder/exponent_low"], logs["encoder/exponent_high"]
    ends = {"lowest exponent": min(low), "highest exponent": max(high)}
    names = ("encoder/exponent_low", "encoder/exponent_high")
    found["soft_introvae"] = figures_of(network) | logged(logs, *names) | ends
    network, logs = trained_introspective(HINGE, seed)
    names = ("encoder/kl", "encoder/kl_sampled", "encoder/margin")
    found["introvae"] = figures_of(network) | logged(logs, *names)
    twin, driven = trained_by_noise(seed)
    known = whole(TRAINING)["image"]
    compared = {"autoencoder, normal": twin, "autoencoder, prior": with_prior(twin), **driven}
    for name, each in compared.items():
        made = drawn(each)
        found[f"vae_noise_gan, {name}"] = {
            "energy distance": energy_distance(made["image"], REAL),
            "energy distance of masks": energy_distance(made["mask"], MASKS),
            "mean gradient": roughness(made["image"]),
            "copies": copied(made["image"], known),
        }
    return found


def main() -> None:
    """Prints a table a system, a column a seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 5, 6])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    found = [by_system(seed) for seed in seeds]
    print(f"real cases: spread {spread(REAL):.2f}, mean gradient {roughness(REAL):.3f}")
    for system, first in found[0].items():
        print(f"\n{system}\n" + "-" * len(system))
        for name in first:
            print(f"{name:28s}" + "".join(f"{each[system][name]:10.3f}" for each in found))


if __name__ == "__main__":
    main()
