"""What the study of a preset has to show, as claims with the numbers behind them.

Each claim is a `Verdict`: green where its interval says so, amber where it is open, red where it
says the opposite, grey where the cells that it needs have not been done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from medvae3d.evaluation.sections import Light, Measure, Section, Verdict
from medvae3d.studies.classification import shown_adaptive, shown_generators
from medvae3d.studies.classification.claims import (
    RULE_DIFFERENCE,
    difference,
    light_of,
    mean_of,
    named,
    not_done,
    where_of,
    words_of,
)
from medvae3d.studies.classification.presets import Preset
from medvae3d.studies.classification.results import Arm

SEEDS = 5


def section(preset: Preset, arms: Sequence[Arm], classes: Sequence[str]) -> Section:
    """Tables and verdicts of everything that a preset has to show.

    Args:
        preset: What was compared.
        arms: What was found.
        classes: Names of both classes.
    """
    made = Section("shown", "What the study shows", preset.text)
    made.facts = {"in the style of": preset.after} if preset.after else {}
    for name in preset.shows:
        SHOWS[name](made, arms, classes)
    return made


def _gain_of_both(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    difference(made, arms, "synthetic", "real and synthetic images do better than real ones")


def _without_augmentation(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    difference(made, arms, "real", "images as they are do better than shifted and noisy ones")


def _gap_to_real(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    difference(made, arms, "only", "synthetic images alone do better than real ones")


def _only_above_chance(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    claim = "synthetic images alone teach a classifier"
    rule = (
        "green if the 95 % interval of the AUC on real cases is above 0.5, else amber; grey "
        "for one subject"
    )
    found = named(arms, "only")
    if not found:
        not_done(made, claim, "only")
    for arm in found:
        auc = arm.measures["auc"]
        low = auc.value if auc.low is None else auc.low
        light = Light.GREEN if low is not None and low > 0.5 else Light.AMBER
        if auc.n == 1:
            light = Light.GREY
        made.verdicts.append(Verdict(f"{claim} ({where_of(arm)})", light, _shown(auc), rule))


def _shown(measure: Measure) -> str:
    if measure.value is None:
        return "not measured"
    if measure.low is None or measure.high is None:
        return f"AUC {measure.value:.3f}"
    return f"AUC {measure.value:.3f} ({measure.low:.3f} to {measure.high:.3f})"


def _controls(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    claim = "nothing is learned from classes dealt out anew"
    rule = (
        "green if the 95 % interval of the AUC holds 0.5; else cases leak, or there are few; grey "
        "without an interval"
    )
    for arm in named(arms, "shuffled"):
        auc = arm.measures["auc"]
        if auc.low is None or auc.high is None:
            light = Light.GREY
        else:
            light = Light.GREEN if auc.low <= 0.5 <= auc.high else Light.AMBER
        made.verdicts.append(Verdict(f"{claim} ({where_of(arm)})", light, _shown(auc), rule))
    if named(arms, "noise"):
        difference(made, arms, "noise", "noise with a class does better than none")


def _balance(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    table: dict[str, dict[str, Measure]] = {}
    uneven = []
    for arm in arms:
        row: dict[str, Measure] = {}
        for kind in ("real", "extra"):
            counts = np.asarray([cell[f"{kind}_cases"] for cell in arm.cells])
            if (counts[:, 0] != counts[:, 1]).any():
                uneven.append(arm.name)
            for name, count in zip(classes, counts.mean(0), strict=True):
                row[f"{kind}, {name}"] = Measure(float(count))
        table[f"{arm.name} ({where_of(arm)})"] = row
    made.tables["Training cases by class"] = table
    made.verdicts.append(
        Verdict(
            "both classes have as many cases in every arm",
            Light.RED if uneven else Light.GREEN,
            ", ".join(uneven) or "they have",
            "green if so",
        )
    )


def _seeds(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    table = {
        f"{arm.name} ({where_of(arm)})": {
            f"seed {cell['cell']['seed']}": Measure(cell["means"]["auc"]) for cell in arm.cells
        }
        for arm in arms
    }
    made.tables["AUC by seed"] = table
    least = min((len(arm.cells) for arm in arms), default=0)
    light = Light.GREEN if least >= SEEDS else Light.AMBER
    made.verdicts.append(
        Verdict("every arm has 5 seeds", light, f"at least {least}", f"green from {SEEDS} on")
    )


def _against_random(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    claim = "selection does better than random images of the same number"
    found = [arm for arm in named(arms, "selected") if "auc" in arm.against_control]
    if not found:
        not_done(made, claim, "selected and random")
    for arm in found:
        paired = arm.against_control["auc"]
        made.verdicts.append(
            Verdict(f"{claim} (n = {arm.n})", light_of(paired), words_of(paired), RULE_DIFFERENCE)
        )


def _cycles(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    columns = ("kept", "near_copies", "frechet", "recall", "brier_before", "brier")
    table: dict[str, dict[str, Measure]] = {}
    halted = 0
    for name in ("selected", "random"):
        for arm in named(arms, name):
            halted += sum(bool(cell["was_halted"]) for cell in arm.cells)
            longest = max((len(cell["cycles"]) for cell in arm.cells), default=0)
            for number in range(longest):
                each = [c["cycles"][number] for c in arm.cells if len(c["cycles"]) > number]
                table[f"{name} (n = {arm.n}), cycle {number + 1}"] = {
                    column: mean_of([row[column] for row in each]) for column in columns
                }
    made.tables["Cycles"] = table
    made.facts["loops ended by the rule on validation"] = halted


def _share(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    claim = "at most half of the images are synthetic"
    found = [arm for name in ("selected", "random") for arm in named(arms, name)]
    if not found:
        not_done(made, claim, "selected and random")
        return
    shares = [
        sum(cell["extra_cases"]) / (sum(cell["extra_cases"]) + sum(cell["real_cases"]))
        for arm in found
        for cell in arm.cells
    ]
    light = Light.GREEN if max(shares) <= 0.5 else Light.RED
    made.verdicts.append(Verdict(claim, light, f"at most {max(shares):.0%}", "green if so"))


def _slice_order(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    claim = "the order of slices does not matter"
    rule = (
        "red if the 95 % interval of the difference leaves out 0, amber else: it is not shown; "
        "grey without an interval"
    )
    found = [arm for arm in named(arms, "slices_shuffled") if "auc" in arm.against]
    if not found:
        not_done(made, claim, "slices_shuffled")
    for arm in found:
        paired = arm.against["auc"]
        light = light_of(paired)
        light = light if light in (Light.AMBER, Light.GREY) else Light.RED
        made.verdicts.append(
            Verdict(f"{claim} ({where_of(arm)})", light, f"shuffled: {words_of(paired)}", rule)
        )


def _rounds(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    table: dict[str, dict[str, Measure]] = {}
    for name, words in (("self_learning", "with"), ("retrained", "without")):
        for arm in named(arms, name):
            for number in range(len(arm.cells[0]["rounds"])):
                each = [cell["rounds"][number] for cell in arm.cells]
                table[f"{words} VAE images ({where_of(arm)}), round {number}"] = {
                    column: mean_of([row[column] for row in each])
                    for column in ("accuracy", "auc", "added")
                }
    made.tables["Rounds of self-learning"] = table


def _label_noise(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    table: dict[str, dict[str, Measure]] = {}
    for arm in named(arms, "self_learning"):
        for number in range(1, len(arm.cells[0]["rounds"])):
            each = [cell["rounds"][number].get("labels", {}) for cell in arm.cells]
            table[f"{where_of(arm)}, round {number}"] = {
                "share of cases with a sure label": mean_of([row.get("sure") for row in each]),
                "share of these that is wrong": mean_of([row.get("wrong") for row in each]),
            }
    made.tables["Noise of labels on validation cases"] = table


SHOWS: Mapping[str, Callable[[Section, Sequence[Arm], Sequence[str]], None]] = {
    "against_random": _against_random,
    "against_uniform": shown_adaptive.against_uniform,
    "balance": _balance,
    "controls": _controls,
    "copies": shown_generators.copies,
    "cycles": _cycles,
    "gain_of_both": _gain_of_both,
    "gain_of_each": shown_generators.gain_of_each,
    "gap_to_real": _gap_to_real,
    "label_noise": _label_noise,
    "noise_counts": shown_generators.noise_counts,
    "only_above_chance": _only_above_chance,
    "policy": shown_adaptive.policy,
    "quality": shown_generators.quality,
    "rounds": _rounds,
    "seeds": _seeds,
    "share": _share,
    "sharper": shown_generators.sharper,
    "slice_order": _slice_order,
    "vanishes": shown_generators.vanishes,
    "without_augmentation": _without_augmentation,
}


def markdown(section_: Section) -> str:
    """A section as part of a Markdown page."""
    lines = [f"## {section_.title}", ""]
    for verdict in section_.verdicts:
        lines.append(f"- {verdict.light.value}: {verdict.claim}: {verdict.found}")
    for title, table in section_.tables.items():
        columns = list(dict.fromkeys(column for row in table.values() for column in row))
        lines += ["", f"### {title}", "", f"| | {' | '.join(columns)} |"]
        lines.append("|---|" + "---:|" * len(columns))
        for name, row in table.items():
            cells = [_cell(row.get(column)) for column in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(measure: Measure | None) -> str:
    return "-" if measure is None or measure.value is None else f"{measure.value:.4g}"
