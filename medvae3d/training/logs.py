"""Learning curves as files that a spreadsheet or a plotting script reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events


class HistoryWriter:
    """Appends the mean of everything a trainer logs to a CSV file.

    A resumed run drops what was written after the step it resumes from, and goes on below.

    Args:
        path: The file.
        every_steps: Steps that one line is the mean of.
    """

    def __init__(self, path: str, every_steps: int = 50) -> None:
        self.path = Path(path)
        self.every_steps = every_steps
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._names: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Registers the writer with a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)

    def _start(self, engine: Engine) -> None:
        self._sums, self._counts = {}, {}
        rows = read_history(self.path) if self.path.exists() else []
        rows = [row for row in rows if row["step"] <= engine.state.iteration]
        self._names = [name for name in (rows[-1] if rows else {}) if name != "step"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write(rows, "w")

    def _collect(self, engine: Engine) -> None:
        for name, value in engine.state.output.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        if engine.state.iteration % self.every_steps:
            return
        row = {"step": float(engine.state.iteration)}
        row |= {name: total / self._counts[name] for name, total in self._sums.items()}
        fresh = [name for name in row if name not in self._names and name != "step"]
        if fresh:  # a player has entered: write the file anew with its columns
            self._names += fresh
            self._write(read_history(self.path) if self.path.exists() else [], "w")
        self._write([row], "a")
        self._sums, self._counts = {}, {}

    def _write(self, rows: list[dict[str, float]], mode: str) -> None:
        with self.path.open(mode, newline="") as file:
            writer = csv.DictWriter(file, ["step", *self._names], restval="")
            if mode == "w":
                writer.writeheader()
            writer.writerows(
                {k: int(v) if k == "step" else f"{v:.6g}" for k, v in row.items()} for row in rows
            )


def read_history(path: str | Path) -> list[dict[str, float]]:
    """Reads what `HistoryWriter` wrote; a player that was not active yet has no entry."""
    with Path(path).open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


class ValidationWriter:
    """Appends the metrics of each validation to a file, one JSON object a line.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Registers the writer with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self._append)

    def _append(self, engine: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # MONAI's validation handler runs the evaluator to the trainer's epoch.
        row = {"epoch": engine.state.epoch, **engine.state.metrics}
        with self.path.open("a") as file:
            file.write(json.dumps({k: round(float(v), 6) for k, v in row.items()}) + "\n")
