"""Makes the picture of the README of what ``make demo`` leaves: ``python docs/gallery/demo.py``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import PIL.Image

PICTURE = Path(__file__).resolve().parents[1] / "images" / "demo.png"
WIDTH = 1280
# Folders of the demo whose previews stand beside each other, from above.
ROWS = (
    ("sts_petct_hvae", "sts_petct_pavae"),
    ("hippocampus_mri_hvae",),
    ("brain_mri_ms_pavae_into_phantom",),
)


def montage(folder: Path) -> PIL.Image.Image:
    """Puts the previews of a demo into one picture; none is enlarged."""
    rows = []
    for names in ROWS:
        pictures = [PIL.Image.open(folder / n / "preview.png").convert("RGB") for n in names]
        room = WIDTH // len(pictures)
        scales = [min(1.0, room / each.width) for each in pictures]
        sizes = [
            (round(scale * each.width), round(scale * each.height))
            for each, scale in zip(pictures, scales, strict=True)
        ]
        rows.append([each.resize(size) for each, size in zip(pictures, sizes, strict=True)])
    heights = [max(each.height for each in row) for row in rows]
    whole = PIL.Image.new("RGB", (WIDTH, sum(heights)), rows[0][0].getpixel((0, 0)))
    for number, row in enumerate(rows):
        for column, each in enumerate(row):
            whole.paste(each, (column * (WIDTH // len(row)), sum(heights[:number])))
    return whole.quantize(256, dither=PIL.Image.Dither.NONE)


def make(path: Path) -> Path:
    """Runs the demo in a scratch folder and writes its picture."""
    from typer.testing import CliRunner

    from medvae3d.apps.cli import app

    with tempfile.TemporaryDirectory() as folder:
        done = CliRunner().invoke(app, ["demo", "--out", f"{folder}/demo"])
        if done.exit_code:
            raise SystemExit(done.output)
        montage(Path(folder) / "demo").save(path, optimize=True)
    return path


if __name__ == "__main__":
    print(make(Path(sys.argv[1]).absolute() if sys.argv[1:] else PICTURE))
