"""The comparison of all systems as a picture: a row for each of its rows, a dot for each seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medvae3d.evaluation.curves import COLOURS, DOTS_PER_INCH, FONT, save_figure
from medvae3d.studies.zoo import COLUMNS, Column, Summary, floor

# Measures in order, and whether they are drawn over a logarithmic axis.
CHARTED = {
    "nmse": True,
    "dice": False,
    "frechet": True,
    "coverage": False,
    "copies": False,
    "cpu_seconds_a_step": True,
}
ROW, PANEL, NAMES = 0.17, 1.5, 2.2  # inches: height of a row, width of a plot and of the names
GREY = "#777777"


def plot_comparison(summaries: Sequence[Summary], png: str | Path) -> bool:
    """Draws the rows of the table, each seed a dot and their mean a stroke.

    Rows without a model are grey, ablations have a colour for each group; a dashed line is what
    unseen cases get against each other.

    Args:
        summaries: Rows of the table, as `markdown` takes them.
        png: File to write.

    Returns:
        Whether there was anything to draw.
    """
    rows = [each for each in summaries if any(name in each.values for name in CHARTED)]
    known = {column.name: column for column in COLUMNS}
    columns = [known[n] for n in CHARTED if any(n in each.values for each in rows)]
    if not columns:
        return False
    heights = _heights(rows)
    shape = (NAMES + PANEL * len(columns), 0.9 + ROW * (1 + max(heights)))
    figure = Figure(figsize=shape, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    least = floor(rows).mean
    for number, column in enumerate(columns):
        place: Any = figure.add_subplot(1, len(columns), number + 1)
        if column.name in least:
            place.axvline(least[column.name], color=GREY, lw=0.8, ls="--")
        _draw(place, column, rows, heights)
        place.set_ylim(max(heights) + 0.7, -0.7)
        place.set_yticks(heights, [each.entry.name if number == 0 else "" for each in rows], **FONT)
        place.tick_params(axis="y", length=0)
    save_figure(figure, png)
    return True


def _heights(rows: Sequence[Summary]) -> list[float]:
    """Where each row stands: one below the other, with a gap between groups."""
    heights, height = [], 0.0
    for index, each in enumerate(rows):
        if index:
            height += 1.0 if each.entry.group == rows[index - 1].entry.group else 1.7
        heights.append(height)
    return heights


def _draw(place: Any, column: Column, rows: Sequence[Summary], heights: Sequence[float]) -> None:
    groups = list(dict.fromkeys(each.entry.group for each in rows))
    for each, height in zip(rows, heights, strict=True):
        values = each.values.get(column.name)
        if not values:
            continue
        number = groups.index(each.entry.group) % len(COLOURS)
        colour = COLOURS[number] if each.entry.system else GREY
        place.plot(values, [height] * len(values), ".", color=colour, ms=5, mew=0, alpha=0.55)
        mean = each.mean[column.name]
        place.plot([mean, mean], [height - 0.33, height + 0.33], color=colour, lw=1.6)
    if CHARTED[column.name]:
        place.set_xscale("log")
        place.minorticks_off()
        ticks = log_ticks(*place.get_xlim())
        place.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    better = {"low": "less is better", "high": "more is better"}.get(column.best, "")
    place.set_title(f"{column.title}\n{better}", **FONT)
    place.tick_params(axis="x", labelsize=6)
    place.spines[["top", "right"]].set_visible(False)
    place.grid(axis="x", color="#e4e4e4", lw=0.5)
    place.grid(axis="y", color="#f0f0f0", lw=0.5)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones: 1, 2, 5 of each decade, or more if these are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) > 2:
            break
    return ticks
