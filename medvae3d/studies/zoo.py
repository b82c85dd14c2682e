"""What is compared when all systems are: the entries of the study, its measures, its table.

Each entry is a system with settings of its own, trained on the same cases with the same trunk and
the same number of steps; rows of a pair with other masks share the training of the pair. Two rows
need no model: principal components and the mean of the training cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medvae3d.errors import SettingError
from medvae3d.models.registry import SYSTEMS
from medvae3d.studies.mask_sources import BALLS, REAL


@dataclass(frozen=True)
class Entry:
    """One row of the comparison.

    Attributes:
        name: What it is called.
        system: The system that is trained; empty for a row that needs no model.
        settings: ``KEY=VALUE`` texts over its settings.
        group: ``systems``, or which ablation it belongs to.
        masks: Source of the masks that samples are made for, of `SOURCES`; those that the system
            makes itself if empty. Such a row has no training of its own: it is the system without
            further settings, drawn from in another way.
    """

    name: str
    system: str = ""
    settings: tuple[str, ...] = ()
    group: str = "systems"
    masks: str = ""

    @property
    def trained(self) -> str:
        """Name of the entry whose training this one is drawn from."""
        return self.system if self.masks else self.name


PCA, MEAN = "principal components", "mean of the training cases"
WITHOUT_MODEL = (Entry(PCA), Entry(MEAN))
# The flow joins halfway. In training by name it joins for the last tenth, when the learning rate
# has fallen so far that nothing can be told of it.
_HALFWAY = "flow_start=$@max_epochs * @epoch_length // 2"
HVAE_STEPS = tuple(
    Entry(f"hvae, K = {k}", "hvae", (f"network_def#num_steps={k}", _HALFWAY), "leapfrog steps")
    for k in (0, 1, 3, 5)
)
_NO_FLOW = "network_def#num_steps=0"
_NO_PERCEPTUAL = "train#objective#feature_weight=0"
_NO_ADVERSARY = "train#objective#adversarial_weight=0"
DHVAE_PARTS = tuple(
    Entry(f"dhvae, {what}", "dhvae", (*settings, _HALFWAY), "parts of dhvae")
    for what, settings in {
        "all parts": (),
        "no flow": (_NO_FLOW,),
        "no perceptual term": (_NO_PERCEPTUAL,),
        "no adversary": (_NO_ADVERSARY,),
        "no flow, no perceptual term": (_NO_FLOW, _NO_PERCEPTUAL),
        "no flow, no adversary": (_NO_FLOW, _NO_ADVERSARY),
        "no perceptual term, no adversary": (_NO_PERCEPTUAL, _NO_ADVERSARY),
        "none of them": (_NO_FLOW, _NO_PERCEPTUAL, _NO_ADVERSARY),
    }.items()
)
PAVAE_PARTS = tuple(
    Entry(f"pavae, {what}", "pavae", settings, "parts of pavae")
    for what, settings in {
        "no condition embedding": ("network_def#attributes=[]",),
        "no mask embedding": ("network_def#with_mask=false",),
        "no adversary": (
            "train#texture_objective#adversarial_weight=0",
            "train#texture_objective#feature_weight=0",
        ),
    }.items()
)
PAVAE_MASKS = tuple(
    Entry(f"pavae, {what}", "pavae", (), "masks of pavae", masks)
    for what, masks in {"masks of training cases": REAL, "balls for masks": BALLS}.items()
)
# A mixture is what a VAE is sampled from where nothing else is said, so it is no entry of its own.
VAE_PRIORS = tuple(
    Entry(f"vae, prior: {prior}", "vae", (setting,), "priors")
    for prior, setting in {
        "normal": "network_def#components=0",
        **{name: f"network_def#prior={name}" for name in ("gaussian", "vamp", "flow")},
    }.items()
)
GROUPS = (HVAE_STEPS, DHVAE_PARTS, PAVAE_PARTS, PAVAE_MASKS, VAE_PRIORS)


def texts_for(network: Mapping[str, Any], texts: Sequence[str]) -> list[str]:
    """Common settings as a system takes them: those of a network go to both stages of a pair.

    Args:
        network: Definition of the system's network.
        texts: ``KEY=VALUE`` texts.
    """
    found = []
    for text in texts:
        first, _, rest = text.partition("#")
        name = rest.partition("=")[0]
        stages = [stage for stage in ("shape", "texture") if name in (network.get(stage) or {})]
        if first == "network_def" and name not in network and stages:
            found += [f"network_def#{stage}#{rest}" for stage in stages]
        else:
            found.append(text)
    return found


def entries(names: Sequence[str] | None = None) -> list[Entry]:
    """The rows that are asked for.

    Args:
        names: Systems, entries or groups by name; all systems and both rows without a model by
            default.

    Raises:
        SettingError: If one is unknown.
    """
    systems = [Entry(name, name) for name, each in SYSTEMS.items() if each.is_trainable]
    known = [*systems, *WITHOUT_MODEL, *(entry for group in GROUPS for entry in group)]
    if names is None:
        return [*systems, *WITHOUT_MODEL]
    found: list[Entry] = []
    for name in names:
        chosen = [entry for entry in known if name in (entry.name, entry.group)]
        if not chosen:
            raise SettingError(
                f"--systems has {name!r}; allowed are {', '.join(e.name for e in known)} and the "
                f"groups {', '.join(dict.fromkeys(e.group for e in known))}. Correct it."
            )
        found += [entry for entry in chosen if entry not in found]
    return found


@dataclass(frozen=True)
class Column:
    """A measure of the table.

    Attributes:
        name: In the results of a cell.
        title: Above the column.
        places: Digits behind the point.
        best: ``high``, ``low`` or nothing, if more is neither better nor worse.
    """

    name: str
    title: str
    places: int = 3
    best: str = ""


COLUMNS = (
    Column("parameters", "parameters (M)", 2),
    Column("cpu_seconds", "CPU s of training", 0, "low"),
    Column("cpu_seconds_a_step", "CPU s a step", 2, "low"),
    Column("memory_gb", "memory (GB)", 2, "low"),
    Column("nmse", "NMSE", 4, "low"),
    Column("psnr", "PSNR", 1, "high"),
    Column("ssim", "SSIM", 3, "high"),
    Column("dice", "Dice", 3, "high"),
    Column("log_likelihood", "log p per voxel", 3, "high"),
    Column("effective_draws", "effective draws", 1),
    Column("frechet", "Fréchet", 1, "low"),
    Column("precision", "precision", 2, "high"),
    Column("recall", "recall", 2, "high"),
    Column("coverage", "coverage", 2, "high"),
    Column("copies", "copies", 2, "low"),
    Column("accepted", "accepted", 2, "high"),
)


# What a cell knows of the sureness of a measure besides its value, by the end of the name.
ENDS = ("low", "high", "floor", "error")
FLOOR = Entry("unseen cases against each other")


@dataclass(frozen=True)
class Summary:
    """Results of one entry over its seeds.

    Attributes:
        entry: The entry.
        seeds: How many seeds are done.
        mean: Mean of each measure over seeds; measures that it does not have are missing.
        spread: Standard deviation over seeds, where there are several.
        notes: What has to be said of it.
        values: The measure of each seed that has it.
    """

    entry: Entry
    seeds: int
    mean: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)


def summarise(entry: Entry, results: Sequence[Mapping[str, Any]]) -> Summary:
    """Brings the results of an entry's seeds together."""
    names = {name for each in results for name in each["means"]}
    mean: dict[str, float] = {}
    spread: dict[str, float] = {}
    values: dict[str, Sequence[float]] = {}
    for name in names:
        found = [each["means"].get(name) for each in results]
        known = [v for v in found if v is not None and math.isfinite(v)]
        if known:
            values[name], mean[name] = known, float(np.mean(known))
            if len(known) > 1:
                spread[name] = float(np.std(known, ddof=1))
    notes = tuple(dict.fromkeys(note for each in results for note in each.get("notes", ())))
    return Summary(entry, len(results), mean, spread, notes, values)


