"""Masks brought to the grids of their images, and axes put in order, saying what was done.

What differs by order and direction of the axes alone is reordered, without interpolation. Only what
then still lies elsewhere is resampled: masks label by label, further channels linearly.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import nibabel as nib

from medvae3d.data.datalists import Case, DataList, write_datalist
from medvae3d.data.integrity import TOLERANCE_MM
from medvae3d.data.nifti import grid_of, read_stored, write_stored
from medvae3d.data.staging import staged_folder
from medvae3d.data.transforms import Resampling, resample_to_grid
from medvae3d.data.volumes import read_mask, read_volume, write_volume
from medvae3d.errors import GridMismatchError, SettingError
from medvae3d.geometry import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT, REORDERED, RESAMPLED = "kept", "reordered", "resampled"
MODES = ("label", "nearest")


@dataclass(frozen=True)
class Aligned:
    """What was done to a file.

    Attributes:
        case: Name of the case.
        file: Name of the file.
        what: ``kept``, ``reordered`` or ``resampled``.
        offset_mm: How far its worst corner was off the image; ``None`` where shapes differed.
        before_ml: Volume of a mask before.
        after_ml: Volume of a mask after.
    """

    case: str
    file: str
    what: str
    offset_mm: float | None = None
    before_ml: float | None = None
    after_ml: float | None = None


def align(
    datalist: DataList,
    out: str | os.PathLike[str],
    *,
    axes: str | None = None,
    mode: str = "label",
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Aligned, ...]:
    """Writes the cases of a list anew, each on the grid of its first image.

    Args:
        datalist: The cases.
        out: Folder to make; whole or not at all. Its list is ``datalist.json``.
        axes: Where the axes of all files shall point, such as ``RAS``; as in the first image of
            each case if not given.
        mode: How masks are resampled: ``label``, linear on one map a label, or ``nearest``.
        progress: Called before each case with its index, the number of cases and its name.

    Returns:
        What was done, file by file.

    Raises:
        SettingError: If ``axes`` or ``mode`` is none.
        GridMismatchError: If a mask would lose all its voxels.
    """
    _require_settings(axes, mode)
    done: list[Aligned] = []
    with staged_folder(out) as folder:
        cases = []
        for index, case in enumerate(datalist):
            if progress is not None:
                progress(index, len(datalist), case.name)
            cases.append(_align_case(case, folder, index, axes, mode, done))
        write_datalist(folder / "datalist.json", cases, datalist.info)
    return tuple(done)


def reorder(array: NDArray[Any], grid: Grid, axes: str) -> tuple[NDArray[Any], Grid]:
    """Swaps and mirrors axes until they point to ``axes``; each voxel stays where it is in mm.

    Shape:
        - ``array``: :math:`(I, J, K, ...)`
    """
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(grid.affine), nib.orientations.axcodes2ornt(tuple(axes))
    )
    turned = nib.orientations.apply_orientation(array, turn)
    affine = grid.affine @ nib.orientations.inv_ornt_aff(turn, grid.shape)
    i, j, k = turned.shape[:3]
    return turned, Grid((i, j, k), affine)


def _align_case(
    case: Case, folder: Path, index: int, axes: str | None, mode: str, done: list[Aligned]
) -> Case:
    target: Grid | None = None
    images = []
    # The number keeps files of one name in different folders apart.
    for channel, path in enumerate(case.channels):
        if path is None:
            continue
        place = folder / "images" / f"{index:05d}_{channel}_{path.name}"
        stored, header = read_stored(path, f"image {path}")
        grid = grid_of(header, f"image {path}")
        wanted = axes or (target.axcodes if target is not None else grid.axcodes)
        turned, there = reorder(stored, grid, wanted)
        target = target or there
        what = KEPT if grid.axcodes == wanted else REORDERED
        offset = _offset(target, grid)
        if is_same_grid(target, there):
            if what == KEPT:
                _copy(path, place)
            else:
                write_stored(place, turned, there, header)
        else:
            what = RESAMPLED
            array = read_volume(path).array[None]
            moved = on_grid(array, grid, target, "linear")
            write_volume(place, moved[0], target)
        done.append(Aligned(case.name, path.name, what, offset))
        images.append(place)
    label = None
    if case.label is not None:
        label = folder / "labels" / f"{index:05d}_{case.label.name}"
        done.append(align_mask(case.name, case.label, label, target, axes, mode))
    extra = {**case.extra, "case": case.name}
    return Case(tuple(images), label, case.subject, case.split, extra, case.missing)


def align_mask(
    name: str,
    path: Path,
    place: Path,
    target: Grid | None = None,
    axes: str | None = None,
    mode: str = "label",
) -> Aligned:
    """Writes a mask on another grid, or with its axes in another order.

    Args:
        name: Name of the case.
        path: The mask.
        place: Where to; may be ``path``.
        target: The grid; that of the mask if not given.
        axes: Where its axes shall point, if not as in ``target``.
        mode: As for `align`.

    Raises:
        GridMismatchError: If it would lose all its voxels.
    """
    mask = read_mask(path)
    wanted = axes or (mask.grid.axcodes if target is None else target.axcodes)
    array, there = reorder(mask.array, mask.grid, wanted)
    target = target or there
    offset = _offset(target, mask.grid)
    what = KEPT if mask.grid.axcodes == wanted else REORDERED
    if is_same_grid(target, there) and what == KEPT:
        _copy(path, place)
    else:
        if not is_same_grid(target, there):
            what = RESAMPLED
            moved = on_grid(mask.array[None], mask.grid, target, mode)
            array = moved[0]
        write_volume(place, array, target)
    before = float((mask.array > 0).sum()) * mask.grid.voxel_volume_ml
    after = float((array > 0).sum()) * target.voxel_volume_ml
    if before > 0 and after == 0:
        raise GridMismatchError(
            f"label {path} has no voxel left on the grid of its image ({before:.4g} ml "
            f"before): it lies elsewhere, or its lesions are smaller than a voxel. Check that both "
            f"are of one scan; if only the header of the mask is wrong, copy that of the image."
        )
    return Aligned(name, path.name, what, offset, round(before, 6), round(after, 6))


def on_grid(
    array: NDArray[Any], grid: Grid, target: Grid, mode: str, fill: float = 0.0
) -> NDArray[Any]:
    """Reads a volume at the voxels of another grid; see `resample_to_grid`.

    Shape:
        - ``array``: :math:`(C, I, J, K)`
        - output: :math:`(C, I', J', K')`
    """
    # Copies, as the affines of grids are read-only, which torch warns of.
    moved = resample_to_grid(
        array, grid.affine.copy(), target.shape, target.affine.copy(), cast(Resampling, mode), fill
    )
    return moved.numpy()


def is_same_grid(grid: Grid, other: Grid) -> bool:
    """Whether two volumes lie voxel on voxel."""
    return grid.shape == other.shape and grid.worst_corner_mm(other) <= TOLERANCE_MM


def _offset(grid: Grid, other: Grid) -> float | None:
    return round(grid.worst_corner_mm(other), 4) if grid.shape == other.shape else None


def _copy(path: Path, place: Path) -> None:
    if path == place:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place)


def _require_settings(axes: str | None, mode: str) -> None:
    pairs = [{"L", "R"}, {"P", "A"}, {"I", "S"}]
    if axes is not None and (
        len(axes) != 3 or not all(any(c in pair for c in axes) for pair in pairs)
    ):
        raise SettingError(
            f"--axes is {axes!r}; allowed is one letter each of L or R, P or A, I or S, in any "
            f"order. Write it like --axes RAS."
        )
    if mode not in MODES:
        raise SettingError(
            f"--mode is {mode!r}; allowed are {' and '.join(MODES)}. Leave it out for the first."
        )
