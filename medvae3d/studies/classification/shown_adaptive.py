"""What a study of adaptive sampling has to show: where images go, and what that is good for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvae3d.evaluation.sections import Light, Section, Verdict
from medvae3d.studies.classification.claims import (
    RULE_DIFFERENCE,
    light_of,
    mean_of,
    not_done,
    where_of,
    words_of,
)
from medvae3d.studies.classification.presets import REFERENCE, parts_of
from medvae3d.studies.classification.results import Arm

# Recall of class 0 and of class 1, as the measures of a study call them.
RECALLS = ("specificity", "sensitivity")


def policy(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    """Whether the class of lower recall gets more images, and what its recall comes to."""
    claim = "more images are made of the class that is missed more often"
    rule = "green if so, and fewer in no seed; amber if as many in every seed; red if fewer in one"
    found = _adaptive(arms)
    if not found:
        not_done(made, claim, "adaptive")
    table = {}
    for arm in found:
        rows = {cell["cell"]["seed"]: (cell["recalls"], cell["extra_cases"]) for cell in arm.cells}
        for seed, (recalls, counts) in rows.items():
            of_class = zip(classes, recalls, counts, strict=True)
            table[f"{_name(arm)}, seed {seed}"] = {
                key: mean_of([value])
                for name, recall, count in of_class
                for key, value in ((f"recall, {name}", recall), (f"images, {name}", count))
            }
        # Above 0 where the class of lower recall has more images.
        more = np.asarray([(r[1] - r[0]) * (m[0] - m[1]) for r, m in rows.values()])
        light = Light.GREEN if (more > 0).any() else Light.AMBER
        light = Light.RED if (more < 0).any() else light
        words = f"in {int((more > 0).sum())} of {len(more)} seeds"
        made.verdicts.append(Verdict(f"{claim} ({_name(arm)})", light, words, rule))
    made.tables["Recall on held-out training cases, and images made"] = table
    made.tables["Recall of the class that is missed more often, on unseen cases"] = {
        f"{_name(arm)}, {other.name}": {"recall": mean_of(_weaker(arm, other))}
        for arm in found
        for other in arms
        if other.n == arm.n and _is_beside(arm, other)
    }


def against_uniform(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    """Whether adaptive sampling does better than as many images of each class."""
    claim = "adaptive sampling does better than as many images of each class"
    found = [arm for arm in _adaptive(arms) if arm.against_control]
    if not found:
        not_done(made, claim, "adaptive and synthetic")
    for arm in found:
        control = next(other for other in arms if _is_control(arm, other))
        for measure, words in (("auc", "AUC"), ("balanced_accuracy", "balanced accuracy")):
            one, two = (
                {cell["cell"]["seed"]: cell["means"][measure] for cell in each.cells}
                for each in (arm, control)
            )
            both = [seed for seed in one if seed in two]
            better = sum(one[seed] > two[seed] for seed in both)
            paired = arm.against_control[measure]
            made.verdicts.append(
                Verdict(
                    f"{claim}, by {words} ({_name(arm)})",
                    light_of(paired),
                    f"{words_of(paired, words)}, better in {better} of {len(both)} seeds",
                    RULE_DIFFERENCE,
                )
            )


def _adaptive(arms: Sequence[Arm]) -> list[Arm]:
    return [arm for arm in arms if parts_of(arm.name)[0] == "adaptive"]


def _name(arm: Arm) -> str:
    variant = parts_of(arm.name)[1]
    return f"{variant}, {where_of(arm)}" if variant else where_of(arm)


def _is_control(arm: Arm, other: Arm) -> bool:
    base, variant = parts_of(other.name)
    same = (other.n, other.ratio, variant) == (arm.n, arm.ratio, parts_of(arm.name)[1])
    return base == "synthetic" and same


def _is_beside(arm: Arm, other: Arm) -> bool:
    return other is arm or other.name == REFERENCE or _is_control(arm, other)


def _weaker(arm: Arm, other: Arm) -> list[float]:
    """Recall of each seed's weaker class in another arm."""
    of = {cell["cell"]["seed"]: cell["means"] for cell in other.cells}
    return [
        of[cell["cell"]["seed"]][RECALLS[int(np.argmin(cell["recalls"]))]]
        for cell in arm.cells
        if cell["cell"]["seed"] in of
    ]
