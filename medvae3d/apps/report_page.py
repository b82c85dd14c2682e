"""The page of a report: one file that opens from disk, without a network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import zip_longest
from typing import Any

from medvae3d.apps.console import text_of, times
from medvae3d.apps.evaluate_sections import Judged
from medvae3d.apps.report_plots import distributions_svg
from medvae3d.apps.report_viewer import find_niivue, viewer_parts
from medvae3d.evaluation.sections import Light, Measure, Section, Table, Verdict
from medvae3d.synthesis.preview import COLOURS

# A page with more plots or cells than this is read by nobody; report.json holds all.
PLOTS, CELLS = 24, 6000
# Nothing is fetched, and nothing could be: the page says so to the browser.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval' blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:; connect-src data: blob:; worker-src blob:; "
    "font-src data: blob:"
)
LIGHTS = {
    Light.GREEN: "as it should be",
    Light.AMBER: "look closer",
    Light.RED: "not as it should be",
    Light.GREY: "too few cases to say",
}


def make_page(
    content: Mapping[str, Any],
    sections: Mapping[str, Section],
    judged: Judged,
    sheets: Mapping[str, bytes],
    viewer_cases: int,
) -> str:
    """Makes the page.

    Args:
        content: What ``report.json`` holds.
        sections: The sections by name.
        judged: The cases.
        sheets: Contact sheets as PNG, by set.
        viewer_cases: Cases in the viewer; none without any.
    """
    legend = _legend(judged.frame.labels)
    parts = {
        "summary": ("Summary", _summary(sections)),
        "inputs": ("What was compared", _inputs(content)),
        **{name: (each.title, _section(each)) for name, each in sections.items()},
        **({"cases": ("Cases", _sheets(sheets) + legend)} if sheets else {}),
    }
    scripts = ""
    if viewer_cases > 0:
        niivue = find_niivue()
        held = viewer_parts(judged, viewer_cases, niivue)
        parts["viewer"] = ("Viewer", _viewer(niivue is not None, legend))
        scripts = (
            f'<script type="application/json" id="volumes">{held["volumes"]}</script>\n'
            f'<script type="text/plain" id="niivue-module">{held["module"]}</script>\n'
            f"<script>{held['script']}</script>\n"
        )
        licence = "" if niivue is None else _licence(niivue.package, niivue.licence)
    else:
        licence = ""
    parts["how"] = ("How this was made", _how(content) + licence)
    links = "".join(
        f'<a href="#{name}">{escape(title.partition(":")[0])}</a>'
        for name, (title, _) in parts.items()
    )
    blocks = "\n".join(
        f'<section id="{name}"><h2>{escape(title)}</h2>\n{text}</section>'
        for name, (title, text) in parts.items()
    )
    counts = ", ".join(f"{each['cases']} {name}" for name, each in content["inputs"].items())
    css = resources.files("medvae3d.apps").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>medvae3d report</title>\n<style>{css}</style>\n</head>\n<body>\n"
        f"<header><div><h1>Synthetic against real cases</h1><p>{escape(counts)} cases, "
        f"medvae3d {escape(content['versions']['medvae3d'])}</p><nav>{links}</nav></div></header>\n"
        f"<main>\n{blocks}\n</main>\n{scripts}</body>\n</html>\n"
    )


# -- parts ----------------------------------------------------------------------------------------


def _summary(sections: Mapping[str, Section]) -> str:
    rows = [
        (
            f'<span class="light {verdict.light.value}">{verdict.light.value}</span>',
            escape(_begun(verdict.claim)),
            escape(verdict.found),
            f'<a href="#{name}">{escape(section.title.partition(":")[0])}</a>',
        )
        for name, section in sections.items()
        if not section.not_computed
        for verdict in section.verdicts
    ]
    missing = [
        f'<p class="missing"><b>{escape(each.title)}</b> was not computed: '
        f"{escape(each.not_computed)}</p>"
        for each in sections.values()
        if each.not_computed
    ]
    table = _rows(("", "claim", "found", "section"), rows) if rows else "<p>No verdicts.</p>"
    meaning = "; ".join(f"{light.value}: {words}" for light, words in LIGHTS.items())
    rules = "".join(
        f"<li><b>{escape(_begun(verdict.claim))}</b>: {escape(verdict.rule)}</li>"
        for section in sections.values()
        for verdict in ([] if section.not_computed else section.verdicts)
    )
    explained = f"<details><summary>What gives which light</summary><ul>{rules}</ul></details>"
    return (
        f"{table}<p class='soft'>{escape(meaning)}. A light is a rule applied to a number, not a "
        f"release of data: read the sections behind it.</p>{explained if rules else ''}"
        f"{''.join(missing)}"
    )


def _inputs(content: Mapping[str, Any]) -> str:
    rows = [
        (
            escape(name),
            str(each["cases"]),
            escape(", ".join(each["splits"])),
            escape(each["list"]),
            f'<span class="soft">{each["sha256"][:12]}</span>',
        )
        for name, each in content["inputs"].items()
    ]
    grid = content["grid"]
    labels = ", ".join(f"{name} ({value})" for name, value in grid["labels"].items()) or "none"
    words = (
        f"All cases were put on one grid of {times(grid['shape'])} voxels of "
        f"{times(grid['spacing_mm'])} mm. Channels: {', '.join(grid['channels'])}. "
        f"Labels: {labels}."
    )
    warned = "".join(f'<p class="warning">{escape(text)}.</p>' for text in content["warnings"])
    return (
        f"{_rows(('set', 'cases', 'splits', 'list', 'sha256'), rows)}<p>{escape(words)}</p>{warned}"
    )


def _section(section: Section) -> str:
    if section.not_computed:
        return f'<p class="missing">Not computed: {escape(section.not_computed)}</p>'
    tables = "".join(
        f"<h3>{escape(_begun(title))}</h3>{_table(table)}"
        for title, table in section.tables.items()
    )
    return (
        f"<p>{escape(section.text)}</p>"
        + "".join(f'<p class="warning">{escape(text)}</p>' for text in section.warnings)
        + _verdicts(section.verdicts)
        + tables
        + _plots(section)
        + _facts(section.facts)
        + _cases(section.cases)
    )


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    """Lights with what was found; a rule that several have in common stands below the last."""
    parts = []
    for each, after in zip_longest(verdicts, verdicts[1:]):
        rule = "" if after is not None and after.rule == each.rule else each.rule
        parts.append(
            f'<p><span class="light {each.light.value}">{each.light.value}</span> '
            f"<b>{escape(_begun(each.claim))}</b>: {escape(each.found)}"
            + (f'<br><span class="soft">{escape(_begun(rule))}</span>' if rule else "")
            + "</p>"
        )
    return "".join(parts)


def _plots(section: Section) -> str:
    drawn = section.distributions
    if not drawn:
        return ""
    more = len(drawn) - PLOTS
    told = f'<p class="soft">{more} further distributions are in report.json.</p>'
    return (
        "<h3>Distributions</h3><p class='soft'>Share of cases; dotted lines are medians.</p>"
        f"{distributions_svg(drawn[:PLOTS])}{told if more > 0 else ''}"
    )


def _facts(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    rows = [(escape(str(key)), escape(text_of(value))) for key, value in facts.items()]
    return f"<details><summary>Settings and counts</summary>{_rows(('', ''), rows)}</details>"


def _cases(cases: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    blocks = []
    for group, table in cases.items():
        names = list(dict.fromkeys(name for numbers in table.values() for name in numbers))
        if len(table) * len(names) > CELLS:
            blocks.append(
                f'<p class="soft">{escape(group)}: {len(table)} cases, in report.json</p>'
            )
            continue
        rows = [
            (escape(case), *(escape(text_of(numbers.get(name))) for name in names))
            for case, numbers in table.items()
        ]
        head = ("case", *map(escape, names))
        blocks.append(
            f"<details><summary>Case by case: {escape(group)}, {len(table)} cases</summary>"
            f"{_rows(head, rows, numbers=True)}</details>"
        )
    return "".join(blocks)


def _sheets(sheets: Mapping[str, bytes]) -> str:
    drawn = "".join(
        f'<figure style="margin:0"><figcaption class="soft">{escape(name)}</figcaption>'
        f'<img alt="{escape(name)} cases with the outlines of their masks" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>'
        for name, png in sheets.items()
    )
    return (
        "<p>Three planes through the largest section of each mask, on the common scale of "
        f'intensities; masks are outlined.</p><div class="sheets">{drawn}</div>'
    )


def _legend(labels: Sequence[str]) -> str:
    """Which colour is which label, where there is something to mistake."""
    if len(labels) < 2:
        return ""
    marks = "".join(
        f'<span><i style="background:{COLOURS[number % len(COLOURS)]}"></i>{escape(name)}</span>'
        for number, name in enumerate(labels)
    )
    return f'<p class="legend soft">{marks}</p>'


def _viewer(has_niivue: bool, legend: str) -> str:
    note = (
        ""
        if has_niivue
        else "For volume rendering, install medvae3d[report] and make the report again."
    )
    return f"""<div class="controls">
