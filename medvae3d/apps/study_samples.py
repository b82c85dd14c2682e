"""What cells of a study need before they begin: generators fitted, samples made.

Each is done once and marked by a file, so that a study that was stopped goes on, and several ranks
share the work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvae3d.apps.study_inputs import (
    RealCases,
    Say,
    fit_generator,
    load_generator,
    require_fitted_on,
)
from medvae3d.apps.study_options import SegmentationOptions
from medvae3d.data.datalists import as_monai
from medvae3d.data.volumes import write_bytes
from medvae3d.errors import DataListError, OutputError
from medvae3d.evaluation.cases import MIN_VOXELS
from medvae3d.seeding import derive_seed
from medvae3d.spreading import rank_and_world
from medvae3d.studies.case_form import CaseForm
from medvae3d.studies.cells import Cell, read_object, wait_for
from medvae3d.studies.segmentation import ONLY, SYNTHETIC, SampleSet, SegmentationWork, wanted_extra

# Samples made for each one that is needed, where a filter leaves some out.
POOL = 2.0
LESIONS_PER_HOST = 10

Key = tuple[str, int, int]
"""Name of a generator, number of real cases, seed."""


@dataclass(frozen=True, eq=False)
class Supply:
    """Fits the generators of a study and lets them make samples.

    Attributes:
        folder: Folder of the study.
        bundles: Generators by a short name.
        options: What is compared.
        real: Real cases.
        form: How they are prepared.
        work: Reads them.
        device: Where generators are fitted and asked.
        say: Told what is being done.
    """

    folder: Path
    bundles: Mapping[str, str]
    options: SegmentationOptions
    real: RealCases
    form: CaseForm
    work: SegmentationWork
    device: str | None
    say: Say

    def sample_sets(self, cells: Sequence[Cell]) -> dict[Key, SampleSet]:
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
        made: dict[Key, SampleSet] = {}
        for key in wanted:
            marker = self._sample_marker(key)
            count = read_object(marker).get("count")
            if not isinstance(count, int):
                raise OutputError(
                    f"{marker} does not say how many samples there are. Delete it, and they are "
                    f"looked at again."
                )
            made[key] = SampleSet(self._samples_of(key) / "dataset.json", count)
        return made

    def costs(self) -> dict[str, Any]:
        """Seconds that fitting and sampling took, by the folder they were done for."""
        found = {}
        for part in ("generators", "samples"):
            for path in sorted((self.folder / part).rglob("*.done.json")):
                name = path.relative_to(self.folder).as_posix().removesuffix(".done.json")
                found[name] = read_object(path)
        return found

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

    def _samples_of(self, key: Key) -> Path:
        name, n, seed = key
        return self.folder / "samples" / f"n={n}" / name / f"seed={seed}"

    def _fit_marker(self, job: tuple[str, int]) -> Path:
        return self.folder / "generators" / f"n={job[1]}" / f"{job[0]}.done.json"

    def _sample_marker(self, key: Key) -> Path:
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

    def _sample(self, key: Key) -> int:
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
