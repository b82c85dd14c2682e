"""What a bundle does inside of a MONAI Label server; importable without MONAI Label.

A server answers an exception with a bare 500 and a page of traceback in its log. What a user can
put right is answered with 400 and its message instead, and takes one line of the log; a request
that is refused changes nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import LoadImaged, MapTransform

from medvae3d.errors import GridError, MedvaeError, SettingError, UnreadableFileError

# Voxels of all channels: a CT of 512 x 512 x 380. All other requests wait for one that is served.
MOST_VOXELS = 100_000_000
# What MONAI Label and the clients of 3D Slicer and OHIF put into a request.
LABEL_NAMES = frozenset(
    (
        *("image", "image_path", "image_meta_dict", "images", "id", "model", "model_filename"),
        *("device", "gpus", "multi_gpu", "max_workers", "max_batch_size", "timeout", "logging"),
        *("result", "result_extension", "result_dtype", "result_compress", "skip_writer"),
        *("result_write_to_file", "output", "save_label", "label", "label_tag", "label_info"),
        *("labels", "latencies", "centroids", "description", "client_id", "user", "session"),
        *("session_id", "bundle_path", "roi_size", "sw_batch_size", "sw_overlap"),
    )
)
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

logger = logging.getLogger(__name__)


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


@contextmanager
def refusals() -> Iterator[None]:
    """Answers what a user can put right with 400 in a server; elsewhere it stays as it is."""
    try:
        yield
    except MedvaeError as error:
        if label_app() is None:
            raise
        logger.error("refused: %s", " ".join(str(error).split()))
        from fastapi import HTTPException

        raise HTTPException(status_code=400, detail=str(error)) from None


class LoadHostd(LoadImaged):
    """Loads a host, after a look at what came with the request and at the header of the file.

    Args:
        keys: The host.
        wishes: Names of what a user may wish for. Another name that looks like one of them is
            refused; any other that is not MONAI Label's is ignored, and the answer says so.
        most_voxels: Largest host, all channels counted.
        **kwargs: See MONAI's ``LoadImaged``.

    Raises:
        SettingError: If a name looks like a wish and is none.
        UnreadableFileError: If the file is not a volume.
        GridError: If it is larger than ``most_voxels``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        wishes: Sequence[str] = (),
        most_voxels: int = MOST_VOXELS,
        **kwargs: Any,
    ) -> None:
        super().__init__(keys, **kwargs)
        self.wishes = tuple(wishes)
        self.most_voxels = most_voxels

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        with refusals():
            ignored = self._unknown(data)
            for key in self.key_iterator(dict(data)):
                self._look_at(data[key])
            try:
                loaded = super().__call__(data, reader)
            except (RuntimeError, OSError, EOFError, ValueError) as error:
                names = ", ".join(str(data[key]) for key in self.key_iterator(dict(data)))
                cause = error.__cause__ or error
                raise UnreadableFileError(
                    f"{names} cannot be read to its end ({str(cause).splitlines()[-1][:200]}). "
                    f"Copy it again from its source."
                ) from error
        if ignored:
            loaded["result"] = {**(loaded.get("result") or {}), "ignored_parameters": ignored}
        return loaded

    def _unknown(self, data: Mapping[Hashable, Any]) -> list[str]:
        if not self.wishes:
            return []
        known = LABEL_NAMES | set(self.wishes) | set(map(str, self.keys))
        unknown = sorted(str(name) for name in data if str(name) not in known)
        for name in unknown:
            near = difflib.get_close_matches(name.lower(), self.wishes, 1, 0.7)
            if near:
                raise SettingError(
                    f"there is no parameter {name!r}; did you mean {near[0]!r}? Allowed are "
                    f"{', '.join(self.wishes)}."
                )
        if unknown and "image_path" in data:
            logger.warning("ignored parameters: %s", ", ".join(unknown))
            return unknown
        return []

    def _look_at(self, files: Any) -> None:
        paths = [files] if isinstance(files, (str, Path)) else files
        if not isinstance(paths, (list, tuple)) or not all(
            isinstance(path, (str, Path)) for path in paths
        ):
            return
        voxels = 0
        for path in paths:
            if not Path(path).is_file():
                if Path(path).is_dir():  # a DICOM series, which the reader looks at
                    continue
                raise UnreadableFileError(f"{path} does not exist. Ask for an image that is there.")
            if not str(path).endswith((".nii", ".nii.gz")):
                continue
            try:
                shape = nib.load(path).shape  # type: ignore[attr-defined]
            except Exception as error:  # nibabel raises many types for foreign files
                raise UnreadableFileError(
                    f"{path} is no NIfTI volume ({str(error).splitlines()[0][:200]}). Write it "
                    f"again, or leave it out."
                ) from error
            voxels += int(np.prod(shape, dtype=np.int64))
        if voxels > self.most_voxels:
            sizes = " x ".join(map(str, shape))
            raise GridError(
                f"{paths[0]} has {sizes} voxels, {voxels / 1e6:.0f} million in all; allowed are "
                f"{self.most_voxels / 1e6:.0f} million. Crop it, or resample it to larger voxels; "
                f"or raise most_voxels under `preprocessing` in inference.json."
            )


