"""The options by which commands spread their work: processes, ``torchrun``, Ray."""

from __future__ import annotations

from typing import Annotated

import typer

from medvae3d.apps.console import parse_whole
from medvae3d.spreading import LOCAL, Engine, OnRanks, engine, rank_and_world

PANEL = "Several processes"

Workers = Annotated[
    str,
    typer.Option(
        "--workers", metavar="K", rich_help_panel=PANEL,
        help="Processes beside each other, one thread each.",
    ),
]  # fmt: skip
Ray = Annotated[
    bool,
    typer.Option(
        "--ray", rich_help_panel=PANEL,
        help=r"Let Ray start and mind the workers; needs medvae3d\[ray].",
    ),
]  # fmt: skip
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", metavar="ADDRESS", rich_help_panel=PANEL,
        help="Ray cluster that runs already; its machines must see the same folders.",
    ),
]  # fmt: skip


def address_of(ray: bool, ray_address: str | None) -> str | None:
    """Where Ray is asked for: an address, ``local``, or ``None`` without Ray."""
    return ray_address or (LOCAL if ray else None)


def chosen_engine(
    workers: str, ray: bool = False, ray_address: str | None = None
) -> tuple[Engine, int]:
    """What the options ask for, and among how many the work is shared.

    Raises:
        SettingError: If they cannot be read, or ``torchrun`` and the options both ask for several.
    """
    count = parse_whole(workers, "--workers", least=1)
    found = engine(count, address_of(ray, ray_address))
    return found, rank_and_world()[1] if isinstance(found, OnRanks) else count
