"""How commands read options and talk: ranges and triples, tables, progress with time left."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from medvae3d.errors import SettingError
from medvae3d.files import printable

Number = TypeVar("Number", int, float)
# Columns of a table that goes to a file or a pipe, where there is no window to fit into.
FILE_COLUMNS = 160
_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)


def output() -> Console:
    """A console for results, on the standard output."""
    return _console(sys.stdout)


def notices() -> Console:
    """A console for progress and warnings, on the standard error."""
    return _console(sys.stderr)


def _console(stream: Any, *, never_quiet: bool = False) -> Console:
    # Made anew each time, as tests and notebooks replace the streams.
    width = None if stream.isatty() else FILE_COLUMNS
    quiet = _is_quiet.get() and not never_quiet
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, quiet=quiet)


@contextmanager
def quietly(is_quiet: bool = True) -> Iterator[None]:
    """Prints nothing inside; errors are not printed here, but raised."""
    before = _is_quiet.set(is_quiet or _is_quiet.get())
    try:
        yield
    finally:
        _is_quiet.reset(before)


def say(text: str) -> None:
    """Prints a line of results, neither wrapped nor coloured: paths in it can be copied."""
    output().print(printable(text), soft_wrap=True, markup=False)


AsJson = Annotated[bool, typer.Option("--json", help="Print what came out as JSON.")]
"""The option of every command: its results as one JSON document on the standard output."""


def say_json(content: Any) -> None:
    """Prints results as JSON; what is not finite becomes null, paths become text."""
    say_document(
        json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False, default=str)
    )


def say_document(text: str) -> None:
    """Prints a document that was asked for, also where nothing else is printed."""
    console = _console(sys.stdout, never_quiet=True)
    console.print(printable(text), soft_wrap=True, markup=False)


def say_results(as_json: bool, facts: Any, *lines: str) -> None:
    """Prints results as JSON, or as lines for people."""
    if as_json:
        say_json(facts)
        return
    for line in lines:
        say(line)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def notice(text: str) -> None:
    """Prints a line about how it goes, neither wrapped nor coloured."""
    notices().print(printable(text), soft_wrap=True, markup=False)


def refuse(text: str) -> None:
    """Prints why a command leaves with 2, as the command line itself does."""
    typer.echo(f"error: {printable(text)}", err=True)


# -- options ------------------------------------------------------------------------------------


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: ``a, b or c``."""
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def one_of(*names: str) -> Callable[[str], list[str]]:
    """What completes an option in the shell that takes one of some words."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def parse_whole(text: str, option: str, least: int = 0) -> int:
    """Reads a whole number.

    Raises:
        SettingError: If it is not one, or too small.
    """
    with suppress(ValueError):
        if int(text) >= least:
            return int(text)
    raise SettingError(
        f"{option} is {text!r}; allowed are whole numbers from {least} on. Write it like "
        f"{option} {max(least, 20)}."
    )


def parse_number(
    text: str, option: str, low: float = 0.0, high: float = math.inf, example: float = 1.0
) -> float:
    """Reads a number from ``low`` to ``high``.

    Raises:
        SettingError: If it is not one.
    """
    with suppress(ValueError):
        if low <= float(text) <= high and math.isfinite(float(text)):
            return float(text)
    bounds = f"from {low:g} on" if high == math.inf else f"from {low:g} to {high:g}"
    raise SettingError(
        f"{option} is {text!r}; allowed are numbers {bounds}. Write it like {option} {example:g}."
    )


def parse_range(text: str, option: str, number: type[Number]) -> tuple[Number, Number]:
    """Reads ``LOW:HIGH``.

    Raises:
        SettingError: If it is not that, or the smaller number is not first.
    """
    example = "3:8" if number is int else "2.5:20"
    try:
        low, high = (number(part) for part in text.split(":"))
        is_usable = low <= high and abs(high) != float("inf")
    except ValueError:
        is_usable = False
    if not is_usable:
        kind = "whole numbers" if number is int else "numbers"
        raise SettingError(
            f"{option} is {text!r}; allowed are two {kind} as LOW:HIGH, the smaller one first. "
            f"Write it like {option} {example}."
        )
    return low, high


def parse_triple(
    text: str, option: str, number: type[Number], *, above: float | None = None
) -> tuple[Number, Number, Number]:
    """Reads three numbers with commas between them.

    Args:
        text: What the user wrote.
        option: Its option, for the message.
        number: Type of the numbers.
        above: What each has to be larger than, if anything.

    Raises:
        SettingError: If it is not that.
    """
    try:
        i, j, k = (number(part) for part in text.split(","))
        is_usable = all(abs(v) < float("inf") for v in (i, j, k))
        is_usable = is_usable and (above is None or min(i, j, k) > above)
    except ValueError:
        is_usable = False
    if not is_usable:
        kind = "whole numbers" if number is int else "numbers"
        bound = "" if above is None else f" above {above:g}"
        raise SettingError(
            f"{option} is {text!r}; allowed are three {kind}{bound} along right, anterior, "
            f"superior, with commas and no spaces. Write it like {option} 64,64,48."
        )
    return i, j, k


# -- tables -------------------------------------------------------------------------------------


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table; columns whose name begins with ``>`` are aligned to the right."""
    made = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column[:1] == ">" else "left")
    for row in rows:
        made.add_row(*(Text(printable(text_of(value))) for value in row))
    return made


def text_of(value: Any) -> str:
    """A value as a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {text_of(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text_of, value))
    return str(value)


def times(shape: Sequence[Any]) -> str:
    """Sizes along the axes, as ``64 x 64 x 48``."""
    return " x ".join(f"{n:.4g}" if isinstance(n, float) else str(n) for n in shape)


# -- progress -----------------------------------------------------------------------------------

Advance = Callable[[int, int, str], None]
"""Told what is done, what is wanted, and a few words about it."""


@contextmanager
def progress(task: str) -> Iterator[Advance]:
    """Shows a bar with the time left, on terminals only; yields what to call as it goes on."""
    console = notices()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bar:
        number = bar.add_task(task, total=None, words="")
        is_first = True

        def advance(done: int, wanted: int, words: str) -> None:
            nonlocal is_first
            if is_first:
                # What was done by an earlier run says nothing of the speed of this one.
                bar.reset(number, total=wanted, completed=done, words=words)
            else:
                bar.update(number, total=wanted, completed=done, words=words)
            is_first = False

        yield advance


def in_lines(advance: Advance, what: str) -> Advance:
    """A bar on terminals, and a line for each step elsewhere, for steps that take a minute."""

    def tell(done: int, wanted: int, words: str) -> None:
        if notices().is_terminal:
            advance(done, wanted, words)
        else:
            notice(f"{what} {done} of {wanted}: {words}")

    return tell


def duration(seconds: float) -> str:
    """A span of time in the largest units that fit: ``3.2 s``, ``12 min``, ``2 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start
