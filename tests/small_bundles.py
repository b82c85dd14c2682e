"""The shipped configurations with small networks, and a data set for them; no tests in here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigWorkflow

from medvae3d.data.volumes import write_volume
from medvae3d.geometry import Grid

BUNDLES = Path(__file__).parents[1] / "bundles"
NAMES = ("sts_petct_hvae", "sts_petct_pavae", "brain_mri_ms_pavae", "hippocampus_mri_hvae")
JOINT = tuple(name for name in NAMES if name.endswith("hvae"))
INSERTING = tuple(name for name in NAMES if name.endswith("pavae"))
SIDE = 16
# Background and mask of each channel, in native units.
LEVELS = {"PET": (0.8, 9.0), "CT": (-60.0, 60.0), "FLAIR": (300.0, 520.0), "MR": (300.0, 520.0)}


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def config(name: str, file: str) -> dict[str, Any]:
    """A configuration file of a shipped bundle, as it stands."""
    return read(BUNDLES / name / "configs" / f"{file}.json")


def shrunk(content: dict[str, Any]) -> dict[str, Any]:
    """The same configuration with a network of a few thousand weights on volumes of 16 voxels."""
    content = {**content, "spatial_shape": [SIDE] * 3}
    network = dict(content["network_def"])
    sizes = {"channels": [4, 8], "latent_channels": 4}
    prior = {"components": 1, "rank": 2}
    if "shape" in network:
        network["shape"] = {**network["shape"], **sizes, **prior}
        texture = {**network["texture"], **sizes}
        network["texture"] = {**texture, **(prior if texture.get("components") else {})}
    else:
        network |= {**sizes, **prior}
    content["network_def"] = network
    if "synthesis" in content:  # what so small a network makes is no single blob
        content["synthesis"] = {
            **content["synthesis"],
            "allow_border": True,
            "max_components": 999,
            "volume_range_percent": [0, 100],
            "phantom_shape": [40, 40, 40],
            "block_size": 2,
        }
    if "train" in content:
        content["discriminator"] = {**content["discriminator"], "channels": [4, 8]}
        content |= {
            "max_epochs": 2,
            "epoch_length": 12,
            "batch_size": 2,
            "learning_rate": 0.01,
            "warm_up_steps": 5,
            "adversarial_start": 20,
            "prior_passes": 2,
            "val_interval": 1,
            "precision": "float32",
            "tensorboard": False,
            "device": "cpu",
        }
        for handler in content["train"]["handlers"]:
            if handler["_target_"].endswith("HistoryWriter"):
                handler["every_steps"] = 6
        if "flow_start" in content:
            content["flow_start"] = 22
        for part in ("train#patches", "validate#dataloader#loaders#patches"):
            place: Any = content
            for key in part.split("#"):
                place = place.get(key, {})
            if place:
                place["patches"] |= {"samples_per_case": 4, "jitter": 1, "batch_size": 2}
    return content


def small_copy(name: str, folder: Path) -> Path:
    """A copy of a shipped bundle with small networks and without weights."""
    shutil.copytree(BUNDLES / name, folder, ignore=shutil.ignore_patterns("models", "eval"))
    (folder / "models").mkdir()
    for file in ("train", "inference"):
        path = folder / "configs" / f"{file}.json"
        path.write_text(json.dumps(shrunk(read(path)), indent=4))
    return folder


def quick_training(bundle: Path) -> None:
    """Lets a bundle train two steps an epoch, and fit its prior in six passes."""
    path = bundle / "configs" / "train.json"
    content = {**read(path), "epoch_length": 2, "prior_passes": 6, "tensorboard": False}
    path.write_text(json.dumps(content, indent=4))


def volume(
    channels: list[dict[str, Any]], grid: Grid, seed: int, labels: int = 1, lesion: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid in a larger one, with noise; native units and label map."""
    rng = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"))
    middle = (np.array(grid.shape).reshape(3, 1, 1, 1) - 1) / 2
    head = np.linalg.norm((index - middle) / (0.47 * np.array(grid.shape)[:, None, None, None]),
                          axis=0) < 1  # fmt: skip
    radius = rng.uniform(2.6, 4.2) * rng.uniform(0.9, 1.1, (3, 1, 1, 1))
    shift = rng.normal(0, 0.4, (3, 1, 1, 1))
    inside = np.linalg.norm((index - middle - shift) / radius, axis=0) < 1
    label = inside.astype(np.uint8)
    if labels == 2:
        label += inside & (index[1] < middle[1])
    if not lesion:
        label[:] = 0
    image = []
    for channel in channels:
        low, high = LEVELS[channel["name"]]
        values = np.where(label > 0, high, low) + rng.normal(0, 0.03 * (high - low), grid.shape)
        image.append(np.where(head, values, -200.0 if channel["name"] == "CT" else 0.0))
    return np.array(image, np.float32), label


def write_cases(folder: Path, content: dict[str, Any], count: int = 8) -> Path:
    """A data list of cases in the bundle's own units, two of them for validation."""
    grid = Grid.centred((20, SIDE, 18), content["spacing"])
    entries = []
    for number in range(count):
        image, label = volume(content["channels"], grid, number, len(content["labels"]) - 1)
        files = [f"case{number}_{c:04d}.nii.gz" for c in range(len(image))]
        for file, array in zip(files, image, strict=True):
            write_volume(folder / file, array, grid, dtype=np.float32)
        write_volume(folder / f"case{number}.nii.gz", label, grid, dtype=np.uint8)
        entries.append({"image": files, "label": f"case{number}.nii.gz"})
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": entries[2:], "validation": entries[:2]}))
    return path


def workflow(files: Path | list[Path], kind: str = "train", **changes: Any) -> ConfigWorkflow:
    """A workflow on a CPU that leaves the logging of the tests alone."""
    paths = [str(file) for file in (files if isinstance(files, list) else [files])]
    root = Path(paths[0]).parents[1]
    made = ConfigWorkflow(
        paths,
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        **{"bundle_root": str(root), "device": "cpu", **changes},
    )
    made.initialize()
    return made


def run(made: ConfigWorkflow) -> None:
    made.run()
    made.finalize()
