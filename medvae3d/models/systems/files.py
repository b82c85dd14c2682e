"""The files of this folder: how each system is trained, read without torch.

``base.json`` is a training configuration of MONAI's form for a joint model. ``NAME.json`` is a flat
object whose keys are nested identifiers, parted by ``#`` as in ``KEY=VALUE`` of ``medvae3d train``;
it is laid over ``base.json``, and what it says of ``synthesis`` over ``bundle/inference.json``. One
with ``_like_`` starts from what another system changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvae3d.errors import BundleError

FOLDER = Path(__file__).resolve().parent
BASE = "base"
BUNDLE = FOLDER / "bundle"
"""What a bundle consists of besides its training configuration."""


def system_names() -> list[str]:
    """Names of the systems that can be trained, in alphabetical order."""
    return [path.stem for path in sorted(FOLDER.glob("*.json")) if path.stem != BASE]


def read_system(name: str) -> dict[str, Any]:
    """What a system changes of ``base.json``: nested identifiers with their values.

    Raises:
        BundleError: If there is no such system, or its file is not a flat JSON object.
    """
    if name not in system_names():
        raise BundleError(
            f"there is no system {name!r}; allowed are {', '.join(system_names())}. Name one of "
            f"these."
        )
    found = _read(FOLDER / f"{name}.json")
    like = found.pop("_like_", None)
    return found if like is None else {**read_system(like), **found}


def read_base() -> dict[str, Any]:
    """The training configuration that all systems start from."""
    return _read(FOLDER / f"{BASE}.json")


def laid_over(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested settings with others in their place or beside them.

    Args:
        settings: A configuration.
        changes: Nested identifiers, parted by ``#``, with their values. The last part may be new;
            those before it must be there.

    Raises:
        BundleError: If an identifier leads nowhere.

    Example:
        >>> laid_over({"a": {"b": [1, 2]}}, {"a#b#0": 3, "a#c": 4})
        {'a': {'b': [3, 2], 'c': 4}}
    """
    changed: dict[str, Any] = json.loads(json.dumps(settings))
    for key, value in changes.items():
        *parents, last = key.split("#")
        here: Any = changed
        try:
            for part in parents:
                here = here[int(part) if isinstance(here, list) else part]
            here[int(last) if isinstance(here, list) else last] = json.loads(json.dumps(value))
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise BundleError(
                f"there is no place for {key!r} in the configuration; allowed are its nested names "
                f"with # between them. Correct the name."
            ) from error
    return changed


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}. Restore the file.") from error
    if not isinstance(found, dict):
        raise BundleError(f"{path} holds a {type(found).__name__}; expected names with values.")
    return found
