"""What many tests need: the package itself, a small phantom data set, real data where present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dealing import (  # noqa: F401  (hooks of xdist)
    place,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
)

import medvae3d

REPOSITORY = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a CUDA device where there is none; a worker begins with what is long."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: place(item.nodeid))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def package() -> Path:
    """Folder of the package."""
    return Path(medvae3d.__file__).parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data sets; tests that need them are skipped without."""
    folder = Path(os.environ.get("MEDVAE3D_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "hippocampus" / "datalist.json").is_file():
        pytest.skip("no real data: set MEDVAE3D_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def phantom_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data list of ten phantoms of 24 x 28 x 24 voxels, 7 mm; do not write into its folder."""
    from medvae3d.data.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    return write_phantoms(folder, 10, 0, shape=(24, 28, 24), spacing=(7.0, 7.0, 7.0))
