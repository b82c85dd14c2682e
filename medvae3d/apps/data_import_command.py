"""The commands ``medvae3d data import``, ``align`` and ``export``: data brought to a format."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medvae3d.apps.console import (
    AsJson,
    one_of,
    output,
    parse_whole,
    progress,
    say,
    say_json,
    say_results,
    table,
)
from medvae3d.errors import SettingError


def import_data(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Folder of the data set, MONAI data list or tar."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; must be empty or absent.")],
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="pairs, dicom, bids, nnunet, msd, monai or webdataset; else it is told.",
            autocompletion=one_of("pairs", "dicom", "bids", "nnunet", "msd", "monai", "webdataset"),
        ),
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
    as_json: AsJson = False,
) -> None:
    """Make a checked data list of NIfTI files from what you have, in any of these formats.

    Leaves with 0 if all is well, 1 if the check of what was written has findings, 2 if the data
    set cannot be imported; then nothing is written.

    Example: medvae3d data import scans --out cases --split 0.7,0.15,0.15
    """
    number = parse_whole(seed, "--seed")
    shares = None if split is None else _parse_shares(split)
    names = None if channels is None else [name.strip() for name in channels.split(",")]
    # Only now: that module has this command among its own.
    from medvae3d.apps.data_commands import print_report
    from medvae3d.data.datalists import read_datalist
    from medvae3d.data.importing import import_dataset
    from medvae3d.data.integrity import check

    with progress("importing") as advance:
        path = import_dataset(
            source, out, format=format, channels=names, shares=shares, seed=number, progress=advance
        )
    with progress("checking") as advance:
        found = check(read_datalist(path), progress=advance)
    if as_json:
        say_json({"datalist": path, "report": json.loads(found.to_json())})
        context.exit(found.exit_code)
    print_report(found)
    say(f"data list: {path}")
    for name, case in json.loads((path.parent / "import.json").read_text())["cases"].items():
        for channel, share in case.get("covered", {}).items():
            if share < 1:
                say(f"{name}: {channel} covers {share:.0%} of the grid of the first channel")
    if any(finding.kind == "grid" for finding in found.findings):
        say(f"grids that differ can be mended: medvae3d data align {path} --out NEW_DIR")
    context.exit(found.exit_code)


def align_data(
    datalist: Annotated[Path, typer.Argument(metavar="LIST", help="MONAI data list (JSON).")],
    out: Annotated[Path, typer.Option(help="Folder to make; must be empty or absent.")],
    axes: Annotated[
        str | None, typer.Option(metavar="RAS", help="Where all axes shall point to.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How masks are resampled: label or nearest.",
            autocompletion=one_of("label", "nearest"),
        ),
    ] = "label",
    as_json: AsJson = False,
) -> None:
    """Bring masks and further channels to the grid of each case's first image.

    Says for each file what was done. Only what cannot be reordered is resampled.

    Example: medvae3d data align cases/datalist.json --out aligned
    """
    from medvae3d.data.aligning import align
    from medvae3d.data.datalists import read_datalist

    with progress("aligning") as advance:
        done = align(read_datalist(datalist), out, axes=axes, mode=mode, progress=advance)
    if as_json:
        say_json({"datalist": out / "datalist.json", "files": [asdict(each) for each in done]})
        return
    columns = ("case", "file", "what", ">was off by mm", ">ml before", ">ml after")
    rows = [(d.case, d.file, d.what, d.offset_mm, d.before_ml, d.after_ml) for d in done]
    output().print(table("Files", columns, rows))
    say(f"data list: {out / 'datalist.json'}")


def export_data(
    datalist: Annotated[Path, typer.Argument(metavar="LIST", help="MONAI data list (JSON).")],
    out: Annotated[Path, typer.Option(help="Folder to make; must be empty or absent.")],
    format: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="bids, nnunet, dicom or webdataset.",
            autocompletion=one_of("bids", "nnunet", "dicom", "webdataset"),
        ),
    ],
    channels: Annotated[
        str | None, typer.Option(metavar="A,B", help="Names of the channels, if the list has none.")
    ] = None,
    seed: Annotated[str, typer.Option(metavar="S", help="Part of the UIDs of DICOM.")] = "0",
    shard_size: Annotated[
        str, typer.Option(metavar="N", help="Most cases in a shard of WebDataset.")
    ] = "64",
    as_json: AsJson = False,
) -> None:
    """Write the cases of a list as BIDS, raw data of nnU-Net v2, DICOM or WebDataset shards.

    Example: medvae3d data export samples/dataset.json --out bids --format bids
    """
    from medvae3d.apps.data_export import export
    from medvae3d.data.datalists import read_datalist

    names = None if channels is None else [name.strip() for name in channels.split(",")]
    number, size = parse_whole(seed, "--seed"), parse_whole(shard_size, "--shard-size", 1)
    with progress("exporting") as advance:
        made = export(
            read_datalist(datalist), out, format, channels=names, seed=number, shard_size=size,
            progress=advance,
        )  # fmt: skip
    say_results(as_json, {"format": format, "written": made}, f"{format}: {made}")


def _parse_shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SettingError(
            f"--split is {text!r}; allowed are three shares from 0 on, of training, validation and "
            f"testing. Write it like --split 0.8,0.1,0.1."
        ) from None
