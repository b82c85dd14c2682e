"""What a study on segmentation may be asked, and which arms and cells come of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from medvae3d.apps.study_inputs import Say
from medvae3d.errors import SettingError
from medvae3d.studies.case_form import CaseForm
from medvae3d.studies.cells import Cell
from medvae3d.studies.segmentation import (
    BY_HAND,
    ONLY,
    SYNTHETIC,
    WITHOUT_EXTRA,
    not_applicable,
)

ALL_ARMS = (*WITHOUT_EXTRA, *BY_HAND, SYNTHETIC, ONLY)


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


def arms_of(
    words: Sequence[str], bundles: Collection[str], form: CaseForm, say: Say
) -> tuple[list[str], dict[str, str]]:
    """The arms that words stand for, and why others are left out.

    Args:
        words: Arms by name; ``synthetic`` and ``only`` stand for one arm a bundle.
        bundles: Names of the bundles.
        form: How cases are prepared.
        say: Told what is left out.

    Raises:
        SettingError: If a word is unknown, or no arm is left.
    """
    found: list[str] = []
    for word in words:
        kind, _, name = word.partition(":")
        is_known = word in (*WITHOUT_EXTRA, *BY_HAND) or kind in (SYNTHETIC, ONLY)
        if not is_known or (name and name not in bundles):
            raise SettingError(
                f"--arms has {word!r}; allowed are {', '.join(ALL_ARMS)}, and {SYNTHETIC}:NAME "
                f"and {ONLY}:NAME with the names {', '.join(bundles)}. Correct it."
            )
        if word in (SYNTHETIC, ONLY):
            found += [f"{word}:{each}" for each in bundles]
        else:
            found.append(word)
    reasons = {arm: not_applicable(arm, form) for arm in found}
    left_out = {arm: reason for arm, reason in reasons.items() if reason}
    for arm, reason in left_out.items():
        say(f"{arm}: not applicable, since {reason}")
    arms = [arm for arm in dict.fromkeys(found) if arm not in left_out]
    if not arms:
        raise SettingError(f"none of the arms {', '.join(found)} is applicable. Add others.")
    return arms, left_out


def cells_of(
    numbers: Sequence[int], arms: Sequence[str], options: SegmentationOptions
) -> list[Cell]:
    """All cells, those that need the same samples one after the other."""
    return [
        Cell(n, ratio, arm, seed)
        for n in numbers
        for seed in range(options.seeds)
        for arm in arms
        for ratio in ((0.0,) if arm in WITHOUT_EXTRA else options.ratios)
    ]
