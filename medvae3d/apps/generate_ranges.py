"""Generation spread over workers: each makes ranges of indices, and the folder is that of one run.

A case depends on the seed and on its index alone, and a case with a record is whole. So a range is
made by whichever worker is free, that of a killed worker by another one, and one whose cases are
all there by none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvae3d.apps.bundle import Bundle, load_bundle
from medvae3d.spreading import Engine
from medvae3d.synthesis.generator import Progress
from medvae3d.synthesis.writing import finish_folder, missing_cases, require_own_folder

# Cases of a range at most: what is made twice when a worker is killed, against the cost of a task.
MOST_CASES = 64
# Ranges for each worker at least, so that none idles long while the others end.
SHARES = 4

Span = tuple[int, int]
"""Index of the first case of a range, and how many there are."""


def spans(start: int, count: int, block: int, workers: int) -> list[Span]:
    """Ranges that together are ``count`` cases, cut where blocks end.

    Cases of a block are decoded together whoever asks for a part of it, so a cut within one is
    work done twice.

    Args:
        start: Index of the first case.
        count: How many there are.
        block: Cases that are decoded together.
        workers: How many share the work.
    """
    wanted = max(1, min(MOST_CASES, count // (SHARES * workers)))
    size = max(1, round(wanted / block)) * block
    found, end = [], start + count
    while start < end:
        cut = min(end, (start // size + 1) * size)
        found.append((start, cut - start))
        start = cut
    return found


@dataclass(frozen=True)
class RangeWork:
    """What a worker begins with: it loads the bundle, and then makes ranges.

    Attributes:
        root: Folder of the bundle.
        device: Where to compute.
        out: Folder of the data set.
        seed: Seed of all cases.
        first: Index of the first case of all, which draws the picture of a host.
        options: As for `Bundle.generate`, without ``start``.
    """

    root: Path
    device: str
    out: Path
    seed: int
    first: int
    options: Mapping[str, Any]

    def __call__(self) -> Callable[[Span], dict[str, int]]:
        # Whoever spreads the work has loaded the same bundle, and was asked for trust.
        return _Maker(self, load_bundle(self.root, self.device, trust=True))


@dataclass(frozen=True)
class _Maker:
    work: RangeWork
    bundle: Bundle

    def __call__(self, span: Span) -> dict[str, int]:
        start, count = span
        rejected: dict[str, int] = {}
        provenance, seed = self.bundle.provenance, self.work.seed
        names = [provenance.case_name(seed, index) for index in range(start, start + count)]
        # Looked up by whoever makes the range: ranks that look at different times must not come
        # to different lists of what is left.
        is_drawn = start != self.work.first or (self.work.out / "preview.png").exists()
        if is_drawn and not missing_cases(self.work.out, names):
            return rejected

        def told(done: int, wanted: int, reasons: Mapping[str, int]) -> None:
            rejected.update(reasons)

        work = self.work
        self.bundle.write(
            work.out, count, work.seed, start=start, preview=start == work.first, finish=False,
            progress=told, **work.options,
        )  # fmt: skip
        return rejected


def write_ranges(
    bundle: Bundle,
    out: str | Path,
    count: int,
    seed: int,
    options: Mapping[str, Any],
    engine: Engine,
    workers: int,
    progress: Progress | None = None,
) -> bool:
    """Makes cases with several workers; cases that are there already are not made again.

    Args:
        bundle: The bundle, as loaded in this process.
        out: Folder of the data set, which all workers see.
        count: How many cases.
        seed: Seed of all of them.
        options: As for `Bundle.generate`.
        engine: Who makes them.
        workers: How many it has.
        progress: As for `Bundle.generate`.

    Returns:
        Whether this process is the one that has put the folder together; of the ranks that
        ``torchrun`` starts, it is the first.

    Raises:
        OutputError: If the folder holds the files of another run, or cannot be written.
        WorkerError: If workers die again and again.
    """
    start = int(options.get("start", 0))
    rest = {key: _absolute(value) for key, value in options.items() if key != "start"}
    samples = bundle.generate(count, seed, **options)
    folder = require_own_folder(out, samples.run).resolve()
    work = RangeWork(bundle.root, str(bundle.device), folder, seed, start, rest)
    synthesis = bundle.recipe.synthesis
    block = 1 if synthesis.kind == "insertion" else synthesis.block_size

    rejected: Counter[str] = Counter()
    made = 0

    def done(span: Span, reasons: Mapping[str, int]) -> None:
        nonlocal made
        made += span[1]
        rejected.update(reasons)
        if progress is not None:
            progress(made, count, dict(rejected))

    engine.run(work, spans(start, count, block, workers), done)
    if engine.is_first:
        finish_folder(folder, bundle.recipe)
    return engine.is_first


def _absolute(value: Any) -> Any:
    """Paths that mean the same in a worker that was started elsewhere."""
    if isinstance(value, Path):
        return value.resolve()
    if isinstance(value, tuple):
        return tuple(_absolute(each) for each in value)
    return value
