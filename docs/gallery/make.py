"""Makes the pictures of the gallery, from shipped weights: ``python docs/gallery/make.py``.

Each picture is what the commands in `FIGURES` leave, in a folder of its own; the page
``docs/reference/gallery.md`` shows the same commands.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "images"
# Name of a picture: its commands, and what of their output it is.
FIGURES: dict[str, tuple[tuple[str, ...], str]] = {
    "gallery_petct.png": (
        ("generate sts_petct_hvae --count 2 --seed 4 --volume-ml 60:200 --out petct",),
        "petct/preview.png",
    ),
    "gallery_hippocampus.png": (
        ("generate hippocampus_mri_hvae --count 4 --seed 4 --out hippocampus",),
        "hippocampus/preview.png",
    ),
    "gallery_insertion.png": (
        ("generate brain_mri_ms_pavae --count 1 --seed 5 --lesions 4:6 --out insertion",),
        "insertion/preview.png",
    ),
    "gallery_growth.png": (
        ("explore sts_petct_hvae volume --volume-ml 30:300 --points 6 --seed 3 --out growth",),
        "growth/path.png",
    ),
    "gallery_interpolation.png": (
        (
            "generate hippocampus_mri_hvae --count 2 --seed 4 --out ends",
            "explore hippocampus_mri_hvae interpolation --datalist ends/dataset.json "
            "--cases hippocampus_mri_hvae_s4_000000,hippocampus_mri_hvae_s4_000001 --points 6 "
            "--out path",
        ),
        "path/path.png",
    ),
}


def make(name: str, target: Path) -> Path:
    """Runs the commands of a picture in a scratch folder and puts it into ``target``."""
    from typer.testing import CliRunner

    from medvae3d.apps.cli import app

    commands, picture = FIGURES[name]
    target.mkdir(parents=True, exist_ok=True)
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for command in commands:
                done = CliRunner().invoke(app, shlex.split(command))
                if done.exit_code:
                    raise SystemExit(f"medvae3d {command}\n{done.output}")
            shutil.copyfile(picture, target / name)
        finally:
            os.chdir(before)
    return target / name


if __name__ == "__main__":
    out = Path(os.path.abspath(sys.argv[1])) if sys.argv[1:] else IMAGES
    for each in FIGURES:
        made = make(each, out)
        print(f"{made}: {made.stat().st_size / 1000:.0f} kB")
