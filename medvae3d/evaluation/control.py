"""Whether what is asked of a model comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from medvae3d.models.latent import Condition, LatentModel
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.seeding import derive_generator

CHUNK = 8


def rank_correlation(asked: Sequence[float], made: Sequence[float]) -> float | None:
    """Spearman's coefficient; ``None`` where one side does not vary."""
    if len(asked) < 3 or np.ptp(asked) == 0 or np.ptp(made) == 0:
        return None
    return float(stats.spearmanr(asked, made).statistic)


def volume_control(asked: Sequence[float], made: Sequence[float]) -> dict[str, Any]:
    """How volumes asked for and made agree.

    Args:
        asked: In ml.
        made: In ml.
    """
    wanted, found = np.asarray(asked, float), np.asarray(made, float)
    errors = np.abs(found - wanted) / wanted
    return {
        "samples": len(wanted),
        "smallest_asked_ml": float(wanted.min()),
        "largest_asked_ml": float(wanted.max()),
        "spearman": rank_correlation(asked, made),
        "worst_relative_error": float(errors.max()),
        "median_relative_error": float(np.median(errors)),
    }


@torch.no_grad()
def control_before_level(
    model: LatentModel,
    statistics: TrainingStatistics,
    spacing_mm: Sequence[float],
    count: int = 64,
    seed: int = 0,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """How well the network itself follows what it is told, its mask cut at even odds.

    Args:
        model: Makes masks from attributes.
        statistics: Where attributes are drawn.
        spacing_mm: Size of a voxel along (I, J, K).
        count: Masks to make.
        seed: Seed of attributes and latents.
        temperature: Scales the deviation of latents.

    Returns:
        Spearman's coefficient of each attribute, asked against measured, and the share of masks
        that were empty, which are left out.
    """
    generators = [derive_generator(seed, "control", index) for index in range(count)]
    told = statistics.draw(generators)
    masks = []
    prior = model.sampling_prior
    for first in range(0, count, CHUNK):
        part = statistics.standardise(told[first : first + CHUNK])
        known = part if prior is not None and prior.attributes else None
        here = generators[first : first + CHUNK]
        z = model.sample_latent(len(part), known, here, temperature)
        masks.append(model.decode(z, Condition(part))["mask"].mode())
    mask = torch.cat(masks)
    made = statistics.measure(mask, spacing_mm)
    filled: Tensor = (mask > 0).flatten(1).any(1)
    columns: Mapping[str, int] = {
        name: i for i, name in enumerate(statistics.names) if i not in statistics.class_columns
    }
    return {
        "samples": count,
        "empty_share": float(1 - filled.double().mean()),
        "spearman": {
            name: rank_correlation(told[filled, i].tolist(), made[filled, i].tolist())
            for name, i in columns.items()
        },
    }
