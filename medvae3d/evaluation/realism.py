"""How close synthetic cases come to real ones, beside how close real ones come to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from medvae3d.errors import MedvaeError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.comparison import (
    DISTANCES,
    FEWEST,
    SAME,
    compare,
    prepare,
)
from medvae3d.evaluation.features import Features
from medvae3d.evaluation.sections import Distribution, Light, Measure, Section, Verdict
from medvae3d.seeding import derive_seed

# With 50 cases, the interval of a share such as precision is 14 points to both sides.
ENOUGH_TO_RANK = 50
ENOUGH_TO_SAY = 20

TEXT = (
    "Synthetic and real cases are compared by features. Fréchet and kernel distances are 0 for "
    "equal distributions. Precision and density say how many synthetic cases look like real ones, "
    "recall and coverage how much of the real variety is reached. The inception-type score asks "
    "how clearly cases fall into clusters of real cases and how evenly; there is no classifier, so "
    "it is only to be compared with its floor. The floor is the same measure between disjoint sets "
    "of real cases: what a perfect generator would get at these sizes."
)
RULE_DISTANCE = (
    "green: the interval reaches into that of the floor; amber: its lower end is at most three "
    "times the upper end of the floor; red: beyond; grey: fewer than 20 cases in one set."
)
RULE_SHARE = (
    "green: the interval reaches into that of the floor or lies above; amber: at least half of the "
    "floor; red: less; grey: fewer than 20 cases in one set."
)


def realism_section(
    real: Cases,
    synthetic: Cases,
    features: Sequence[Features],
    *,
    spacing_mm: Sequence[float],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Section:
    """Distances and shares of synthetic cases against real ones, by each kind of features.

    Args:
        real: Real cases; best those that no model was trained on.
        synthetic: Samples.
        features: What to compare by.
        spacing_mm: Size of a voxel along (I, J, K).
        seed: Seed of resampling, splitting and clustering.
        progress: Called after each kind of features with how many are done and wanted.
    """
    section = Section("realism", "Realism", TEXT)
    section.facts |= {"real cases": len(real), "synthetic cases": len(synthetic)}
    if min(len(real), len(synthetic)) < FEWEST:
        section.not_computed = (
            f"{len(real)} real and {len(synthetic)} synthetic cases; {FEWEST} of each are needed."
        )
        return section
    if min(len(real), len(synthetic)) < ENOUGH_TO_RANK:
        section.warnings.append(
            f"{len(real)} real and {len(synthetic)} synthetic cases are too few to rank models by "
            f"these numbers. Rule: {ENOUGH_TO_RANK} of each; with fewer, the interval of a share "
            f"is wider than 14 points to both sides."
        )
    usable = []
    for done, each in enumerate(features, start=1):
        try:
            rows = each(real, spacing_mm), each(synthetic, spacing_mm)
        except MedvaeError as error:
            # Such as missing weights: the other kinds are still compared.
            section.facts[each.name] = {"not computed": str(error)}
            section.warnings.append(f"{each.name}: not computed: {error}")
            continue
        prepared = prepare(*rows)
        found = compare(prepared, derive_seed(seed, "realism", each.name))
        section.tables[each.name] = found.table
        section.facts[each.name] = {
            "licence": each.licence,
            **each.describe(),
            **prepared.facts,
            **found.facts,
        }
        section.verdicts += verdicts(each.name, found.table)
        if found.nearest:
            title = f"distance to the nearest real case, {each.name}"
            section.distributions.append(Distribution(title, "deviations", found.nearest))
        section.warnings += [f"{each.name}: {said}" for said in found.warnings]
        usable.append(
            any(m.value is not None for row in found.table.values() for m in row.values())
        )
        if progress is not None:
            progress(done, len(features))
    if not any(usable):
        section.not_computed = (
            "; ".join(
                f"{name}: {facts.get('not computed', 'no value')}"
                for name, facts in section.facts.items()
                if isinstance(facts, dict)
            )
            or "no features were asked for."
        )
    return section


def verdicts(name: str, table: Mapping[str, Mapping[str, Measure]]) -> list[Verdict]:
    """What the measures of one kind of features come to."""
    asked = {
        DISTANCES[0]: f"by {name}, synthetic cases are distributed as real ones",
        DISTANCES[1]: f"by the kernel distance of {name}, synthetic cases are as real ones are",
        "precision": f"by {name}, single synthetic cases look like real ones",
        "coverage": f"by {name}, synthetic cases cover the variety of real ones",
    }
    found = []
    for row, claim in asked.items():
        measure = table[row].get(SAME)
        if measure is None or measure.value is None or measure.floor is None:
            continue
        is_distance = row in DISTANCES
        found.append(
            Verdict(
                claim,
                light_of(measure, is_distance),
                f"{row} {measure.value:.3g} ({measure.low:.3g} to {measure.high:.3g}); floor "
                f"{measure.floor:.3g} ({measure.floor_low:.3g} to {measure.floor_high:.3g})",
                RULE_DISTANCE if is_distance else RULE_SHARE,
            )
        )
    return found


def light_of(measure: Measure, is_distance: bool) -> Light:
    """The light of a measure that has a floor; see the rules."""
    value, low, high = measure.value or 0.0, measure.low or 0.0, measure.high or 0.0
    floor, floor_low, floor_high = (
        measure.floor or 0.0,
        measure.floor_low or 0.0,
        measure.floor_high or 0.0,
    )
    if isinstance(measure.n, tuple) and min(measure.n) < ENOUGH_TO_SAY:
        return Light.GREY
    if is_distance:
        if low <= floor_high:
            return Light.GREEN
        return Light.AMBER if low <= 3 * max(floor_high, 0.0) else Light.RED
    if high >= floor_low:
        return Light.GREEN
    return Light.AMBER if value >= floor / 2 else Light.RED
