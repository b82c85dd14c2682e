"""What a study found, out of the files of its cells: a table, curves, and one JSON file.

Every arm is compared with the reference on the same subjects. At one number of real cases, p values
are corrected for all arms and ratios that are compared there: whoever picks the best of them has
looked at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medvae3d.data.volumes import write_bytes
from medvae3d.evaluation.curves import DOTS_PER_INCH, FONT, save_figure
from medvae3d.evaluation.intervals import mean_interval
from medvae3d.studies.cells import Cell, read_cell
from medvae3d.studies.comparison import Paired, compare, over_seeds

# Colour-blind safe, after Okabe and Ito, without yellow, which is lost on white.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#777777")


@dataclass(frozen=True)
class Row:
    """One arm at one number of real cases and one ratio, in one measure.

    Attributes:
        n: Real training cases.
        ratio: Extra cases for each real one.
        arm: Name of the arm.
        measure: What was measured.
        mean: Mean over subjects with its interval: ``mean``, ``low``, ``high``, ``n``.
        seeds: Seeds behind it.
        against: Paired difference to the reference; ``None`` for the reference itself.
    """

    n: int
    ratio: float
    arm: str
    measure: str
    mean: Mapping[str, Any]
    seeds: int
    against: Paired | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "n": self.n,
            "ratio": self.ratio,
            "arm": self.arm,
            "measure": self.measure,
            "mean": dict(self.mean),
            "seeds": self.seeds,
            "difference": None if self.against is None else self.against.to_dict(),
        }


def rows_of(
    folder: Path, cells: Sequence[Cell], measures: Sequence[str], reference: str, seed: int = 0
) -> list[Row]:
    """Means, intervals and comparisons of all cells that have been done.

    Args:
        folder: Folder of the study.
        cells: Its cells.
        measures: Names of scores.
        reference: Arm without extra cases that the others are compared with.
        seed: Seed of the bootstraps.
    """
    runs: dict[tuple[int, float, str], list[Mapping[str, Any]]] = {}
    for cell in sorted(cells):
        result = read_cell(folder, cell)
        if result is not None:
            runs.setdefault((cell.n, cell.ratio, cell.arm), []).append(result["scores"])
    rows = []
    for measure in measures:
        for n in sorted({key[0] for key in runs}):
            # An arm at another ratio is another arm here.
            arms = {
                f"{ratio:g} {arm}": over_seeds([_column(scores, measure) for scores in found])
                for (m, ratio, arm), found in runs.items()
                if m == n
            }
            base = f"0 {reference}"
            against = compare(arms, base, seed) if base in arms else {}
            rows += [
                Row(
                    n,
                    ratio,
                    arm,
                    measure,
                    mean_interval(_known(arms[f"{ratio:g} {arm}"]), seed),
                    len(found),
                    against.get(f"{ratio:g} {arm}"),
                )
                for (m, ratio, arm), found in runs.items()
                if m == n
            ]
    return rows


def _column(scores: Mapping[str, Mapping[str, Any]], measure: str) -> dict[str, float | None]:
    return {subject: numbers.get(measure) for subject, numbers in scores.items()}


def _known(scores: Mapping[str, float | None]) -> list[float]:
    return [value for value in scores.values() if value is not None]


def markdown_table(rows: Sequence[Row], measure: str, reference: str) -> str:
    """The rows of one measure as a table of a Markdown page."""
    lines = [
        f"| n | ratio | arm | {measure} (95 %) | difference to {reference} (95 %) | p | p, Holm |"
        f" subjects | seeds |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: (row.n, row.ratio)):
        if row.measure != measure:
            continue
        mean, paired = row.mean, row.against
        difference = p = corrected = ""
        if paired is not None:
            difference = _with_ends(paired.difference, paired.low, paired.high, sign="+")
            difference = f"**{difference}**" if paired.is_clear else difference
            p, corrected = _p(paired.p), _p(paired.p_corrected)
        shown = _with_ends(mean["mean"], mean["low"], mean["high"])
        lines.append(
            f"| {row.n} | {row.ratio:g} | {row.arm} | {shown} | {difference} | {p} | {corrected} |"
            f" {mean['n']} | {row.seeds} |"
        )
    return "\n".join(lines)


def _with_ends(value: Any, low: Any, high: Any, sign: str = "") -> str:
    if value is None:
        return "-"
    if low is None:
        return f"{value:{sign}.4g}"
    return f"{value:{sign}.4f} ({low:{sign}.4f} to {high:{sign}.4f})"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def plot_rows(
    rows: Sequence[Row], measure: str, axis: str, reference: str, png: str | Path
) -> bool:
    """Draws curves over the number of real cases, or over the ratio, with intervals.

    Args:
        rows: What was found.
        measure: What to draw.
        axis: ``n``, a plot for each ratio, or ``ratio``, a plot for each number of cases; arms
            without extra cases stand in every plot.
        reference: Arm that the others are compared with, drawn thicker.
        png: File to write.

    Returns:
        Whether there was anything to draw.
    """
    found = [row for row in rows if row.measure == measure and row.mean["mean"] is not None]
    other = "ratio" if axis == "n" else "n"
    plots = sorted({getattr(row, other) for row in found if axis == "ratio" or row.ratio}) or [0.0]
    arms = list(dict.fromkeys(row.arm for row in found))
    if not found:
        return False
    figure = Figure(figsize=(3.6 * len(plots), 3.0), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    for index, value in enumerate(plots):
        place = figure.add_subplot(1, len(plots), index + 1)
        for number, arm in enumerate(arms):
            drawn = [row for row in found if row.arm == arm and _is_in(row, axis, value)]
            _draw(place, drawn, axis, arm, COLOURS[number % len(COLOURS)], arm == reference)
        _dress(place, f"{other} = {value:g}", measure, axis)
    figure.legend(*_handles(figure), loc="outside lower center", ncols=4, fontsize=6, frameon=False)
    save_figure(figure, png)
    return True


def _is_in(row: Row, axis: str, value: float) -> bool:
    return row.n == value if axis == "ratio" else row.ratio in (0, value)


def _draw(place: Any, rows: Sequence[Row], axis: str, arm: str, colour: str, thick: bool) -> None:
    if not rows:
        return
    width = 2.2 if thick else 1.2
    rows = sorted(rows, key=lambda row: getattr(row, axis))
    means = [row.mean["mean"] for row in rows]
    low = [row.mean["low"] if row.mean["low"] is not None else row.mean["mean"] for row in rows]
    high = [row.mean["high"] if row.mean["high"] is not None else row.mean["mean"] for row in rows]
    if axis == "ratio" and rows[0].ratio == 0:  # no extra cases: the same at every ratio
        place.axhline(means[0], color=colour, lw=width, ls="--", label=arm)
        return
    x = [getattr(row, axis) for row in rows]
    place.plot(x, means, color=colour, lw=width, marker=".", label=arm)
    place.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)


def _dress(place: Any, title: str, measure: str, axis: str) -> None:
    place.set_title(title, **FONT)
    place.set_ylabel(measure, **FONT)
    label = "real training cases" if axis == "n" else "extra cases for each real one"
    place.set_xlabel(label, **FONT)
    if axis == "n":
        place.set_xscale("log")
    place.tick_params(labelsize=6)
    place.tick_params(which="minor", labelsize=5)
    place.spines[["top", "right"]].set_visible(False)
    place.grid(color="#e4e4e4", lw=0.5)


def _handles(figure: Figure) -> tuple[list[Any], list[str]]:
    """One entry of the legend for each arm, whichever plot it is in."""
    known: dict[str, Any] = {}
    for place in figure.axes:
        for handle, name in zip(*place.get_legend_handles_labels(), strict=True):
            known.setdefault(name, handle)
    return list(known.values()), list(known)


def write_study(folder: Path, content: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes ``study.json``: what was asked, and every row."""
    whole = {**content, "rows": [row.to_dict() for row in rows]}
    write_bytes(
        folder / "study.json", json.dumps(whole, indent=1, allow_nan=False).encode() + b"\n"
    )
