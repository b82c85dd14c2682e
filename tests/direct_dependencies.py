"""Prints the direct dependencies of medvae3d as they are installed: ``name==version`` lines."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement


def direct() -> list[str]:
    """Name and version of each dependency without an extra."""
    wanted = [Requirement(text) for text in metadata.requires("medvae3d") or []]
    names = [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    # A build for one platform, such as 2.13.0+cpu, has the vulnerabilities of its version.
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in sorted(names)]


if __name__ == "__main__":
    print("\n".join(direct()))
