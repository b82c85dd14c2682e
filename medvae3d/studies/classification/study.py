"""A study on classes from beginning to end: checks, cells, and what came out of them.

In its folder::

    settings.json                 what all cells have in common
    synthetic/*.pt  cycles/       what generators made, by number of real cases and seed
    cells/*.json  cells.csv       every cell, as it is done
    table.md  study.json  *.png   what came out
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medvae3d import __version__
from medvae3d.data.volumes import write_bytes
from medvae3d.errors import SettingError
from medvae3d.evaluation.sections import Measure
from medvae3d.spreading import rank_and_world
from medvae3d.studies.cells import (
    Cell,
    Report,
    cell_file,
    cells_csv,
    held_study,
    require_same_settings,
    run_cells,
    wait_for,
)
from medvae3d.studies.classification.metrics import MEASURES, are_clustered, measured
from medvae3d.studies.classification.presets import (
    REFERENCE,
    Preset,
    parts_of,
    preset_of,
)
from medvae3d.studies.classification.results import Arm, arms_of, plot_roc, rows_of
from medvae3d.studies.classification.shown import markdown, section
from medvae3d.studies.classification.tasks import Images, Task, simplest_rule
from medvae3d.studies.classification.work import (
    ARMS,
    BY_VALIDATION,
    GENERATED,
    IN_CYCLES,
    WITHOUT_CLASS,
    WITHOUT_EXTRA,
    Design,
)
from medvae3d.studies.results import markdown_table, plot_rows, write_study

# Below this many judged subjects no comparison can be clear.
FEW_SUBJECTS = 6


@dataclass(frozen=True)
class ClassificationOptions:
    """What a study on classes may be asked; ``None`` leaves it to the preset.

    Attributes:
        preset: Name of a preset.
        arms: Names of arms.
        n: Numbers of real training cases of each class, and ``all``.
        ratios: Extra cases for each real one.
        seeds: Repeats of every cell.
        steps: Optimiser steps of each classifier.
        generator_steps: Optimiser steps of each generator.
        split: Split that is judged.
        seed: Seed of the order of training cases and of patches.
    """

    preset: str | None = None
    arms: tuple[str, ...] | None = None
    n: tuple[str, ...] | None = None
    ratios: tuple[float, ...] | None = None
    seeds: int | None = None
    steps: int | None = None
    generator_steps: int | None = None
    split: str = "testing"
    seed: int = 0


@dataclass(frozen=True)
class FoundClasses:
    """What a study found so far.

    Attributes:
        folder: Its folder.
        table: The AUC of all arms, as Markdown.
        shown: What the preset has to show, as Markdown.
        done: Cells that are done.
        wanted: Cells of the whole study.
        notes: What a reader has to know.
    """

    folder: Path
    table: str
    shown: str
    done: int
    wanted: int
    notes: tuple[str, ...]


def classification_study(
    task: Task,
    out: str | Path,
    options: ClassificationOptions | None = None,
    *,
    workers: int = 1,
    ray_address: str | None = None,
    report: Report | None = None,
    preset: Preset | None = None,
    samples: Images | None = None,
) -> FoundClasses:
    """Runs a study, or goes on with it.

    Args:
        task: Images with their classes.
        out: Folder of the study.
        options: What is compared.
        workers: Processes beside each other.
        ray_address: Ray cluster that does the cells, ``local`` for one on this machine.
        report: Told about each cell.
        preset: A preset of one's own, instead of that of ``options``.
        samples: Images of the arm ``samples``, which is added if they are given.

    Raises:
        MedvaeError: If anything that was given cannot be used.
    """
    folder, options = Path(out), options or ClassificationOptions()
    chosen = _chosen(preset or preset_of(options.preset), options)
    if samples is not None and "samples" not in chosen.arms:
        chosen = replace(chosen, arms=(*chosen.arms, "samples"))
    _require_arms(chosen)
    by_validation = [arm for arm in chosen.arms if arm in BY_VALIDATION]
    if by_validation and options.split == "validation":
        raise SettingError(
            f"arm {by_validation[0]} decides by validation cases, which may then not be judged. "
            f"Take --split testing, or leave out {', '.join(by_validation)} with --arms."
        )
    needed = ["training", options.split, *(["validation"] if by_validation else [])]
    for split in dict.fromkeys(needed):
        task.require(split, 2 if split == "training" else 1)
    numbers = sorted({_number(text, task.most) for text in chosen.n})
    for n in numbers:
        task.training(n, options.seed)
    cells = [
        Cell(n, ratio, arm, seed)
        for n in numbers
        for seed in range(chosen.seeds)
        for arm in dict.fromkeys(chosen.arms)
        for ratio in _ratios(arm, chosen.ratios)
    ]
    most = max(chosen.ratios)
    if "samples" in chosen.arms:
        _require_samples(samples, round(numbers[-1] * most))
    settings = {
        "study": "classification",
        "medvae3d": __version__,
        "task": task.name,
        "facts": dict(task.facts),
        "classes": list(task.classes),
        "cases": {split: task.counts(split) for split in ("training", options.split)},
        "subjects": {split: sorted(set(task.subjects_of(split))) for split in needed[:2]},
        "split": options.split,
        "seed": options.seed,
        "samples": None if samples is None else _digest(samples),
        **chosen.to_dict(),
    }
    with held_study(folder):
        require_same_settings(folder, settings)
        design = Design(task, options.split, chosen, folder, most, options.seed, samples)
        run_cells(
            cells, design.begin, folder, workers=workers, ray_address=ray_address, report=report
        )
        if rank_and_world()[0]:
            return FoundClasses(folder, "", "", 0, len(cells), ())
        return _results(design, cells, settings)


def _chosen(preset: Preset, options: ClassificationOptions) -> Preset:
    """The preset with what the options say instead."""
    given: dict[str, Any] = {
        "arms": options.arms,
        "n": options.n,
        "ratios": options.ratios,
        "seeds": options.seeds,
    }
    changed = replace(preset, **{key: value for key, value in given.items() if value is not None})
    if options.steps is not None:
        changed = replace(changed, classifier=changed.classifier.with_steps(options.steps))
    if options.generator_steps is not None:
        steps = options.generator_steps
        changed = replace(
            changed,
            generator=replace(changed.generator, steps=steps),
            generators={k: replace(v, steps=steps) for k, v in changed.generators.items()},
        )
    return changed


def _require_arms(chosen: Preset) -> None:
    for arm in chosen.arms:
        base, variant = parts_of(arm)
        known = chosen.generators if base in GENERATED else ()
        if base not in ARMS or (variant and variant not in known) or arm.endswith("-"):
            more = [f"synthetic-{name}" for name in chosen.generators]
            raise SettingError(
                f"--arms has {arm!r}; allowed are {', '.join((*ARMS, *more))}. Correct it."
            )
        if base in WITHOUT_CLASS and chosen.generator.is_told:
            raise SettingError(
                f"arm {arm} fits a generator on images without their classes, and that of this "
                f"preset, {chosen.generator.function}, is told them. Leave out the arm, or take "
                f"another preset."
            )


def _require_samples(samples: Images | None, count: int) -> None:
    have = 0 if samples is None else min(int((samples.y == v).sum()) for v in (0, 1))
    if have < max(1, count):
        raise SettingError(
            f"arm samples needs {max(1, count)} images of each class; --samples gives {have}. Make "
            f"more with `medvae3d generate`, lower --ratio, or leave out the arm."
        )


def _digest(images: Images) -> str:
    found = hashlib.blake2b(images.x.contiguous().numpy().tobytes(), digest_size=8)
    found.update(images.y.numpy().tobytes())
    return found.hexdigest()


def _number(text: str, most: int) -> int:
    if text != "all" and not (text.isdigit() and int(text) >= 2):
        raise SettingError(
            f"--n has {text!r}; allowed are whole numbers from 2 on, and all, with commas between "
            f"them. Write it like --n 10,20,all."
        )
    return most if text == "all" else int(text)


def _ratios(arm: str, ratios: Sequence[float]) -> Sequence[float]:
    # Cycles say themselves how much they keep, at most as much as there is.
    arm = parts_of(arm)[0]
    return (0.0,) if arm in WITHOUT_EXTRA else (1.0,) if arm in IN_CYCLES else ratios


def _results(design: Design, cells: Sequence[Cell], settings: Mapping[str, Any]) -> FoundClasses:
    folder, task = design.folder, design.task
    wait_for(cell_file(folder, cell) for cell in cells)
    unseen, subjects = task.part(design.split), task.subjects_of(design.split)
    y = unseen.y.tolist()
    done = cells_csv(folder, sorted(cells), MEASURES)
    arms = arms_of(folder, cells, y, subjects, REFERENCE, design.seed)
    rows = rows_of(arms)
    simplest = measured(
        y, simplest_rule(task.training(task.most, design.seed), unseen), subjects, design.seed
    )["auc"]
    notes = _notes(design, simplest, [arm.name for arm in arms])
    shown = section(design.preset, arms, task.classes)
    shown.warnings.extend(notes)
    tables = [f"## {measure}\n\n{markdown_table(rows, measure, REFERENCE)}" for measure in MEASURES]
    head = f"# Classification study: {task.name}, {task.classes[1]} against {task.classes[0]}"
    page = "\n\n".join((head, *(f"> {note}" for note in notes), markdown(shown), *tables))
    write_bytes(folder / "table.md", page.encode() + b"\n")
    plot_roc(arms, y, folder / "roc.png")
    for axis in ("n", "ratio"):
        plot_rows(rows, "auc", axis, REFERENCE, folder / f"auc_over_{axis}.png")
    content = {
        "settings": dict(settings),
        "reference": REFERENCE,
        "cells": {"done": len(done), "wanted": len(cells)},
        "simplest_rule_auc": simplest.to_dict(),
        "notes": list(notes),
        "shown": shown.to_dict(),
        "judged": {"y": y, "subjects": subjects},
        "seconds_per_100_synthetic": _cost(arms),
        "peak_memory_mb_of_generators": _memory(arms),
    }
    write_study(folder, content, rows)
    table = markdown_table(rows, "auc", REFERENCE)
    return FoundClasses(folder, table, markdown(shown), len(done), len(cells), notes)


def _cost(arms: Sequence[Arm]) -> float | None:
    """Seconds of fitting for each hundred images, over the cells that say it."""
    pairs = [
        (cell["generator_seconds"], sum(cell["extra_cases"]))
        for arm in arms
        for cell in arm.cells
        if "generator_seconds" in cell
    ]
    images = sum(count for _, count in pairs)
    return round(100 * sum(seconds for seconds, _ in pairs) / images, 1) if images else None


def _memory(arms: Sequence[Arm]) -> float | None:
    """Largest resident memory of a process that fitted generators and drew from them, in MiB."""
    return max(
        (cell["peak_memory_mb"] for arm in arms for cell in arm.cells if "peak_memory_mb" in cell),
        default=None,
    )


def _notes(design: Design, simplest: Measure, arms: Sequence[str]) -> tuple[str, ...]:
    subjects = design.task.subjects_of(design.split)
    count = len(set(subjects))
    notes = []
    if simplest.value is not None:
        notes.append(
            f"Mean and deviation of each channel alone reach an AUC of {simplest.value:.2f}, from "
            f"all training cases."
        )
    if are_clustered(subjects):
        notes.append(
            f"{len(subjects)} cases of {count} subjects are judged; intervals are over subjects."
        )
    if count < FEW_SUBJECTS:
        notes.append(f"{count} subjects are too few to rank arms by: intervals are only rough.")
    if design.split == "validation":
        notes.append("Validation cases are judged: good for choosing settings, not for reporting.")
    if design.samples is not None:
        notes.append(
            "Where the images of the arm samples come from is for you to know: a generator that "
            "has seen judged cases makes this arm worthless."
        )
    if REFERENCE not in arms:
        notes.append(f"Without the arm {REFERENCE} there is nothing to compare with.")
    return tuple(notes)
