"""The command ``medvae3d bench``: what this machine gives, in about a minute."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from medvae3d.apps import catalogue
from medvae3d.apps.bundle_commands import Device
from medvae3d.apps.console import AsJson, notice, output, parse_whole, say_json, table

Name = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE",
        help="Bundle whose training and samples are measured.",
        autocompletion=catalogue.bundle_names,
    ),
]


def bench(
    bundle: Name = "sts_petct_hvae",
    as_json: AsJson = False,
    device: Device = None,
    rounds: Annotated[
        str, typer.Option(metavar="N", help="Timed steps, of which the median counts.")
    ] = "3",
) -> None:
    """Measure this machine: training step, share of its matrix rate, memory, pairs a second.

    Training is that of the bundle on made-up cases; nothing is kept. It takes about a minute. On a
    machine that does something else too, rates are lower, and their ratios off.

    Example: medvae3d bench
    """
    number = parse_whole(rounds, "--rounds", least=1)
    from medvae3d.apps.bench import bench as measured

    rows: list[dict[str, Any]] = []
    for row in measured(bundle, device, number):
        rows.append(row)
        if not as_json:
            notice(f"{row['name']}: {row['value']:.4g} {row['unit']}")
    if as_json:
        say_json(rows)
        return
    cells = [(row["name"], row["value"], row["unit"], row["note"]) for row in rows]
    output().print(table(f"{bundle} on this machine", ("what", ">value", "", ""), cells))
