"""What a model rebuilds of cases that it has not seen, beside what needs no model.

Each function gives plain numbers; ``rows`` in what it gives is a table, one entry a line of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medvae3d.evaluation.baselines import CasePCA, constant_fill, paste_nearest
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.intervals import summary
from medvae3d.evaluation.voxelwise import image_scores, mask_scores
from medvae3d.models.latent import Batch, LatentModel
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.seeding import derive_generator

# Cases decoded at a time; 48 voxels a side and 24 channels take 0.3 GB each.
SIZE = 4
Draw = Callable[[int, Sequence[torch.Generator]], Tensor]


@dataclass(frozen=True)
class Words:
    """What the parts of a case are called, and how large a voxel is.

    Attributes:
        channels: Names of the channels.
        labels: Names of the labels 1, 2 and so on.
        spacing_mm: Size of a voxel along (I, J, K).
        statistics: What the model remembers of its training set.
        seed: Seed of noise and intervals.
    """

    channels: tuple[str, ...]
    labels: tuple[str, ...]
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)
    statistics: TrainingStatistics = field(default_factory=TrainingStatistics, repr=False)
    seed: int = 0

    @property
    def values(self) -> tuple[int, ...]:
        """Label values, background first."""
        return tuple(range(len(self.labels) + 1))

    def batches(self, cases: Cases, size: int = SIZE) -> list[dict[str, Any]]:
        """What a model takes, a few cases at a time."""
        return [part.batch(self.statistics, self.spacing_mm) for part in cases.batches(size)]


@torch.no_grad()
def reconstruct(
    model: LatentModel,
    batches: Sequence[Batch],
    draw: Callable[[Batch], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Mode of each head, from the posterior mean, or from latents drawn without seeing the image.

    Args:
        model: In evaluation mode.
        batches: What it sees.
        draw: Latents for a batch, instead of the posterior mean.
    """
    made: dict[str, list[Tensor]] = {name: [] for name in model.heads}
    for batch in batches:
        condition = model.condition(batch)
        z = model.encode(batch, condition).mean if draw is None else draw(batch)
        for name, head in model.decode(z, condition).items():
            made[name].append(head.mode().float())
    return {name: torch.cat(parts) for name, parts in made.items()}


# -- joint models ---------------------------------------------------------------------------------


def reconstruction(
    model: LatentModel,
    train: Cases,
    unseen: Cases,
    words: Words,
    augmented: Cases | None = None,
    twins: Mapping[str, LatentModel] | None = None,
) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
    """Image and mask of unseen cases, from the posterior mean, beside principal components.

    Args:
        model: Joint model.
        train: Cases that it was trained on; the components are fitted on them.
        unseen: Cases that it was not trained on.
        words: What parts are called.
        augmented: Augmented training cases for a stronger set of components.
        twins: Models trained without the flow, by what they share with this one.

    Returns:
        The figures, and image and mask of each row, to be drawn.
    """
    size = math.prod(model.latent_shape)
    pca = CasePCA(size, words.values).fit(train)
    made: dict[str, tuple[Tensor, Tensor]] = {}
    for name, each in {"model": model, **(twins or {})}.items():
        heads = reconstruct(each, words.batches(unseen))
        made[name] = heads["image"], heads["mask"]
    made[f"PCA, {pca.components} components"] = pca.reconstruct(unseen)
    components = {"pca_components": pca.components}
    if augmented is not None:
        wide = CasePCA(size, words.values).fit(augmented)
        made[f"PCA of augmented cases, {wide.components} components"] = wide.reconstruct(unseen)
        components["pca_augmented_components"] = wide.components
    made["mean of the training cases"] = pca.mean_case(unseen)
    rows = {}
    for name, (image, mask) in made.items():
        scores = image_scores(image, unseen.image, unseen.valid, words.channels)
        scores |= mask_scores(mask, unseen.mask, words.labels, unseen.valid)
        rows[name] = summary(scores, words.seed)
    found = {"latent_size": size, **components, "train": len(train), "unseen": len(unseen)}
    return {**found, "rows": rows}, made


# -- two-stage models -----------------------------------------------------------------------------


def shape_stage(model: LatentModel, train: Cases, unseen: Cases, words: Words) -> dict[str, Any]:
    """Masks of unseen cases, from the posterior mean, beside principal components of masks."""
    pca = CasePCA(math.prod(model.latent_shape), words.values, with_image=False).fit(train)
    made = {
        "model": reconstruct(model, words.batches(unseen, 8))["mask"],
        f"PCA, {pca.components} components": pca.reconstruct(unseen)[1],
        "mean of the training masks": pca.mean_case(unseen)[1],
    }
    return {
        "latent_size": math.prod(model.latent_shape),
        "pca_components": pca.components,
        "train": len(train),
        "unseen": len(unseen),
        "rows": {
            name: summary(mask_scores(mask, unseen.mask, words.labels), words.seed)
            for name, mask in made.items()
        },
    }


def texture_stage(
    model: LatentModel,
    train: Cases,
    unseen: Cases,
    words: Words,
    draw: Draw | None = None,
    draws: int = 4,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Intensities inside of unseen lesions, their true masks given, beside filling without a model.

    Only what lies inside of the lesion is judged: everything else is the real image in all rows.

    Args:
        model: Image from mask and context.
        train: Training lesions, which the two baselines use.
        unseen: Lesions that it was not trained on.
        words: What parts are called.
        draw: Draws that many latents, one a generator; the model's prior by default.
        draws: Draws of the prior a lesion, whose scores are averaged.

    Returns:
        The figures, and the image of each row, to be drawn.
    """
    draw = draw or (lambda count, generators: model.sample_latent(count, None, generators))
    batches = words.batches(unseen)
    inside = unseen.region * (unseen.valid > 0)

    def composed(image: Tensor) -> Tensor:
        return torch.where(inside > 0, image, unseen.image)

    made = {
        "model, posterior mean": composed(reconstruct(model, batches)["image"]),
        "constant: mean of the training lesions": constant_fill(train, unseen),
        "nearest training lesion, pasted": paste_nearest(train, unseen),
    }
    scores = {
        name: image_scores(image, unseen.image, inside, words.channels)
        for name, image in made.items()
    }
    drawn = []
    for turn in range(draws):
        places = iter(range(len(unseen)))

        def latents(batch: Batch, turn: int = turn, places: Any = places) -> Tensor:
            rows = [next(places) for _ in range(len(batch["mask"]))]
            seeds = [derive_generator(words.seed, "texture", turn, row) for row in rows]
            return draw(len(rows), seeds)

        image = composed(reconstruct(model, batches, latents)["image"])
        made.setdefault("model, drawn from the prior", image)
        drawn.append(image_scores(image, unseen.image, inside, words.channels))
    if drawn:
        scores["model, drawn from the prior"] = {
            name: torch.stack([each[name] for each in drawn]).mean(0) for name in drawn[0]
        }
    order = sorted(scores, key=lambda name: not name.startswith("model"))
    figures = {
        "train": len(train),
        "unseen": len(unseen),
        "draws_of_the_prior": draws,
        "rows": {name: summary(scores[name], words.seed) for name in order},
    }
    return figures, made
