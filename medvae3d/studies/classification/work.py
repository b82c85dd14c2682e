"""The work of a cell: one arm with a number of real cases, a ratio and a seed.

Arms, all with the same classifier, number of steps, seeds and balance of classes:

- ``real``: the real training cases as they are;
- ``classical``: the same with classical augmentation, the reference of all comparisons;
- ``copies``, ``noise``: ``classical`` with copies of real cases, or with noise that has a class;
- ``shuffled``: ``classical`` with classes dealt out anew: nothing can be learned;
- ``synthetic``, ``only``: ``classical`` with images of one generator a class, or these alone;
  ``synthetic-NAME`` with those of another generator of the preset;
- ``synthetic_shuffled``: the same of generators whose images had their classes dealt out anew;
- ``adaptive``: ``synthetic`` with as many images in all, but more of the class that a classifier
  without them misses; ``adaptive-NAME`` as above;
- ``samples``: ``classical`` with samples of any bundle, cut as real cases are;
- ``selected``, ``random``: ``classical`` with images kept in cycles, or drawn at random;
- ``self_learning``, ``retrained``: with VAE images labelled by the classifier itself, in rounds, or
  trained as often without them;
- ``slices_shuffled``: ``classical`` with the slices of every volume in another order.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medvae3d.data.volumes import write_bytes
from medvae3d.evaluation.privacy import copy_check
from medvae3d.evaluation.throughput import peak_memory_mb
from medvae3d.seeding import derive_generator, derive_seed
from medvae3d.studies.cells import Cell
from medvae3d.studies.classification.adaptive import counts_of, held_out_recalls
from medvae3d.studies.classification.classifiers import (
    AUGMENTATIONS,
    Mixture,
    probabilities,
    train_classifier,
)
from medvae3d.studies.classification.generators import fit_generator, fit_generators
from medvae3d.studies.classification.metrics import MEASURES, scores
from medvae3d.studies.classification.presets import Preset, parts_of
from medvae3d.studies.classification.quality import as_cases, quality_of
from medvae3d.studies.classification.selection import Tools, select
from medvae3d.studies.classification.self_learning import learn
from medvae3d.studies.classification.sequences import shuffle_slices
from medvae3d.studies.classification.tasks import (
    Images,
    Task,
    balanced,
    first_of_each,
    shuffled,
)
from medvae3d.training.checkpoints import load_state

WITHOUT_EXTRA = ("real", "classical", "shuffled", "retrained", "slices_shuffled")
WITH_RATIO = (
    "copies", "noise", "synthetic", "synthetic_shuffled", "only", "adaptive", "samples",
    "self_learning",
)  # fmt: skip
# Fed with images of a generator of the preset, of another one with ``-NAME``.
GENERATED = ("synthetic", "synthetic_shuffled", "only", "adaptive")
# At most as many synthetic images as real ones.
IN_CYCLES = ("selected", "random")
# With a generator of all real images that is told no class.
WITHOUT_CLASS = (*IN_CYCLES, "self_learning")
ARMS = (*WITHOUT_EXTRA, *WITH_RATIO, *IN_CYCLES)
# Arms that ask validation images for a decision, which may then not be judged.
BY_VALIDATION = IN_CYCLES


@dataclass(frozen=True, eq=False)
class Design:
    """All that the cells of a study have in common; can be sent to other processes.

    Attributes:
        task: Images with their classes.
        split: Split that is judged.
        preset: Classifier, generator and settings.
        folder: Folder of the study; synthetic images are kept there.
        most_ratio: The largest ratio, for which generators make images.
        seed: Seed of the order of training cases.
        samples: Images of the arm ``samples``.
    """

    task: Task
    split: str
    preset: Preset
    folder: Path
    most_ratio: float
    seed: int = 0
    samples: Images | None = None

    def begin(self) -> Work:
        """What a process does cells with."""
        return Work(self)


class Work:
    """Trains and judges the classifier of a cell.

    Args:
        design: What all cells have in common.
    """

    def __init__(self, design: Design) -> None:
        self.design, self.preset = design, design.preset
        self.unseen = design.task.part(design.split)

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """Means of the scores, the probability of each case, and what the classifier was fed."""
        real = self.design.task.training(cell.n, self.design.seed)
        if cell.arm in ("self_learning", "retrained"):
            p, facts = self._self_learned(cell, real)
        else:
            mixture, facts = self._mixture(cell, real)
            p = self._trained(cell, mixture)
            facts = self._counts(mixture) | facts
        means = {name: float(v[0]) for name, v in scores(self.unseen.y.numpy(), p).items()}
        return {"means": means, "p": [round(float(v), 6) for v in p], **facts}

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of all scores."""
        return MEASURES

    # -- plain arms -------------------------------------------------------------------------------

    def _trained(self, cell: Cell, mixture: Mixture) -> np.ndarray:
        change, x = None, self.unseen.x
        if cell.arm == "slices_shuffled":
            change = shuffle_slices
            x = shuffle_slices(x, derive_generator(cell.seed, "shuffled slices"))
        network = train_classifier(mixture, self.preset.classifier, cell.seed, change)
        return probabilities(network, x)

    def _mixture(self, cell: Cell, real: Images) -> tuple[Mixture, dict[str, Any]]:
        extra, facts = self._extra(cell, real)
        if cell.arm == "shuffled":
            real = shuffled(real, cell.seed)
        base = parts_of(cell.arm)[0]
        return (
            Mixture(
                None if base == "only" else real,
                extra,
                is_augmented=cell.arm != "real",
                least_real=self.preset.classifier.least_real,
                follows_counts=base == "adaptive",
            ),
            facts,
        )

    def _extra(self, cell: Cell, real: Images) -> tuple[Images | None, dict[str, Any]]:
        count = max(1, round(cell.n * cell.ratio))
        if cell.arm == "copies":
            rows = torch.arange(count) % cell.n
            return real[torch.cat([rows, rows + cell.n])], {}
        if cell.arm == "noise":
            return noise_like(real, count, cell.seed), {}
        if parts_of(cell.arm)[0] in GENERATED:
            made, facts = self._synthetic(cell, real)
            if parts_of(cell.arm)[0] != "adaptive":
                return balanced(made, count), facts
            recalls = self._recalls(cell, real)
            of_each = first_of_each(made, counts_of(recalls, 2 * count))
            return of_each, facts | {"recalls": [round(value, 4) for value in recalls]}
        if cell.arm == "samples" and self.design.samples is not None:
            made = balanced(self.design.samples, count)
            return made, {"copies": copying(made, real, self.unseen)}
        if cell.arm in IN_CYCLES:
            return self._selected(cell, real)
        return None, {}

    def _counts(self, mixture: Mixture) -> dict[str, Any]:
        def by_class(images: Images | None) -> list[int]:
            return [0, 0] if images is None else [int((images.y == v).sum()) for v in (0, 1)]

        return {
            "real_cases": by_class(mixture.real),
            "extra_cases": by_class(mixture.extra),
            "real_share": round(mixture.real_share, 4),
        }

    # -- synthetic images -------------------------------------------------------------------------

    def _synthetic(self, cell: Cell, real: Images) -> tuple[Images, dict[str, Any]]:
        """Images for the largest ratio, made once for each generator, number of cases and seed."""
        count = max(1, round(cell.n * self.design.most_ratio))
        if any(parts_of(arm)[0] == "adaptive" for arm in self.preset.arms):
            count *= 2  # one class may get all
        base, variant = parts_of(cell.arm)
        kind = "_shuffled" * (base == "synthetic_shuffled") + f"_{variant}" * bool(variant)
        path = self.design.folder / "synthetic" / f"n{cell.n}_s{cell.seed}_{count}{kind}.pt"
        if not path.is_file():
            seed = derive_seed(cell.seed, "synthetic")
            if base == "synthetic_shuffled":
                real = shuffled(real, cell.seed)
            generators = fit_generators(real, self.preset.of_arm(cell.arm), seed)
            made = generators.sample(count, seed)
            facts = {
                "generator_seconds": round(generators.seconds, 2),
                "peak_memory_mb": round(peak_memory_mb(), 1),
                "copies": copying(made, real, self.unseen),
                "quality": quality_of(generators, made, real, self.unseen, seed),
            }
            write_tensors(path, {"x": made.x, "y": made.y, "facts": facts})
        state = load_state(path)
        return Images(state["x"], state["y"]), state["facts"]

    def _recalls(self, cell: Cell, real: Images) -> tuple[float, float]:
        task, settings = self.design.task, self.preset.classifier
        subjects = [task.subjects[row] for row in task.training_rows(cell.n, self.design.seed)]
        seed = derive_seed(cell.seed, "folds")

        def judge(known: Images, held_out: Tensor, number: int) -> np.ndarray:
            network = train_classifier(Mixture(known), settings, derive_seed(seed, number))
            return probabilities(network, held_out)

        return held_out_recalls(real, subjects, judge, seed)

    def _selected(self, cell: Cell, real: Images) -> tuple[Images | None, dict[str, Any]]:
        seed, settings = derive_seed(cell.seed, "selection"), self.preset
        # The filter sees the real training images alone.
        filter_ = fit_generator(real.x, settings.generator, derive_seed(seed, "filter"))
        validation = self.design.task.part("validation")

        def validate(kept: Images | None) -> float:
            network = train_classifier(Mixture(real, kept), settings.classifier, cell.seed)
            p = probabilities(network, validation.x)
            return float(scores(validation.y.numpy(), p)["brier"][0])

        tools = Tools(
            lambda images, number: fit_generators(images, settings.generator, number),
            filter_.encode,
            validate,
        )
        by = "random" if cell.arm == "random" else "similarity"
        folder = self.design.folder / "cycles" / cell.name
        kept = select(real, tools, settings.selection, seed, by, folder)
        return kept.images, {"cycles": list(kept.cycles), "was_halted": kept.was_halted}

    # -- self-learning ----------------------------------------------------------------------------

    def _self_learned(self, cell: Cell, real: Images) -> tuple[np.ndarray, dict[str, Any]]:
        pool = None
        if cell.arm == "self_learning":
            seed = derive_seed(cell.seed, "unlabelled")
            # One model of both classes: what class an image has is for the classifier to say.
            generator = fit_generator(real.x, self.preset.generator, seed)
            pool = generator.sample(max(2, round(2 * cell.n * cell.ratio)), seed)
        settings = self.preset.classifier
        fed: list[Mixture] = []

        def train(added: Images | None, seed: int) -> nn.Module:
            fed.append(Mixture(real, added, least_real=settings.least_real))
            return train_classifier(fed[-1], settings, seed)

        def judge(network: nn.Module) -> dict[str, float]:
            found = scores(self.unseen.y.numpy(), probabilities(network, self.unseen.x))
            return {name: float(found[name][0]) for name in ("accuracy", "auc")}

        network, rounds = learn(
            pool,
            train,
            self.design.task.part("validation"),
            AUGMENTATIONS[settings.augmentation],
            self.preset.self_learning,
            cell.seed,
            judge,
        )
        facts = self._counts(fed[-1]) | {"rounds": rounds}
        return probabilities(network, self.unseen.x), facts


def noise_like(real: Images, count: int, seed: int) -> Images:
    """Noise with the mean and deviation of the real images, as many of either class.

    Args:
        real: Real images.
        count: Of each class.
        seed: Seed of the noise.
    """
    generator = derive_generator(seed, "noise images")
    dims = (0, 2, 3, 4)
    mean, deviation = real.x.mean(dims, keepdim=True), real.x.std(dims, keepdim=True)
    x = torch.randn((2 * count, *real.x.shape[1:]), generator=generator)
    return Images((mean + deviation * x).clamp_min(-1), torch.arange(2).repeat_interleave(count))


def copying(made: Images, real: Images, unseen: Images) -> dict[str, float]:
    """Share of images that are nearer to a training image than those are to each other."""
    found = copy_check(as_cases(made.x), as_cases(real.x), as_cases(unseen.x))
    rows = found["rows"]["image"]
    return {
        "samples": float(rows["share of samples below"]),
        "unseen": float(rows["share of unseen below"]),
    }


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Writes tensors and plain values; whole or not at all."""
    buffer = io.BytesIO()
    torch.save(
        {k: v.contiguous() if isinstance(v, Tensor) else v for k, v in content.items()}, buffer
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