<label>Case <select id="case"></select></label>
<label>Channel <select id="channel"></select></label>
<label><input type="checkbox" id="mask" checked> mask</label>
<label>opacity <input type="range" id="opacity" min="0" max="100" value="70"></label>
<span id="modes" hidden>
<label><input type="radio" name="mode" id="mode-volume" checked> volume</label>
<label><input type="radio" name="mode" id="mode-planes"> planes</label></span></div>
<p class="soft" id="viewer-case"></p>
<div id="niivue-box" hidden><canvas id="niivue"></canvas></div>
<div id="planes"></div>{legend}
<p class="soft">Scroll over a plane to go through its slices, click to move the cross. The patient's
right is on the left. <span id="viewer-note">{note}</span></p>
"""


def _how(content: Mapping[str, Any]) -> str:
    rows = [(escape(k), escape(v)) for k, v in content["versions"].items()]
    seconds = {k: f"{v:.4g} s" for k, v in content["times"]["seconds"].items()}
    given = {key: value for key, value in content["settings"].items() if value is not None}
    settings = {"seed": content["seed"], **given}
    return (
        f"<pre>{escape(content['command'])}</pre>"
        f"<p>{escape(text_of(settings))}</p>"
        f"<p>Every number of this page, its interval and the number of cases behind it are in "
        f"report.json. Time: {escape(text_of(seconds))}.</p>{_rows(('', ''), rows)}"
    )


def _licence(package: str, text: str) -> str:
    return (
        f"<details><summary>Licence of NiiVue, which this page holds (from {escape(package)})"
        f"</summary><pre>{escape(text)}</pre></details>"
    )


# -- tables ---------------------------------------------------------------------------------------


def _table(table: Table) -> str:
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    rows = [
        (
            escape(name),
            *(_cell(row[column]) if column in row else "" for column in columns),
        )
        for name, row in table.items()
    ]
    return _rows(("", *map(escape, columns)), rows, numbers=True)


def _cell(measure: Measure) -> str:
    found = measure.to_dict()
    value = "not computed" if found["value"] is None else f"<b>{_short(found['value'])}</b>"
    said = [f"{value}{_between(found['low'], found['high'])}"]
    if "floor" in found:
        floor = found["floor"]
        words = f"floor {_short(floor['value'])}{_between(floor['low'], floor['high'])}"
        said.append(f"<small>{words}</small>")
    if measure.n is not None:
        count = " and ".join(map(str, measure.n)) if isinstance(measure.n, tuple) else measure.n
        said.append(f"<small>n = {count}</small>")
    if measure.note:
        said.append(f'<small class="note">{escape(measure.note)}</small>')
    return "".join(said)


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({_short(low)} to {_short(high)})"


def _begun(text: str) -> str:
    """A text as the beginning of a line."""
    return text[:1].upper() + text[1:]


def _short(value: float | None) -> str:
    """Three digits; report.json has all."""
    return "" if value is None else f"{value:.3g}"


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A table of cells that are HTML already."""
    kind = ' class="number"' if numbers else ""
    lines = [
        "<tr>"
        + "".join(f"<td{kind if index else ''}>{cell}</td>" for index, cell in enumerate(cells))
        + "</tr>"
        for cells in rows
    ]
    top = "".join(f"<th>{cell}</th>" for cell in head) if any(head) else ""
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
