"""Procedural heads with lesions: the data set that needs no download.

A subject is drawn once (:mod:`medvae3d.data.anatomy`) and painted on a grid; lesions are drawn
into its white matter, and a scanner adds its blur, bias and noise. Not a model of any disease:
something with the shape of the task, to test, to try and to teach with.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medvae3d.data.anatomy import HEAD_MM, Head
from medvae3d.data.manifests import SPLITS, Case, write_datalist
from medvae3d.data.volumes import write_volume
from medvae3d.errors import OutputError, SettingError
from medvae3d.geometry import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

CHANNELS = ("flair", "t1")
FOLDERS = ("images", "labels", "brains")
# Points painted at a time; 128 Ki keep the temporary arrays in the cache.
CHUNK = 1 << 17
# Smallest lesion that is drawn, in voxels; fewer cannot be told from noise.
SMALLEST_LESION = 4
# Places tried for a lesion before there is said to be no room.
ATTEMPTS = 60


@dataclass(frozen=True)
class PhantomCase:
    """One procedural head.

    Attributes:
        image: FLAIR-like and T1-like brightness, :math:`(2, I, J, K)`; 0 outside of the head.
        label: Lesions 1, all else 0, :math:`(I, J, K)`.
        brain: Cerebrum, cerebellum and stem with the CSF within, 1, :math:`(I, J, K)`.
        grid: Where the voxels lie.
    """

    image: NDArray[np.float32] = field(repr=False)
    label: NDArray[np.uint8] = field(repr=False)
    brain: NDArray[np.uint8] = field(repr=False)
    grid: Grid


def phantom_case(
    seed: int,
    shape: Sequence[int] = (64, 64, 64),
    spacing: Sequence[float] = (3.0, 3.0, 3.0),
    lesions: tuple[int, int] = (1, 6),
) -> PhantomCase:
    """Draws a head; the same arguments give the same bytes.

    A field of view that is smaller than a head gets a smaller head.

    Args:
        seed: Seed of everything that is drawn.
        shape: Voxels along right, anterior, superior.
        spacing: Size of a voxel in mm.
        lesions: Smallest and largest number of lesions; ``(0, 0)`` for a host without.

    Raises:
        SettingError: If the range of lesions is empty or negative, or the volume too small.
    """
    low, high = lesions
    if not 0 <= low <= high:
        raise SettingError(
            f"the number of lesions is to lie from {low} to {high}; allowed are whole numbers "
            f"from 0 on, the smaller one first. Correct the range."
        )
    if min(shape) < 8:
        raise SettingError(
            f"a phantom of {' x '.join(map(str, shape))} voxels shows nothing; allowed are 8 or "
            f"more along each axis. Ask for a larger shape."
        )
    grid = Grid.centred(shape, spacing)
    rng = np.random.default_rng(seed)
    size = min(1.0, *(e / h for e, h in zip(grid.extent, HEAD_MM, strict=True)))
    head = Head.draw(rng, size)
    image, maps = _paint(head, grid)
    label, count = _add_lesions(image, maps, grid, int(rng.integers(low, high + 1)), size, rng)
    if count < low:
        raise SettingError(
            f"only {count} of {low} lesions found room in {grid.shape} voxels of {grid.spacing} "
            f"mm. Ask for fewer lesions, or for smaller voxels."
        )
    image = _scan(image, maps["head"] > 0, rng)
    return PhantomCase(image, label, (maps["brain"] > 0).astype(np.uint8), grid)


def write_phantoms(
    out: str | Path,
    count: int,
    seed: int = 0,
    shape: Sequence[int] = (64, 64, 64),
    spacing: Sequence[float] = (3.0, 3.0, 3.0),
    lesions: tuple[int, int] = (1, 6),
    splits: Sequence[float] = (0.6, 0.2, 0.2),
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Writes phantoms and their data list; case ``i`` depends on ``seed`` and ``i`` alone.

    Args:
        out: Folder; must be empty or absent. If anything fails, it is left as it was.
        count: Number of cases.
        seed: Seed of the set.
        shape: Voxels along right, anterior, superior.
        spacing: Size of a voxel in mm.
        lesions: Smallest and largest number of lesions in a case.
        splits: Shares of training, validation and testing.
        progress: Called before each case with its index, the number of cases and its name.

    Returns:
        The data list.

    Raises:
        OutputError: If the folder holds other files.
        SettingError: If ``count`` is below 1, or a share is negative.
    """
    out = Path(out)
    if count < 1:
        raise SettingError(f"{count} phantoms were asked for; allowed is 1 or more. Ask for more.")
    if len(splits) != 3 or min(splits) < 0 or not sum(splits) > 0:
        raise SettingError(
            f"the splits are {tuple(splits)}; allowed are three shares from 0 on for training, "
            f"validation and testing. Correct them."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(
            f"{out} is not an empty folder; allowed is a new or empty one, so that no files of "
            f"another run are mixed in. Choose another folder or remove what is there."
        )
    bounds = np.rint(np.cumsum(splits) / sum(splits) * count)
    cases = []
    try:
        for i in range(count):
            name = f"phantom_{i:04d}"
            if progress is not None:
                progress(i, count, name)
            case = phantom_case(case_seed(seed, i), shape, spacing, lesions)
            split = SPLITS[int(np.searchsorted(bounds, i, side="right"))]
            cases.append(_write_case(out, name, case, split))
        info = {
            "name": f"phantoms, seed {seed}",
            "channels": list(CHANNELS),
            "labels": {"0": "background", "1": "lesion"},
        }
        write_datalist(out / "datalist.json", cases, info)
    except BaseException:
        for folder in FOLDERS:
            shutil.rmtree(out / folder, ignore_errors=True)
        raise
    return out / "datalist.json"


def _write_case(out: Path, name: str, case: PhantomCase, split: str) -> Case:
    images, labels, brains = (out / folder for folder in FOLDERS)
    files = tuple(images / f"{name}_{channel}.nii.gz" for channel in CHANNELS)
    for file, channel in zip(files, case.image, strict=True):
        write_volume(file, channel, case.grid, slope=0.1)
    label, brain = labels / f"{name}_label.nii.gz", brains / f"{name}_brain.nii.gz"
    write_volume(label, case.label, case.grid)
    write_volume(brain, case.brain, case.grid)
    return Case(files, label, name, split, {"brain": brain})


def case_seed(seed: int, index: int) -> int:
    """Seed of one case of a set."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])


def _paint(head: Head, grid: Grid) -> tuple[Floats, dict[str, Floats]]:
    """Paints a head on a grid, a few slabs at a time."""
    image = np.empty((2, *grid.shape), np.float32)
    maps = {
        name: np.empty(grid.shape, np.float32) for name in ("head", "brain", "white", "ventricle")
    }
    voxel_mm = float(np.prod(grid.spacing)) ** (1 / 3)
    i, j, k = (
        a * s + o
        for a, s, o in zip(
            map(np.arange, grid.shape), grid.spacing, grid.affine[:3, 3], strict=True
        )
    )
    slab = max(1, CHUNK // (len(j) * len(k)))
    for start in range(0, len(i), slab):
        part = slice(start, start + slab)
        world = np.stack(np.meshgrid(i[part], j, k, indexing="ij")).astype(np.float32)
        tissue = head.paint(world.reshape(3, -1), voxel_mm)
        image[:, part] = tissue.image.reshape(2, *world.shape[1:])
        for name, volume in maps.items():
            volume[part] = getattr(tissue, name).reshape(world.shape[1:])
    return image, maps


def _add_lesions(
    image: Floats, maps: dict[str, Floats], grid: Grid, count: int, size: float, rng: Generator
) -> tuple[NDArray[np.uint8], int]:
    """Draws lesions into the white matter, apart from each other.

    Returns:
        Their mask, and how many found room.
    """
    label = np.zeros(grid.shape, np.uint8)
    # Relative to the best voxel: on a coarse grid none is white matter alone.
    white = maps["white"] / max(float(maps["white"].max()), 1e-3)
    # Mostly near the ventricles, as in multiple sclerosis; a few anywhere in the white matter.
    places = np.flatnonzero(white > 0.6)
    weights = 0.01 + np.exp(maps["ventricle"].ravel()[places] / 7.0)
    weights = np.cumsum(weights, dtype=np.float64)
    for number in range(count):
        for _ in range(ATTEMPTS):
            centre = places[np.searchsorted(weights, rng.uniform(0, weights[-1]))]
            drawn = _lesion(white, grid, int(centre), size, rng)
            if drawn is not None:
                break
        else:
            return label, number
        box, share = drawn
        label[box][share > 0.5] = 1
        # None of the white matter around is left for the next one, so that they stay apart.
        white[box][ndimage.binary_dilation(share > 0, iterations=2)] = 0
        brightness = (rng.uniform(0.82, 1.0), rng.uniform(0.32, 0.56))
        for channel, value in zip(image, brightness, strict=True):
            channel[box] += share * (np.float32(value) - channel[box])
    return label, count


def _lesion(
    white: Floats, grid: Grid, centre: int, size: float, rng: Generator
) -> tuple[tuple[slice, ...], Floats] | None:
    """Draws one lesion: its box and its share of each voxel there; None if it has no room.

    An ellipsoid of log-normal volume, longest across the head, with a rough surface.
    """
    spacing = np.array(grid.spacing)
    volume_ml = np.clip(rng.lognormal(math.log(0.6), 0.95), 0.08, 12.0) * size**3
    # A grid cannot show less than a few voxels.
    volume_ml = max(volume_ml, 1.6 * SMALLEST_LESION * grid.voxel_volume_ml)
    radius = float(np.cbrt(volume_ml * 1000 * 3 / (4 * np.pi)))
    axes = np.array([1.35, rng.uniform(0.75, 1.1), rng.uniform(0.7, 1.0)])
    axes *= radius / np.cbrt(axes.prod())
    turn = Rotation.from_euler("xyz", rng.normal(0, (30, 20, 30)), degrees=True).as_matrix()
    waves = rng.normal(size=(3, 12))
    waves *= 2 * np.pi / (radius * rng.uniform(1.3, 3.5, 12)) / np.linalg.norm(waves, axis=0)
    phases, roughness = rng.uniform(0, 2 * np.pi, 12), rng.uniform(0.06, 0.13)

    middle = np.array(np.unravel_index(centre, grid.shape))
    reach = np.ceil(1.6 * axes.max() / spacing).astype(int) + 4
    low, high = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, grid.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    index = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1)
    points = (index - middle) * spacing
    level = np.linalg.norm(points @ turn / axes, axis=-1)
    rough = np.sin(points @ waves + phases).sum(-1) * roughness
    voxel_mm = float(np.prod(spacing)) ** (1 / 3)
    share = np.clip((1 - level + rough) * radius / voxel_mm + 0.5, 0, 1)
    share *= np.clip(1.6 * white[box], 0, 1)

    parts, count = ndimage.label(share > 0.5, np.ones((3, 3, 3)))
    if not count:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    largest = parts == 1 + int(sizes.argmax())
    near = ndimage.binary_dilation(largest, iterations=2) & ((parts == 0) | largest)
    share = np.where(near, share, 0).astype(np.float32)
    if sizes.max() < SMALLEST_LESION:
        return None
    return box, share


def _scan(image: Floats, head: NDArray[np.bool_], rng: Generator) -> Floats:
    """Adds what a scanner adds: point spread, bias field, Rician noise, an arbitrary unit."""
    shape = head.shape
    out = np.empty_like(image)
    for channel, clean in zip(out, image, strict=True):
        for axis in range(3):
            clean = ndimage.correlate1d(clean, (0.12, 0.76, 0.12), axis, mode="nearest")
        waves = [
            np.cos(
                np.linspace(-1, 1, n)[:, None] * rng.uniform(0.3, 1.8, 5) + rng.uniform(0, 6.3, 5)
            )
            for n in shape
        ]
        weights = rng.normal(0, 0.09, 5)
        plane = (waves[1][:, None] * waves[2]).reshape(-1, 5)
        bias = np.exp((waves[0] * weights) @ plane.T).astype(np.float32).reshape(shape)
        noise = np.float32(rng.uniform(0.008, 0.018))
        clean *= bias
        clean += noise * rng.standard_normal(shape, np.float32)
        np.hypot(clean, noise * rng.standard_normal(shape, np.float32), out=clean)
        channel[:] = clean * (head * np.float32(rng.uniform(350, 900)))
    return out
