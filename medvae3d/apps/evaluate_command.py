"""The command ``medvae3d evaluate``: synthetic cases against real ones, as page and numbers."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvae3d.apps import catalogue
from medvae3d.apps.console import (
    AsJson,
    Stopwatch,
    duration,
    notice,
    one_of,
    output,
    parse_triple,
    parse_whole,
    progress,
    say,
    say_json,
    table,
)
from medvae3d.apps.worker_options import Ray, RayAddress, Workers, chosen_engine
from medvae3d.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

WHICH, HOW = "Which cases", "How they are brought together"


def evaluate(
    real: Annotated[
        Path, typer.Option(metavar="LIST", help="Data list of real cases, or its folder.")
    ],
    synthetic: Annotated[Path, typer.Option(metavar="LIST", help="The same of synthetic cases.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the report.")],
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="LIST",
            help="Real cases that no model was trained on; else validation and testing of --real.",
        ),
    ] = None,
    section: Annotated[
        str | None,
        typer.Option("--sections", metavar="NAMES", help="Sections with commas; else all."),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="radiomics, fixed-network, fixed-network-2.5d, medicalnet=FILE, "
            "radimagenet=FILE, with commas.",
        ),
    ] = "radiomics",
    paired: Annotated[
        bool, typer.Option("--paired", help="Synthetic cases rebuild the real ones of that name.")
    ] = False,
    lpips: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights of LPIPS, for --paired; none are downloaded."),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(
            metavar="BUNDLE",
            help="Bundle that made the cases: its network judges privacy.",
            autocompletion=catalogue.bundle_names,
        ),
    ] = None,
    kept: Annotated[
        Path | None,
        typer.Option("--filter", metavar="FILE", help="Write a data list without bad pairs."),
    ] = None,
    real_split: Annotated[
        str, typer.Option(rich_help_panel=WHICH, help="Splits of --real with commas, or all.")
    ] = "training",
    synthetic_split: Annotated[
        str, typer.Option(rich_help_panel=WHICH, help="The same of --synthetic.")
    ] = "all",
    most: Annotated[
        str | None,
        typer.Option(metavar="N", rich_help_panel=WHICH, help="At most N cases of each set."),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(
            metavar="K",
            rich_help_panel=WHICH,
            help="Only the first K channel files of each case.",
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,Z",
            rich_help_panel=HOW,
            help="Voxel size in mm; else the median of the real cases.",
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="I,J,K", rich_help_panel=HOW, help="Voxels; else the largest of the real cases."
        ),
    ] = None,
    intensity: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=HOW,
            help="range: one scale for all; percentile: each image its own, for MR.",
            autocompletion=one_of("range", "percentile"),
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=VALUE,...",
            rich_help_panel=HOW,
            help="The labels, in place of what the lists say.",
        ),
    ] = None,
    viewer_cases: Annotated[
        str, typer.Option(metavar="N", help="Cases in the viewer; 0 for no pictures of cases.")
    ] = "6",
    seed: Annotated[str, typer.Option(metavar="S", help="Seed of all that is random.")] = "0",
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    workers: Workers = "1",
    ray: Ray = False,
    ray_address: RayAddress = None,
) -> None:
    """Judge synthetic cases against real ones: a page that opens offline, and every number.

    Example: medvae3d evaluate --real cases.json --synthetic synthetic --out report
    """
    options: dict[str, Any] = {
        "seed": parse_whole(seed, "--seed"),
        "viewer_cases": parse_whole(viewer_cases, "--viewer-cases"),
        "most": None if most is None else parse_whole(most, "--most", least=2),
        "channels": None if channels is None else parse_whole(channels, "--channels", least=1),
        "spacing_mm": None
        if spacing is None
        else parse_triple(spacing, "--spacing", float, above=0),
        "shape": None if shape is None else parse_triple(shape, "--shape", int, above=0),
        "labels": None if labels is None else parse_labels(labels),
    }
    engine, _ = chosen_engine(workers, ray, ray_address)
    from medvae3d.apps.evaluate import evaluate as judge

    watch = Stopwatch()
    with progress("evaluating") as advance:
        content = judge(
            real, synthetic, reference, out, real_split=real_split,
            synthetic_split=synthetic_split, sections=section, features=features, paired=paired,
            lpips=lpips, bundle=bundle, kept_list=kept, intensity=intensity,
            command=shlex.join(["medvae3d", *sys.argv[1:]]),
            engine=engine, progress=None if quiet else advance, **options,
        )  # fmt: skip
    if not engine.is_first:
        return
    if as_json:
        say_json(content)
    elif not quiet:
        _print(content)
        say(f"page: {out / 'index.html'}")
        say(f"numbers: {out / 'report.json'}")
        if kept is not None:
            say(f"data list without bad pairs: {kept}")
        notice(f"evaluated in {duration(watch.seconds)}")


def parse_labels(text: str) -> dict[str, int]:
    """Reads ``lesion=1,organ=2``.

    Raises:
        SettingError: If it is not that.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if not name.strip() or not value.strip().isdecimal() or int(value) in found.values():
            raise SettingError(
                f"--labels is {text!r}; allowed are names with their values, each value once. "
                f"Write it like --labels lesion=1,organ=2."
            )
        found[name.strip()] = int(value)
    return found


def _print(content: Mapping[str, Any]) -> None:
    for text in content["warnings"]:
        notice(f"note: {text}")
    rows = [(each["light"], each["claim"], each["found"]) for each in content["summary"]]
    output().print(table("Summary", ("light", "claim", "found"), rows))
    for section in content["sections"].values():
        if "not_computed" in section:
            say(f"not computed: {section['title']}: {section['not_computed']}")
