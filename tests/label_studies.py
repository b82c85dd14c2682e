"""Studies for a server: hosts in all poses for each bundle, and cases to train on; no tests."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from small_bundles import JOINT, NAMES, config, volume

from medvae3d.apps.bundle import load_bundle
from medvae3d.geometry import Grid

POSES = ("plain", "flipped", "permuted", "turned")
# In voxels of a host; a lesion needs its surroundings.
SIDES = {
    "hippocampus_mri_hvae": (40, 54, 38),
    "brain_mri_ms_pavae": (52, 56, 50),
    "sts_petct_hvae": (44, 46, 40),
    "sts_petct_pavae": (46, 44, 48),
}


def affine(pose: str, spacing: list[float]) -> np.ndarray:
    """Of a host: as the weights have it, flipped, permuted and anisotropic, or turned."""
    s, made = np.array(spacing), np.eye(4)
    if pose == "flipped":
        made[:3, :3] = np.diag(s * [-1, -1, 1])
    elif pose == "permuted":
        made[:3, :3] = np.array([[0, 1, 0], [0, 0, -1], [1, 0, 0]]) @ np.diag(s * [1.3, 0.9, 1.1])
    elif pose == "turned":
        c, d = np.cos(0.2), np.sin(0.2)
        made[:3, :3] = np.array([[c, -d, 0], [d, c, 0], [0, 0, 1]]) @ np.diag(s)
    else:
        made[:3, :3] = np.diag(s)
    made[:3, 3] = [12.5, -31.0, 7.25]
    return made


def write_host(folder: Path, name: str, pose: str, seed: int = 0, lesion: bool = False) -> Path:
    """A host for a bundle, 4D where it has several channels; with a mask beside it if asked."""
    content = config(name, "inference")
    grid = Grid(SIDES[name], affine(pose, content["spacing"]))
    image, label = volume(content["channels"], grid, 50 + seed, len(content["labels"]) - 1, lesion)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{pose}{seed}.nii.gz"
    array = np.moveaxis(image, 0, -1)
    array = array[..., 0] if array.shape[-1] == 1 else array
    nib.save(nib.Nifti1Image(array, grid.affine), path)
    if lesion:
        (folder / "masks").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(label, grid.affine), folder / "masks" / path.name)
    return path


def write_studies(folder: Path) -> None:
    """A host in each pose and two cases with masks for each bundle."""
    for name in NAMES:
        for pose in POSES:
            write_host(folder, name, pose)
        if name in JOINT:
            write_samples(folder, name)
            continue
        for seed in (1, 2):
            write_host(folder, name, "plain", seed, lesion=True)


def write_samples(folder: Path, name: str) -> None:
    """Two cases of a joint bundle's own making: an ellipsoid is no anatomy that it could learn."""
    (folder / "masks").mkdir(exist_ok=True)
    for seed, sample in enumerate(load_bundle(name).generate(2, 7), start=1):
        image = np.moveaxis(sample.image.numpy(), 0, -1)
        image = image[..., 0] if image.shape[-1] == 1 else image
        path = folder / f"{name}_plain{seed}.nii.gz"
        nib.save(nib.Nifti1Image(image, sample.grid.affine), path)
        mask = nib.Nifti1Image(sample.label.numpy()[0], sample.grid.affine)
        nib.save(mask, folder / "masks" / path.name)