class PublishSyntheticd(MapTransform):
    """Adds a synthetic image and its mask to the data store of a running MONAI Label server.

    Without a server, as in a plain ``python -m monai.bundle run``, it does nothing. The image is
    called after its host and the seed; another one of that name gets a number, so that nothing is
    replaced, and what is there already is not added again.

    Args:
        keys: The image and its mask, in this order.
        enabled: Whether to publish.
        seed: Part of the name that the image gets.
        source_key: Entry of the host, which the name begins with.
        tag: Tag of the mask. Under ``synthetic``, the pair stays out of training and statistics;
            under ``final``, MONAI Label trains on it.

    Raises:
        SettingError: If the tag cannot be one, or the data store cannot be added to.
    """

    def __init__(
        self,
        keys: KeysCollection,
        enabled: bool | str = False,
        seed: int | str = 0,
        source_key: str = "image",
        tag: str = "synthetic",
    ) -> None:
        super().__init__(keys)
        # A client may send the option as text.
        self.enabled = str(enabled).strip().lower() in ("true", "1", "yes", "on")
        self.seed = str(seed).strip()
        self.source_key = source_key
        self.tag = str(tag).strip()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        app = label_app() if self.enabled else None
        if app is None:
            return changed
        with refusals():
            made = self._publish(app.datastore(), changed)
        changed["result"] = {**(changed.get("result") or {}), **made}
        return changed

    def _publish(self, store: Any, data: Mapping[Hashable, Any]) -> dict[str, str]:
        if not TAG.fullmatch(self.tag):
            raise SettingError(
                f"publish_tag is {self.tag!r}; allowed are letters, digits, - and _. Take "
                f"synthetic, or final to have the pair trained on."
            )
        host = _host_name(data, self.source_key)
        image, label = (data[key] for key in self.keys[:2])
        content = _fingerprint(image, label)
        name = _free_name(store, f"{host}_syn{self.seed}", content)
        info = {
            "synthetic": True,
            "source": host,
            "model": str(data.get("model", "")),
            "seed": self.seed,
            "content": content,
        }
        with tempfile.TemporaryDirectory() as folder:
            files = [
                save_volume(image, Path(folder) / f"{name}.nii.gz", np.float32),
                save_volume(label, Path(folder) / f"{name}_mask.nii.gz", np.uint8),
            ]
            try:
                image_id = store.add_image(name, str(files[0]), dict(info))
            except NotImplementedError as error:
                raise SettingError(
                    "the studies of this server are on another one, which takes no images. Start "
                    "the server on a folder, or switch publish off."
                ) from error
            label_id = store.save_label(image_id, str(files[1]), self.tag, dict(info))
        return {
            "synthetic_image": image_id,
            "synthetic_label": label_id,
            "label_tag": self.tag,
        }


def _free_name(store: Any, name: str, content: str) -> str:
    """The name, with a number behind if something else is called so already."""
    taken = set(store.list_images())
    tried, number = name, 1
    while tried in taken and store.get_image_info(tried).get("content") != content:
        number += 1
        tried = f"{name}_{number}"
    return tried


def _fingerprint(*volumes: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for volume in volumes:
        digest.update(np.ascontiguousarray(torch.as_tensor(volume).cpu().numpy()).tobytes())
    return digest.hexdigest()


def _host_name(data: Mapping[Hashable, Any], key: str) -> str:
    path = data.get(f"{key}_path") or getattr(data.get(key), "meta", {}).get("filename_or_obj")
    name = Path(str(path or "host")).name
    for suffix in (".gz", ".nii", ".nrrd"):
        name = name.removesuffix(suffix)
    return name


def save_volume(volume: Any, path: Path, dtype: Any, affine: Any = None) -> Path:
    """Writes one channel as 3D, several as 4D.

    Args:
        volume: :math:`(C, I, J, K)`.
        path: File to write.
        dtype: Of its voxels.
        affine: Where they lie; that of the volume if not given.
    """
    place = getattr(volume, "affine", np.eye(4)) if affine is None else affine
    array = np.moveaxis(np.asarray(torch.as_tensor(volume).cpu(), dtype=dtype), 0, -1)
    array = array[..., 0] if array.shape[-1] == 1 else array
    nib.save(nib.Nifti1Image(array, np.asarray(place, dtype=np.float64)), path)
    return path
