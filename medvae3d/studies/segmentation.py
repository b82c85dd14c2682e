"""Does a segmenter find real, unseen masks better because of synthetic pairs? The work of a cell.

Arms, all with the same segmenter, number of steps and seeds:

- ``real``: the real training cases as they are;
- ``classical``: the same with classical augmentation, the reference of all comparisons;
- ``elastic``: ``classical`` with elastic deformations as well, a control without a model;
- ``copies``, ``copy_paste``, ``carvemix``, ``handmade``: ``classical`` with further cases that need
  no trained generator, as many as the synthetic arms have;
- ``synthetic:NAME``: ``classical`` with samples of a generator;
- ``only:NAME``: samples of a generator alone, with classical augmentation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medvae3d.errors import LabelError, SettingError
from medvae3d.evaluation.agreement import as_segment, found_dice
from medvae3d.evaluation.cases import Cases, framed_as
from medvae3d.evaluation.segmenter import SegmenterSettings
from medvae3d.seeding import derive_generator
from medvae3d.studies.case_form import REPEATS, CaseForm
from medvae3d.studies.cells import Cell
from medvae3d.studies.handmade import handmade_cases
from medvae3d.studies.mixing import carve_mix, copied_cases, copy_paste, mixed_cases, with_lesion
from medvae3d.studies.segmenter import MEASURES, Mixture, score_cases, study_settings, train_on

REFERENCE = "classical"
BENT = "elastic"
WITHOUT_EXTRA = ("real", REFERENCE, BENT)
# Typical displacement of the arm ``elastic``, in voxels.
ELASTIC = 2.0
BY_HAND = ("copies", "copy_paste", "carvemix", "handmade")
SYNTHETIC, ONLY = "synthetic", "only"


@dataclass(frozen=True)
class SampleSet:
    """Samples of one generator for one number of real cases and one seed.

    Attributes:
        datalist: Their data list.
        count: How many there are.
    """

    datalist: Path
    count: int


@dataclass(frozen=True)
class Design:
    """All that the cells of a study have in common; can be sent to other processes.

    Attributes:
        form: How cases are prepared.
        training: Real training cases, in the order in which smaller numbers take them.
        unseen: Real cases that are judged.
        subjects: Patient of each unseen case, by its name.
        steps: Optimiser steps of each segmenter.
        samples: Sample sets by name of the generator, number of real cases and seed.
        least_real: Smallest share of real cases in a batch of a mixed arm.
        extra_until: Share of the training after which only real cases are drawn.
        filter_above: Dice with a segmenter trained on the real cases that a sample needs to be
            kept; ``None`` keeps all.
        seed: Seed of the patches.
    """

    form: CaseForm
    training: tuple[Mapping[str, Any], ...]
    unseen: tuple[Mapping[str, Any], ...]
    subjects: Mapping[str, str]
    steps: int
    samples: Mapping[tuple[str, int, int], SampleSet] = field(default_factory=dict)
    least_real: float = 0.5
    extra_until: float = 1.0
    filter_above: float | None = None
    seed: int = 0

    def begin(self) -> SegmentationWork:
        """What a process does cells with."""
        return SegmentationWork(self)


def nested_order(count: int, seed: int) -> list[int]:
    """The order in which training cases are taken: each number of cases holds all smaller ones."""
    order = torch.randperm(count, generator=derive_generator(seed, "training cases"))
    return [int(index) for index in order]


def wanted_extra(real: int, ratio: float) -> int:
    """Extra cases for a number of real ones; at least one."""
    return max(1, round(real * ratio))


def not_applicable(arm: str, form: CaseForm) -> str:
    """Why an arm cannot be had for such masks; empty if it can."""
    if arm == "handmade" and not form.is_lesion:
        return (
            f"the labels ({', '.join(form.label_names)}) are whole organs, and one more of them "
            f"cannot be made by hand in a case that has its own"
        )
    return ""


class SegmentationWork:
    """Trains and judges the segmenter of a cell; keeps in memory what several cells need.

    Args:
        design: What all cells have in common.
    """

    def __init__(self, design: Design) -> None:
        self.design, self.form = design, design.form
        self.settings = study_settings(design.steps, self.form.spacing_mm)
        self._read: OrderedDict[Any, Cases] = OrderedDict()
        self._agreed: dict[tuple[str, int, int], NDArray[Any]] = {}
        self._unseen: Cases | None = None

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """Means of the scores, scores by subject, and what the segmenter was fed with."""
        mixture, facts = self.mixture(cell)
        network = train_on(mixture, len(self.form.labels), self.settings_of(cell.arm), cell.seed)
        scores = self.judged(network)
        measures = list(next(iter(scores.values())))
        means = {
            name: float(np.mean([numbers[name] for numbers in scores.values()]))
            for name in measures
        }
        return {
            "means": means,
            "scores": {
                subject: {name: round(value, 6) for name, value in numbers.items()}
                for subject, numbers in scores.items()
            },
            **facts,
        }

    def settings_of(self, arm: str) -> SegmenterSettings:
        """Settings of the segmenter of an arm; they differ in the augmentation alone."""
        if arm != BENT:
            return self.settings
        augmentation = self.settings.augmentation
        pose = replace(augmentation.pose, elastic=ELASTIC)
        return replace(self.settings, augmentation=replace(augmentation, pose=pose))

    def mixture(self, cell: Cell) -> tuple[Mixture, dict[str, Any]]:
        """What the segmenter of a cell is fed with, and numbers about it."""
        real, extra, facts = self.parts(cell)
        is_only = cell.arm.startswith(f"{ONLY}:")
        mixture = Mixture(
            None if is_only else real,
            extra,
            self.design.least_real,
            1.0 if is_only else self.design.extra_until,
            is_augmented=cell.arm != "real",
        )
        counts = {
            "real_cases": 0 if is_only else len(real),
            "extra_cases": 0 if extra is None else len(extra),
            "real_share": round(mixture.real_share(), 4),
        }
        return mixture, {**counts, **facts}

    def parts(self, cell: Cell) -> tuple[Cases, Cases | None, dict[str, Any]]:
        """Real cases, extra cases and numbers about these."""
        real = self.real(cell.n)
        if cell.arm in WITHOUT_EXTRA:
            return real, None, {}
        count = wanted_extra(len(real), cell.ratio)
        spacing = self.form.spacing_mm
        if cell.arm == "copies":
            return real, copied_cases(real, count, cell.seed), {}
        if cell.arm == "copy_paste":
            mix = copy_paste(in_place=not self.form.is_lesion)
            return real, mixed_cases(real, count, mix, cell.seed, "copy_paste"), {}
        if cell.arm == "carvemix":
            return real, mixed_cases(real, count, carve_mix(spacing), cell.seed, "carvemix"), {}
        if cell.arm == "handmade":
            return real, handmade_cases(real, count, spacing, cell.seed), {}
        return self._with_samples(real, count, cell)

    def _with_samples(
        self, real: Cases, count: int, cell: Cell
    ) -> tuple[Cases, Cases, dict[str, Any]]:
        key = (cell.arm.partition(":")[2], cell.n, cell.seed)
        made = self._kept(("samples", *key), lambda: self._samples(*key))
        if self.design.filter_above is None:
            return real, made[:count], {}
        agreed = self._agreement(key, made)
        # Of as many as are needed, and of the further ones to make up for what is left out.
        rows = np.flatnonzero(agreed >= self.design.filter_above)
        facts = {
            "filter_accepted": round(len(rows) / len(made), 4),
            "filter_kept": min(len(rows), count),
        }
        if not len(rows):
            raise SettingError(
                f"none of {len(made)} samples of {key[0]} (n = {cell.n}, seed {cell.seed}) agrees "
                f"with a segmenter trained on the real cases by a Dice of "
                f"{self.design.filter_above:g}; the largest is {agreed.max():.2f}. Lower "
                f"--filter-above, or leave out --filter."
            )
        return real, made[rows[:count].tolist()], facts

    def _agreement(self, key: tuple[str, int, int], made: Cases) -> NDArray[Any]:
        """Dice of each sample with a segmenter that has seen the real cases alone."""
        if key not in self._agreed:
            _, n, seed = key
            network = train_on(Mixture(self.real(n)), len(self.form.labels), self.settings, seed)
            dice = found_dice(as_segment(network), made, self.form.label_names)
            self._agreed = {key: dice.numpy()}
        return self._agreed[key]

    def judged(self, network: nn.Module) -> dict[str, dict[str, float]]:
        """Scores on unseen cases, by subject: the mean over its cases.

        Of patches round lesions, each counts as a subject of its own.
        """
        found = score_cases(network, self.unseen, self.form.label_names, self.form.spacing_mm)
        if self.form.is_insertion:
            return found
        groups: dict[str, list[dict[str, float]]] = {}
        for case, numbers in found.items():
            groups.setdefault(self.design.subjects.get(case, case), []).append(numbers)
        return {
            subject: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
            for subject, rows in groups.items()
        }

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of all scores."""
        labels = self.form.label_names
        return (*MEASURES, *(f"dice {name}" for name in labels if len(labels) > 1))

    @property
    def unseen(self) -> Cases:
        """Real cases that are judged."""
        if self._unseen is None:
            self._unseen = self.form.cases(self.design.unseen, self.design.seed)
        return self._unseen

    def real(self, n: int) -> Cases:
        """The first real training cases.

        Raises:
            LabelError: If all their masks are empty.
        """
        repeats = REPEATS if self.form.is_insertion else 1
        seed, items = self.design.seed, self.design.training[:n]
        return self._kept(
            ("real", n), lambda: self._labelled(self.form.cases(items, seed, repeats))
        )

    def _labelled(self, cases: Cases) -> Cases:
        with_lesion(cases)
        found = {int(value) for value in cases.mask.unique().tolist()}
        missing = [name for name, value in self.form.labels.items() if value not in found and value]
        if missing:
            raise LabelError(
                f"no mask of {len(cases)} training cases has the label {', '.join(missing)}; the "
                f"bundle makes {', '.join(self.form.label_names)}. Take more cases, or the bundle "
                f"that belongs to this data list."
            )
        return cases

    def _samples(self, name: str, n: int, seed: int) -> Cases:
        found = self.design.samples[name, n, seed]
        hosts = [item for item in self.design.training[:n] if "image" in item]
        made = self.form.samples(found.datalist, found.count, hosts, seed)
        # What is not observed of a patch are its other lesions.
        return made if self.form.is_insertion else framed_as(made, self.real(n), seed)

    def _kept(self, key: tuple[Any, ...], make: Any) -> Cases:
        """What was read last stays in memory: cells that need the same come one after the other."""
        if key not in self._read:
            same = [other for other in self._read if other[0] == key[0]]
            if len(same) >= 2:
                del self._read[same[0]]
            self._read[key] = make()
        return self._read[key]
