"""Pictures of samples: three planes through each lesion, in the greys a radiologist is used to.

The patient's right is on the left of the picture and anterior or superior on top, whatever the
orientation of the grid. PET is shown with high uptake dark, CT in the window of the bundle, MR from
its darkest to its brightest half percent. The same samples give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import PIL.Image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medvae3d.data.intensity import PowerIntensity, WindowIntensity
from medvae3d.data.volumes import write_bytes
from medvae3d.errors import SettingError
from medvae3d.geometry import Grid
from medvae3d.synthesis.levels import tidy
from medvae3d.synthesis.recipe import Channel

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Outlines of the first label values; told apart by most colour-blind readers, on any grey.
COLOURS = ("#ff9f0a", "#32d7ff", "#ff5ac8", "#b4ff3c")
BACKGROUND = "#16181c"
DOTS_PER_INCH = 110
# Pixels that a plane is drawn with at least, so that small volumes can be seen.
SMALLEST_PLANE = 160
GAP = 4
# Share of a PET channel's scale that is shown black: 10 SUV where the scale is 20, as in clinics.
PET_TOP = 0.5
ZOOM_MM = 48.0
# How long a picture of an animation is shown.
FRAME_MS = 250


@dataclass(frozen=True, eq=False)
class Panel:
    """One volume of a contact sheet.

    Attributes:
        title: What stands above it.
        image: Native units, :math:`(C, I, J, K)`.
        label: Label map, :math:`(I, J, K)`.
        grid: Where the voxels lie.
    """

    title: str
    image: NDArray[Any] = field(repr=False)
    label: NDArray[Any] = field(repr=False)
    grid: Grid


def contact_sheet(
    panels: Sequence[Panel],
    channels: Sequence[Channel],
    path: str | Path,
    *,
    columns: int = 2,
    same_planes: bool = False,
) -> None:
    """Draws volumes, a row of three planes for each channel, through the largest sections.

    Args:
        panels: The volumes.
        channels: How their channels are shown.
        path: PNG to write.
        columns: Volumes beside each other.
        same_planes: Whether all volumes are cut at the same place; they have to lie on one grid.

    Raises:
        SettingError: If there is nothing to draw.
    """
    if not panels:
        raise SettingError("there is no sample to draw; give at least one.")
    centre = _shared_section(panels) if same_planes else None
    blocks = [_block(panel, channels, centre) for panel in panels]
    rows = [
        row
        for first in range(0, len(blocks), columns)
        for row in zip(*blocks[first : first + columns], strict=True)
    ]
    _save(rows, path)


def animation(panels: Sequence[Panel], channels: Sequence[Channel], path: str | Path) -> None:
    """Draws volumes on one grid one after the other, there and back, as an animated GIF.

    Args:
        panels: The volumes, in order.
        channels: How their channels are shown.
        path: GIF to write.

    Raises:
        SettingError: If there is nothing to draw.
    """
    if not panels:
        raise SettingError("there is no volume to draw; give at least one.")
    centre = _shared_section(panels)
    pictures = [
        PIL.Image.open(io.BytesIO(_png([[strip] for strip in _block(panel, channels, centre)])))
        for panel in panels
    ]
    turns = [each.convert("P", palette=PIL.Image.Palette.ADAPTIVE) for each in pictures]
    turns += turns[-2:0:-1]
    buffer = io.BytesIO()
    turns[0].save(
        buffer, format="GIF", save_all=True, append_images=turns[1:], duration=FRAME_MS, loop=0
    )
    write_bytes(path, buffer.getvalue())


def _shared_section(panels: Sequence[Panel]) -> tuple[int, int, int]:
    """Where the masks of all volumes together have their largest section, in drawing axes."""
    first = panels[0]
    whole = np.max([panel.label > 0 for panel in panels], axis=0).astype(np.uint8)
    _, label, _ = _reoriented(first.image[:1], whole, first.grid)
    return section(label)


@dataclass(frozen=True, eq=False)
class _Strip:
    """Planes side by side, with labels to outline, and what is written above."""

    grey: NDArray[Any]
    label: NDArray[Any]
    title: str = ""


def _block(
    panel: Panel, channels: Sequence[Channel], centre: tuple[int, int, int] | None = None
) -> list[_Strip]:
    image, label, spacing = _reoriented(panel.image, panel.label, panel.grid)
    centre = section(label) if centre is None else centre
    strips = []
    for index, channel in enumerate(channels):
        grey = shade(image[index], channel)
        planes = [_plane(grey, axis, centre, spacing) for axis in (2, 1, 0)]
        labels = [_plane(label, axis, centre, spacing) for axis in (2, 1, 0)]
        title = f"{panel.title}   {channel.name}" if index == 0 else channel.name
        strips.append(_Strip(_beside(planes, 1.0), _beside(labels, 0), title))
    return strips


def section(label: NDArray[Any]) -> tuple[int, int, int]:
    """Where the mask has its largest section across each axis; the middle if it is empty."""
    if not label.any():
        i, j, k = (n // 2 for n in label.shape)
        return i, j, k
    inside = label > 0
    i, j, k = (
        int(inside.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.int64).argmax())
        for axis in range(3)
    )
    return i, j, k


def shade(
    image: NDArray[Any], channel: Channel, reference: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Native units to grey between 0, black, and 1, white.

    Args:
        image: Native units.
        channel: Says which.
        reference: What MR takes its darkest and brightest values from, ``image`` if not given.
    """
    scheme = channel.intensity
    if isinstance(scheme, PowerIntensity):
        return np.asarray(1 - np.clip(image / (PET_TOP * scheme.scale), 0, 1))
    if isinstance(scheme, WindowIntensity):
        low, high = scheme.low, scheme.high
    else:
        shown = image if reference is None else reference
        some = shown[shown > 0] if (shown > 0).any() else shown
        low, high = (float(v) for v in np.percentile(some, (0.5, 99.5)))
    return np.asarray(np.clip((image - low) / max(high - low, 1e-6), 0, 1))


