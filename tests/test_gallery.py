"""The gallery: its page, its script and its pictures say the same."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "gallery.md"
SPEC = importlib.util.spec_from_file_location("gallery", ROOT / "docs" / "gallery" / "make.py")
assert SPEC is not None and SPEC.loader is not None
gallery = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gallery)
# Pixels (of 255) that differ where another processor or font library rounds otherwise.
SMALL_STEP, FEW = 24, 0.01


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("L"), np.int16)


def share_that_differs(one, other):
    return float((np.abs(one - other) > SMALL_STEP).mean())


def test_the_page_shows_each_picture_under_its_commands():
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    shown = {}
    for part in parts:
        block, name = re.search(r"```sh\n(.*?)```.*images/(\w+\.png)", part, re.DOTALL).groups()
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        shown[name] = tuple(line.removeprefix("medvae3d ") for line in lines)
    assert shown == {name: commands for name, (commands, _) in gallery.FIGURES.items()}


@pytest.mark.parametrize("name", gallery.FIGURES)
def test_a_picture_is_small_and_shows_something(name):
    path = ROOT / "docs" / "images" / name
    assert path.stat().st_size < 150_000
    assert pixels(path).std() > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)  # ten seconds of processor time each, more beside other work
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", gallery.FIGURES)
def test_the_script_makes_the_picture_again(name, tmp_path):
    made, kept = pixels(gallery.make(name, tmp_path)), pixels(ROOT / "docs" / "images" / name)
    assert made.shape == kept.shape
    assert share_that_differs(made, kept) < FEW


def test_a_picture_of_another_seed_would_be_seen():
    kept = pixels(ROOT / "docs" / "images" / "gallery_petct.png")
    assert share_that_differs(kept, np.roll(kept, 12, axis=1)) > 5 * FEW
