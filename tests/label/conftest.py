"""The stock bundle application of MONAI Label with all shipped bundles, on a server."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from label_server import DOWNLOAD, Server, environment
from label_studies import write_studies
from small_bundles import BUNDLES, NAMES, quick_training

collect_ignore = ["stand_ins"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs MONAI Label where it is not installed."""
    if importlib.util.find_spec("monailabel") is not None:
        return
    for item in items:
        if item.get_closest_marker("label"):
            item.add_marker(pytest.mark.skip(reason="no MONAI Label: run `make test-label`"))


@pytest.fixture(scope="session")
def stock_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The application as it comes, with copies of the shipped bundles that train for 2 steps."""
    folder = tmp_path_factory.mktemp("apps")
    command = [sys.executable, *DOWNLOAD, str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    app = folder / "monaibundle"
    assert (app / "main.py").is_file(), done.stdout + done.stderr
    for name in NAMES:
        shutil.copytree(
            BUNDLES / name, app / "model" / name, ignore=shutil.ignore_patterns("eval", "docs")
        )
        quick_training(app / "model" / name)
    return app


@pytest.fixture(scope="session")
def stock(stock_app: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of it; studies are hosts for each bundle, and two cases each to train on."""
    folder = tmp_path_factory.mktemp("stock")
    write_studies(folder / "studies")
    conf: dict[str, Any] = {"models": ",".join(NAMES), "zoo_source": "local", "sam2": "false"}
    with Server(stock_app, folder / "studies", folder / "server.log", **conf) as server:
        yield server
