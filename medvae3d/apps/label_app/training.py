"""Training tasks: generators on what people labelled, segmenters on synthetic pairs as well."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from monailabel.tasks.train.bundle import BundleTrainTask

from medvae3d.apps.label_app.datastore import FINAL, SYNTHETIC, SafeDatastore
from medvae3d.errors import SettingError
from medvae3d.studies.active_learning import held_out, room_for

logger = logging.getLogger(__name__)

Pairs = Sequence[Mapping[str, Any]]


def split_pairs(store: SafeDatastore) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Real labelled cases for training and for validation; who is in which is kept for good.

    A case without a split gets one, which is written to its entry.
    """
    real = store.pairs(FINAL, synthetic=False)
    known = {pair["id"]: store.get_image_info(pair["id"]).get("split") for pair in real}
    splits = held_out(
        {name: split for name, split in known.items() if split},
        [name for name, split in known.items() if not split],
    )
    for name, split in known.items():
        if not split:
            store.update_image_info(name, {"split": splits[name]})
    return (
        [pair for pair in real if splits[pair["id"]] == "training"],
        [pair for pair in real if splits[pair["id"]] == "validation"],
    )


def usable_synthetic(store: SafeDatastore, training: Pairs, validation: Pairs) -> list[Any]:
    """Synthetic pairs that may be trained on: none made from a held-out case, no more than real."""
    held = {pair["id"] for pair in validation}
    made = {
        pair["id"]: pair
        for tag in (SYNTHETIC, FINAL)
        for pair in store.pairs(tag, synthetic=True)
        if pair["source"] not in held
    }
    return list(made.values())[: room_for(len(training), 0, len(made))]


class PairTraining(BundleTrainTask):
    """Trains a bundle of the application's folder.

    Args:
        path: Folder of the bundle.
        conf: The server's.
        with_synthetic: Whether synthetic pairs are trained on as well.
    """

    def __init__(self, path: str, conf: dict[str, str], *, with_synthetic: bool) -> None:
        super().__init__(path, conf)
        self.with_synthetic = with_synthetic
        self._lists: tuple[list[Any], list[Any]] | None = None
        self._extra: dict[str, Any] = {}

    def config(self) -> dict[str, Any]:
        return {**super().config(), "epoch_length": 0}

    def __call__(self, request: dict[str, Any], datastore: Any) -> Any:
        request = {"multi_gpu": False, **request, "tracking": "None"}
        steps = _whole(request.get("epoch_length", 0), "epoch_length", 0)
        _whole(request.get("max_epochs", 1), "max_epochs", 1)
        self._extra = {"epoch_length": steps} if steps else {}
        try:
            return super().__call__(request, datastore)
        finally:
            self._lists, self._extra = None, {}

    def fit(self, training: Pairs, validation: Pairs, **request: Any) -> None:
        """Trains on given cases."""
        self._lists = ([_files(pair) for pair in training], [_files(pair) for pair in validation])
        self({"model": self.bundle_path, **request}, None)

    def _fetch_datalist(self, request: Any, datastore: Any) -> list[Any]:
        if self._lists is None:
            self._lists = self._lists_of(datastore)
        training, validation = self._lists
        if not training:
            raise SettingError(
                "there is no labelled case to train on. Label one, and save it as final."
            )
        return [*training, *validation]

    def _lists_of(self, datastore: Any) -> tuple[list[Any], list[Any]]:
        if not isinstance(datastore, SafeDatastore):
            return [{"image": d["image"], "label": d["label"]} for d in datastore.datalist()], []
        training, validation = split_pairs(datastore)
        made = usable_synthetic(datastore, training, validation) if self.with_synthetic else []
        logger.info("training on %d real and %d synthetic cases", len(training), len(made))
        return [_files(pair) for pair in (*training, *made)], [_files(p) for p in validation]

    def _partition_datalist(self, datalist: Any, request: Any, shuffle: bool = False) -> Any:
        assert self._lists is not None  # set just before
        return self._lists

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        overrides.update(self._extra)
        # The server's own lines would end at the first line of the bundle's logging.conf.
        overrides["logging_file"] = False
        return overrides


def _files(pair: Mapping[str, Any]) -> dict[str, str]:
    return {"image": pair["image"], "label": pair["label"]}


def _whole(value: Any, name: str, least: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least:
        raise SettingError(f"{name} is {value!r}; allowed are whole numbers from {least} on.")
    return number