def _reoriented(
    image: NDArray[Any], label: NDArray[Any], grid: Grid
) -> tuple[NDArray[Any], NDArray[Any], tuple[float, ...]]:
    """Image, label and spacing with the axes nearest to right, anterior, superior."""
    turn = nib.orientations.io_orientation(grid.affine)
    spacing = [0.0, 0.0, 0.0]
    for size, target in zip(grid.spacing, turn[:, 0], strict=True):
        spacing[int(target)] = size
    apply = nib.orientations.apply_orientation
    return np.stack([apply(c, turn) for c in image]), apply(label, turn), tuple(spacing)


def _plane(
    volume: NDArray[Any], axis: int, centre: Sequence[int], spacing: Sequence[float]
) -> NDArray[Any]:
    """One plane with square pixels, seen as a radiologist does."""
    across, up = ((1, 2), (0, 2), (0, 1))[axis]
    plane = np.take(volume, centre[axis], axis)[::-1, ::-1].T
    sizes = plane.shape[0] * spacing[up], plane.shape[1] * spacing[across]
    pixel = min(spacing[up], spacing[across], max(sizes) / SMALLEST_PLANE)
    picks = []
    for n, size in zip(plane.shape, sizes, strict=True):
        count = max(1, round(size / pixel))
        picks.append(((np.arange(count) + 0.5) * n / count).astype(int))
    return np.asarray(plane[np.ix_(*picks)])


def _beside(planes: Sequence[NDArray[Any]], fill: float) -> NDArray[Any]:
    """Planes in a row, centred, with a gap between them."""
    height = max(plane.shape[0] for plane in planes)
    width = sum(plane.shape[1] for plane in planes) + GAP * (len(planes) - 1)
    row = np.full((height, width), np.nan if fill else 0, dtype=np.float32)
    left = 0
    for plane in planes:
        top = (height - plane.shape[0]) // 2
        row[top : top + plane.shape[0], left : left + plane.shape[1]] = plane
        left += plane.shape[1] + GAP
    return row


def _save(rows: Sequence[Sequence[_Strip]], path: str | Path) -> None:
    write_bytes(path, _png(rows))


