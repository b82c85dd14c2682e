"""Learning curves as files that a spreadsheet or a plotting script reads."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from medvae3d.data.nifti import write_bytes
from medvae3d.errors import OutputError
from medvae3d.files import read_numbers


class ProgressLog:
    """Logs where a run stands and how long it will still take; needs no terminal.

    The time left comes from the pace since the last line, since steps get slower when a flow or a
    discriminator joins in.

    Args:
        every_seconds: Time between two lines.
        clock: Tells the time in seconds.
    """

    def __init__(
        self, every_seconds: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.every_seconds = every_seconds
        self.clock = clock
        self._begun = self._then = 0.0
        self._losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Registers the log with a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self._begun = self._then = self.clock()
        self._losses = []

    def _step(self, engine: Any) -> None:
        self._losses.append(float(engine.state.output["loss"]))
        now, done = self.clock(), engine.state.iteration
        total = engine.state.epoch_length * engine.state.max_epochs
        if now - self._then < self.every_seconds and done < total:
            return
        pace = (now - self._then) / len(self._losses)
        loss = sum(self._losses) / len(self._losses)
        engine.logger.info(
            f"step {done} of {total} ({100 * done // total} %), loss {loss:.6g}, {pace:.2g} s a "
            f"step, {duration(pace * (total - done))} left"
        )
        self._then, self._losses = now, []

    def _finish(self, engine: Any) -> None:
        took = duration(self.clock() - self._begun)
        engine.logger.info(f"training ended at step {engine.state.iteration} after {took}")


def duration(seconds: float) -> str:
    """A time in words: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


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

    def _collect(self, engine: Any) -> None:
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
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["step", *self._names], restval="")
        if mode == "w":
            writer.writeheader()
        writer.writerows(
            {k: int(v) if k == "step" else f"{v:.6g}" for k, v in row.items()} for row in rows
        )
        if mode == "w":
            write_bytes(self.path, text.getvalue().encode())
        else:
            append(self.path, text.getvalue())


def read_history(path: str | Path) -> list[dict[str, float]]:
    """Reads what `HistoryWriter` wrote; a player that was not active yet has no entry.

    Raises:
        OutputError: If the file holds something else.
    """
    try:
        names, rows = read_numbers(path)
        # The file of a run that was killed may be empty.
        if (names and "step" not in names) or any("step" not in row for row in rows):
            raise ValueError("it has no column of steps")
    except (OSError, ValueError) as error:
        raise _no_log(path, "table of numbers", error) from error
    return rows


def _no_log(path: str | Path, expected: str, error: Exception) -> OutputError:
    return OutputError(
        f"{path} is no {expected} that a training wrote ({error}). Move it away to go on with the "
        f"training; what it held is lost to the curves alone."
    )


def append(path: Path, text: str) -> None:
    """Appends whole lines to a file, or none of them.

    Raises:
        OutputError: If they cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            content = memoryview(text.encode())
            try:
                while content:
                    content = content[file.write(content) or 0 :]
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}. Make room, or choose a folder "
            f"that you may write to."
        ) from error


class ValidationWriter:
    """Appends the metrics of each validation to a file, one JSON object a line.

    A resumed run that comes to an epoch again drops what was written of it and of later ones.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Registers the writer with an evaluator.

        Raises:
            OutputError: If the file is there and holds something else; said before the training.
        """
        self._lines()
        engine.add_event_handler(Events.COMPLETED, self._append)

    def _lines(self) -> list[tuple[float, str]]:
        """The lines of the file, each with its epoch."""
        try:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            lines = text.splitlines(keepends=True)
            return [(float(json.loads(line)["epoch"]), line) for line in lines]
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise _no_log(self.path, "list of validations", error) from error

    def _append(self, engine: Any) -> None:
        # MONAI's validation handler runs the evaluator to the trainer's epoch.
        row = {"epoch": engine.state.epoch, **engine.state.metrics}
        lines = self._lines()
        kept = [line for epoch, line in lines if epoch < engine.state.epoch]
        if len(kept) < len(lines):
            write_bytes(self.path, "".join(kept).encode())
        append(self.path, json.dumps({k: round(float(v), 6) for k, v in row.items()}) + "\n")
