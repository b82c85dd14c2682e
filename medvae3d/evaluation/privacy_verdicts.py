"""What the privacy of samples comes to, with the rule behind each answer."""

from __future__ import annotations

from scipy import stats

from medvae3d.evaluation.copies import PERCENT, Space, by_chance
from medvae3d.evaluation.sections import Light, Measure, Verdict

# Below this many training cases their 1st percentile says little more than their smallest distance.
JUDGED_FROM = 20
MEMORISED_SHARE = 0.6
COPIED_SHARE = 0.05
FISHER_P = 0.025


def judged_copied(name: str, space: Space) -> Verdict:
    """Says whether samples are copies, in one space.

    Args:
        name: Of the space.
        space: Distances in it.
    """
    rule = (
        f"Green: no more samples below the limit than chance puts there: {PERCENT:g} of 100, the "
        f"spread of a limit from so few cases, and no larger a share than of held-out cases "
        f"(Fisher's test, one-sided, p = {FISHER_P}). Amber: more. Red: more, and "
        f"{COPIED_SHARE:.0%} of samples or over, or any sample nearer than half of the smallest "
        f"distance of two training cases. Grey: fewer than {JUDGED_FROM} training cases, or "
        f"planted copies that the check does not find."
    )
    claim = f"Samples are no copies of training cases ({name})"
    if space.limit is None:
        return Verdict(claim, Light.GREY, "training cases cannot be told apart", rule)
    n, count = len(space.samples.distance), int(space.flagged(space.samples).sum())
    close = int((space.samples.distance < space.smallest / 2).sum())
    found = f"{count} of {n} below {space.limit:.3g}, {close} nearer than half of any real pair"
    missed = int((~space.flagged(space.planted)).sum())
    if close:
        light = Light.RED
    elif len(space.train.distance) < JUDGED_FROM or missed:
        light = Light.GREY
        found += f"; {len(space.train.distance)} training cases, {missed} planted copies missed"
    elif not _is_more(space, count, n):
        light = Light.GREEN
    else:
        light = Light.RED if count / n >= COPIED_SHARE else Light.AMBER
    return Verdict(claim, light, found, rule)


def _is_more(space: Space, count: int, n: int) -> bool:
    """Whether more samples lie below the limit than by chance, and than held-out cases do."""
    if count <= by_chance(n, len(space.train.distance)):
        return False
    if space.reference is None:
        return True
    held = space.flagged(space.reference)
    other = int(held.sum())
    table = [[count, n - count], [other, len(held) - other]]
    return float(stats.fisher_exact(table, alternative="greater").pvalue) < FISHER_P


def judged_tested(name: str, space: Space) -> Verdict:
    """Says whether the check finds what was planted and leaves held-out cases alone.

    Args:
        name: Of the space.
        space: Distances in it.
    """
    rule = (
        f"Green: all planted copies are flagged, and no more held-out cases than {PERCENT:g} of "
        f"100 and the spread of a limit from so few cases. Amber: more held-out cases. Red: a "
        f"planted copy is missed. Grey: nothing to plant or to compare."
    )
    claim = f"The check finds planted copies and lets held-out cases go ({name})"
    if space.limit is None:
        return Verdict(claim, Light.GREY, "training cases cannot be told apart", rule)
    flags = space.flagged(space.planted)
    light = Light.GREEN if bool(flags.all()) else Light.RED
    found = f"{int(flags.sum())} of {len(flags)} planted copies flagged"
    if space.reference is not None:
        held = space.flagged(space.reference)
        found += f", {int(held.sum())} of {len(held)} held-out cases"
        chance = by_chance(len(held), len(space.train.distance))
        if light is Light.GREEN and int(held.sum()) > chance:
            light = Light.AMBER
    return Verdict(claim, light, found, rule)


def judged_memorised(split: Measure) -> Verdict:
    """Says whether samples lie nearer to training than to held-out cases.

    Args:
        split: Share of samples that do, as `held_out_ratio` finds it.
    """
    rule = (
        f"Green: the interval of the share of samples nearer to training than to as many held-out "
        f"cases reaches down to 0.5. Amber: it does not, and the share is below {MEMORISED_SHARE}. "
        f"Red: it does not, and the share is not. Grey: fewer than {JUDGED_FROM} training or "
        f"held-out cases."
    )
    claim = "Samples are no nearer to training than to held-out cases"
    n = min(split.n) if isinstance(split.n, tuple) else 0
    if split.value is None or split.low is None or n < JUDGED_FROM:
        return Verdict(claim, Light.GREY, split.note or f"{n} cases in the smaller set", rule)
    light = Light.GREEN
    if split.low > 0.5:
        light = Light.RED if split.value >= MEMORISED_SHARE else Light.AMBER
    found = f"share {split.value:.2f} ({split.low:.2f} to {split.high:.2f})"
    return Verdict(claim, light, found, rule)
