"""What claims of a study are put together from: arms by name, differences, lights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medvae3d.evaluation.sections import Light, Measure, Section, Verdict
from medvae3d.studies.classification.results import Arm
from medvae3d.studies.comparison import Paired

RULE_DIFFERENCE = (
    "green if the 95 % interval of the difference is above 0, red if below, else amber; grey "
    "without an interval, as for one subject"
)


def named(arms: Sequence[Arm], name: str) -> list[Arm]:
    """Arms of a name, at all numbers and ratios."""
    return [arm for arm in arms if arm.name == name]


def where_of(arm: Arm) -> str:
    """Which number and ratio an arm has, in words."""
    return f"n = {arm.n}" + (f", ratio {arm.ratio:g}" if arm.ratio else "")


def not_done(made: Section, claim: str, name: str) -> None:
    """Adds a claim that no cell speaks of."""
    rule = "grey without such cells"
    made.verdicts.append(Verdict(claim, Light.GREY, f"no cell of {name} has been done", rule))


def difference(made: Section, arms: Sequence[Arm], name: str, claim: str) -> None:
    """A verdict on the AUC of an arm against the reference."""
    found = [arm for arm in named(arms, name) if "auc" in arm.against]
    if not found:
        not_done(made, claim, name)
    for arm in found:
        paired = arm.against["auc"]
        made.verdicts.append(
            Verdict(
                f"{claim} ({where_of(arm)})", light_of(paired), words_of(paired), RULE_DIFFERENCE
            )
        )


def light_of(paired: Paired) -> Light:
    """Green above 0, red below, amber where the interval holds it, grey without one."""
    if paired.low is None or paired.high is None:
        return Light.GREY
    return Light.GREEN if paired.low > 0 else Light.RED if paired.high < 0 else Light.AMBER


def words_of(paired: Paired, measure: str = "AUC") -> str:
    """A difference in words."""
    if paired.difference is None:
        return f"the {measure} could not be compared"
    if paired.low is None or paired.high is None:
        return f"{measure} {paired.difference:+.3f}, {paired.subjects} subject"
    return f"{measure} {paired.difference:+.3f} ({paired.low:+.3f} to {paired.high:+.3f})"


def mean_of(values: Sequence[Any]) -> Measure:
    """Mean of what is known, with its number."""
    known = [float(value) for value in values if value is not None]
    return Measure(float(np.mean(known)) if known else None, n=len(known))
