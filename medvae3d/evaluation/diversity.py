r"""How different synthetic cases are from each other, beside how different real ones are.

.. math:: \text{ratio} = \frac{\overline{d(y_j, y_{j'})}}{\overline{d(x_i, x_{i'})}}

over pairs of different cases, with the distance :math:`d` of standardised features, or one minus
MS-SSIM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from medvae3d.errors import MedvaeError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.comparison import prepare
from medvae3d.evaluation.coverage import add_coverage
from medvae3d.evaluation.features import Features
from medvae3d.evaluation.sections import Distribution, Light, Measure, Section, Verdict
from medvae3d.evaluation.two_sample import percentiles
from medvae3d.evaluation.voxelwise import similarities, unit
from medvae3d.seeding import derive_seed

MOST_PAIRS = 100
# Narrower than for single scores: 0.1 s a pair instead of 0.3 s at 48 voxels a side.
PAIR_WINDOW = 7
RESAMPLES = 200
SPLITS = 20
FEWEST = 2
ENOUGH_TO_SAY = 20
LEAST_RATIO = 0.7

Values = NDArray[np.float64]
Index = NDArray[np.int64]

TEXT = (
    "Synthetic cases that all look alike have a high MS-SSIM and a small feature distance among "
    "themselves; a ratio of one is the variety of real cases. The floor of a ratio is that of two "
    "disjoint halves of the real cases. Attributes are measured on masks; coverage is the share of "
    "bins of the real cases that synthetic ones reach, its floor what as many real cases, drawn "
    "with replacement, would reach."
)
RULE_RATIO = (
    "green: the interval reaches into that of the floor or lies above; amber: at least 0.7; red: "
    "less; grey: fewer than 20 cases in one set."
)


@dataclass(frozen=True)
class Pairs:
    """How far cases of one set lie apart.

    Attributes:
        first: One case of each pair, ``(P,)``.
        second: The other one.
        apart: Their distance.
        count: Cases of the set.
    """

    first: Index
    second: Index
    apart: Values
    count: int

    def mean(self) -> float:
        """Mean distance; NaN without a pair."""
        return float(self.apart.mean()) if len(self.apart) else np.nan

    def resampled(self, rng: np.random.Generator) -> Values:
        """Mean distances in bootstrap samples of cases; two copies of one case are no pair."""
        share = np.full(self.count, 1 / self.count)
        weight = rng.multinomial(self.count, share, RESAMPLES).astype(np.float64)
        pairs = weight[:, self.first] * weight[:, self.second]
        total = pairs.sum(1)
        return np.divide(pairs @ self.apart, total, np.full(RESAMPLES, np.nan), where=total > 0)

    def half_ratio(self, rng: np.random.Generator) -> float:
        """Mean distance within a random half of the cases over that within the other half."""
        half = rng.permutation(self.count) < self.count // 2
        both = half[self.first] & half[self.second]
        neither = ~half[self.first] & ~half[self.second]
        if not both.any() or not neither.any() or not self.apart[neither].any():
            return np.nan
        return float(self.apart[both].mean() / self.apart[neither].mean())


def diversity_section(
    real: Cases,
    synthetic: Cases,
    *,
    spacing_mm: Sequence[float],
    features: Sequence[Features],
    seed: int,
) -> Section:
    """Pairwise similarity and distance within each set, and coverage of attributes.

    Args:
        real: Real cases.
        synthetic: Samples.
        spacing_mm: Size of a voxel along (I, J, K).
        features: What distances are taken of.
        seed: Seed of pairs and resampling.
    """
    section = Section("diversity", "Diversity", TEXT)
    section.facts |= {"real cases": len(real), "synthetic cases": len(synthetic)}
    sizes = (len(real), len(synthetic))
    if min(sizes) < FEWEST:
        section.not_computed = (
            f"{sizes[0]} real and {sizes[1]} synthetic cases; {FEWEST} of each are needed."
        )
        return section
    if min(sizes) < ENOUGH_TO_SAY:
        section.warnings.append(
            f"{sizes[0]} real and {sizes[1]} synthetic cases are too few for a verdict. Rule: "
            f"{ENOUGH_TO_SAY} of each."
        )
    alike = [
        pairwise_ms_ssim(cases, derive_seed(seed, name))
        for name, cases in (("real", real), ("synthetic", synthetic))
    ]
    section.facts["pairs of MS-SSIM"] = [len(pairs.apart) for pairs in alike]
    rows = {"1 - MS-SSIM": _row(section, "1 - MS-SSIM", "", alike, seed)}
    for each in features:
        try:
            both = each(real, spacing_mm), each(synthetic, spacing_mm)
        except MedvaeError as error:
            note = f"not computed: {error}"
            rows[f"distance, {each.name}"] = {"ratio": Measure(None, n=sizes, note=note)}
            continue
        prepared = prepare(*both)
        pairs = [pairwise_distance(x) for x in (prepared.real, prepared.made)]
        name = f"distance, {each.name}"
        rows[name] = _row(section, name, "deviations", pairs, seed)
    section.tables["variety within each set"] = rows
    add_coverage(section, real, synthetic, spacing_mm, seed)
    found = [m.value for t in section.tables.values() for row in t.values() for m in row.values()]
    if not any(found):
        section.not_computed = "nothing varies among the cases, and no attribute of their masks."
    return section


def pairwise_ms_ssim(cases: Cases, seed: int, most: int = MOST_PAIRS) -> Pairs:
    """One minus the MS-SSIM of random pairs, mean over channels.

    What was not observed in both of a pair does not count; pairs without a voxel that does are left
    out.

    Args:
        cases: Two or more.
        seed: Draws the pairs.
        most: Most pairs.
    """
    first, second = np.triu_indices(len(cases), 1)
    rng = np.random.default_rng(derive_seed(seed, "pairs"))
    chosen = np.sort(rng.permutation(len(first))[:most])
    first, second = first[chosen], second[chosen]
    found = []
    for start in range(0, len(chosen), 4):
        one, two = (cases[torch.from_numpy(i[start : start + 4])] for i in (first, second))
        where = {"both": (one.valid > 0) & (two.valid > 0)}
        scores = similarities(unit(one.image), unit(two.image), where, PAIR_WINDOW)["both"][1]
        found.append(1 - scores.mean(1))
    apart = torch.cat(found).numpy()
    sound = np.isfinite(apart)
    return Pairs(first[sound], second[sound], apart[sound], len(cases))


def pairwise_distance(rows: Values) -> Pairs:
    """Distance of all pairs, over the root of the number of features.

    Args:
        rows: Standardised features, ``(N, D)``.
    """
    first, second = np.triu_indices(len(rows), 1)
    if not rows.size:
        return Pairs(first[:0], second[:0], np.zeros(0), len(rows))
    return Pairs(first, second, pdist(rows) / rows.shape[1] ** 0.5, len(rows))


def _row(
    section: Section, name: str, unit_: str, pairs: Sequence[Pairs], seed: int
) -> dict[str, Measure]:
    """Distances within both sets and their ratio; adds what is drawn, and the verdict."""
    sizes = (pairs[0].count, pairs[1].count)
    means = [each.mean() for each in pairs]
    if not np.isfinite(means).all() or means[0] < 1e-6:
        why = (
            "the real cases are all alike"
            if np.isfinite(means).all()
            else "no pair of a set can be compared: too few cases, voxels or features"
        )
        return {"ratio": Measure(None, n=sizes, note=f"not computed: {why}")}
    rng = np.random.default_rng(derive_seed(seed, "resampling", name))
    draws = [each.resampled(rng) for each in pairs]
    floor = np.array([pairs[0].half_ratio(rng) for _ in range(SPLITS)])
    floor = floor[np.isfinite(floor)]
    ratio = Measure(
        means[1] / means[0],
        *percentiles(draws[1] / draws[0]),
        sizes,
        float(floor.mean()) if len(floor) else None,
        *(percentiles(floor) if len(floor) else (None, None)),
    )
    section.distributions.append(
        Distribution(
            f"{name} of pairs",
            unit_,
            {
                key: [float(v) for v in each.apart[:: 1 + len(each.apart) // 2000]]
                for key, each in zip(("real", "synthetic"), pairs, strict=True)
            },
        )
    )
    if ratio.floor is not None:
        section.verdicts.append(_verdict(name, ratio, min(sizes)))
    return {
        "real": Measure(means[0], *percentiles(draws[0]), sizes[0]),
        "synthetic": Measure(means[1], *percentiles(draws[1]), sizes[1]),
        "ratio": ratio,
    }


def _verdict(name: str, ratio: Measure, fewest: int) -> Verdict:
    value = ratio.value or 0.0
    if fewest < ENOUGH_TO_SAY:
        light = Light.GREY
    elif (ratio.high or 0.0) >= (ratio.floor_low or 0.0):
        light = Light.GREEN
    else:
        light = Light.AMBER if value >= LEAST_RATIO else Light.RED
    return Verdict(
        f"by {name}, synthetic cases differ from each other as real ones do",
        light,
        f"ratio {value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}); floor "
        f"{ratio.floor:.2f} ({ratio.floor_low:.2f} to {ratio.floor_high:.2f})",
        RULE_RATIO,
    )
