"""The commands under ``medvae3d study``: does synthetic data help on real, unseen cases?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvae3d.apps import catalogue, study_classification
from medvae3d.apps.console import (
    AsJson,
    Stopwatch,
    duration,
    in_lines,
    notice,
    one_of,
    parse_number,
    parse_whole,
    progress,
    say,
    say_document,
    say_json,
)
from medvae3d.apps.study_classification import SPLIT_NAMES
from medvae3d.apps.worker_options import Ray, RayAddress, Workers, address_of

app = typer.Typer(
    no_args_is_help=True,
    help="Measure what synthetic data is worth on real, unseen cases.",
    epilog="Example: medvae3d study segmentation --datalist cases.json --bundle sts_petct_hvae "
    "--fit small --out study",
)


@app.callback()
def _group() -> None:
    """Measure what synthetic data is worth on real, unseen cases."""


@app.command()
def segmentation(
    datalist: Annotated[Path, typer.Option(metavar="LIST", help="MONAI data list of real cases.")],
    bundle: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]BUNDLE",
            help="A generator, and how cases are prepared; may be given several times.",
            autocompletion=catalogue.bundle_names,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the study; finished cells are kept.")
    ],
    n: Annotated[
        str, typer.Option("--n", metavar="5,10,all", help="Numbers of real training cases.")
    ] = "all",
    ratio: Annotated[
        str, typer.Option(metavar="0.5,1,2", help="Extra cases for each real one.")
    ] = "1",
    seeds: Annotated[str, typer.Option(metavar="K", help="Repeats of every cell.")] = "3",
    arms: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="real, classical, elastic, copies, copy_paste, carvemix, handmade, synthetic, "
            "only; or synthetic:NAME. All if not given.",
        ),
    ] = None,
    steps: Annotated[
        str, typer.Option(metavar="K", help="Optimiser steps of each segmenter.")
    ] = "400",
    split: Annotated[
        str,
        typer.Option(
            help="validation to choose settings, testing to report.", autocompletion=SPLIT_NAMES
        ),
    ] = "testing",
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Fit the generators on the n cases: small, another recipe, or full.",
        ),
    ] = None,
    fit_setting: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting of that training; several times."),
    ] = None,
    filter_by: Annotated[
        str | None,
        typer.Option(
            "--filter",
            help="agreement: keep samples that show their mask.",
            autocompletion=one_of("agreement"),
        ),
    ] = None,
    filter_above: Annotated[
        str, typer.Option(metavar="DICE", help="Smallest Dice that the filter keeps.")
    ] = "0.5",
    real_share: Annotated[
        str, typer.Option(metavar="SHARE", help="Smallest share of real cases in a batch.")
    ] = "0.5",
    synthetic_until: Annotated[
        str, typer.Option(metavar="SHARE", help="Only real cases after this share of steps.")
    ] = "1",
    seed: Annotated[
        str, typer.Option(metavar="S", help="Seed of the choice of cases and of the samples.")
    ] = "0",
    export_nnunet: Annotated[
        bool, typer.Option("--export-nnunet", help="Write each arm as a data set of nnU-Net v2.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Where generators are fitted and asked: cpu or cuda.")
    ] = None,
    as_json: AsJson = False,
    workers: Workers = "1",
    ray: Ray = False,
    ray_address: RayAddress = None,
) -> None:
    """Compare segmenters trained with and without synthetic pairs on real, unseen cases.

    Every arm has the same segmenter, steps and seeds. Run the same command again to go on.

    Example: medvae3d study segmentation --datalist cases.json --bundle hvae=sts_petct_hvae
    --fit small --n 10,all --ratio 1,2 --out study
    """
    counts = [
        parse_whole(value, name, least=least)
        for value, name, least in (
            (seeds, "--seeds", 1),
            (steps, "--steps", 1),
            (seed, "--seed", 0),
            (workers, "--workers", 1),
        )
    ]
    above, share, until = (
        parse_number(value, name, high=1, example=0.5)
        for value, name in (
            (filter_above, "--filter-above"),
            (real_share, "--real-share"),
            (synthetic_until, "--synthetic-until"),
        )
    )
    from medvae3d.apps.study import segmentation_study
    from medvae3d.apps.study_inputs import parse_bundles, parse_numbers
    from medvae3d.apps.study_options import ALL_ARMS, SegmentationOptions
    from medvae3d.errors import SettingError

    if filter_by not in (None, "agreement"):
        raise SettingError(
            f"--filter is {filter_by!r}; allowed is agreement. Write it so, or leave it out."
        )
    options = SegmentationOptions(
        n=tuple(n.split(",")),
        ratios=parse_numbers(ratio, "--ratio"),
        seeds=counts[0],
        arms=ALL_ARMS if arms is None else tuple(arms.split(",")),
        steps=counts[1],
        split=split,
        seed=counts[2],
        least_real=share,
        synthetic_until=until,
        filter_above=above if filter_by else None,
        fit=fit,
        fit_changes=tuple(fit_setting or ()),
    )
    watch = Stopwatch()
    with progress("cells") as advance:
        found = segmentation_study(
            datalist,
            parse_bundles(bundle),
            out,
            options,
            workers=counts[3],
            ray_address=address_of(ray, ray_address),
            export_nnunet=export_nnunet,
            device=device,
            say=notice,
            report=in_lines(advance, "cell"),
        )
    if as_json:
        say_document((out / "study.json").read_text().rstrip())
    else:
        say(found.table)
    for note in found.notes:
        notice(f"note: {note}")
    notice(f"{found.done} of {found.wanted} cells done, in {duration(watch.seconds)}")
    if not as_json:
        say(f"table of all measures: {out / 'table.md'}; curves and numbers beside it")


app.command()(study_classification.classification)


@app.command()
def zoo(
    datalist: Annotated[Path, typer.Option(metavar="LIST", help="MONAI data list of real cases.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the study; finished cells are kept.")
    ],
    systems: Annotated[
        str | None,
        typer.Option(metavar="A;B", help="Systems, entries or groups, parted by semicolons."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of every training: trunk, steps."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="BUNDLE",
            help="Bundle whose form of the data is taken.",
            autocompletion=catalogue.bundle_names,
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="K", help="Repeats of every cell.")] = "1",
    samples: Annotated[str, typer.Option(metavar="N", help="Samples of each system.")] = "64",
    draws: Annotated[str, typer.Option(metavar="N", help="Draws of the likelihood.")] = "16",
    judged: Annotated[
        str, typer.Option(metavar="N", help="Unseen cases that the likelihood is taken of.")
    ] = "16",
    split: Annotated[
        str, typer.Option(help="Unseen cases; several splits with a comma.")
    ] = "validation,testing",
    as_json: AsJson = False,
) -> None:
    """Train every system of the zoo on the same cases and compare them in one table.

    Same trunk, steps and cases for all. Run the same command again to go on.

    Example: medvae3d study zoo --datalist cases.json --out zoo --seeds 3 max_epochs=10
    """
    numbers = [
        parse_whole(value, name, least=1)
        for value, name in (
            (seeds, "--seeds"), (samples, "--samples"), (draws, "--draws"), (judged, "--judged"),
        )
    ]  # fmt: skip
    from medvae3d.apps.study_zoo import ZooOptions, zoo_study
    from medvae3d.studies.cells import read_object

    options = ZooOptions(
        like=like,
        settings=tuple(settings or ()),
        seeds=numbers[0],
        split=split,
        samples=numbers[1],
        draws=numbers[2],
        judged=numbers[3],
    )
    names = None if systems is None else [name.strip() for name in systems.split(";")]
    watch = Stopwatch()
    with progress("cells") as advance:
        table, done, wanted = zoo_study(
            datalist, out, names, options, say=notice, report=in_lines(advance, "cell")
        )
    if as_json:
        found = [read_object(path) for path in sorted((out / "cells").glob("*.json"))]
        say_json({"cells": found, "done": done, "wanted": wanted})
    else:
        say(table)
    notice(f"{done} of {wanted} cells done, in {duration(watch.seconds)}")
    if not as_json:
        say(f"cells: {out / 'cells.csv'}; table: {out / 'table.md'}; picture beside them")
