"""What the study of a preset has to show, as claims with the numbers behind them.

Each claim is a `Verdict`: green where its interval says so, amber where it is open, red where it
says the opposite, grey where the cells that it needs have not been done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medvae3d.evaluation.sections import Light, Measure, Section, Verdict
from medvae3d.studies.classification.presets import Preset
from medvae3d.studies.classification.results import Arm
from medvae3d.studies.comparison import Paired

SEEDS = 5
# A copy check that calls one in a hundred unseen cases a copy is not worried by five samples.
MOST_COPIES = 0.05


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


def _named(arms: Sequence[Arm], name: str) -> list[Arm]:
    return [arm for arm in arms if arm.name == name]


def _where(arm: Arm) -> str:
    return f"n = {arm.n}" + (f", ratio {arm.ratio:g}" if arm.ratio else "")


def _nothing(made: Section, claim: str, name: str) -> None:
    rule = "grey without such cells"
    made.verdicts.append(Verdict(claim, Light.GREY, f"no cell of {name} has been done", rule))


def _difference(made: Section, arms: Sequence[Arm], name: str, claim: str) -> None:
    """A verdict on the AUC of an arm against the reference."""
    rule = "green if the 95 % interval of the difference is above 0, red if below, else amber"
    found = [arm for arm in _named(arms, name) if "auc" in arm.against]
    if not found:
        _nothing(made, claim, name)
    for arm in found:
        paired = arm.against["auc"]
        made.verdicts.append(
            Verdict(f"{claim} ({_where(arm)})", _light(paired), _words(paired), rule)
        )


def _light(paired: Paired) -> Light:
    if paired.low is None or paired.high is None:
        return Light.GREY
    return Light.GREEN if paired.low > 0 else Light.RED if paired.high < 0 else Light.AMBER


def _words(paired: Paired) -> str:
    if paired.difference is None or paired.low is None or paired.high is None:
        return "the AUC could not be compared"
    return f"AUC {paired.difference:+.3f} ({paired.low:+.3f} to {paired.high:+.3f})"


def _gain_of_both(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    _difference(made, arms, "synthetic", "real and synthetic images do better than real ones")


def _without_augmentation(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    _difference(made, arms, "real", "images as they are do better than shifted and noisy ones")


def _gap_to_real(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    _difference(made, arms, "only", "synthetic images alone do better than real ones")


def _only_above_chance(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    claim = "synthetic images alone teach a classifier"
    rule = "green if the 95 % interval of the AUC on real cases is above 0.5, else amber"
    found = _named(arms, "only")
    if not found:
        _nothing(made, claim, "only")
    for arm in found:
        auc = arm.measures["auc"]
        low = auc.value if auc.low is None else auc.low
        light = Light.GREEN if low is not None and low > 0.5 else Light.AMBER
        made.verdicts.append(Verdict(f"{claim} ({_where(arm)})", light, _shown(auc), rule))


def _shown(measure: Measure) -> str:
    if measure.value is None:
        return "not measured"
    if measure.low is None or measure.high is None:
        return f"AUC {measure.value:.3f}"
    return f"AUC {measure.value:.3f} ({measure.low:.3f} to {measure.high:.3f})"


def _controls(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    claim = "nothing is learned from classes dealt out anew"
    rule = "green if the 95 % interval of the AUC holds 0.5; else cases leak, or there are few"
    for arm in _named(arms, "shuffled"):
        auc = arm.measures["auc"]
        holds = auc.low is not None and auc.high is not None and auc.low <= 0.5 <= auc.high
        light = Light.GREEN if holds else Light.AMBER
        made.verdicts.append(Verdict(f"{claim} ({_where(arm)})", light, _shown(auc), rule))
    if _named(arms, "noise"):
        _difference(made, arms, "noise", "noise with a class does better than none")


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
        table[f"{arm.name} ({_where(arm)})"] = row
    made.tables["Training cases by class"] = table
    made.verdicts.append(
        Verdict(
            "both classes have as many cases in every arm",
            Light.RED if uneven else Light.GREEN,
            ", ".join(uneven) or "they have",
            "green if so",
        )
    )


def _copies(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    claim = "synthetic images are no copies"
    rule = (
        f"green if the share nearer to a training case than 1 in 100 of these to another is at "
        f"most {MOST_COPIES:.0%}"
    )
    found = [arm for name in ("synthetic", "only") for arm in _named(arms, name)]
    if not found:
        _nothing(made, claim, "synthetic")
    for arm in found[:1]:
        shares = [[cell["copies"][k] for k in ("samples", "unseen")] for cell in arm.cells]
        made_share, unseen = np.mean(shares, axis=0)
        light = Light.GREEN if made_share <= MOST_COPIES else Light.RED
        words = f"{made_share:.1%} of synthetic and {unseen:.1%} of unseen real cases"
        made.verdicts.append(Verdict(claim, light, words, rule))


def _seeds(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    table = {
        f"{arm.name} ({_where(arm)})": {
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
    pairs = [
        (one, two)
        for one in _named(arms, "selected")
        for two in _named(arms, "random")
        if one.n == two.n
    ]
    if not pairs:
        _nothing(made, claim, "selected and random")
    for one, two in pairs:
        a, b = (np.mean([cell["means"]["auc"] for cell in arm.cells]) for arm in (one, two))
        spread = max(
            float(np.std([cell["means"]["auc"] for cell in arm.cells])) for arm in (one, two)
        )
        light = Light.AMBER
        if abs(a - b) > 2 * spread:
            light = Light.GREEN if a > b else Light.RED
        words = f"AUC {a:.3f} and {b:.3f}, over seeds +- {spread:.3f}"
        rule = "green or red if they lie two deviations over seeds apart, else amber"
        made.verdicts.append(Verdict(f"{claim} (n = {one.n})", light, words, rule))


def _cycles(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    columns = ("kept", "near_copies", "frechet", "recall", "brier_before", "brier")
    table: dict[str, dict[str, Measure]] = {}
    halted = 0
    for name in ("selected", "random"):
        for arm in _named(arms, name):
            halted += sum(bool(cell["was_halted"]) for cell in arm.cells)
            longest = max((len(cell["cycles"]) for cell in arm.cells), default=0)
            for number in range(longest):
                each = [c["cycles"][number] for c in arm.cells if len(c["cycles"]) > number]
                table[f"{name} (n = {arm.n}), cycle {number + 1}"] = {
                    column: _mean([row[column] for row in each]) for column in columns
                }
    made.tables["Cycles"] = table
    made.facts["loops ended by the rule on validation"] = halted


def _share(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    claim = "at most half of the images are synthetic"
    found = [arm for name in ("selected", "random") for arm in _named(arms, name)]
    if not found:
        _nothing(made, claim, "selected and random")
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
    rule = "red if the 95 % interval of the difference leaves out 0, amber else: it is not shown"
    found = [arm for arm in _named(arms, "slices_shuffled") if "auc" in arm.against]
    if not found:
        _nothing(made, claim, "slices_shuffled")
    for arm in found:
        paired = arm.against["auc"]
        light = Light.AMBER if _light(paired) is Light.AMBER else Light.RED
        made.verdicts.append(
            Verdict(f"{claim} ({_where(arm)})", light, f"shuffled: {_words(paired)}", rule)
        )


def _rounds(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    table: dict[str, dict[str, Measure]] = {}
    for name, words in (("self_learning", "with"), ("retrained", "without")):
        for arm in _named(arms, name):
            for number in range(len(arm.cells[0]["rounds"])):
                each = [cell["rounds"][number] for cell in arm.cells]
                table[f"{words} VAE images ({_where(arm)}), round {number}"] = {
                    column: _mean([row[column] for row in each])
                    for column in ("accuracy", "auc", "added")
                }
    made.tables["Rounds of self-learning"] = table


def _label_noise(made: Section, arms: Sequence[Arm], classes: Sequence[str]) -> None:
    table: dict[str, dict[str, Measure]] = {}
    for arm in _named(arms, "self_learning"):
        for number in range(1, len(arm.cells[0]["rounds"])):
            each = [cell["rounds"][number].get("labels", {}) for cell in arm.cells]
            table[f"{_where(arm)}, round {number}"] = {
                "share of cases with a sure label": _mean([row.get("sure") for row in each]),
                "share of these that is wrong": _mean([row.get("wrong") for row in each]),
            }
    made.tables["Noise of labels on validation cases"] = table


def _mean(values: Sequence[Any]) -> Measure:
    known = [float(value) for value in values if value is not None]
    return Measure(float(np.mean(known)) if known else None, n=len(known))


SHOWS: Mapping[str, Callable[[Section, Sequence[Arm], Sequence[str]], None]] = {
    "against_random": _against_random,
    "balance": _balance,
    "controls": _controls,
    "copies": _copies,
    "cycles": _cycles,
    "gain_of_both": _gain_of_both,
    "gap_to_real": _gap_to_real,
    "label_noise": _label_noise,
    "only_above_chance": _only_above_chance,
    "rounds": _rounds,
    "seeds": _seeds,
    "share": _share,
    "slice_order": _slice_order,
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
