"""The pictures of a report: distributions over each other, and sheets of cases.

The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from medvae3d.apps.evaluate_sections import Judged
from medvae3d.data.intensity import WindowIntensity
from medvae3d.evaluation.cases import Cases, spread
from medvae3d.evaluation.sections import Distribution
from medvae3d.synthesis.preview import Panel, contact_sheet
from medvae3d.synthesis.recipe import Channel

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHOWN_CASES = 6
COLUMNS = 3
FEWEST_BINS, MOST_BINS = 8, 24
MOST_TICKS = 6
# Told apart by most colour-blind readers; what is real is always blue.
COLOURS = {"real": "#1f6fb4", "synthetic": "#d1661c"}
OTHERS = ("#2c8a4b", "#a03a86", "#777777", "#b39b00", "#17869e")
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "medvae3d",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
}


def distributions_svg(drawn: Sequence[Distribution]) -> str:
    """Draws histograms of several sets over each other, a plot for each measure, as inline SVG."""
    drawn = [each for each in drawn if any(len(_finite(v, each)) for v in each.values.values())]
    if not drawn:
        return ""
    columns = min(COLUMNS, len(drawn))
    rows = -(-len(drawn) // columns)
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(3.1 * columns, 2.0 * rows + 0.3), layout="constrained")
        FigureCanvasSVG(figure)
        names = list(dict.fromkeys(name for each in drawn for name in each.values))
        colours = _colours(names)
        handles: dict[str, Any] = {}
        for index, each in enumerate(drawn):
            place = figure.add_subplot(rows, columns, index + 1)
            handles |= _histogram(place, each, colours)
        figure.legend(
            handles.values(), handles, loc="outside upper left", ncols=6, fontsize=8, frameon=False
        )
        return _svg(figure, columns / COLUMNS)


def _colours(names: Sequence[str]) -> dict[str, str]:
    found, others = {}, list(OTHERS)
    for name in names:
        # Longer names, such as "synthetic, shuffled", are sets of their own.
        found[name] = COLOURS.get(name) or others.pop(0)
        others = others or list(OTHERS)
    return found


def _histogram(place: Any, drawn: Distribution, colours: Mapping[str, str]) -> dict[str, Any]:
    sets = {name: _finite(values, drawn) for name, values in drawn.values.items()}
    every = np.concatenate(list(sets.values()))
    low, high = float(every.min()), float(every.max())
    if not low < high:
        low, high = (low / 2, high * 2) if drawn.is_log else (low - 0.5, high + 0.5)
    spaced = np.geomspace if drawn.is_log else np.linspace
    bins = int(np.clip(2 * np.sqrt(len(every)), FEWEST_BINS, MOST_BINS))
    edges = spaced(low, high, bins + 1)
    handles = {}
    for name, values in sets.items():
        if not len(values):
            continue
        counts, _ = np.histogram(values, edges)
        handles[name] = place.stairs(
            counts / len(values), edges, fill=True, alpha=0.35, color=colours[name]
        )
        place.stairs(counts / len(values), edges, color=colours[name], lw=1.1)
        place.axvline(float(np.median(values)), color=colours[name], lw=1, ls=":")
    if drawn.is_log:
        place.set_xscale("log")
        ticks = _log_ticks(low, high)
        place.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        place.xaxis.set_minor_locator(NullLocator())
    unit = f", {drawn.unit}" if drawn.unit else ""
    place.set_title(_wrapped(drawn.name + unit), fontsize=8)
    place.tick_params(labelsize=7)
    place.tick_params(axis="y", labelleft=False, left=False)
    place.spines[["top", "right", "left"]].set_visible(False)
    place.set_ylim(0, None)
    return handles


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, few enough not to touch each other."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [s * 10.0**power for power in powers for s in steps]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= MOST_TICKS:
            break
    if len(found) < 2:  # within a narrow range, of no power of ten
        found = [float(tick) for tick in MaxNLocator(4).tick_values(low, high)]
        return [tick for tick in found if low <= tick <= high] or [low, high]
    return found[:: -(-len(found) // MOST_TICKS)]


def _finite(values: Sequence[float], drawn: Distribution) -> NDArray[np.float64]:
    array = np.asarray([np.nan if v is None else v for v in values], dtype=np.float64)
    array = array[np.isfinite(array)]
    return array[array > 0] if drawn.is_log else array


def _wrapped(text: str, width: int = 38) -> str:
    if len(text) <= width:
        return text
    cut = text.rfind(" ", 0, width)
    return text[: cut if cut > 0 else width] + "\n" + text[cut + 1 if cut > 0 else width :]


def _svg(figure: Figure, share: float) -> str:
    """A figure for a share of the width of the page, so that all letters have one size."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The width is the page's; the height follows from the box of view.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", text, count=1)
    return text.replace("<svg", f'<svg style="max-width: {100 * share:.0f}%"', 1)


def contact_sheets(judged: Judged) -> dict[str, bytes]:
    """Some real and some synthetic cases with the outlines of their masks, as PNG."""
    sets = {"real": judged.real, "synthetic": judged.synthetic}
    return {name: _sheet(cases, judged) for name, cases in sets.items()}


def _sheet(cases: Cases, judged: Judged) -> bytes:
    channels = [Channel(name, WindowIntensity(-1.0, 1.0)) for name in judged.frame.channels]
    panels = [
        Panel(
            cases.names[row],
            cases.image[row].numpy(),
            cases.mask[row, 0].numpy().astype(np.uint8),
            judged.frame.grid,
        )
        for row in spread(len(cases), SHOWN_CASES)
    ]
    # Whole rows only: a sheet has two cases side by side.
    panels = panels[: len(panels) // 2 * 2] or panels
    with tempfile.TemporaryDirectory(prefix="medvae3d-report-") as folder:
        path = Path(folder) / "sheet.png"
        contact_sheet(panels, channels, path, columns=min(2, len(panels)))
        return path.read_bytes()
