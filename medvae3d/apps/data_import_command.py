"""The command ``medvae3d data import``: data sets of other formats, as checked data lists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvae3d.apps.console import parse_triple, parse_whole, progress, say
from medvae3d.apps.data_reports import print_report


def import_data(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder of the data set.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must be empty or absent.")],
    format: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="pairs, dicom, bids, nnunet or msd; else it is told."),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Channels to take, or the names they have to have."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="T,V,E", help="Shares of training, validation, testing, by patient."),
    ] = None,
    seed: Annotated[str, typer.Option(metavar="S", help="Seed of the split.")] = "0",
) -> None:
    """Make a checked data list of NIfTI files from NRRD, MHA, NIfTI, DICOM, BIDS, nnU-Net or MSD.

    Leaves with 0 if all is well, 1 if the check of what was written has findings, 2 if the data
    set cannot be imported; then nothing is written.

    Example: medvae3d data import scans --out cases --split 0.7,0.15,0.15
    """
    number = parse_whole(seed, "--seed")
    shares = None if split is None else parse_triple(split, "--split", float)
    names = None if channels is None else [name.strip() for name in channels.split(",")]
    from medvae3d.data.datalists import read_datalist
    from medvae3d.data.importing import import_dataset
    from medvae3d.data.integrity import check

    with progress("importing") as advance:
        path = import_dataset(
            source, out, format=format, channels=names, shares=shares, seed=number, progress=advance
        )
    with progress("checking") as advance:
        found = check(read_datalist(path), progress=advance)
    print_report(found)
    say(f"data list: {path}")
    if any(finding.kind == "grid" for finding in found.findings):
        say(f"grids that differ can be mended: medvae3d data align {path} --out NEW_DIR")
    context.exit(found.exit_code)
