"""The command ``medvae3d label-app``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from medvae3d.apps import catalogue
from medvae3d.apps.console import AsJson, notice, say_results


def label_app(
    out: Annotated[Path, typer.Option(help="Folder to make; must be empty or absent.")],
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BUNDLE",
            help="Name of a shipped bundle, or the folder of any; several times for several. "
            "hippocampus_mri_hvae if not given.",
            autocompletion=catalogue.bundle_names,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an application for MONAI Label: bundles, and a segmenter that learns from their pairs.

    Example: medvae3d label-app --out my_app --bundle hippocampus_mri_hvae
    """
    from medvae3d.apps.label_folder import write_app

    folder = write_app(out, bundle or ["hippocampus_mri_hvae"])
    start = (
        f"python -m monailabel.main start_server --app {folder} --studies YOUR_SCANS "
        f"--host 127.0.0.1"
    )
    facts = {"application": folder, "start": start}
    say_results(as_json, facts, f"application: {folder}", "start it:", f"  {start}")
    if importlib.util.find_spec("monailabel") is None:
        notice("MONAI Label is not installed here; docs/how-to/monai-label.md says how to.")
