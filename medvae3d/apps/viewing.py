"""Samples and training cases in a notebook: to turn and scroll through, or as a picture.

NiiVue draws where ``medvae3d[notebook]`` is installed and the notebook can show widgets. Everywhere
else there is the picture that commands write, three planes through the largest section.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from medvae3d.errors import SettingError
from medvae3d.geometry import Grid
from medvae3d.synthesis.preview import Panel, contact_sheet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medvae3d.apps.bundle import Bundle
    from medvae3d.synthesis.generator import Sample

MASK_COLOURS, MASK_OPACITY = "warm", 0.5


class Picture:
    """A PNG that a notebook shows."""

    def __init__(self, png: bytes) -> None:
        self.png = png

    def _repr_png_(self) -> bytes:
        return self.png


def picture(bundle: Bundle, *shown: Sample | Mapping[str, Any], columns: int = 2) -> Picture:
    """Three planes of each volume with the outline of its mask.

    Args:
        bundle: Whose channels they have.
        *shown: Samples, or cases of a training with ``image`` and ``label``.
        columns: Volumes beside each other.
    """
    panels = [
        Panel(f"{number}", image, label, grid)
        for number, (image, label, grid) in enumerate(map(_parts, shown))
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        contact_sheet(panels, bundle.recipe.channels, path, columns=columns)
        return Picture(path.read_bytes())


def view(
    bundle: Bundle, shown: Sample | Mapping[str, Any], *, channel: int = 0, height: int = 400
) -> Any:
    """A volume with its mask over it, to turn and scroll through.

    Args:
        bundle: Whose channels it has.
        shown: A sample, or a case of a training with ``image`` and ``label``.
        channel: Which channel.
        height: Of the view, in pixels.

    Returns:
        The widget; where ``ipyniivue`` is not installed, a `Picture`.

    Raises:
        SettingError: If there is no such channel.
    """
    image, label, grid = _parts(shown)
    if not 0 <= channel < len(image):
        raise SettingError(
            f"channel is {channel}; allowed are 0 to {len(image) - 1}. Name one of them."
        )
    try:
        from ipyniivue import NiiVue
    except ImportError:
        return picture(bundle, shown, columns=1)
    name = bundle.recipe.channels[channel].name
    widget = NiiVue(height=height)
    widget.load_volumes(
        [
            {"data": _nifti(image[channel], grid), "name": f"{name}.nii"},
            {
                "data": _nifti(label.astype(np.uint8), grid),
                "name": "mask.nii",
                "colormap": MASK_COLOURS,
                "opacity": MASK_OPACITY,
            },
        ]
    )
    return widget


def _parts(shown: Any) -> tuple[NDArray[Any], NDArray[Any], Grid]:
    """Image :math:`(C, I, J, K)`, label map :math:`(I, J, K)` and grid."""
    if isinstance(shown, Mapping):
        image, label = shown["image"], shown["label"]
        i, j, k = image.shape[-3:]
        grid = Grid((i, j, k), np.asarray(image.affine.cpu(), np.float64))
    else:
        image, label, grid = shown.image, shown.label, shown.grid
    return np.asarray(image.cpu()), np.asarray(label.cpu())[0], grid


def _nifti(array: NDArray[Any], grid: Grid) -> bytes:
    kind = array.dtype if array.dtype == np.uint8 else np.float32
    return bytes(nib.Nifti1Image(array.astype(kind), grid.affine).to_bytes())
