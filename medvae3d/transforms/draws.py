r"""What is drawn for a case, the same for any number of workers.

A random state that goes on with each call makes what a case gets depend on which worker it went to
and on what that worker did before. Here a draw is a function

.. math:: d = f(\text{seed}, \text{case}, \text{visit})

of the user's seed, of the case itself, and of how often the case was drawn for before, which is the
epoch in a usual training. Visits are counted in memory that all workers share, whether they are
kept between epochs or not.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

from medvae3d.errors import SettingError
from medvae3d.seeding import derive_generator, derive_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Cases whose visits are counted apart; 2 x 8 bytes each. With more, some share a count.
SLOTS = 1 << 16
# Slots tried for a case before it shares one.
PROBES = 64


def identity_of(*arrays: NDArray[Any]) -> str:
    """A case by its content: a hash of its voxels and of where they lie; 1 GB a second."""
    mixed = hashlib.blake2b(digest_size=8)
    for array in arrays:
        mixed.update(array.tobytes())
    return mixed.hexdigest()


class SharedDraws:
    """Draws by seed, case and visit; copies in other processes count the same visits.

    The count is of cases that were loaded. Where a loop over a loader is left early, workers have
    loaded a few cases ahead; `set_epoch` makes draws independent of that, of restarts, and of which
    process of several a case goes to.

    Args:
        seed: From 0 on.
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise SettingError(f"seed is {seed}; allowed are whole numbers from 0 on.")
        self.seed = seed
        # First row: the epoch, or -1. Then one row a case: its identity and its visits.
        self._table = torch.zeros(SLOTS + 1, 2, dtype=torch.int64)
        self._table[0, 0] = -1
        self._table.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch it is, in place of counting visits; workers see it at once."""
        self._table[0, 0] = epoch

    def __call__(self, case: str) -> tuple[float, int]:
        """A number from [0, 1) that says whether, and a seed that says what."""
        epoch = int(self._table[0, 0])
        turn = epoch if epoch >= 0 else self._visit(case)
        chance = torch.rand((), generator=derive_generator(self.seed, "whether", case, turn))
        return float(chance), derive_seed(self.seed, "what", case, turn)

    def _visit(self, case: str) -> int:
        identity = derive_seed(0, "case", case) or 1
        for step in range(PROBES):
            row = self._table[1 + (identity + step) % SLOTS]
            if int(row[0]) == 0:
                row[0] = identity
            if int(row[0]) == identity:
                break
        row[1] += 1
        return int(row[1]) - 1
