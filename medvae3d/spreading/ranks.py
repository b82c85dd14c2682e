"""Ranks that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from medvae3d.errors import MedvaeError
from medvae3d.spreading.base import Begin, Done, Here, ignored


def rank_and_world() -> tuple[int, int]:
    """Which process of how many this is, as ``torchrun`` says; the only one without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@dataclass
class OnRanks:
    """Ranks that ``torchrun`` started: each does its share, and all get all results.

    After a killed rank ``torchrun`` starts all of them anew (``--max-restarts``); what is kept in
    files is then not done again.

    Attributes:
        rank: Number of this process.
        world: How many there are.
    """

    rank: int
    world: int

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def run(self, begin: Begin, tasks: Sequence[Any], done: Done = ignored) -> list[Any]:
        """See `Engine.run`; ``done`` is told of this rank's tasks alone."""
        import torch.distributed as dist

        mine = list(tasks)[self.rank :: self.world]
        failed: MedvaeError | None = None
        found: list[Any] = []
        try:
            found = Here().run(begin, mine, done)
        except MedvaeError as error:
            failed = error
        began = not dist.is_initialized()
        if began:
            # Ranks may end hours apart; none gives up on another that still works.
            dist.init_process_group("gloo", timeout=timedelta(days=7))
        try:
            gathered: list[Any] = [None] * self.world
            dist.all_gather_object(gathered, (found, failed))
        finally:
            if began:
                dist.destroy_process_group()
        for _, fault in gathered:
            if fault is not None:
                raise fault
        results: list[Any] = [None] * len(tasks)
        for rank, (part, _) in enumerate(gathered):
            results[rank :: self.world] = part
        return results
