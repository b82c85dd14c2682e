"""What there is, without loading it: shipped bundles and manifests of public data sets.

Importing this module costs nothing, so that listing, help and shell completion answer at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvae3d.errors import BundleError
from medvae3d.files import load_json
from medvae3d.models.systems.files import system_names

PACKAGE = Path(__file__).resolve().parents[1]
# A source checkout has them beside the package, a wheel inside of it.
SHIPPED = (PACKAGE.parent / "bundles", PACKAGE / "_bundles")
MANIFESTS = (PACKAGE.parent / "data_manifests", PACKAGE / "_data_manifests")


@dataclass(frozen=True)
class Entry:
    """A bundle as its files describe it.

    Attributes:
        name: Name of its folder.
        version: From its metadata.
        title: Its display name.
        licence: Terms of the weights, in a line.
        root: Its folder.
        has_weights: Whether it has been trained.
    """

    name: str
    version: str
    title: str
    licence: str
    root: Path
    has_weights: bool


def shipped_bundles() -> dict[str, Path]:
    """Name and folder of the bundles that come with the package."""
    found: dict[str, Path] = {}
    for folder in SHIPPED:
        for path in sorted(folder.glob("*/configs/metadata.json")):
            found.setdefault(path.parents[1].name, path.parents[1])
    return found


def entries() -> list[Entry]:
    """What each shipped bundle says of itself.

    Raises:
        BundleError: If the metadata of one cannot be read.
    """
    return [_entry(root) for root in shipped_bundles().values()]


def bundle_names(incomplete: str = "") -> list[str]:
    """Names of shipped bundles that begin as given; for shell completion."""
    return [name for name in shipped_bundles() if name.startswith(incomplete)]


def trainable_names(incomplete: str = "") -> list[str]:
    """Names of systems and shipped bundles that begin as given; for shell completion."""
    return [n for n in (*system_names(), *shipped_bundles()) if n.startswith(incomplete)]


def manifest_names(incomplete: str = "") -> list[str]:
    """Names of manifests that begin as given; for shell completion."""
    return [name for name in manifest_files() if name.startswith(incomplete)]


def unknown(name: str | Path, bundles: Iterable[str], wanted: str) -> str:
    """What to say where a name is of no bundle, or of neither bundle nor system.

    Args:
        name: The name.
        bundles: Names of the shipped bundles.
        wanted: ``bundle``, or ``system or bundle``.
    """
    systems, shipped = system_names(), sorted(bundles)
    if wanted == "bundle" and str(name) in systems:
        return (
            f"{str(name)!r} is a system, which has no weights until it is trained; what is needed "
            f"is a bundle. Train it with `medvae3d train {name} --datalist LIST --out DIR` and "
            f"name DIR, or name a shipped bundle: {', '.join(shipped) or 'none'}."
        )
    near = difflib.get_close_matches(str(name), [*systems, *shipped], n=1, cutoff=0.6)
    return (
        f"{str(name)!r} is neither a shipped bundle nor the folder of one (with configs/ in it)"
        f"{', nor a system' if wanted != 'bundle' else ''}. "
        f"{f'Did you mean {near[0]}? ' if near else ''}"
        f"Shipped are: {', '.join(shipped) or 'none'}; systems to train are: {', '.join(systems)}."
    )


def manifest_files() -> dict[str, Path]:
    """Name and file of the manifests of public data sets."""
    found: dict[str, Path] = {}
    for folder in MANIFESTS:
        for path in sorted(folder.glob("*.json")):
            found.setdefault(path.stem, path)
    return found


def _entry(root: Path) -> Entry:
    path = root / "configs" / "metadata.json"
    try:
        metadata = load_json(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}. Restore the file.") from error
    return Entry(
        name=root.name,
        version=str(metadata.get("version", "0")),
        title=str(metadata.get("name", root.name)),
        licence=_licence(root, metadata),
        root=root,
        has_weights=(root / "models" / "model.pt").is_file(),
    )


def _licence(root: Path, metadata: Mapping[str, Any]) -> str:
    stated = metadata.get("licence") or metadata.get("license")
    if stated:
        return str(stated)
    path = root / "LICENSE"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2]) or "not stated"
