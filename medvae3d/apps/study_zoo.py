"""The study of all systems: each trained on the same cases, and judged on cases it has not seen.

A cell is one entry with one seed. It is trained in a process of its own, whose processor time and
memory are those of the training alone, then judged here; what it came to is kept in its own file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from medvae3d import __version__
from medvae3d.apps.bundle import Bundle, find_bundle, load_bundle
from medvae3d.apps.data_for_training import require_clean
from medvae3d.apps.figure_cases import CaseSource, words_of
from medvae3d.apps.systems import system_settings
from medvae3d.apps.trust import require_trusted
from medvae3d.apps.zoo_training import is_trained, read_timing, train_apart
from medvae3d.data.datalists import read_datalist, require_all_channels
from medvae3d.data.integrity import check
from medvae3d.data.stamps import digest_of
from medvae3d.data.volumes import write_bytes
from medvae3d.errors import MedvaeError, SettingError
from medvae3d.evaluation.baselines import CasePCA
from medvae3d.evaluation.cases import Cases, framed_as, spread
from medvae3d.evaluation.comparison import DISTANCES, SAME, compare, prepare
from medvae3d.evaluation.evidence import log_weights
from medvae3d.evaluation.features import FixedNetwork, Rows
from medvae3d.evaluation.privacy import CopyCheck
from medvae3d.evaluation.reconstruction import Words, reconstruct
from medvae3d.evaluation.voxelwise import image_scores, mask_scores
from medvae3d.models.latent import LatentModel
from medvae3d.models.registry import SYSTEMS
from medvae3d.seeding import derive_seed
from medvae3d.studies.cells import (
    CONTENTS,
    Cell,
    Report,
    cells_csv,
    held_study,
    read_cell,
    require_same_settings,
    run_cells,
)
from medvae3d.studies.mask_sources import given_masks
from medvae3d.studies.zoo import (
    MEAN,
    Entry,
    Summary,
    entries,
    floor,
    markdown,
    measures,
    summarise,
    texts_for,
)
from medvae3d.studies.zoo_chart import plot_comparison

Say = Callable[[str], None]


@dataclass(frozen=True)
class ZooOptions:
    """What all cells have in common.

    Attributes:
        like: Bundle whose form of the data is taken; read off the cases if ``None``.
        settings: ``KEY=VALUE`` texts for every system: trunk, steps, batch.
        seeds: Repeats.
        split: Unseen cases, several splits with a comma.
        samples: Samples of each trained system.
        draws: Draws of the importance-weighted likelihood.
        judged: Unseen cases that it is computed for.
    """

    like: str | None = None
    settings: tuple[str, ...] = ()
    seeds: int = 1
    split: str = "validation,testing"
    samples: int = 64
    draws: int = 16
    judged: int = 16


def zoo_study(
    datalist: str | Path,
    out: str | Path,
    names: Sequence[str] | None,
    options: ZooOptions,
    *,
    say: Say = lambda text: None,
    report: Report | None = None,
) -> tuple[str, int, int]:
    """Trains and judges what has not been done yet; gives the table, cells done and wanted.

    Raises:
        SettingError: If a system is unknown, or the folder holds another study.
        DataListError: If the list cannot be used.
    """
    folder, chosen = Path(out), entries(names)
    if options.like is not None:
        require_trusted(find_bundle(options.like))
    listed = read_datalist(datalist)
    require_all_channels(listed, "a study of all systems")
    settings = {
        "study": "zoo",
        "medvae3d": __version__,
        "datalist": Path(datalist).name,
        "cases": {split: len(listed.split(split)) for split in ("training", *_splits(options))},
        CONTENTS: digest_of(listed),
        "like": options.like,
        "settings": list(options.settings),
        "split": options.split,
        "samples": options.samples,
        "draws": options.draws,
        "judged": options.judged,
        "features": FixedNetwork().name,
    }
    if not folder.exists():
        require_clean(check(listed))
    count = len(listed.split("training"))
    cells = [
        Cell(count, 0.0, entry.name, seed)
        for seed in range(options.seeds)
        for entry in chosen
        if entry.system or seed == 0
    ]
    work = ZooWork(Path(datalist), folder, {each.name: each for each in chosen}, options, say)
    with held_study(folder):
        require_same_settings(folder, settings)
        run_cells(cells, lambda: work, folder, threads=torch.get_num_threads(), report=report)
        cells_csv(folder, cells, measures())
        rows = summaries(folder, chosen, cells)
        table = markdown([*rows, floor(rows)] if rows else rows)
        write_bytes(folder / "table.md", table.encode() + b"\n")
        plot_comparison(rows, folder / "comparison.png")
    done = sum(read_cell(folder, cell) is not None for cell in cells)
    return table, done, len(cells)


def summaries(folder: Path, chosen: Sequence[Entry], cells: Sequence[Cell]) -> list[Summary]:
    """What the cells of each entry came to; entries without a finished cell are left out."""
    found = []
    for entry in chosen:
        results = [read_cell(folder, cell) for cell in cells if cell.arm == entry.name]
        known = [each for each in results if each is not None]
        if known:
            found.append(summarise(entry, known))
    return found


def _splits(options: ZooOptions) -> list[str]:
    return [name.strip() for name in options.split.split(",")]


class ZooWork:
    """Trains and judges one cell.

    Args:
        datalist: The data list.
        folder: Folder of the study.
        chosen: Entries by name.
        options: What all cells have in common.
        say: Told what is being done.
    """

    def __init__(
        self,
        datalist: Path,
        folder: Path,
        chosen: Mapping[str, Entry],
        options: ZooOptions,
        say: Say,
    ) -> None:
        self.datalist, self.folder, self.options, self.say = datalist, folder, options, say
        self.chosen = chosen
        self._train: Cases | None = None
        self._unseen: Cases | None = None
        # What is the same for all cells, once it was computed.
        self._unseen_rows: dict[tuple[float, ...], Rows] = {}
        self._copies: CopyCheck | None = None

    def __call__(self, cell: Cell) -> dict[str, Any]:
        entry = self.chosen[cell.arm]
        if not entry.system:
            return self.without_model(entry)
        # Rows that differ in what is drawn alone share one training.
        root = self.folder / "trained" / replace(cell, arm=entry.trained).name
        timing = self.train(entry, cell.seed, root)
        bundle = load_bundle(root)
        means: dict[str, float | None] = dict(timing)
        notes: list[str] = []
        source = self.source(bundle, cell)
        if entry.masks:
            grid, count = bundle.recipe.grid, self.options.samples
            source.with_masks(given_masks(entry.masks, self.train_cases, grid, count, cell.seed))
        words = words_of(bundle, cell.seed)
        means |= self.rebuilt(bundle, words)
        means |= self.likelihood(bundle, entry, words, cell.seed)
        try:
            means |= self.sampled(source, cell.seed)
        except MedvaeError as error:
            notes.append(f"{entry.name}, seed {cell.seed}: no samples: {error}")
        return {"means": means, "notes": notes, "settings": list(entry.settings)}

    # -- training ---------------------------------------------------------------------------------

    def train(self, entry: Entry, seed: int, root: Path) -> dict[str, float | None]:
        """Trains, unless that was done; gives parameters, time and memory."""
        if not is_trained(root):
            self.say(f"training {entry.trained}, seed {seed}")
            common = texts_for(system_settings(entry.system)["network_def"], self.options.settings)
            train_apart(
                entry.trained, entry.system, self.datalist, root, like=self.options.like,
                seed=seed, changes=[*common, *entry.settings],
            )  # fmt: skip
        return read_timing(root)

    # -- cases ------------------------------------------------------------------------------------

    def source(self, bundle: Bundle, cell: Cell) -> CaseSource:
        """The cases, which are the same for all cells, and the samples of this one."""
        folder = self.folder / "trained" / cell.name
        source = CaseSource(
            bundle, self.datalist, self.options.split, folder, cell.seed,
            self.options.samples, self.say,
        )  # fmt: skip
        if self._train is None or self._unseen is None:
            self._train, self._unseen = source.train, source.unseen
        return source.with_cases(self._train, self._unseen)

    @property
    def train_cases(self) -> Cases:
        return cast(Cases, self._train)

    @property
    def unseen(self) -> Cases:
        return cast(Cases, self._unseen)

    # -- judging ----------------------------------------------------------------------------------

    def rebuilt(self, bundle: Bundle, words: Words) -> dict[str, float | None]:
        """Scores of unseen cases that are rebuilt from the mean of their posterior."""
        model = bundle.network
        is_joint = isinstance(model, LatentModel) and {"image", "mask"} <= set(model.heads)
        if not is_joint or cast(LatentModel, model).encoder is None:
            return {}
        heads = reconstruct(cast(LatentModel, model), words.batches(self.unseen))
        return self.scores(heads["image"], heads["mask"], words)

    def scores(self, image: torch.Tensor, mask: torch.Tensor, words: Words) -> dict[str, Any]:
        """Means over the unseen cases."""
        real = self.unseen
        found = image_scores(image, real.image, real.valid, words.channels)
        found |= mask_scores(mask, real.mask, words.labels, real.valid)
        return {name: float(found[name].nanmean()) for name in ("nmse", "psnr", "ssim", "dice")}

    def likelihood(
        self, bundle: Bundle, entry: Entry, words: Words, seed: int
    ) -> dict[str, float | None]:
        """Importance-weighted log-likelihood per observed voxel, where it has an estimate."""
        model = bundle.network
        if not SYSTEMS[entry.system].tractable or not isinstance(model, LatentModel):
            return {}
        judged = self.unseen[spread(len(self.unseen), self.options.judged)]
        weights = log_weights(model, words.batches(judged, 2), self.options.draws, seed)
        per_voxel = weights.importance_weighted / weights.voxels
        error = float(per_voxel.std() / math.sqrt(len(per_voxel)))
        return {
            "log_likelihood": float(per_voxel.mean()),
            "log_likelihood_error": error,
            "effective_draws": float(weights.effective_samples.mean()),
        }

    def sampled(self, source: CaseSource, seed: int) -> dict[str, float | None]:
        """How samples compare with unseen cases, and whether they are copies of training cases."""
        begin = time.process_time()
        samples = source.samples
        seconds = time.process_time() - begin
        framed = framed_as(samples, self.train_cases, seed)
        spacing, features = source.recipe.spacing, FixedNetwork()
        if spacing not in self._unseen_rows:
            self._unseen_rows[spacing] = features(self.unseen, spacing)
        rows = (self._unseen_rows[spacing], features(framed, spacing))
        found = compare(prepare(*rows), derive_seed(seed, "zoo")).table
        if self._copies is None:
            self._copies = CopyCheck(self.train_cases, self.unseen)
        copies = self._copies(framed)["rows"]
        whole = {
            "frechet": found[DISTANCES[0]].get(SAME),
            **{name: found[name].get(SAME) for name in ("precision", "recall", "coverage")},
        }
        means: dict[str, float | None] = {
            name: None if measure is None else measure.value for name, measure in whole.items()
        }
        for name, measure in whole.items():
            if measure is not None:
                means |= {
                    f"{name}_{end}": getattr(measure, end) for end in ("low", "high", "floor")
                }
        means["copies"] = copies["image"]["share of samples below"]
        means["copies_unseen"] = copies["image"].get("share of unseen below")
        means["accepted"] = 1 - float(source.generation["rejection_rate"])
        means["cpu_seconds_a_sample"] = seconds / max(1, len(samples))
        return means

    def without_model(self, entry: Entry) -> dict[str, Any]:
        """Unseen cases by principal components, or by the mean of the training cases."""
        if self._unseen is None:
            raise SettingError(
                f"{entry.name} is compared with trained systems; name one of these besides."
            )
        values = tuple(sorted({0, *self.train_cases.mask.unique().long().tolist()}))
        pca = CasePCA(len(self.train_cases) - 1, values).fit(self.train_cases)
        make = pca.mean_case if entry.name == MEAN else pca.reconstruct
        words = Words(("image",), tuple(str(value) for value in values[1:]))
        return {"means": self.scores(*make(self.unseen), words), "notes": [], "settings": []}
