"""What a classification study found, out of the files of its cells.

Every arm is compared with the reference on the same cases. At one number of real cases, p values of
a measure are corrected after Holm for all arms and ratios that are compared there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from medvae3d.errors import OutputError
from medvae3d.evaluation.curves import DOTS_PER_INCH, FONT, save_figure
from medvae3d.evaluation.sections import Measure
from medvae3d.studies.cells import Cell, read_cell
from medvae3d.studies.classification.metrics import MEASURES, compared, measured
from medvae3d.studies.comparison import Paired, holm
from medvae3d.studies.results import COLOURS, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


CONTROLS: Mapping[str, str] = {"selected": "random", "adaptive": "synthetic"}
"""Arms that are also compared with another one, at the same number and ratio, and generator."""


@dataclass(frozen=True, eq=False)
class Arm:
    """All seeds of one arm at one number of real cases and one ratio.

    Attributes:
        n: Real training cases of each class.
        ratio: Extra cases for each real one.
        name: Name of the arm.
        p: Probabilities by seed, ``(S, N)``.
        measures: Every measure with its interval.
        against: Differences to the reference; empty for the reference itself.
        cells: Contents of the files of the cells.
        against_control: Differences to the control of this arm, such as random images for selected
            ones; empty without one.
    """

    n: int
    ratio: float
    name: str
    p: Array = field(repr=False)
    measures: Mapping[str, Measure] = field(repr=False)
    against: Mapping[str, Paired] = field(repr=False)
    cells: tuple[Mapping[str, Any], ...] = field(repr=False)
    against_control: Mapping[str, Paired] = field(default_factory=dict, repr=False)


def arms_of(
    folder: Path,
    cells: Sequence[Cell],
    y: Sequence[int],
    subjects: Sequence[str],
    reference: str,
    seed: int = 0,
) -> list[Arm]:
    """All arms with the cells that have been done, the comparisons corrected after Holm.

    Args:
        folder: Folder of the study.
        cells: Its cells.
        y: Class of each judged case.
        subjects: Its patient.
        reference: Arm that the others are compared with.
        seed: Seed of the bootstraps.
    """
    runs: dict[tuple[int, float, str], list[tuple[int, Mapping[str, Any]]]] = {}
    for cell in sorted(cells):
        result = read_cell(folder, cell)
        if result is not None:
            runs.setdefault((cell.n, cell.ratio, cell.arm), []).append((cell.seed, result))
    found: list[Arm] = []
    for (n, ratio, name), results in runs.items():
        rows = [result.get("p", ()) for _, result in results]
        if any(len(row) != len(y) for row in rows):
            raise OutputError(
                f"a cell of {name} in {folder} does not hold one probability for each of {len(y)} "
                f"judged cases. Delete its file in cells/, and it is done again."
            )
        p = np.asarray(rows, dtype=np.float64)
        of = dict(results)
        against = {} if name == reference else dict(runs.get((n, 0.0, reference), []))
        control = dict(runs.get((n, ratio, _control_of(name)), []))
        found.append(
            Arm(
                n,
                ratio,
                name,
                p,
                measured(y, p, subjects, seed),
                _compared(y, of, against, subjects, seed),
                tuple(of.values()),
                _compared(y, of, control, subjects, seed),
            )
        )
    return _corrected(found)


def _control_of(name: str) -> str:
    base, hyphen, variant = name.partition("-")
    return CONTROLS[base] + hyphen + variant if base in CONTROLS else ""


def _compared(
    y: Sequence[int],
    cells: Mapping[int, Mapping[str, Any]],
    others: Mapping[int, Mapping[str, Any]],
    subjects: Sequence[str],
    seed: int,
) -> dict[str, Paired]:
    """Differences over the seeds that both have: the first weights are the same then."""
    shared = [number for number in cells if number in others]
    if not shared:
        return {}
    p, q = (
        np.asarray([each[number]["p"] for number in shared], dtype=np.float64)
        for each in (cells, others)
    )
    return compared(y, p, q, subjects, seed)


def _corrected(arms: list[Arm]) -> list[Arm]:
    against = [dict(arm.against) for arm in arms]
    for n in {arm.n for arm in arms}:
        for measure in MEASURES:
            tested = [
                (i, p)
                for i, arm in enumerate(arms)
                if arm.n == n and measure in arm.against
                if (p := arm.against[measure].p) is not None
            ]
            corrected = holm([p for _, p in tested])
            for (i, _), p in zip(tested, corrected, strict=True):
                against[i][measure] = replace(against[i][measure], p_corrected=p)
    return [replace(arm, against=each) for arm, each in zip(arms, against, strict=True)]


def rows_of(arms: Sequence[Arm]) -> list[Row]:
    """The rows of tables and curves."""
    return [
        Row(
            arm.n,
            arm.ratio,
            arm.name,
            name,
            {"mean": each.value, "low": each.low, "high": each.high, "n": each.n},
            len(arm.p),
            arm.against.get(name),
        )
        for name in MEASURES
        for arm in arms
        for each in [arm.measures[name]]
    ]


def plot_roc(arms: Sequence[Arm], y: Sequence[int], png: str | Path) -> None:
    """Draws ROC curves of all arms, a plot for each number of real cases, the mean over seeds.

    Args:
        arms: What was found.
        y: Class of each judged case.
        png: File to write.
    """
    numbers = sorted({arm.n for arm in arms})
    figure = Figure(figsize=(3.4 * len(numbers), 3.4), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    for index, n in enumerate(numbers):
        place: Any = figure.add_subplot(1, len(numbers), index + 1)
        place.plot((0, 1), (0, 1), color="#bbbbbb", lw=0.8)
        for number, arm in enumerate(arm for arm in arms if arm.n == n):
            x, height = mean_roc(y, arm.p)
            auc = arm.measures["auc"].value
            ratio = f", ratio {arm.ratio:g}" if arm.ratio else ""
            shown = f"{arm.name}{ratio}: {auc:.3f}" if auc is not None else arm.name
            place.plot(x, height, color=COLOURS[number % len(COLOURS)], lw=1.2, label=shown)
        place.set_title(f"n = {n} of each class", **FONT)
        place.set_xlabel("1 - specificity", **FONT)
        place.set_ylabel("sensitivity", **FONT)
        place.set_aspect("equal")
        place.tick_params(labelsize=6)
        place.legend(fontsize=6, frameon=False, loc="lower right")
    save_figure(figure, png)


def mean_roc(y: Sequence[int], runs: Array) -> tuple[Array, Array]:
    """Sensitivity over one minus specificity, averaged over seeds at the same specificity."""
    grid = np.linspace(0, 1, 101)
    heights = []
    for p in runs:
        x, height, _ = roc_curve(y, p)
        heights.append(np.interp(grid, x, height))
    mean = np.mean(heights, axis=0)
    # A curve begins in the corner, also where it rises at once.
    return np.concatenate([[0.0], grid]), np.concatenate([[0.0], mean])
