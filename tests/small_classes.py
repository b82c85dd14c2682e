"""Short trainings on balls of two classes, for tests of conditional systems; no tests in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import small_trainings
from small_trainings import SPACING, balls, whole

from medvae3d.training.loading import BatchPreparation
from medvae3d.training.players import Player

CLASSES = ("dark", "bright")
BRIGHTER = {"dark": -0.6, "bright": 0.2}


def balls_of_classes(count: int, seed: int) -> list[dict[str, Any]]:
    """Balls of a class in turn, which is how bright one is."""
    cases = balls(count, seed)
    for number, case in enumerate(cases):
        case["class"] = CLASSES[number % len(CLASSES)]
        case["image"] = case["image"] + BRIGHTER[case["class"]] * case["label"].float()
    return cases


def played(
    network: Any, players: Sequence[Player], cases: Sequence[dict[str, Any]], steps: int
) -> None:
    """Trains a network that is told the class of a case."""
    every = whole(cases)
    preparation = BatchPreparation(network.statistics, SPACING)
    network.statistics.fit_attributes(preparation.attributes(every["mask"], every))
    small_trainings.played(network, players, cases, steps)


def unseen_of(network: Any, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All of some cases as one batch, as the network reads them."""
    return BatchPreparation(network.statistics, SPACING)(whole(cases), "cpu")
