"""Dice of true and of shuffled pairs: what an agreement comes to, in tables and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.casewise import by_case
from medvae3d.evaluation.intervals import CONFIDENCE, RESAMPLES, mean_interval
from medvae3d.evaluation.sections import Distribution, Light, Measure, Section, Verdict
from medvae3d.evaluation.voxelwise import dice_key, mask_scores

PERCENT = 5.0
GOOD_RATIO, POOR_RATIO = 0.9, 0.75
# Below this many real cases the 5th percentile is little more than the smallest Dice.
JUDGED_FROM = 10


def ratio_of(made: Tensor, truth: Tensor) -> float | None:
    """Mean of one set over that of another; ``None`` where there is none."""
    return float(made.mean() / truth.mean()) if len(made) and float(truth.mean()) else None


def like_volumes(cases: Cases, others: Cases) -> Tensor:
    """Which masks are neither smaller nor larger than all of the others, ``(N,)``.

    Dice falls with the volume, and samples cover the volumes of the training set, which few unseen
    cases do not.
    """
    volume, known = ((each.mask > 0).flatten(1).sum(1) for each in (cases, others))
    return (volume >= known.min()) & (volume <= known.max())


def derangement(count: int, seed: int = 0) -> list[int]:
    """An order in which nothing keeps its place."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=int)
    other[order] = np.roll(order, 1)
    return [int(index) for index in other]


def ratio_interval(made: Any, truth: Any, seed: int) -> list[float] | None:
    """Bootstrap interval of a ratio of means of two independent sets."""
    if min(len(made), len(truth)) < 2 or truth.mean() == 0:
        return None
    rng = np.random.default_rng(seed)
    draws = [
        values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
        for values in (made, truth)
    ]
    tail = 50 * (1 - CONFIDENCE)
    ratios = draws[0] / np.maximum(draws[1], 1e-9)
    return [float(v) for v in np.percentile(ratios, (tail, 100 - tail))]


def fill_in(
    section: Section,
    real: Cases | None,
    truth: Tensor | None,
    synthetic: Cases,
    made: Sequence[Tensor],
    labels: tuple[str, ...],
    seed: int,
) -> None:
    """Scores what was found and writes tables, numbers by case, facts and verdicts.

    Args:
        section: What is filled in.
        real: Real, unseen cases.
        truth: Label maps found in them; ``None`` if none were looked for.
        synthetic: Samples.
        made: Label maps found in them by each of one or several segmenters.
        labels: Names of the labels 1, 2 and so on.
        seed: Seed of the shuffling and of the intervals.
    """
    key = dice_key(labels)
    scores = {"synthetic": _mean_scores(made, synthetic, labels)}
    filled = {"synthetic": _filled(synthetic)}
    sets = {"synthetic": synthetic}
    if real is not None and truth is not None:
        sets["real, unseen"] = real
        scores["real, unseen"] = _mean_scores([truth], real, labels)
        filled["real, unseen"] = _filled(real)
    rows = torch.nonzero(filled["synthetic"])[:, 0]
    if len(rows) > 1:
        name = "synthetic, shuffled"
        sets[name] = synthetic[rows].with_masks_of(derangement(len(rows), seed))
        scores[name] = _mean_scores([each[rows] for each in made], sets[name], labels)
        filled[name] = _filled(sets[name])
    dice = {name: scores[name][key][filled[name]] for name in sets}
    nothing = torch.zeros(0, dtype=torch.float64)
    pair, reality = dice["synthetic"], dice.get("real, unseen", nothing)

    section.tables["Dice of the masks that the segmenter finds"] = {
        name: {
            "Dice": _mean(dice[name], seed),
            **{
                f"Dice of {label}": _mean(
                    scores[name][f"dice {label}"][_filled(sets[name], value)], seed
                )
                for value, label in enumerate(labels, start=1)
                if len(labels) > 1
            },
        }
        for name in ("real, unseen", "synthetic", "synthetic, shuffled")
        if name in sets
    }
    ratio = {"all": _ratio_measure(pair, reality, seed)}
    if real is not None and len(reality) and len(pair):
        like = like_volumes(synthetic[rows], real[torch.nonzero(filled["real, unseen"])[:, 0]])
        ratio["volumes as of the unseen"] = _ratio_measure(pair[like], reality, seed)
    section.tables["Synthetic over real"] = {name: {"ratio": each} for name, each in ratio.items()}
    section.tables["Empty masks"] = {
        name: {"share": _mean((~filled[name]).double(), seed), "nothing found": _mean(
            scores[name][key][~filled[name]], seed)}
        for name in ("real, unseen", "synthetic") if name in sets
    }  # fmt: skip

    threshold = float(np.percentile(reality.numpy(), PERCENT)) if len(reality) else None
    section.facts |= {
        "threshold": threshold,
        "threshold_rule": f"{PERCENT:g}th percentile of Dice of real, unseen cases",
    }
    for name in ("real, unseen", "synthetic"):
        if name in sets:
            columns = {"dice" if k == key else k: v.tolist() for k, v in scores[name].items()}
            section.cases[name] = by_case(sets[name].names, columns)
    if threshold is not None:
        section.facts["kept"] = int((scores["synthetic"][key] >= threshold).sum())
        if "synthetic, shuffled" in dice:
            passed = (dice["synthetic, shuffled"] >= threshold).double().mean()
            section.facts["shuffled_kept_share"] = float(passed)
    section.distributions = [
        Distribution("Dice", "", {name: values.tolist() for name, values in dice.items()})
    ]
    section.verdicts = _verdicts(section, ratio["all"], len(reality))
    if 0 < len(reality) < JUDGED_FROM:
        section.warnings.append(
            f"{len(reality)} real, unseen cases with a mask: the threshold is little more than the "
            f"smallest Dice among them."
        )


