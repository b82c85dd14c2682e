"""Which engine a command was asked for."""

from __future__ import annotations

from medvae3d.errors import SettingError
from medvae3d.spreading.base import Engine, Here
from medvae3d.spreading.cluster import OnRay
from medvae3d.spreading.processes import Processes
from medvae3d.spreading.ranks import OnRanks, rank_and_world


def engine(workers: int = 1, ray_address: str | None = None, *, threads: int = 1) -> Engine:
    """Where tasks are done.

    Args:
        workers: Processes beside each other.
        ray_address: Address of a Ray cluster, ``local`` for one of this machine alone; ``None`` to
            do without.
        threads: Threads of each worker.

    Raises:
        SettingError: If both ``torchrun`` and the options ask for several processes.
    """
    rank, world = rank_and_world()
    if world > 1:
        if workers > 1 or ray_address is not None:
            raise SettingError(
                f"torchrun has started {world} processes, and --workers or --ray asks for more. "
                f"Use one of them."
            )
        return OnRanks(rank, world)
    if ray_address is not None:
        return OnRay(workers, ray_address, threads)
    return Here() if workers == 1 else Processes(workers, threads)
