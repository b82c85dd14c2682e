"""What a bundle does inside of a MONAI Label server; importable without MONAI Label."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform


class PublishSyntheticd(MapTransform):
    """Adds a synthetic image and its mask to the data store of a running MONAI Label server.

    Without a server, as in a plain ``python -m monai.bundle run``, it does nothing.

    Args:
        keys: The image and its mask, in this order.
        enabled: Whether to publish.
        seed: Part of the name that the image gets.
        source_key: Entry of the host, which the name begins with.
        tag: Tag of the mask. Under ``synthetic``, the pair stays out of training and statistics;
            under ``final``, MONAI Label trains on it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        enabled: bool | str = False,
        seed: int = 0,
        source_key: str = "image",
        tag: str = "synthetic",
    ) -> None:
        super().__init__(keys)
        # A client may send the option as text.
        self.enabled = str(enabled).strip().lower() in ("true", "1", "yes", "on")
        self.seed = int(seed)
        self.source_key = source_key
        self.tag = tag

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        app = label_app() if self.enabled else None
        if app is None:
            return changed
        image_key, label_key = self.keys[:2]
        name = f"{_host_name(changed, self.source_key)}_syn{self.seed}"
        with tempfile.TemporaryDirectory() as folder:
            image = _save(changed[image_key], Path(folder) / f"{name}.nii.gz", np.float32)
            label = _save(changed[label_key], Path(folder) / f"{name}_mask.nii.gz", np.uint8)
            store = app.datastore()
            image_id = store.add_image(name, str(image), {"synthetic": True, "seed": self.seed})
            label_id = store.save_label(image_id, str(label), self.tag, {"synthetic": True})
        changed["result"] = {
            **(changed.get("result") or {}),
            "synthetic_image": image_id,
            "synthetic_label": label_id,
            "label_tag": self.tag,
        }
        return changed


def label_app() -> Any:
    """The MONAI Label application of this process; ``None`` where there is none."""
    try:
        from monailabel.interfaces.utils.app import (
            app_instance,
            apps,
        )
    except ImportError:
        return None
    # `app_instance` would start an application where none runs.
    return app_instance() if apps else None


def _host_name(data: Mapping[Hashable, Any], key: str) -> str:
    path = data.get(f"{key}_path") or getattr(data.get(key), "meta", {}).get("filename_or_obj")
    name = Path(str(path or "host")).name
    return name.removesuffix(".gz").removesuffix(".nii")


def _save(volume: Any, path: Path, dtype: Any) -> Path:
    """Writes one channel as 3D, several as 4D."""
    affine = np.asarray(getattr(volume, "affine", np.eye(4)), dtype=np.float64)
    array = np.moveaxis(np.asarray(torch.as_tensor(volume).cpu(), dtype=dtype), 0, -1)
    nib.save(nib.Nifti1Image(array[..., 0] if array.shape[-1] == 1 else array, affine), path)
    return path
