"""Pictures of numbers: learning curves and what was asked against what was made.

The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medvae3d.data.volumes import write_bytes
from medvae3d.errors import DataListError, UnreadableFileError
from medvae3d.files import read_numbers

DOTS_PER_INCH = 110
COLOURS = ("#1f6fb4", "#d1661c", "#2c8a4b", "#a03a86")
# What a reader wants to see of a run, in this order; by the last part of a name.
TRAINED = ("nll", "kl", "overlap", "absolute_error", "in_mask_error", "adversarial", "accuracy")
VALIDATED = ("elbo_per_voxel", "nmse", "dice")
CURVES = "curves.png"
FONT = {"fontsize": 8, "family": "DejaVu Sans"}


def plot_history(
    history: str | Path, validation: str | Path | None, png: str | Path, columns: int = 4
) -> None:
    """Draws the terms of a training run over its steps, and the scores on unseen cases below.

    Args:
        history: ``history.csv`` of the run.
        validation: ``validation.jsonl`` of the run, if there is one.
        png: File to write.
        columns: Plots beside each other.

    Raises:
        UnreadableFileError: If a file cannot be read.
        DataListError: If it holds no numbers.
    """
    rows = _read_history(Path(history))
    scores = _read_validation(Path(validation)) if validation is not None else []
    trained = _grouped(rows, TRAINED)
    validated = _grouped(scores, VALIDATED)
    if not trained and not validated:
        raise DataListError(
            f"{history} holds none of {', '.join(TRAINED)}; it is no history of a training run. "
            f"Give the history.csv that `train` wrote."
        )
    plots = [
        *((name, each, rows, "step") for name, each in trained.items()),
        *((f"unseen: {name}", each, scores, "epoch") for name, each in validated.items()),
    ]
    figure, axes = _axes(len(plots), columns)
    for place, (name, keys, source, across) in zip(axes, plots, strict=True):
        for number, key in enumerate(keys):
            points = [(row[across], row[key]) for row in source if key in row and across in row]
            label = key.partition("/")[0] if len(keys) > 1 else None
            colour = COLOURS[number % len(COLOURS)]
            marker = "." if across == "epoch" else None
            place.plot(*zip(*points, strict=True), color=colour, lw=1.2, marker=marker, label=label)
        values = [row[key] for row in source for key in keys if key in row]
        if min(values) > 0 and max(values) > 100 * min(values):
            place.set_yscale("log")
        place.set_title(name.replace("_", " "), **FONT)
        place.set_xlabel(across, **FONT)
        if len(keys) > 1:
            place.legend(fontsize=6, frameon=False)
    save_figure(figure, png)


def plot_run(folder: str | Path, png: str | Path) -> bool:
    """Draws what a training run has left in a folder of learning curves, if it has left any.

    Args:
        folder: With ``history.csv`` and, where there were validation cases, ``validation.jsonl``.
        png: File to write.

    Returns:
        Whether there was something to draw.

    Raises:
        UnreadableFileError: If a file cannot be read.
        DataListError: If it holds no numbers.
    """
    history, scores = Path(folder) / "history.csv", Path(folder) / "validation.jsonl"
    if not history.is_file():
        return False
    plot_history(history, scores if scores.is_file() else None, png)
    return True


def plot_control(asked: Sequence[float], made: Sequence[float], png: str | Path) -> None:
    """Draws volumes made against volumes asked for, in ml."""
    figure, (place,) = _axes(1, 1, size=3.2)
    ends = [min(*asked, *made), max(*asked, *made)]
    place.plot(ends, ends, color="#999999", lw=0.8)
    place.scatter(asked, made, s=10, color=COLOURS[0])
    place.set_xscale("log")
    place.set_yscale("log")
    place.set_xlabel("asked, ml", **FONT)
    place.set_ylabel("made, ml", **FONT)
    save_figure(figure, png)


def save_figure(figure: Figure, png: str | Path) -> None:
    """Writes a PNG without the name of the program or the time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(Path(png), buffer.getvalue())


def _axes(count: int, columns: int, size: float = 2.1) -> tuple[Figure, list[Any]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    shape = (size * 1.25 * columns, size * rows)
    figure = Figure(figsize=shape, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    places = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    for place in places:
        place.tick_params(labelsize=6)
        place.spines[["top", "right"]].set_visible(False)
        place.grid(color="#e4e4e4", lw=0.5)
    return figure, places


def _grouped(rows: Sequence[Mapping[str, float]], wanted: Sequence[str]) -> dict[str, list[str]]:
    """Columns by the last part of their name, in the order wanted; those that have a number."""
    known = list(dict.fromkeys(key for row in rows for key in row))
    groups = {name: [key for key in known if key.rpartition("/")[2] == name] for name in wanted}
    return {name: keys for name, keys in groups.items() if keys}


def _read_history(path: Path) -> list[dict[str, float]]:
    try:
        return read_numbers(path)[1]
    except OSError as error:
        raise UnreadableFileError(
            f"{path} cannot be read: {error.strerror}. Check the path; `train` writes it."
        ) from error
    except ValueError as error:
        raise DataListError(
            f"{path} is no table of numbers: {error}. Give the history.csv that `train` wrote."
        ) from error


def _read_validation(path: Path) -> list[dict[str, float]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise UnreadableFileError(
            f"{path} cannot be read: {error.strerror}. Check the path; `train` writes it."
        ) from error
    except ValueError as error:
        raise DataListError(
            f"{path} does not hold one JSON object a line: {error}. Give the validation.jsonl that "
            f"`train` wrote."
        ) from error
