"""The sections of a report, computed one after the other or spread over workers.

A section depends on the cases and on no other section. A worker elsewhere reads the cases anew,
which takes a small part of the time, rather than being sent them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from medvae3d.apps.console import Stopwatch
from medvae3d.apps.evaluate_cases import Read, read_sets
from medvae3d.apps.evaluate_lists import CaseList
from medvae3d.apps.evaluate_model import BundleModel
from medvae3d.apps.evaluate_sections import Judged, computed, make_features
from medvae3d.apps.trust import trusting
from medvae3d.evaluation.sections import Section
from medvae3d.spreading import Engine, Here, OnRanks

# Sections by the time that they take with a few hundred cases.
LONGEST_FIRST = ("privacy", "agreement", "realism", "diversity")
# Reading takes about this share of the whole; for the bar alone.
READING_SHARE = 0.15
STEPS = 1000

Tell = Callable[[int, int, str], None]
"""Told what is done, what is wanted, and a few words about it."""


class Bar:
    """Turns what is done in each part into one number for a bar."""

    def __init__(self, tell: Tell | None, sections: Sequence[str]) -> None:
        self.tell, self.sections, self.done = tell, list(sections), 0

    def reading(self, done: int, wanted: int, words: str) -> None:
        self._at(READING_SHARE * done / max(wanted, 1), words)

    def section(self, name: str) -> Callable[[int, int], None]:
        """Says that a section has begun; what is returned is told how far it is."""
        share = (1 - READING_SHARE) / len(self.sections)
        start = READING_SHARE + share * self.sections.index(name)

        def told(done: int, wanted: int) -> None:
            self._at(start + share * done / max(wanted, 1), name)

        told(0, 1)
        return told

    def finished(self, name: str) -> None:
        """Says that one of the sections is done, whichever; they end in any order."""
        self.done += 1
        share = (1 - READING_SHARE) * self.done / len(self.sections)
        self._at(READING_SHARE + share, name)

    def _at(self, share: float, words: str) -> None:
        if self.tell is not None:
            self.tell(round(STEPS * share), STEPS, words)


@dataclass(frozen=True)
class SectionWork:
    """What a worker begins with: it reads the cases, and then computes sections by name.

    Attributes:
        lists: Which cases, by name of the set.
        reading: How they are read; see `read_sets`.
        features: What cases are compared by.
        seed: Seed of everything that is random.
        bundle: Bundle that made the cases.
        lpips: File with the weights of the learned perceptual distance.
    """

    lists: Mapping[str, CaseList]
    reading: Mapping[str, Any]
    features: tuple[str, ...]
    seed: int
    bundle: str | Path | None
    lpips: str | Path | None

    def __call__(self) -> Callable[[str], tuple[Section, float]]:
        # Whoever spreads the work has loaded the same bundle, and was asked for trust.
        with trusting(True):
            model = None if self.bundle is None else BundleModel.load(self.bundle, self.seed)
        return partial(_timed, judged=self.judged(self.read(), model))

    def read(self, tell: Tell | None = None) -> Read:
        """The cases of all sets."""
        return read_sets(self.lists, **self.reading, tell=tell)

    def judged(self, read: Read, model: BundleModel | None) -> Judged:
        """What the sections are asked about."""
        return Judged(
            read.sets["real"], read.sets["synthetic"], read.sets.get("reference"), read.frame,
            cache(lambda: make_features(self.features)), self.seed, model, blocked=read.blocked,
            lpips=None if self.lpips is None else str(self.lpips),
        )  # fmt: skip


def _timed(name: str, judged: Judged) -> tuple[Section, float]:
    watch = Stopwatch()
    return computed(name, judged), watch.seconds


def compute(
    work: SectionWork, judged: Judged, wanted: Sequence[str], engine: Engine, bar: Bar
) -> dict[str, tuple[Section, float]]:
    """All sections with the seconds that each took, in the order of the report."""
    if isinstance(engine, (Here, OnRanks)):
        # The cases have been read in this process.
        def one(name: str) -> tuple[Section, float]:
            return _timed(name, replace(judged, told=bar.section(name)))

        results = engine.run(lambda: one, wanted)
        return dict(zip(wanted, results, strict=True))
    # The longest first, so that none is left to one worker in the end.
    tasks = [name for name in LONGEST_FIRST if name in wanted]
    tasks += [name for name in wanted if name not in tasks]
    results = engine.run(work, tasks, lambda name, result: bar.finished(name))
    made = dict(zip(tasks, results, strict=True))
    return {name: made[name] for name in wanted}
