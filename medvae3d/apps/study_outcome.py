"""What came out of a study on segmentation: table, curves, ``study.json``, data sets of nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvae3d.apps.study_inputs import Say
from medvae3d.data.volumes import write_bytes
from medvae3d.evaluation.cases import Cases
from medvae3d.studies.case_form import CaseForm
from medvae3d.studies.cells import Cell, cells_csv
from medvae3d.studies.nnunet import dataset_folder, write_dataset
from medvae3d.studies.results import Row, markdown_table, plot_rows, rows_of, write_study
from medvae3d.studies.segmentation import BENT, ONLY, REFERENCE, Design, SegmentationWork

FIRST_DATASET = 501


@dataclass(frozen=True)
class Found:
    """What a study found so far.

    Attributes:
        folder: Its folder.
        rows: Means and comparisons of the cells that are done.
        table: The Dice of all arms, as Markdown.
        done: Cells that are done.
        wanted: Cells of the whole study.
        left_out: Why an arm is not applicable, by its name.
        notes: What a reader has to know.
    """

    folder: Path
    rows: tuple[Row, ...]
    table: str
    done: int
    wanted: int
    left_out: Mapping[str, str]
    notes: tuple[str, ...]


def write_results(
    folder: Path,
    cells: Sequence[Cell],
    work: SegmentationWork,
    left_out: Mapping[str, str],
    settings: Mapping[str, Any],
    costs: Mapping[str, Any],
) -> Found:
    """Writes table, curves, ``cells.csv`` and ``study.json`` from the cells that are done.

    Args:
        folder: Folder of the study.
        cells: All its cells.
        work: Has the cases that are judged.
        left_out: Why an arm is not applicable, by its name.
        settings: What all cells have in common.
        costs: What fitting and sampling took.
    """
    measures, seed = work.measures, work.design.seed
    done = cells_csv(folder, sorted(cells), measures)
    rows = rows_of(folder, cells, measures, REFERENCE, seed)
    tables = [f"## {measure}\n\n{markdown_table(rows, measure, REFERENCE)}" for measure in measures]
    notes = _notes(work, cells, left_out)
    page = "\n\n".join(("# Segmentation study", *(f"> {note}" for note in notes), *tables))
    write_bytes(folder / "table.md", page.encode() + b"\n")
    for axis in ("n", "ratio"):
        plot_rows(rows, "dice", axis, REFERENCE, folder / f"dice_over_{axis}.png")
    content = {
        "settings": dict(settings),
        "reference": REFERENCE,
        "cells": {"done": len(done), "wanted": len(cells)},
        "left_out": dict(left_out),
        "notes": list(notes),
        "costs": dict(costs),
    }
    write_study(folder, content, rows)
    table = markdown_table(rows, "dice", REFERENCE)
    return Found(folder, tuple(rows), table, len(done), len(cells), left_out, notes)


def _notes(
    work: SegmentationWork, cells: Sequence[Cell], left_out: Mapping[str, str]
) -> tuple[str, ...]:
    notes = [f"{arm} is not applicable: {reason}." for arm, reason in left_out.items()]
    subjects = len(set(work.design.subjects.values()))
    if work.form.is_insertion:
        notes.append(
            f"Scores are of {len(work.unseen)} patches round the lesions of {subjects} "
            f"unseen patients. Intervals and tests are over lesions, not over patients."
        )
    elif subjects < 6:
        notes.append(
            f"There are {subjects} unseen patients: a signed-rank test cannot give a p value "
            f"below 0.05 with fewer than 6."
        )
    if all(cell.arm != REFERENCE for cell in cells):
        notes.append(f"Without the arm {REFERENCE} there is nothing to compare with.")
    return tuple(notes)


def export_nnunet(
    folder: Path, cells: Sequence[Cell], design: Design, form: CaseForm, say: Say
) -> None:
    """Writes every arm of the first seed for nnU-Net; it augments by itself, so one is enough.

    Copies are written as such; ``classical`` and ``elastic`` would be the same as ``real``.

    Args:
        folder: Folder of the study.
        cells: All its cells.
        design: What they have in common, with the samples of all.
        form: How cases are prepared.
        say: Told which folder is being written.
    """
    work = SegmentationWork(design)
    same = (REFERENCE, BENT)
    chosen = [cell for cell in sorted(cells) if not cell.seed and cell.arm not in same]
    for number, cell in enumerate(chosen, start=FIRST_DATASET):
        real, extra, _ = work.parts(cell)
        kind = cell.arm.partition(":")[0]
        training: dict[str, Cases] = {} if kind == ONLY else {"real": real}
        training |= {} if extra is None else {kind: extra}
        place = dataset_folder(folder / "nnunet", number, cell.name)
        say(f"writing {place}")
        write_dataset(
            place,
            training,
            work.unseen,
            form.labels,
            form.names,
            form.spacing_mm,
            f"Arm {cell.arm}, {cell.n} real cases, ratio {cell.ratio:g}",
        )
