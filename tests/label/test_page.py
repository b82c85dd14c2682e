"""What ``docs/how-to/monai-label.md`` says to type: servers that tests start, requests they answer.

The last test is run on a server; the others compare the page with what the tests of this folder
and the Makefile do.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from label_server import DOWNLOAD, Server
from page_blocks import ALL, ROOT

from medvae3d.apps.bundle import load_bundle
from medvae3d.synthesis.hosts import phantom_host

PAGE = "docs/how-to/monai-label.md"
STOCK = {"models": "brain_mri_ms_pavae", "zoo_source": "local", "sam2": "false"}


def lines(words: str) -> list[list[str]]:
    """The commands of the one block of the page that has these words."""
    (block,) = (block for block in ALL if block.page == PAGE and words in block.text)
    return [shlex.split(line) for line in block.text.replace("\\\n", " ").splitlines()]


def test_the_packages_are_those_that_make_installs() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (label,) = re.findall(r"^LABEL := (\S+)$", recipe, re.MULTILINE)
    made = [set(line.replace("$(LABEL)", label).split()) for line in recipe.splitlines()]
    for words in lines("pip install"):
        assert any(set(words) <= each for each in made), words


def test_the_stock_application_is_made_and_started_as_the_tests_do() -> None:
    download, copy, start = lines("apps --download")
    assert download == ["python", *DOWNLOAD, "apps"]
    assert copy == ["cp", "-r", "bundles/brain_mri_ms_pavae", "apps/monaibundle/model/"]
    server = Server(Path("apps/monaibundle"), Path("my_scans"), Path("log"), **STOCK)
    assert start == ["python", *server.words]


def test_our_application_is_started_as_the_tests_do() -> None:
    (start,) = lines("--app my_app")
    server = Server(Path("my_app"), Path("my_scans"), Path("log"))
    assert start == ["python", *server.words]


@pytest.mark.label
@pytest.mark.integration
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_requests_of_the_page_are_answered(stock: Server, tmp_path: Path) -> None:
    host = phantom_host(load_bundle("brain_mri_ms_pavae").recipe, 0, 0)
    scan = tmp_path / "flair.nii.gz"
    host.write_channel(0, scan, host.volumes[0].array, np.zeros(host.grid.shape, bool))
    stock.add_image("flair", scan).require()
    for words in lines("curl"):
        told = [word.replace("http://127.0.0.1:8000", stock.base) for word in words]
        done = subprocess.run(
            [*told, "--fail", "--noproxy", "*"], cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode == 0, (words, done.stdout[-900:])
    made, mask = (nib.load(tmp_path / f"{name}.nii.gz") for name in ("synthetic", "mask"))
    assert made.shape == mask.shape == host.grid.shape
    centre = np.argwhere(np.asarray(mask.dataobj) > 0).mean(0)
    np.testing.assert_allclose(mask.affine[:3] @ [*centre, 1], (12.5, -30, 4), atol=3)
