"""Studies in one call: is a segmenter better on real, unseen cases because of synthetic pairs?

::

    medvae3d study segmentation --datalist LIST --bundle NAME=DIR --fit small --out DIR

What is compared with what, and how, is in ``docs/reference/protocol.md``. In the folder::

    settings.json                  what all cells have in common
    lists/n=10.json                the real training cases of each number
    generators/n=10/NAME/          generators fitted on these alone
    samples/n=10/NAME/seed=0/      what they made
    cells/*.json  cells.csv        every cell, as it is done
    table.md  study.json  *.png    what came out
    nnunet/Dataset501_.../         each arm for nnU-Net, if asked for
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvae3d import __version__
from medvae3d.apps.study_inputs import (
    Say,
    fit_generator,
    load_generator,
    read_real_cases,
    read_recipe,
    require_alike,
    require_fitted_on,
    write_list,
)
from medvae3d.data.datalists import as_monai
from medvae3d.data.volumes import write_bytes
from medvae3d.errors import DataListError, SettingError
from medvae3d.evaluation.cases import MIN_VOXELS, Cases
from medvae3d.seeding import derive_seed
from medvae3d.spreading import rank_and_world
from medvae3d.studies.case_form import CaseForm
from medvae3d.studies.cells import (
    Cell,
    Report,
    cell_file,
    cells_csv,
    require_same_settings,
    run_cells,
    wait_for,
)
from medvae3d.studies.nnunet import dataset_folder, write_dataset
from medvae3d.studies.results import Row, markdown_table, plot_rows, rows_of, write_study
from medvae3d.studies.segmentation import (
    BENT,
    BY_HAND,
    ONLY,
    REFERENCE,
    SYNTHETIC,
    WITHOUT_EXTRA,
    Design,
    SampleSet,
    SegmentationWork,
    not_applicable,
    wanted_extra,
)

ALL_ARMS = (*WITHOUT_EXTRA, *BY_HAND, SYNTHETIC, ONLY)
# Samples made for each one that is needed, where a filter leaves some out.
POOL = 2.0
LESIONS_PER_HOST = 10
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


@dataclass(frozen=True)
class SegmentationOptions:
    """What a study on segmentation may be asked.

    Attributes:
        n: Numbers of real training cases, and ``all``.
        ratios: Extra cases for each real one.
        seeds: Repeats of every cell, also of the generators' samples.
        arms: Arms by name; ``synthetic`` and ``only`` stand for one arm a bundle.
        steps: Optimiser steps of each segmenter.
        split: ``validation`` to choose settings, ``testing`` to report.
        seed: Seed of the choice of cases and of all samples.
        least_real: Smallest share of real cases in a batch of a mixed arm.
        synthetic_until: Share of the training after which only real cases are drawn.
        filter_above: Smallest Dice of a sample with a segmenter trained on the real cases alone;
            ``None`` keeps all.
        fit: Recipe by which the study fits the generators itself, ``full`` for the whole training.
        fit_changes: ``KEY=VALUE`` texts for that training.
    """

    n: tuple[str, ...] = ("all",)
    ratios: tuple[float, ...] = (1.0,)
    seeds: int = 3
    arms: tuple[str, ...] = ALL_ARMS
    steps: int = 400
    split: str = "testing"
    seed: int = 0
    least_real: float = 0.5
    synthetic_until: float = 1.0
    filter_above: float | None = None
    fit: str | None = None
    fit_changes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = {
            f"--seeds is {self.seeds}; allowed are whole numbers from 1 on": self.seeds < 1,
            f"--steps is {self.steps}; allowed are whole numbers from 1 on": self.steps < 1,
            f"--real-share is {self.least_real}; allowed is from 0 to 1": (
                not 0 <= self.least_real <= 1
            ),
            f"--synthetic-until is {self.synthetic_until}; allowed is above 0, up to 1": (
                not 0 < self.synthetic_until <= 1
            ),
            f"--filter-above is {self.filter_above}; allowed is a Dice from 0 to 1": (
                self.filter_above is not None and not 0 <= self.filter_above <= 1
            ),
        }
        wrong = [message for message, is_wrong in faults.items() if is_wrong]
        if wrong:
            raise SettingError(f"{'; '.join(wrong)}. Correct it.")


def segmentation_study(
    datalist: str | Path,
    bundles: Mapping[str, str],
    out: str | Path,
    options: SegmentationOptions | None = None,
    *,
    workers: int = 1,
    ray_address: str | None = None,
    export_nnunet: bool = False,
    device: str | None = None,
    say: Say = lambda text: None,
    report: Report | None = None,
) -> Found:
    """Runs a study, or what is left of it, and writes what came out.

    Args:
        datalist: MONAI data list of real cases.
        bundles: Generators by a short name: name of a shipped bundle or folder; ``{n}`` in a path
            stands for the number of real cases.
        out: Folder of the study; finished cells in it are kept.
        options: What is compared.
        workers: Processes beside each other, one thread each.
        ray_address: Ray cluster that does the cells, ``local`` for one on this machine.
        export_nnunet: Whether to write each arm as a raw data set of nnU-Net as well.
        device: Where generators are fitted and asked; segmenters always train on the CPU, where
            the same seed gives the same scores.
        say: Told what a user may want to know, line by line.
        report: Told about each cell.

    Raises:
        MedvaeError: If anything that was given cannot be used.
    """
    study = _Study(datalist, bundles, Path(out), options or SegmentationOptions(), device, say)
    missing = [cell for cell in study.cells if not cell_file(study.folder, cell).is_file()]
    design = study.design(missing if not export_nnunet else study.cells)
    run_cells(
        study.cells, design.begin, study.folder,
        workers=workers, ray_address=ray_address, report=report,
    )  # fmt: skip
    found = study.results(design)
    if export_nnunet and rank_and_world()[0] == 0:
        study.export(design)
    return found


class _Study:
    """A study on its way: everything that can be wrong is looked at when it is made."""

    def __init__(
        self,
        datalist: str | Path,
        bundles: Mapping[str, str],
        folder: Path,
        options: SegmentationOptions,
        device: str | None,
        say: Say,
    ) -> None:
        self.folder, self.options, self.device, self.say = folder, options, device, say
        self.bundles = dict(bundles)
        self.real = read_real_cases(datalist, options.split, options.seed)
        self.numbers = self.real.numbers(options.n)
        self.form = self._form()
        self.arms, self.left_out = self._arms()
        self.generators = [
            name
            for name in self.bundles
            if {f"{SYNTHETIC}:{name}", f"{ONLY}:{name}"} & {*self.arms}
        ]
        if options.fit is None:
            for n in self.numbers:
                for name in self.generators:
                    require_fitted_on(self.bundles[name], name, n, self.real)
        # Reading them finds files that cannot be used, before anything is written.
        self.work = SegmentationWork(self._design({}))
        self.work.real(self.numbers[0])
        if not bool((self.work.unseen.mask > 0).any()):
            raise DataListError(
                f"the masks of all {len(self.real.unseen)} cases under {options.split} are empty; "
                f"there is nothing to find. Check them with `medvae3d data check`."
            )
        require_same_settings(folder, self._settings())
        self.cells = self._cells()
        for n in self.numbers:
            path = folder / "lists" / f"n={n}.json"
            if not path.is_file():
                write_list(path, self.real, n)

    # -- what is compared -------------------------------------------------------------------------

    def _form(self) -> CaseForm:
        # With {n} in its path, there is a bundle for each number.
        recipes = {
            f"{name} (n = {n})": read_recipe(place, n, self.options.fit, self.options.fit_changes)
            for name, place in self.bundles.items()
            for n in self.numbers
        }
        return CaseForm.of(require_alike(recipes))

    def _arms(self) -> tuple[list[str], dict[str, str]]:
        found: list[str] = []
        for word in self.options.arms:
            kind, _, name = word.partition(":")
            is_known = word in (*WITHOUT_EXTRA, *BY_HAND) or kind in (SYNTHETIC, ONLY)
            if not is_known or (name and name not in self.bundles):
                raise SettingError(
                    f"--arms has {word!r}; allowed are {', '.join(ALL_ARMS)}, and {SYNTHETIC}:NAME "
                    f"and {ONLY}:NAME with the names {', '.join(self.bundles)}. Correct it."
                )
            if word in (SYNTHETIC, ONLY):
                found += [f"{word}:{each}" for each in self.bundles]
            else:
                found.append(word)
        reasons = {arm: not_applicable(arm, self.form) for arm in found}
        left_out = {arm: reason for arm, reason in reasons.items() if reason}
        for arm, reason in left_out.items():
            self.say(f"{arm}: not applicable, since {reason}")
        arms = [arm for arm in dict.fromkeys(found) if arm not in left_out]
        if not arms:
            raise SettingError(f"none of the arms {', '.join(found)} is applicable. Add others.")
        return arms, left_out

    def _cells(self) -> list[Cell]:
        """All cells, those that need the same samples one after the other."""
        return [
            Cell(n, ratio, arm, seed)
            for n in self.numbers
            for seed in range(self.options.seeds)
            for arm in self.arms
            for ratio in ((0.0,) if arm in WITHOUT_EXTRA else self.options.ratios)
        ]

    def _settings(self) -> dict[str, Any]:
        options = self.options
        return {
            "study": "segmentation",
            "medvae3d": __version__,
            "training": list(self.real.names(len(self.real.training))),
            "unseen": [case.name for case in self.real.unseen],
            "split": options.split,
            "form": {
                "channels": [dict(each) for each in self.form.channels],
                "labels": dict(self.form.labels),
                "spacing_mm": list(self.form.spacing_mm),
                "shape": list(self.form.shape),
                "is_insertion": self.form.is_insertion,
            },
            "segmenter": self.work.settings.to_dict(),
            "real_share": options.least_real,
            "synthetic_until": options.synthetic_until,
            "filter_above": options.filter_above,
            "fit": options.fit,
            "fit_changes": list(options.fit_changes),
            "seed": options.seed,
        }

    # -- what cells need --------------------------------------------------------------------------

    def _design(self, samples: Mapping[tuple[str, int, int], SampleSet]) -> Design:
        return Design(
            self.form,
            tuple(as_monai(self.real.training)),
            tuple(as_monai(self.real.unseen)),
            {case.name: case.subject for case in self.real.unseen},
            self.options.steps,
            dict(samples),
            self.options.least_real,
            self.options.synthetic_until,
            self.options.filter_above,
            self.options.seed,
        )

    def design(self, cells: Sequence[Cell]) -> Design:
        """Fits generators and makes samples, as far as these cells need them."""
        keys = {
            (cell.arm.partition(":")[2], cell.n, cell.seed)
            for cell in cells
            if cell.arm.partition(":")[0] in (SYNTHETIC, ONLY)
        }
        wanted = sorted(keys, key=lambda key: (key[1], key[0], key[2]))
        if self.options.fit is not None:
            fits = list(dict.fromkeys((name, n) for name, n, _ in wanted))
            self._shared(fits, self._fit_marker, self._fit)
        self._shared(wanted, self._sample_marker, self._sample)
        made = {}
        for key in wanted:
            count = json.loads(self._sample_marker(key).read_text(encoding="utf-8"))["count"]
            made[key] = SampleSet(self._samples_of(key) / "dataset.json", count)
        return self._design(made)

    def _shared(
        self, jobs: Sequence[Any], marker: Callable[[Any], Path], do: Callable[[Any], int]
    ) -> None:
        """Does every job without a marker; of several ranks each its own, then waits for all."""
        rank, world = rank_and_world()
        for job in list(jobs)[rank::world]:
            if marker(job).is_file():
                continue
            start = time.perf_counter()
            count = do(job)
            facts = {"count": count, "seconds": round(time.perf_counter() - start, 1)}
            write_bytes(marker(job), json.dumps(facts).encode() + b"\n")
        wait_for([marker(job) for job in jobs], self.say)

    def _generator_of(self, name: str, n: int) -> Path:
        if self.options.fit is None:
            return require_fitted_on(self.bundles[name], name, n, self.real)
        return self.folder / "generators" / f"n={n}" / name

    def _samples_of(self, key: tuple[str, int, int]) -> Path:
        name, n, seed = key
        return self.folder / "samples" / f"n={n}" / name / f"seed={seed}"

    def _fit_marker(self, job: tuple[str, int]) -> Path:
        return self.folder / "generators" / f"n={job[1]}" / f"{job[0]}.done.json"

    def _sample_marker(self, key: tuple[str, int, int]) -> Path:
        # With the number in its name, larger ratios add to what is there.
        folder = self._samples_of(key)
        return folder.parent / f"{folder.name}.{self._wanted(key[1])}.done.json"

    def _fit(self, job: tuple[str, int]) -> int:
        name, n = job
        self.say(f"fitting {name} on {n} real cases")
        path = self._generator_of(name, n)
        path.parent.mkdir(parents=True, exist_ok=True)
        fit_generator(
            self.bundles[name],
            self.folder / "lists" / f"n={n}.json",
            path,
            str(self.options.fit),
            self.options.fit_changes,
            self.device,
            self.say,
        )
        return n

    def _wanted(self, n: int) -> int:
        """Samples that the largest ratio needs, with some more where a filter leaves some out."""
        count = wanted_extra(len(self.work.real(n)), max(self.options.ratios))
        return count if self.options.filter_above is None else round(POOL * count)

    def _sample(self, key: tuple[str, int, int]) -> int:
        name, n, seed = key
        count, folder = self._wanted(n), self._samples_of(key)
        self.say(f"{count} samples of {name}, n = {n}, seed {seed}")
        bundle = load_generator(self._generator_of(name, n), self.device)
        number = derive_seed(self.options.seed, "samples", seed) % 2**31
        if not self.form.is_insertion:
            bundle.write(folder, count, number, preview=False)
            return count
        hosts = as_monai(self.real.training[:n])
        channels = len(self.form.channels)
        files = [[h["image"]] if isinstance(h["image"], str) else h["image"] for h in hosts]
        options: dict[str, Any] = {
            # The same however many are needed: a later, larger ratio adds to the same run.
            "lesions": (LESIONS_PER_HOST, LESIONS_PER_HOST),
            "hosts": [each[:channels] for each in files],
            "host_labels": [host["label"] for host in hosts],
        }
        scans = -(-count // LESIONS_PER_HOST)
        # Lesions that touch become one, and specks are left out; so more scans may be needed.
        for start in range(0, 4 * scans, scans):
            bundle.write(folder, scans, number, start=start, preview=False, **options)
            try:
                self.form.samples(folder / "dataset.json", count, hosts, self.options.seed)
            except DataListError:
                continue
            return count
        raise DataListError(
            f"{4 * scans} scans with lesions of {name} gave fewer than {count} lesions of "
            f"{MIN_VOXELS} voxels or more. Lower --ratio, or look at {folder}."
        )

    # -- what came out ----------------------------------------------------------------------------

    def results(self, design: Design) -> Found:
        """Writes table, curves, ``cells.csv`` and ``study.json`` from the cells that are done."""
        measures = self.work.measures
        done = cells_csv(self.folder, sorted(self.cells), measures)
        rows = rows_of(self.folder, self.cells, measures, REFERENCE, self.options.seed)
        tables = [
            f"## {measure}\n\n{markdown_table(rows, measure, REFERENCE)}" for measure in measures
        ]
        notes = self._notes(design)
        page = "\n\n".join(("# Segmentation study", *(f"> {note}" for note in notes), *tables))
        write_bytes(self.folder / "table.md", page.encode() + b"\n")
        for axis in ("n", "ratio"):
            plot_rows(rows, "dice", axis, REFERENCE, self.folder / f"dice_over_{axis}.png")
        content = {
            "settings": self._settings(),
            "reference": REFERENCE,
            "cells": {"done": len(done), "wanted": len(self.cells)},
            "left_out": self.left_out,
            "notes": list(notes),
            "costs": self._costs(),
        }
        write_study(self.folder, content, rows)
        table = markdown_table(rows, "dice", REFERENCE)
        return Found(
            self.folder, tuple(rows), table, len(done), len(self.cells), self.left_out, notes
        )

    def _notes(self, design: Design) -> tuple[str, ...]:
        notes = [f"{arm} is not applicable: {reason}." for arm, reason in self.left_out.items()]
        subjects = len(set(design.subjects.values()))
        if self.form.is_insertion:
            notes.append(
                f"Scores are of {len(self.work.unseen)} patches round the lesions of {subjects} "
                f"unseen patients. Intervals and tests are over lesions, not over patients."
            )
        elif subjects < 6:
            notes.append(
                f"There are {subjects} unseen patients: a signed-rank test cannot give a p value "
                f"below 0.05 with fewer than 6."
            )
        if REFERENCE not in self.arms:
            notes.append(f"Without the arm {REFERENCE} there is nothing to compare with.")
        return tuple(notes)

    def _costs(self) -> dict[str, Any]:
        """Seconds that fitting and sampling took, by the folder they were done for."""
        found = {}
        for part in ("generators", "samples"):
            for path in sorted((self.folder / part).rglob("*.done.json")):
                name = path.relative_to(self.folder).as_posix().removesuffix(".done.json")
                found[name] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def export(self, design: Design) -> None:
        """Writes every arm of the first seed for nnU-Net; it augments by itself, so one is enough.

        Copies are written as such; ``classical`` and ``elastic`` would be the same as ``real``.
        """
        root = self.folder / "nnunet"
        work = SegmentationWork(design)
        same = (REFERENCE, BENT)
        cells = [cell for cell in sorted(self.cells) if not cell.seed and cell.arm not in same]
        for number, cell in enumerate(cells, start=FIRST_DATASET):
            real, extra, _ = work.parts(cell)
            kind = cell.arm.partition(":")[0]
            training: dict[str, Cases] = {} if kind == ONLY else {"real": real}
            training |= {} if extra is None else {kind: extra}
            folder = dataset_folder(root, number, cell.name)
            self.say(f"writing {folder}")
            write_dataset(
                folder,
                training,
                work.unseen,
                self.form.labels,
                self.form.names,
                self.form.spacing_mm,
                f"Arm {cell.arm}, {cell.n} real cases, ratio {cell.ratio:g}",
            )
