"""Scores of unlabelled scans, and the strategies that offer the scan of the highest score."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.tasks.activelearning.random import Random

from medvae3d.apps.label_scores import GeneratorJudge, SegmenterJudge
from medvae3d.errors import MedvaeError

UNUSUAL, UNCERTAIN = "unusual", "uncertainty"
KEY = "scores"
# Once in a while a client asks before the one before has answered.
OFFERED_SECONDS = 60

logger = logging.getLogger(__name__)

Score = Callable[[str], float]


class WeightsScoring(ScoringMethod):
    """Gives each unlabelled scan a score by the weights of a bundle, and writes it to its entry.

    A scan that has a score by these very weights is not looked at again.

    Args:
        name: Name of the score.
        root: Folder of the bundle.
        description: For the server's page.
        load: Makes the function that scores a file.
    """

    def __init__(
        self, name: str, root: Path, description: str, load: Callable[[Path], Score]
    ) -> None:
        super().__init__(description)
        self.name, self.root, self.load = name, root, load

    def __call__(self, request: Any, datastore: Any) -> dict[str, Any]:
        weights = self.root / "models" / "model.pt"
        if not weights.is_file():
            # The server scores of its own accord when it starts: no reason for a failure.
            reason = f"{self.root.name} has no weights yet. Train it first."
            logger.warning("%s: %s", self.name, reason)
            return {"scored": 0, "failed": {}, "skipped": reason}
        state = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
        score: Score | None = None
        done, failed = 0, {}
        for image in datastore.get_unlabeled_images():
            scores = datastore.get_image_info(image).get(KEY, {})
            if scores.get(self.name, {}).get("weights") == state:
                continue
            score = self.load(self.root) if score is None else score
            try:
                value = score(datastore.get_image_uri(image))
            except MedvaeError as error:
                failed[image] = str(error)
                logger.error("%s: %s not scored: %s", self.name, image, error)
                continue
            entry = {**scores, self.name: {"value": value, "weights": state}}
            datastore.update_image_info(image, {KEY: entry})
            done += 1
        logger.info("%s: %d scored, %d failed", self.name, done, len(failed))
        return {"scored": done, "failed": failed}


def unusual_scoring(name: str, root: Path) -> WeightsScoring:
    """How unusual a scan is under a joint generator."""
    text = f"How unusual a scan is: negative bound on its evidence under {root.name}"
    return WeightsScoring(name, root, text, lambda path: GeneratorJudge.load(path).unusualness)


def uncertainty_scoring(name: str, root: Path) -> WeightsScoring:
    """How uncertain the segmenter is of a scan."""

    def load(path: Path) -> Score:
        judge = SegmenterJudge.load(path)
        return lambda image: judge.find(image).uncertainty

    text = f"How uncertain {root.name} is of a scan: entropy where it sees or might see a label"
    return WeightsScoring(name, root, text, load)


class AtRandom(Random):
    """MONAI Label's random strategy, which fails when all scans were offered within a second."""

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] | None = super().__call__(request, datastore)
            return found
        except ValueError:  # no weight is above 0
            free = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
            return {"id": random.choice(free), "weight": 0}


class HighestScore(Strategy):
    """Offers the unlabelled scan of the highest score; one without a score comes last.

    A scan that was offered within the last minute is left to whoever asked for it.

    Args:
        scores: Names of scores; a scan counts by the first that it has.
        description: For the server's page.
    """

    def __init__(self, scores: tuple[str, ...], description: str) -> None:
        super().__init__(description)
        self.scores = scores

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        ranked = []
        for image in sorted(datastore.get_unlabeled_images()):
            info = datastore.get_image_info(image)
            found = info.get(KEY, {})
            name = next((each for each in self.scores if each in found), None)
            value = found[name]["value"] if name else float("-inf")
            offers = [each.get("ts", 0) for each in info.get("strategy", {}).values()]
            is_free = time.time() - max(offers, default=0) > OFFERED_SECONDS
            rank = len(self.scores) - self.scores.index(name) if name else 0
            ranked.append((is_free, rank, value, image, name))
        if not ranked:
            return None
        _, _, value, image, name = max(ranked, key=lambda entry: entry[:3])
        if name is None:
            logger.warning("no scan has a score yet: run scoring %s", " or ".join(self.scores))
            return {"id": image}
        return {"id": image, "score": {"name": name, "value": value}}
