"""What an evaluation says, in a form that a page, a file and a program can read.

A report is a list of sections. A section holds tables of measures, facts, what is to be drawn as a
distribution, numbers by case, and verdicts with the rule behind each. A section that cannot be
computed says why; it never takes the others down with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Light(str, Enum):
    """What a verdict comes to."""

    GREEN = "green"
    AMBER = "amber"
    RED = "red"
    GREY = "grey"
    """Too few cases to say."""


@dataclass(frozen=True)
class Measure:
    """One number with all that is needed to weigh it.

    Attributes:
        value: The number; ``None`` if it could not be computed.
        low: Lower end of its interval.
        high: Upper end of its interval.
        n: Cases behind it; by set where there are two.
        floor: The same measure between two sets of real cases of the same sizes: what a perfect
            generator would get.
        floor_low: Lower end of the interval of the floor.
        floor_high: Upper end of the interval of the floor.
        note: What a reader has to know, such as why there is no value.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | tuple[int, int] | None = None
    floor: float | None = None
    floor_low: float | None = None
    floor_high: float | None = None
    note: str = ""

    @classmethod
    def of(cls, interval: Mapping[str, Any], note: str = "") -> Measure:
        """From `medvae3d.evaluation.intervals.mean_interval`."""
        return cls(interval["mean"], interval["low"], interval["high"], interval["n"], note=note)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes ``None``."""
        found: dict[str, Any] = {
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "n": list(self.n) if isinstance(self.n, tuple) else self.n,
        }
        if self.floor is not None:
            found["floor"] = {
                "value": _finite(self.floor),
                "low": _finite(self.floor_low),
                "high": _finite(self.floor_high),
            }
        return found | ({"note": self.note} if self.note else {})


@dataclass(frozen=True)
class Verdict:
    """A claim, its light, and the rule that gave it.

    Attributes:
        claim: What is asked, in words.
        light: The answer.
        found: What was found, in words with numbers.
        rule: Which values give which light, and why these.
    """

    claim: str
    light: Light
    found: str
    rule: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "claim": self.claim,
            "light": self.light.value,
            "found": self.found,
            "rule": self.rule,
        }


@dataclass(frozen=True)
class Distribution:
    """Numbers of several sets, to be drawn over each other.

    Attributes:
        name: What was measured.
        unit: Its unit; empty for none.
        values: Numbers by set, such as ``real`` and ``synthetic``.
        is_log: Whether the axis is logarithmic.
    """

    name: str
    unit: str
    values: Mapping[str, Sequence[float]]
    is_log: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        values = {key: [_finite(v) for v in each] for key, each in self.values.items()}
        return {"name": self.name, "unit": self.unit, "is_log": self.is_log, "values": values}


Table = Mapping[str, Mapping[str, Measure]]
"""Measures by row and column."""


@dataclass
class Section:
    """One part of a report.

    Attributes:
        name: Short name, in ``report.json``.
        title: Heading.
        text: What is measured and how to read it, in a few sentences.
        tables: Tables by title.
        facts: Plain values: settings, counts, versions of feature networks, licences.
        distributions: What is drawn as histograms.
        cases: Numbers by set, case and measure.
        verdicts: Lights with their rules.
        warnings: What a reader has to be told, such as that there are too few cases to rank by.
        not_computed: Why there is nothing here; empty if there is.
    """

    name: str
    title: str
    text: str = ""
    tables: dict[str, Table] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    distributions: list[Distribution] = field(default_factory=list)
    cases: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    not_computed: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``report.json`` holds them."""
        if self.not_computed:
            return {"title": self.title, "not_computed": self.not_computed}
        tables = {
            title: {
                row: {column: measure.to_dict() for column, measure in columns.items()}
                for row, columns in table.items()
            }
            for title, table in self.tables.items()
        }
        cases = {
            group: {
                case: {name: _finite(value) for name, value in numbers.items()}
                for case, numbers in rows.items()
            }
            for group, rows in self.cases.items()
        }
        return {
            "title": self.title,
            "text": self.text,
            "tables": tables,
            "facts": self.facts,
            "distributions": [each.to_dict() for each in self.distributions],
            "cases": cases,
            "verdicts": [each.to_dict() for each in self.verdicts],
            "warnings": self.warnings,
        }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
