"""The figures that a bundle is held to, as a table that a reader and a program can read.

Figures are sections of plain numbers; ``rows`` in a section is a table, one entry a line of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvae3d.data.volumes import write_bytes


def targets(figures: Mapping[str, Any], *, is_fast: bool = True) -> list[dict[str, Any]]:
    """What the figures are held to: each a claim, its value, and whether it is reached.

    Args:
        figures: Sections by name; those that are missing are not judged.
        is_fast: Whether 15 written pairs a second are expected.
    """
    found: list[dict[str, Any]] = []

    def judge(claim: str, value: float | None, limit: float | None, *, above: bool) -> None:
        if value is None or limit is None:
            return
        reached = value > limit if above else value < limit
        sign = "above" if above else "below"
        found.append({"claim": claim, "value": value, "target": f"{sign} {limit:.4g}",
                      "reached": bool(reached)})  # fmt: skip

    def mean(section: str, row: str, score: str) -> float | None:
        rows = figures.get(section, {}).get("rows", {})
        name = next((key for key in rows if key.startswith(row)), None)
        value = None if name is None else rows[name].get(score, {}).get("mean")
        return None if value is None else float(value)

    for section, score, above in (
        ("reconstruction", "nmse", False),
        ("reconstruction", "psnr", True),
        ("reconstruction", "ssim", True),
        ("reconstruction", "dice", True),
        ("shape", "dice", True),
    ):
        limit = mean(section, "PCA, ", score)
        claim = f"{section}: {score} better than PCA"
        judge(claim, mean(section, "model", score), limit, above=above)
    for row, name in (("constant", "constant fill"), ("nearest", "pasting the nearest lesion")):
        for score, above in (("nmse", False), ("ssim", True)):
            limit = mean("texture", row, score)
            value = mean("texture", "model, posterior mean", score)
            judge(f"texture: in-mask {score} better than {name}", value, limit, above=above)
    gain = figures.get("evidence", {}).get("rows", {}).get("difference", {}).get("elbo", {})
    judge("evidence: the flow raises the ELBO, nats", gain.get("mean"), 0.0, above=True)
    control = figures.get("control", {})
    judge("control: Spearman of asked and made volume", control.get("spearman"), 0.95, above=True)
    generation = figures.get("generation", {})
    judge("generation: rejection rate", generation.get("rejection_rate"), 0.2, above=False)
    agreement = figures.get("agreement", {})
    judge("agreement: Dice on synthetic over real", agreement.get("ratio"), 0.9, above=True)
    rows = agreement.get("rows", {})
    if rows:
        shuffled, paired = rows["synthetic, shuffled"]["dice"], rows["synthetic"]["dice"]
        judge("agreement: shuffled pairs, upper end, under paired, lower end",
              shuffled["high"], paired["low"], above=False)  # fmt: skip
    throughput = figures.get("throughput", {})
    if is_fast:
        judge("throughput: written pairs a second", throughput.get("per_second"), 15, above=True)
    judge("throughput: peak memory, MB", throughput.get("peak_memory_mb"), 2048, above=False)
    return found


# -- files ----------------------------------------------------------------------------------------


def write_figures(figures: Mapping[str, Any], out: Path) -> None:
    """Writes ``figures.json`` and ``figures.md``."""
    text = json.dumps(plain(figures), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(out / "figures.json", text.encode())
    write_bytes(out / "figures.md", markdown(plain(figures)).encode())


def plain(value: Any) -> Any:
    """Numbers and containers as JSON holds them; what is not finite becomes ``None``."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if value is None or isinstance(value, (bool, str, int)):
        return value
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None


def markdown(figures: Mapping[str, Any]) -> str:
    """The figures as tables; intervals are 95 % bootstrap intervals over cases."""
    facts = {key: value for key, value in figures.items() if not isinstance(value, (dict, list))}
    lines = ["# Figures", "", *_bullets(facts), ""]
    if figures.get("targets"):
        lines += ["## Targets", "", "| | value | target | reached |", "|---|---|---|---|"]
        lines += [
            f"| {each['claim']} | {_number(each['value'])} | {each['target']} | "
            f"{'yes' if each['reached'] else '**no**'} |"
            for each in figures["targets"]
        ]
        lines.append("")
    for name, section in figures.items():
        if isinstance(section, dict):
            lines += [f"## {name.capitalize()}", "", *_section(section), ""]
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Mapping[str, Any]) -> list[str]:
    simple = {key: value for key, value in section.items() if not isinstance(value, dict)}
    lines = _bullets(simple)
    for key, value in section.items():
        if key == "rows" or not isinstance(value, dict):
            continue
        lines.append(f"- {key.replace('_', ' ')}: " + "; ".join(
            f"{name.replace('_', ' ')} {_cell(each)}" for name, each in value.items()
        ))  # fmt: skip
    rows = section.get("rows", {})
    if rows:
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        lines += ["", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name, row in rows.items():
            cells = [_cell(row[key]) if key in row else "" for key in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _bullets(facts: Mapping[str, Any]) -> list[str]:
    return [f"- {key.replace('_', ' ')}: {_cell(value)}" for key, value in facts.items()]


def _cell(value: Any) -> str:
    if isinstance(value, dict) and "mean" in value:
        mean = _number(value["mean"])
        if value.get("standard_error") is not None:
            return f"{mean} ± {_number(value['standard_error'])}"
        if value.get("low") is not None:
            return f"{mean} [{_number(value['low'])}, {_number(value['high'])}]"
        return mean
    if isinstance(value, dict):
        return "; ".join(f"{key} {_cell(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(_cell(each) for each in value)
    return _number(value)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"
    return str(value)
