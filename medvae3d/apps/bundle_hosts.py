"""What lesions are put into, and how many: the part of a request that is about hosts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from medvae3d.errors import SettingError, UnreadableFileError
from medvae3d.synthesis.hosts import HostScan, phantom_host, read_host
from medvae3d.synthesis.recipe import Recipe

FilePath: TypeAlias = "str | Path"
Hosts: TypeAlias = "Sequence[FilePath | Sequence[FilePath]]"


@dataclass(frozen=True)
class HostRequest:
    """What lesions are put into, and how many.

    Attributes:
        hosts: Files of each host, one a channel.
        labels: Their masks, in the same order; none if they have none.
        brains: Masks of their brains or bodies, in the same order; none to find them.
        lesions: Fewest and most lesions put into a host.
        at_mm: Where to put a lesion, in mm of the host's world.
        allow_overlap: Whether a new lesion may overlap one that is there.
    """

    hosts: tuple[tuple[Path, ...], ...] = ()
    labels: tuple[Path, ...] = ()
    brains: tuple[Path, ...] = ()
    lesions: tuple[int, int] | None = None
    at_mm: tuple[float, float, float] | None = None
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        for what, given in (("labels", self.labels), ("brain masks", self.brains)):
            if given and len(given) != len(self.hosts):
                raise SettingError(
                    f"{len(given)} host {what} for {len(self.hosts)} hosts; give one for each "
                    f"host, in their order, or none."
                )
        if self.lesions is None:
            return
        low, high = self.lesions
        if not 1 <= low <= high:
            raise SettingError(
                f"lesions are {low} to {high}; allowed are numbers from 1 on, the smaller one "
                f"first. Write them as LOW:HIGH."
            )
        if self.at_mm is not None and low > 1:
            raise SettingError(
                f"lesions are {low} to {high}, and a place was given for one. Leave out the "
                f"number, or the place."
            )

    def host(self, turn: int, recipe: Recipe, seed: int) -> HostScan:
        """Reads a host by its turn, or draws a phantom."""
        if not self.hosts:
            return phantom_host(recipe, seed, turn)
        label = self.labels[turn] if self.labels else None
        brain = self.brains[turn] if self.brains else None
        return read_host(self.hosts[turn], label, recipe, brain=brain)

    def options(self) -> dict[str, Any]:
        """All of it in the words of a record; files by name and size."""
        brains = {"host_brains": [_named(path) for path in self.brains]} if self.brains else {}
        return {
            "lesions": self.lesions,
            "at_mm": None if self.at_mm is None else [float(v) for v in self.at_mm],
            "allow_overlap": self.allow_overlap,
            "hosts": [[_named(path) for path in host] for host in self.hosts],
            "host_labels": [_named(path) for path in self.labels],
            **brains,
        }


def grouped(hosts: Hosts, recipe: Recipe, *, name: str) -> tuple[tuple[Path, ...], ...]:
    """One tuple of channel files a host; a flat list is cut into such groups.

    Args:
        hosts: Files, or a file or list of files a host.
        recipe: Says how many channels a host has.
        name: Of the bundle, for messages.

    Raises:
        SettingError: If a flat list leaves a host with too few channels.
    """
    channels = len(recipe.channels)
    if all(isinstance(host, (str, Path)) for host in hosts):
        files = [Path(str(host)) for host in hosts]
        if len(files) % channels:
            raise SettingError(
                f"{len(files)} host files were given; {name} needs {channels} for each host, in "
                f"the order {', '.join(channel.name for channel in recipe.channels)}."
            )
        return tuple(tuple(files[i : i + channels]) for i in range(0, len(files), channels))
    return tuple(
        (Path(host),) if isinstance(host, (str, Path)) else tuple(map(Path, host)) for host in hosts
    )


def _named(path: Path) -> dict[str, Any]:
    try:
        return {"file": path.name, "bytes": path.stat().st_size}
    except OSError as error:
        raise UnreadableFileError(
            f"host {path} cannot be read: {error.strerror}. Check the path."
        ) from error
