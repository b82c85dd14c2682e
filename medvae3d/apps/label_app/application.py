"""The application: every bundle of its folder, strategies and scores by our models, and rounds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelException
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.infer.bundle import BundleInferTask

from medvae3d import __version__
from medvae3d.apps.bundle_files import read_json
from medvae3d.apps.label_app.datastore import SafeDatastore
from medvae3d.apps.label_app.rounds import GenerativeRound
from medvae3d.apps.label_app.scoring import (
    UNCERTAIN,
    UNUSUAL,
    AtRandom,
    HighestScore,
    WeightsScoring,
    uncertainty_scoring,
    unusual_scoring,
)
from medvae3d.apps.label_app.training import PairTraining
from medvae3d.apps.segmenter_bundle import SUFFIX
from medvae3d.errors import MedvaeError

ROUND = "generative_active_learning"
MOST_UNUSUAL = "most_unusual_scan"

logger = logging.getLogger(__name__)


class OneAtATime(BundleInferTask):
    """Serves one request at a time: a bundle's configuration is changed by each of them."""

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        self._turn = threading.Lock()
        super().__init__(path, conf, load_strict=True)

    def __call__(self, request: Any, callbacks: Any = None) -> Any:
        with self._turn:
            return super().__call__(request, callbacks)


@contextmanager
def answers() -> Iterator[None]:
    """Says what a user can put right with 400 and its message, also where MONAI wrapped it."""
    try:
        yield
    except HTTPException:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, (MedvaeError, MONAILabelException)):
            cause = cause.__cause__
        if cause is None:
            raise
        message = str(cause.msg) if isinstance(cause, MONAILabelException) else str(cause)
        logger.error("refused: %s", " ".join(message.split()))
        raise HTTPException(status_code=400, detail=message) from None


class SyntheticDataApp(MONAILabelApp):
    """See the module.

    Args:
        app_dir: Its folder.
        studies: Folder of the scans, or address of a DICOMweb server.
        conf: What ``--conf`` gave; ``models`` picks some bundles of the folder.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.root = Path(app_dir)
        found = sorted((self.root / "model").glob("*/configs/inference.json"))
        wanted = [name.strip() for name in conf.get("models", "").split(",") if name.strip()]
        self.bundles = {
            path.parents[1].name: path.parents[1]
            for path in found
            if not wanted or path.parents[1].name.removesuffix(SUFFIX) in wanted
        }
        self.generators = {n: p for n, p in self.bundles.items() if not n.endswith(SUFFIX)}
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=f"medvae3d {__version__}",
            description="Synthetic lesions and volumes, and a segmenter that learns from them",
            version=__version__,
        )

    def _called(self, name: str, generator: str) -> str:
        """A name that says which generator is meant where there are several."""
        return name if len(self.generators) == 1 else f"{name}_{generator}"

    def init_datastore(self) -> Any:
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return SafeDatastore(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, Any]:
        return {name: self._infer_task(name) for name in self.bundles if self._has_weights(name)}

    def _infer_task(self, name: str) -> OneAtATime:
        return OneAtATime(str(self.bundles[name]), self.conf)

    def _has_weights(self, name: str) -> bool:
        return (self.bundles[name] / "models" / "model.pt").is_file()

    def _show_trained(self) -> None:
        """Shows bundles that have been trained since the start."""
        for name in self.bundles:
            if name not in self._infers and self._has_weights(name):
                self._infers[name] = self._infer_task(name)

    def init_trainers(self) -> dict[str, Any]:
        tasks: dict[str, Any] = {
            name: PairTraining(str(root), self.conf, with_synthetic=name.endswith(SUFFIX))
            for name, root in self.bundles.items()
        }
        for name in self.generators:
            tasks[self._called(ROUND, name)] = GenerativeRound(
                self.root,
                PairTraining(str(self.bundles[name]), self.conf, with_synthetic=False),
                PairTraining(str(self.bundles[f"{name}{SUFFIX}"]), self.conf, with_synthetic=True),
                list(self._scorings(name).values()),
            )
        return tasks

    def _scorings(self, generator: str) -> dict[str, WeightsScoring]:
        root = self.generators[generator]
        found = {}
        config = read_json(root / "configs" / "inference.json")
        if config.get("synthesis", {}).get("kind") == "joint":
            name = self._called(UNUSUAL, generator)
            found[name] = unusual_scoring(name, root)
        name = self._called(UNCERTAIN, generator)
        found[name] = uncertainty_scoring(name, self.bundles[f"{generator}{SUFFIX}"])
        return found

    def init_scoring_methods(self) -> dict[str, Any]:
        return {k: v for name in self.generators for k, v in self._scorings(name).items()}

    def init_strategies(self) -> dict[str, Any]:
        found: dict[str, Any] = {"random": AtRandom(), "first": First()}
        for name in self.generators:
            scores = list(self._scorings(name))
            if len(scores) > 1:
                text = f"The scan that is most unusual for {name}"
                found[self._called(MOST_UNUSUAL, name)] = HighestScore((scores[0],), text)
            text = f"The scan that the segmenter of {name} is most uncertain of"
            found[self._called(ROUND, name)] = HighestScore(tuple(scores[::-1]), text)
        return found

    # -- requests -----------------------------------------------------------------------------

    def info(self) -> Any:
        self._show_trained()
        return super().info()

    def infer(self, request: Any, datastore: Any = None) -> Any:
        self._show_trained()
        with answers():
            return super().infer(request, datastore)

    def train(self, request: Any) -> Any:
        with answers():
            return super().train(request)

    def scoring(self, request: Any, datastore: Any = None) -> Any:
        with answers():
            return super().scoring(request, datastore)

    def next_sample(self, request: Any) -> Any:
        with answers():
            return super().next_sample(request)

    def bundle_path(self, model: str) -> Any:
        root = self.bundles.get(model)
        return str(root) if root else None
