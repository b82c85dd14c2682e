"""Data lists on disk for tests of reports: noise with a box for a mask."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from medvae3d.data.datalists import Case, write_datalist
from medvae3d.data.volumes import write_volume
from medvae3d.geometry import Grid

SHAPE, SPACING = (10, 12, 8), (2.0, 2.0, 3.0)


def write_list(folder, arrays, masks=None, *, info=None, spacing=SPACING, axcodes="RAS"):
    """A data list of images, each (C, I, J, K), stored with the axes given."""
    cases = []
    for number, array in enumerate(arrays):
        name = f"case_{number:03d}"
        mask = np.zeros(array.shape[1:], np.uint8) if masks is None else masks[number]
        grid = Grid.centred(array.shape[1:], spacing)
        files = []
        for channel, voxels in enumerate((*array, mask)):
            path = folder / f"{name}_{channel:04d}.nii.gz"
            turned = nib.Nifti1Image(voxels, grid.affine)
            to = nib.orientations.axcodes2ornt(axcodes)
            turned = turned.as_reoriented(
                nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), to)
            )
            write_volume(path, np.asarray(turned.dataobj), Grid.from_image(turned))
            files.append(path)
        label = None if masks is None else files[-1]
        cases.append(Case(tuple(files[:-1]), label, name, "training", {"case": name}))
    write_datalist(folder / "list.json", cases, info)
    return folder / "list.json"


def volumes(count, seed, channels=1):
    rng = np.random.default_rng(seed)
    return [rng.uniform(0, 100, (channels, *SHAPE)).astype(np.float32) for _ in range(count)]


def boxes(count, value=1):
    masks = [np.zeros(SHAPE, np.uint8) for _ in range(count)]
    for number, mask in enumerate(masks):
        mask[2 + number % 3 : 5, 3:6, 2:5] = value
    return masks
