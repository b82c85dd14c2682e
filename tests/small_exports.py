"""Cases to export, and what reads them again; no tests in here."""

from __future__ import annotations

import json

import numpy as np
import SimpleITK as sitk

from medvae3d.data.volumes import write_volume
from medvae3d.geometry import Grid

TURN = np.deg2rad(20)
AXES = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])
# Stored type and step of each channel; MR with a step, which not all readers of DICOM apply.
STORED = {"ct": (np.int16, None), "pet": (np.int16, 0.005), "flair": (np.float32, None),
          "t1": (np.int16, 0.1)}  # fmt: skip


def write_list(root, names=("ct",), count=1, mirrored=False, labels=None):
    """Synthetic cases with records on an oblique grid."""
    affine = np.eye(4)
    affine[:3, :3] = AXES @ np.diag([-0.7 if mirrored else 0.7, 0.9, 2.5])
    affine[:3, 3] = (-12, 30, 7)
    grid = Grid((6, 7, 5), affine)
    (root / "records").mkdir(parents=True)
    entries = []
    for i in range(count):
        random = np.random.default_rng(i)
        images = [f"case{i}_{name}.nii.gz" for name in names]
        for name, image in zip(names, images, strict=True):
            dtype, step = STORED[name]
            array = random.integers(-900 if name == "ct" else 0, 900, grid.shape) * (step or 1.0)
            array = array + (random.random(grid.shape) if dtype == np.float32 else 0)
            write_volume(root / image, array.astype(np.float32), grid, dtype=dtype, slope=step)
        mask = np.zeros(grid.shape, np.uint8)
        mask[1:3, 2:5, 1:3] = 1
        mask[4, 5, 4] = 2
        write_volume(root / f"case{i}_label.nii.gz", mask, grid)
        record = {"synthetic": True, "bundle": "b 1.0", "seed": 0, "index": i}
        (root / "records" / f"case{i}.json").write_text(json.dumps(record))
        image = images if len(images) > 1 else images[0]
        entries.append({"image": image, "label": f"case{i}_label.nii.gz", "subject": f"p{i}"})
    labels = labels or {"background": 0, "lesion": 1, "core": 2}
    content = {"name": "b", "synthetic": True, "channels": list(names), "labels": labels}
    (root / "list.json").write_text(json.dumps({**content, "training": entries}))
    return root / "list.json"


def files(folder):
    """All files but the command's own note of its options, which name the folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and p.name != "options.json"}  # fmt: skip


def put_out(cli, listed, out, *words):
    done = cli("data", "export", listed, "--out", out, *words)
    assert done.code == 0, done.error
    return out


def at_the_same_places(image, source, *, fill=-9999.0):
    """The voxels of an image where those of a source lie, by place in mm, not by index."""
    where = sitk.Resample(image, source, sitk.Transform(), sitk.sitkNearestNeighbor, fill)
    return sitk.GetArrayFromImage(where).astype(float)
