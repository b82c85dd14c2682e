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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvae3d import __version__
from medvae3d.apps.study_inputs import (
    Say,
    read_real_cases,
    read_recipe,
    require_alike,
    require_fitted_on,
    write_list,
)
from medvae3d.apps.study_options import SegmentationOptions, arms_of, cells_of
from medvae3d.apps.study_outcome import Found, write_results
from medvae3d.apps.study_outcome import export_nnunet as export_arms
from medvae3d.apps.study_samples import Supply
from medvae3d.data.datalists import as_monai
from medvae3d.data.stamps import digest_of
from medvae3d.errors import DataListError
from medvae3d.spreading import rank_and_world
from medvae3d.studies.case_form import CaseForm
from medvae3d.studies.cells import (
    CONTENTS,
    Report,
    cell_file,
    cells_csv,
    held_study,
    require_same_settings,
    run_cells,
)
from medvae3d.studies.segmentation import ONLY, SYNTHETIC, Design, SampleSet, SegmentationWork

__all__ = ["Found", "SegmentationOptions", "segmentation_study"]


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
    with held_study(Path(out)):
        study = _Study(datalist, bundles, Path(out), options or SegmentationOptions(), device, say)
        missing = [cell for cell in study.cells if not cell_file(study.folder, cell).is_file()]
        design = study.design(study.supply.sample_sets(study.cells if export_nnunet else missing))

        def tell(done: int, wanted: int, words: str) -> None:
            # A study that is stopped leaves a line for each cell that was done.
            cells_csv(study.folder, sorted(study.cells), study.work.measures)
            if report is not None:
                report(done, wanted, words)

        run_cells(
            study.cells, design.begin, study.folder,
            workers=workers, ray_address=ray_address, report=tell,
        )  # fmt: skip
        found = write_results(
            study.folder,
            study.cells,
            study.work,
            study.left_out,
            study.settings(),
            study.supply.costs(),
        )
        if export_nnunet and rank_and_world()[0] == 0:
            export_arms(study.folder, study.cells, design, study.form, say)
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
        self.folder, self.options, self.bundles = folder, options, dict(bundles)
        self.real = read_real_cases(datalist, options.split, options.seed)
        self.contents = digest_of((*self.real.training, *self.real.unseen))
        self.numbers = self.real.numbers(options.n)
        self.form = self._form()
        arms, self.left_out = arms_of(options.arms, self.bundles, self.form, say)
        generators = [
            name for name in self.bundles if {f"{SYNTHETIC}:{name}", f"{ONLY}:{name}"} & {*arms}
        ]
        if options.fit is None:
            for n in self.numbers:
                for name in generators:
                    require_fitted_on(self.bundles[name], name, n, self.real)
        # Reading them finds files that cannot be used, before anything is written.
        self.work = SegmentationWork(self.design({}))
        self.work.real(self.numbers[0])
        if not bool((self.work.unseen.mask > 0).any()):
            raise DataListError(
                f"the masks of all {len(self.real.unseen)} cases under {options.split} are empty; "
                f"there is nothing to find. Check them with `medvae3d data check`."
            )
        require_same_settings(folder, self.settings())
        self.cells = cells_of(self.numbers, arms, options)
        self.supply = Supply(
            folder, self.bundles, options, self.real, self.form, self.work, device, say
        )
        for n in self.numbers:
            path = folder / "lists" / f"n={n}.json"
            if not path.is_file():
                write_list(path, self.real, n)

    def _form(self) -> CaseForm:
        # With {n} in its path, there is a bundle for each number.
        recipes = {
            f"{name} (n = {n})": read_recipe(place, n, self.options.fit, self.options.fit_changes)
            for name, place in self.bundles.items()
            for n in self.numbers
        }
        return CaseForm.of(require_alike(recipes))

    def settings(self) -> dict[str, Any]:
        """What all cells have in common."""
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
            CONTENTS: self.contents,
            "fit": options.fit,
            "fit_changes": list(options.fit_changes),
            "seed": options.seed,
        }

    def design(self, samples: Mapping[tuple[str, int, int], SampleSet]) -> Design:
        """What cells work from, with these samples."""
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
