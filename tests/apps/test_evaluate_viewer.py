"""Claims about the viewer of a report: what it is given, and that a browser shows it."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from dataclasses import replace
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest
import torch

from medvae3d.apps import report_viewer
from medvae3d.apps.evaluate_cases import Frame
from medvae3d.apps.evaluate_sections import Judged
from medvae3d.apps.report_page import make_page
from medvae3d.apps.report_plots import (
    MOST_TICKS,
    _log_ticks,
    contact_sheets,
    distributions_svg,
)
from medvae3d.apps.report_viewer import find_niivue, module_in, viewer_parts
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.sections import Distribution, Section
from medvae3d.synthesis.preview import COLOURS

SHAPE, SPACING = (12, 10, 8), (2.0, 2.0, 3.0)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def some_cases(count, seed, prefix):
    generator = torch.Generator().manual_seed(seed)
    image = 2 * torch.rand(count, 2, *SHAPE, generator=generator) - 1
    mask = torch.zeros(count, 1, *SHAPE)
    mask[:, :, 3:6, 2:7, 1:4] = 1
    mask[:, :, 8, 8, 6] = 2
    ones = torch.ones_like(mask)
    names = tuple(f"{prefix} <{number}>" for number in range(count))
    return Cases(image, mask, ones, (mask > 0).float(), names)


@pytest.fixture(scope="module")
def judged():
    frame = Frame(SPACING, SHAPE, ("a", "b"), ("core", "rim"), (1, 2))
    return Judged(some_cases(5, 0, "r"), some_cases(2, 1, "</script>"), None, frame, list)


def volume(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def test_the_viewer_is_given_the_cases_as_they_are(judged):
    held = json.loads(viewer_parts(judged, 4, None)["volumes"])
    kinds = [each["kind"] for each in held["cases"]]
    assert kinds == ["synthetic"] * 2 + ["real"] * 2
    first = held["cases"][0]
    assert first["name"] == judged.synthetic.names[0]
    *channels, mask = [volume(text) for text in first["files"]]
    assert np.array_equal(mask.get_fdata(), judged.synthetic.mask[0, 0].numpy())
    assert np.allclose(mask.header.get_zooms(), SPACING)
    assert nib.aff2axcodes(mask.affine) == ("R", "A", "S")
    for found, wanted in zip(channels, judged.synthetic.image[0].numpy(), strict=True):
        assert np.abs(found.get_fdata() / 255 - (wanted + 1) / 2).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(("count", "wanted"), [(6, (2, 4)), (1, (1, 0)), (20, (2, 5))])
def test_where_one_set_is_small_the_other_fills_up(judged, count, wanted):
    held = json.loads(viewer_parts(judged, count, None)["volumes"])
    kinds = [each["kind"] for each in held["cases"]]
    assert (kinds.count("synthetic"), kinds.count("real")) == wanted


def test_large_volumes_are_made_smaller_and_keep_their_extent(judged, monkeypatch):
    monkeypatch.setattr(report_viewer, "VOXEL_BYTES", 2 * 3 * 12 * 10 * 8 / 8)
    held = json.loads(viewer_parts(judged, 2, None)["volumes"])["cases"][0]
    small = volume(held["files"][0])
    assert held["step"] == 2 and small.shape == (6, 5, 4)
    assert np.allclose(small.header.get_zooms(), [2 * s for s in SPACING])
    mask = volume(held["files"][-1]).get_fdata()
    assert [int(mask[at, 2, 1]) for at in range(6)] == [0, 1, 1, 0, 0, 0]
    # A label of one voxel can still be seen.
    assert mask[4, 4, 3] == 2


def test_the_module_is_found_in_the_text_of_a_widget():
    module = 'const text="%";' + "x;" * 150_000 + "export{NVImage,Niivue,cmapper as c};"
    widget = f'var a=1;var page="{quote(module, safe="")}";export{{a as default}};'
    assert module_in(widget) == module
    assert module_in(widget.replace("Niivue", "Other")) is None
    assert module_in("export{Niivue};") is None


def test_without_the_extra_there_is_no_module(judged, monkeypatch):
    monkeypatch.setattr(report_viewer, "PACKAGE", "no-such-package")
    assert find_niivue() is None
    assert viewer_parts(judged, 2, None)["module"] == ""


def test_the_installed_package_carries_the_module_and_its_licence():
    niivue = find_niivue()
    assert niivue is not None, "the extra test installs it"
    assert "Redistribution" in niivue.licence
    assert re.match(r"ipyniivue \d", niivue.package)


def test_a_plot_is_the_same_each_time_and_says_what_it_shows():
    drawn = [
        Distribution("volume", "ml", {"real": [1.0, 10.0, 200.0], "synthetic": [2.0]}, True),
        Distribution("constant", "", {"real": [3.0, 3.0], "other": [float("nan")]}),
    ]
    svg = distributions_svg(drawn)
    assert svg == distributions_svg(drawn)
    for words in ("volume, ml", "constant", "synthetic", "real"):
        assert words in svg
    assert distributions_svg([Distribution("none", "", {"real": [float("nan")]})]) == ""


@pytest.mark.parametrize(
    ("low", "high"), [(2.6, 3.6), (0.11, 0.19), (1.0, 200.0), (3e-5, 8e4), (4.0, 5.0)]
)
def test_an_axis_of_powers_has_a_few_numbers_whatever_its_range(low, high):
    ticks = _log_ticks(low, high)
    assert 2 <= len(ticks) <= MOST_TICKS
    assert ticks == sorted(set(ticks)) and low <= ticks[0] and ticks[-1] <= high


def test_colours_of_labels_are_named_where_there_are_several(judged):
    page = page_of(judged)
    assert page.count('<p class="legend soft">') == 2
    for colour, name in zip(COLOURS, ("core", "rim"), strict=False):
        assert f'<i style="background:{colour}"></i>{name}' in page
    alone = replace(judged, frame=replace(judged.frame, labels=("core",), label_values=(1,)))
    assert '<p class="legend soft">' not in page_of(alone)


def page_of(judged):
    content = {
        "command": "", "versions": {"medvae3d": "0"}, "seed": 0, "settings": {}, "warnings": [],
        "inputs": {}, "times": {"seconds": {}},
        "grid": {"shape": SHAPE, "spacing_mm": SPACING, "channels": ["a", "b"], "labels": {}},
    }  # fmt: skip
    sections = {"one": Section("one", "One")}
    return make_page(content, sections, judged, contact_sheets(judged), 4)


def opened(page, folder):
    """What a browser makes of a page on disk: the attributes of its body."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no chromium: install it to open the page")
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--use-angle=swiftshader",
         "--enable-unsafe-swiftshader", f"--user-data-dir={folder / 'browser'}",
         "--virtual-time-budget=30000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    body = re.search(r"<body([^>]*)>", done.stdout)
    assert body is not None
    return dict(re.findall(r'data-(\w+)="([^"]*)"', body.group(1)))


@pytest.mark.integration
def test_a_browser_shows_a_volume_offline_in_planes_and_as_a_whole(judged, tmp_path):
    found = opened(page_of(judged), tmp_path)
    assert "errors" not in found, found
    inside = int((judged.synthetic.mask[0] > 0).sum())
    assert found["viewer"].endswith(f"12 x 10 x 8 {inside}")
    assert found["niivue"] == "loaded 12 x 10 x 8"


@pytest.mark.integration
def test_a_browser_shows_planes_without_the_extra(judged, tmp_path, monkeypatch):
    monkeypatch.setattr(report_viewer, "PACKAGE", "no-such-package")
    found = opened(page_of(judged), tmp_path)
    assert "errors" not in found and "niivue" not in found
    assert found["viewer"].startswith("loaded")