def _png(rows: Sequence[Sequence[_Strip]]) -> bytes:
    """Lays strips out in rows."""
    margin, text = 10, 22
    heights = [max(strip.grey.shape[0] for strip in row) + text for row in rows]
    width = max(sum(s.grey.shape[1] + margin for s in row) for row in rows) + margin
    height = sum(heights) + margin
    figure = Figure(
        figsize=(width / DOTS_PER_INCH, height / DOTS_PER_INCH),
        dpi=DOTS_PER_INCH,
        facecolor=BACKGROUND,
    )
    FigureCanvasAgg(figure)
    top = 0
    for row, used in zip(rows, heights, strict=True):
        left = margin
        for strip in row:
            high, wide = strip.grey.shape
            place = [left / width, 1 - (top + text + high) / height, wide / width, high / height]
            axes = figure.add_axes(place)  # type: ignore[call-overload]
            axes.imshow(strip.grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            _outline(axes, strip.label)
            axes.set_axis_off()
            where = (left / width, 1 - (top + text - 5) / height)
            figure.text(*where, strip.title, color="white", fontsize=8, family="DejaVu Sans")
            left += wide + margin
        top += used
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=BACKGROUND, metadata={"Software": None})
    return buffer.getvalue()


def _outline(axes: Any, label: NDArray[Any]) -> None:
    for value in np.unique(label[label > 0]).astype(int):
        colour = COLOURS[(value - 1) % len(COLOURS)]
        axes.contour(label == value, levels=[0.5], colors=[colour], linewidths=0.8)


def preview_insertion(
    before: NDArray[Any],
    after: NDArray[Any],
    mask: NDArray[Any],
    grid: Grid,
    channels: Sequence[Channel],
    path: str | Path,
    *,
    title: str = "",
) -> None:
    """Draws a host before and after, and the outline of what was put into it, whole and close up.

    Args:
        before: The host, native units, :math:`(C, I, J, K)`.
        after: The same with lesions.
        mask: The lesions that were put in, :math:`(I, J, K)`.
        grid: Where the voxels lie.
        channels: How channels are shown.
        path: PNG to write.
        title: What stands above it.
    """
    first, mask_ras, spacing = _reoriented(before, mask, grid)
    second, _, _ = _reoriented(after, mask, grid)
    centre = _largest_lesion(mask_ras)
    nothing = np.zeros_like(mask_ras)
    views = (("before", first, nothing), ("after", second, nothing), ("outline", second, mask_ras))
    rows: list[list[_Strip]] = []
    for index, channel in enumerate(channels):
        # One scale for both, so that a change of brightness is a change of the volume.
        shaded = [shade(image[index], channel, first[index]) for image in (first, second)]
        for close in (False, True):
            row = []
            for name, image, outline in views:
                volume = shaded[0] if image is first else shaded[1]
                planes = [_view(volume, axis, centre, spacing, close) for axis in (2, 1, 0)]
                labels = [_view(outline, axis, centre, spacing, close) for axis in (2, 1, 0)]
                head = f"{title}   {channel.name} {name}" if not close else ""
                row.append(_Strip(_beside(planes, 1.0), _beside(labels, 0), head.strip()))
            rows.append(row)
    _save(rows, path)


def _largest_lesion(mask: NDArray[Any]) -> tuple[int, int, int]:
    return section(tidy(mask > 0).mask)


def _view(
    volume: NDArray[Any], axis: int, centre: Sequence[int], spacing: Sequence[float], close: bool
) -> NDArray[Any]:
    """A whole plane, or the part of it around the centre."""
    if not close:
        return _plane(volume, axis, centre, spacing)
    box, middle = [], []
    for at, n, size in zip(centre, volume.shape, spacing, strict=True):
        reach = max(4, round(ZOOM_MM / 2 / size))
        start = max(0, min(at - reach, n - 2 * reach))
        box.append(slice(start, start + 2 * reach))
        middle.append(at - start)
    return _plane(volume[tuple(box)], axis, middle, spacing)