def measures() -> list[str]:
    """Names of everything that the table is made of, for a file of all cells."""
    return [f"{column.name}{end}" for column in COLUMNS for end in ("", *(f"_{e}" for e in ENDS))]


def floor(summaries: Sequence[Summary]) -> Summary:
    """The row that no model can be asked to beat: real cases judged against real ones."""
    names = [column.name for column in COLUMNS]
    known = {
        name: [each.mean[f"{name}_floor"] for each in summaries if f"{name}_floor" in each.mean]
        for name in names
    }
    return Summary(FLOOR, 0, {name: float(np.mean(v)) for name, v in known.items() if v})


def markdown(summaries: Sequence[Summary], columns: Sequence[Column] = COLUMNS) -> str:
    """A table in Markdown: mean, and the deviation over seeds where there are several.

    With one seed, the standard error or the interval over cases stands in its place. The best value
    of a column is printed bold, unless another is within one deviation of it; with one seed nobody
    knows, and nothing is.
    """
    used = [c for c in columns if any(c.name in each.mean for each in summaries)]
    best = {column.name: _best(column, summaries) for column in used}
    lines = [
        "| | seeds | " + " | ".join(column.title for column in used) + " |",
        "|---|" + "---|" * (len(used) + 1),
    ]
    for each in summaries:
        cells = [_cell(column, each, best[column.name]) for column in used]
        seeds = str(each.seeds) if each.entry.system else ""
        lines.append(f"| {each.entry.name} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(column: Column, summary: Summary, best: str | None) -> str:
    value = summary.mean.get(column.name)
    if value is None:
        return ""
    text = f"{value:.{column.places}f}"
    spread = summary.spread.get(column.name)
    ends = [summary.mean.get(f"{column.name}_{end}") for end in ("low", "high")]
    error = summary.mean.get(f"{column.name}_error")
    if spread is not None:
        text += f" ± {spread:.{column.places}f}"
    elif error is not None:
        text += f" (se {error:.{column.places}f})"
    elif None not in ends:
        text += " ({})".format(" to ".join(f"{end:.{column.places}f}" for end in ends))
    return f"**{text}**" if summary.entry.name == best else text


def _best(column: Column, summaries: Sequence[Summary]) -> str | None:
    """Name of the entry that is better than all others by more than a deviation over seeds."""
    rows = [each for each in summaries if column.name in each.mean and each.entry.system]
    if not column.best or len(rows) < 2 or min(each.seeds for each in rows) < 2:
        return None
    sign = 1 if column.best == "high" else -1
    rows.sort(key=lambda each: -sign * each.mean[column.name])
    first, second = rows[:2]
    if column.name not in first.spread:  # not every seed has every measure
        return None
    margin = max(first.spread.get(column.name, 0), second.spread.get(column.name, 0))
    is_clear = sign * (first.mean[column.name] - second.mean[column.name]) > margin
    return first.entry.name if is_clear else None
