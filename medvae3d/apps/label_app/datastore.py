"""A folder of studies that a killed server does not tear and that two processes may write.

MONAI Label's own store writes its list in place, reads it again only when the disk tells, and
offers synthetic images to annotators. This one replaces the list as a whole, reads it before each
change under a lock that background tasks share, and mends itself from the files if the list is
broken.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from medvae3d.errors import SettingError

FINAL = DefaultLabelTag.FINAL.value
SYNTHETIC = "synthetic"

logger = logging.getLogger(__name__)


class SafeDatastore(LocalDatastore):
    """See the module."""

    def __init__(self, datastore_path: str, **options: Any) -> None:
        path = Path(datastore_path)
        path.mkdir(parents=True, exist_ok=True)
        self._guard = FileLock(str(path / ".changes.lock"))
        self._set_aside(path / "datastore_v2.json")
        for part in path.rglob(".*.part"):  # what a killed server was writing
            part.unlink()
        super().__init__(datastore_path, **options)

    @staticmethod
    def _set_aside(listed: Path) -> None:
        try:
            if listed.exists():
                json.loads(listed.read_text(encoding="utf-8"))
        except ValueError:
            broken = listed.with_suffix(".broken")
            os.replace(listed, broken)
            logger.error("%s was broken and is now %s; made anew from files", listed, broken.name)

    # -- changes: read, change, replace, all under the lock -----------------------------------

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self._guard:
            self._init_from_datastore_file()
            yield

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        bare, ext = self._to_id(Path(image_filename).name)
        name = image_id or bare
        file = Path(self._datastore.image_path()) / self._filename(name, ext)
        model = DataModel(info=_dated(image_info, file.name), ext=ext)
        with self._change():
            # The list first: what stands there without a file is taken off at the next start, a
            # file that no entry calls synthetic would be taken for a scan.
            self._datastore.objects[name] = ImageLabelModel(image=model)
            self._update_datastore_file()
            _copy_whole(image_filename, file)
        return name

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        _, ext = self._to_id(Path(label_filename).name)
        with self._change():
            entry = self._datastore.objects.get(image_id)
            if entry is None:
                raise SettingError(
                    f"there is no image {image_id!r} to save a label of. Add the image first."
                )
            file = Path(self._datastore.label_path(label_tag)) / self._filename(image_id, ext)
            file.parent.mkdir(parents=True, exist_ok=True)
            entry.labels[label_tag] = DataModel(info=_dated(label_info, file.name), ext=ext)
            self._update_datastore_file()
            _copy_whole(label_filename, file)
        return image_id

    def remove_image(self, image_id: str) -> None:
        with self._change():
            super().remove_image(image_id)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        with self._change():
            super().remove_label(label_id, label_tag)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        with self._change():
            super().update_image_info(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        with self._change():
            super().update_label_info(label_id, label_tag, info)

    def _reconcile_datastore(self) -> None:
        with self._guard:
            super()._reconcile_datastore()

    def _update_datastore_file(self, lock: bool = True) -> None:
        path = Path(self._datastore_config_path)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        with self._guard:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            self._config_ts = path.stat().st_mtime

    # -- reading ------------------------------------------------------------------------------

    def _fresh(self) -> dict[str, Any]:
        """All images as they are on disk now."""
        with self._guard:
            self._init_from_datastore_file()
            return dict(self._datastore.objects)

    def get_image_uri(self, image_id: str) -> str:
        self._fresh()
        return str(super().get_image_uri(image_id))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        self._fresh()
        return dict(super().get_image_info(image_id))

    def json(self) -> Any:
        self._fresh()
        return super().json()

    def status(self) -> dict[str, Any]:
        self._fresh()
        return dict(super().status())

    def is_synthetic(self, image_id: str) -> bool:
        """Whether an image was made here."""
        found = self._datastore.objects.get(image_id)
        return bool(found and (found.image.info.get("synthetic") or SYNTHETIC in found.labels))

    def get_unlabeled_images(self, label_tag: Any = None, labels: Any = None) -> list[str]:
        """Real images without a final label: nobody is asked to annotate a synthetic one."""
        self._fresh()
        every = super().get_unlabeled_images(label_tag, labels)
        return [name for name in every if not self.is_synthetic(name)]

    def pairs(self, tag: str, *, synthetic: bool) -> list[dict[str, Any]]:
        """Images with a label under a tag, real or synthetic ones.

        Returns:
            ``id``, ``image`` and ``label`` as paths, ``source`` of synthetic ones.
        """
        found = []
        for name, entry in sorted(self._fresh().items()):
            if tag not in entry.labels or self.is_synthetic(name) != synthetic:
                continue
            pair = {
                "id": name,
                "image": self.get_image_uri(name),
                "label": self.get_label_uri(name, tag),
                "source": entry.image.info.get("source"),
            }
            found.append(pair)
        return found


def _dated(info: dict[str, Any] | None, name: str) -> dict[str, Any]:
    return {**(info or {}), "ts": int(time.time()), "name": name}


def _copy_whole(source: str, target: Path) -> None:
    """Copies a file so that it is there whole or not at all."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.copyfile(source, part)
    os.replace(part, target)