def _mean_scores(
    found: Sequence[Tensor], cases: Cases, labels: tuple[str, ...]
) -> dict[str, Tensor]:
    """Dice by name, mean over what several segmenters found, ``(N,)`` each."""
    each = [mask_scores(masks, cases.mask, labels, cases.valid) for masks in found]
    keys = [key for key in each[0] if len(labels) == 1 or key != "dice"]
    return {key: torch.stack([scores[key] for scores in each]).mean(0) for key in keys}


def _filled(cases: Cases, value: int | None = None) -> Tensor:
    """Which masks hold anything, or a label value, where it was observed, ``(N,)``."""
    mask = cases.mask * (cases.valid > 0)
    return (mask > 0 if value is None else mask == value).flatten(1).any(1)


def _mean(values: Tensor, seed: int) -> Measure:
    return Measure.of(mean_interval(values, seed), "" if len(values) else "no such case")


def _ratio_measure(made: Tensor, truth: Tensor, seed: int) -> Measure:
    sizes = len(made), len(truth)
    value = ratio_of(made, truth) if len(truth) else None
    if value is None:
        return Measure(None, n=sizes, note="no masks on one side, or none of the real ones found")
    low, high = ratio_interval(made.numpy(), truth.numpy(), seed) or (None, None)
    return Measure(value, low, high, sizes, floor=1.0)


def _verdicts(section: Section, ratio: Measure, count: int) -> list[Verdict]:
    table = section.tables["Dice of the masks that the segmenter finds"]
    pairs, others = (
        table.get(name, {}).get("Dice") for name in ("synthetic", "synthetic, shuffled")
    )
    rule = (
        "Green: the interval of shuffled pairs lies below that of the true pairs. Red: it does "
        "not; then the ratio says nothing. Grey: fewer than two samples with a mask."
    )
    claim = "The measure tells true pairs from shuffled ones"
    ends = (None, None) if pairs is None or others is None else (pairs.low, others.high)
    if ends[0] is None or ends[1] is None:
        tells = Verdict(claim, Light.GREY, "no two samples with a mask", rule)
    else:
        light = Light.GREEN if ends[1] < ends[0] else Light.RED
        found = f"true pairs from {ends[0]:.3f} on, shuffled up to {ends[1]:.3f}"
        tells = Verdict(claim, light, found, rule)
    rule = (
        f"Green: the ratio is {GOOD_RATIO} or more, the target of the bundles. Amber: "
        f"{POOR_RATIO} or more, or less with an interval that reaches 1. Red: less, without. "
        f"Grey: fewer than {JUDGED_FROM} real, unseen cases with "
        f"a mask, or a measure that cannot tell shuffled pairs."
    )
    claim = "Images show their masks as well as real images do"
    if ratio.value is None or count < JUDGED_FROM or tells.light is not Light.GREEN:
        said = "" if ratio.value is None else f"ratio {ratio.value:.2f}, "
        return [Verdict(claim, Light.GREY, f"{said}{count} real, unseen cases", rule), tells]
    steps = ((GOOD_RATIO, Light.GREEN), (POOR_RATIO, Light.AMBER))
    light = next((each for least, each in steps if ratio.value >= least), Light.RED)
    said = f"ratio {ratio.value:.2f}"
    if ratio.low is not None and ratio.high is not None:
        said += f" ({ratio.low:.2f} to {ratio.high:.2f})"
        # A segmenter that finds little, as of a dozen cases, tells nothing against the images.
        if light is Light.RED and ratio.high >= 1:
            light = Light.AMBER
    return [Verdict(claim, light, f"{said}, {count} real, unseen cases", rule), tells]
