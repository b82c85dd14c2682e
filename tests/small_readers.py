"""What the reader of a page has: scans and data lists, small ones; no tests in here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import small_bundles as small

from medvae3d.data.volumes import write_volume
from medvae3d.geometry import Grid

SHAPE = (18, 16, 18)


def write_list(
    path: Path,
    bundle: str = "sts_petct_hvae",
    *,
    training: int = 4,
    unseen: int = 2,
    shape: Sequence[int] = SHAPE,
    spacing: Sequence[float] | None = None,
    lacking: str | None = None,
    classes: Sequence[str] = (),
    has_brains: bool = False,
    **also: Any,
) -> Path:
    """A data list of small cases in the channels and labels of a bundle.

    Args:
        path: The list; its files lie in a folder of its name beside it.
        bundle: Name of a shipped bundle.
        training: Cases to train on, named A, B, C and so on.
        unseen: Cases in each of the other splits.
        shape: Voxels of a case.
        spacing: Their size in mm; that of the bundle if not given.
        lacking: Channel that every second case has not.
        classes: Classes that cases have in turn.
        has_brains: Whether cases come with a mask of the brain.
        also: What else every entry has.
    """
    content = small.config(bundle, "train")
    grid = Grid.centred(tuple(shape), spacing or content["spacing"])
    splits = ["training"] * training + ["validation"] * unseen + ["testing"] * unseen
    listed: dict[str, Any] = {
        "name": "phantoms",
        "licence": {"name": "CC0-1.0"},
        "channels": [channel["name"] for channel in content["channels"]],
        "labels": content["labels"],
    }
    for number, split in enumerate(splits):
        name = chr(ord("A") + number) if number < 26 else f"case{number}"
        image, label = small.volume(content["channels"], grid, number, len(content["labels"]) - 1)
        files: list[str | None] = []
        for channel, array in zip(content["channels"], image, strict=True):
            file = f"{path.stem}/{name}_{channel['name'].lower()}.nii.gz"
            write_volume(path.parent / file, array, grid, dtype=np.float32)
            files.append(None if channel["name"] == lacking and number % 2 else file)
        mask = f"{path.stem}/{name}_mask.nii.gz"
        write_volume(path.parent / mask, label, grid, dtype=np.uint8)
        entry = {"image": files, "label": mask, "subject": name, "name": name, **also}
        if has_brains:
            entry["brainmask"] = f"{path.stem}/{name}_brain.nii.gz"
            brain = (image[0] > 0).astype(np.uint8)
            write_volume(path.parent / entry["brainmask"], brain, grid, dtype=np.uint8)
        if classes:
            entry["class"] = classes[number % len(classes)]
        listed.setdefault(split, []).append(entry)
    path.write_text(json.dumps(listed), encoding="utf-8")
    return path
