"""Series on grids of their own, brought onto one: that of the first channel of their case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medvae3d.data.importing.common import FoundCase, safe
from medvae3d.data.importing.slices import read_series
from medvae3d.data.volumes import write_volume
from medvae3d.errors import DataListError, GridMismatchError
from medvae3d.geometry import Grid


def write_on_one_grid(
    found: FoundCase, channels: Sequence[str], folder: Path, label: Path | None
) -> tuple[tuple[Path, ...], dict[str, float]]:
    """Writes the first channel as it is, further ones and the mask as its grid sees them.

    Channels are read linearly; beyond its border a series has its lowest value, which is air in CT
    and no uptake in PET. Masks are read label by label. What lies voxel on voxel stays as it is.

    Args:
        found: The case, of DICOM series.
        channels: Names of its channels.
        folder: Where to.
        label: Its mask, already written; written anew if it lies on another grid.

    Returns:
        The files, and the share of the grid that each channel covers.

    Raises:
        GridMismatchError: If a series covers no voxel of the grid, or the mask would lose all of
            its own.
        DataListError: If two channels get one name.
    """
    # Only now: torch comes with it, which no other import needs.
    from medvae3d.data.aligning import align_mask, is_same_grid, on_grid

    written: list[Path] = []
    covered: dict[str, float] = {}
    target: Grid | None = None
    for name, files in zip(channels, found.images, strict=True):
        array, grid = read_series(files)
        target = target or grid
        covered[name] = 1.0
        if not is_same_grid(target, grid):
            covered[name] = round(_share(target, grid), 4)
            if not covered[name]:
                raise GridMismatchError(
                    f"series in {files[0].parent} does not meet that in {found.images[0][0].parent}"
                    f"; channels of a case show the same place. Check that both are of one scan."
                )
            (array,) = on_grid(array[None], grid, target, "linear", float(array.min()))
        path = folder / f"{found.name}_{safe(name)}.nii.gz"
        if path in written:
            raise DataListError(
                f"two channels are named {safe(name)}: {', '.join(channels)}. Name them otherwise."
            )
        write_volume(path, array, target)
        written.append(path)
    if label is not None:
        align_mask(found.name, label, label, target)
    return tuple(written), covered


def _share(target: Grid, grid: Grid) -> float:
    """Share of the voxels of one grid whose middle lies within another."""
    count = 0
    for k in range(target.shape[2]):
        plane = np.stack(np.meshgrid(*map(np.arange, target.shape[:2]), [k], indexing="ij"), -1)
        index = grid.to_index(target.to_world(plane))
        count += int(((index > -0.5) & (index < np.array(grid.shape) - 0.5)).all(-1).sum())
    return count / float(np.prod(target.shape))
