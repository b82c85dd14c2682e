"""The command ``medvae3d export``: the networks of a bundle for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvae3d.apps import catalogue
from medvae3d.apps.console import AsJson, one_of, output, progress, say, say_json, table


def export(
    bundle: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE",
            help="Name of a shipped bundle, or the folder of any.",
            autocompletion=catalogue.bundle_names,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="File of the decoder; the encoder goes beside it.")
    ],
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="onnx, torchscript or pt2; else told from the ending.",
            autocompletion=one_of("onnx", "torchscript", "pt2"),
        ),
    ] = None,
    decoder_only: Annotated[
        bool, typer.Option("--decoder-only", help="Leave out the encoder and a first stage.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write decoder and encoder of a bundle as ONNX, TorchScript or PT2, compared with it.

    Example: medvae3d export sts_petct_hvae --format onnx --out lung.onnx
    """
    from medvae3d.apps.bundle import load_bundle
    from medvae3d.apps.model_export import export_model

    loaded = load_bundle(bundle)
    with progress("exporting") as advance:
        facts = export_model(loaded, out, format, decoder_only=decoder_only, progress=advance)
    if as_json:
        say_json(facts)
        return
    rows = [
        (name, each["file"], ", ".join(each["inputs"]), ", ".join(each["outputs"]),
         each["largest_difference"])
        for name, each in facts["parts"].items()
    ]  # fmt: skip
    columns = ("part", "file", "takes", "gives", ">differs by at most")
    output().print(table(f"{facts['bundle']} as {facts['format']}", columns, rows))
    say(f"what is to be known of them: {out.with_suffix('.json')}")
