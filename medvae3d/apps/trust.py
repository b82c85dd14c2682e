"""What the configurations of a bundle would execute, and whether that was agreed to.

MONAI evaluates every text that begins with ``$`` as Python and calls whatever ``_target_`` names,
so a bundle from elsewhere is a program. Its configurations are read as plain JSON first. What the
shipped bundles and the systems of the library execute themselves is known; all else is listed and
refused, until it is trusted.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from medvae3d.apps.catalogue import PACKAGE, shipped_bundles
from medvae3d.errors import BundleError
from medvae3d.files import load_json, require_regular, sha256_of

# A model of the library by name; one level, so that nothing that a module imports is reached.
MODEL = re.compile(r"medvae3d\.models\.zoo\.[a-z][a-z0-9_]*")
# A macro takes a part of the same file, without a dot: `%file.json::part` would take another file.
OWN_PART = re.compile(r"%[\w#:]+")
HARMLESS = frozenset({"$import math"})
MOST_LISTED = 12
_agreed = [False]


@contextmanager
def trusting(is_trusted: bool) -> Iterator[None]:
    """Lets every bundle execute what it asks for, while it lasts; for ``--trust``."""
    before, _agreed[0] = _agreed[0], _agreed[0] or is_trusted
    try:
        yield
    finally:
        _agreed[0] = before


def is_trusting() -> bool:
    """Whether every bundle may execute what it asks for; for processes that are started."""
    return _agreed[0]


def executed(content: Any, key: str = "") -> Iterator[str]:
    """Every text of a configuration that MONAI would evaluate, call, or read from another file.

    Args:
        content: The configuration as plain JSON.
        key: What it is called where it stands.
    """
    if key == "_mode_" and content != "default":
        yield f"{key} {content}"  # one of them stops in a debugger
    elif key.endswith("_target_"):
        yield content if isinstance(content, str) else json.dumps(content)
    elif isinstance(content, Mapping):
        for name, each in content.items():
            yield from executed(each, str(name))
    elif isinstance(content, list):
        for each in content:
            yield from executed(each)
    elif isinstance(content, str) and content.startswith(("$", "%")):
        yield content


def known() -> frozenset[str]:
    """What the shipped bundles and the systems of the library execute."""
    return _known(tuple(shipped_bundles().values()))


@lru_cache(maxsize=4)
def _known(roots: tuple[Path, ...]) -> frozenset[str]:
    files = [path for root in roots for path in (root / "configs").glob("*.json")]
    files += (PACKAGE / "models" / "systems").rglob("*.json")
    found = {text for path in files for text in executed(json.loads(path.read_text("utf-8")))}
    # A trained folder is evaluated with the weights that were loaded, not with a slow copy of them.
    return HARMLESS.union(found, (text.replace("@ema.module", "@network") for text in found))


def foreign(root: Path) -> dict[str, list[str]]:
    """What a bundle would execute that is not known, by the file that asks for it.

    Args:
        root: Folder of the bundle.

    Raises:
        BundleError: If a configuration cannot be read.
    """
    asked: dict[str, list[str]] = {}
    for path in sorted((root / "configs").glob("*.json")):
        try:
            texts = dict.fromkeys(executed(load_json(path)))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(
                f"{path} cannot be read as JSON: {error}. Restore the file."
            ) from error
        if strange := [text for text in texts if not _is_known(text)]:
            asked[path.name] = strange
    return asked


def require_trusted(root: Path) -> None:
    """Refuses a bundle that would execute what is neither known nor agreed to.

    Args:
        root: Folder of the bundle.

    Raises:
        BundleError: If it would; lists what.
    """
    if _agreed[0] or root in shipped_bundles().values():
        return
    lines = [f"{file}: {text}" for file, texts in foreign(root).items() for text in texts]
    if lines:
        more = len(lines) - MOST_LISTED
        listed = "".join(f"\n  {line[:160]!r}" for line in lines[:MOST_LISTED])
        raise BundleError(
            f"{root} would execute what medvae3d does not know:{listed}"
            f"{f'{chr(10)}  and {more} more' if more > 0 else ''}\n"
            f"Nothing was executed. Read this; if you trust where the bundle comes from, add "
            f"--trust (in Python: load_bundle(..., trust=True))."
        )


def require_inside(root: Path) -> None:
    """Refuses a bundle with links to files elsewhere, which a copy of it would carry along.

    Args:
        root: Folder of the bundle.

    Raises:
        BundleError: If there is such a link, and the bundle is not trusted.
    """
    if _agreed[0]:
        return
    home = root.resolve()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            # Of a loop, the end is not known: `resolve` raises in some versions of Python.
            if path.is_symlink() and not os.path.realpath(path).startswith(f"{home}{os.sep}"):
                raise BundleError(
                    f"{path} is a link to {os.readlink(path)!r}, outside of the bundle; a copy "
                    f"would hold what is there. Replace it by the file; if you trust where the "
                    f"bundle comes from, add --trust."
                )


def require_own_weights(path: Path) -> str:
    """Hash of a file of weights, compared with the one that lies beside it, if any does.

    Args:
        path: The file; ``NAME.sha256`` beside it is in the format of ``sha256sum``.

    Raises:
        BundleError: If the file is not the one that the bundle was shipped with.
    """
    try:
        require_regular(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}. Restore it.") from error
    digest = sha256_of(path)
    beside = path.with_name(f"{path.name}.sha256")
    if beside.is_file():
        words = beside.read_text(encoding="utf-8", errors="replace").split()
        if words[:1] != [digest]:
            raise BundleError(
                f"{path} has the SHA-256 {digest[:16]}..., but {beside.name} says "
                f"{(words or ['nothing'])[0][:16]}...: these are not the weights that the bundle "
                f"came with. Get it again; if you trained it anew, delete {beside.name}."
            )
    return digest


def _is_known(text: str) -> bool:
    if text in known() or MODEL.fullmatch(text) or OWN_PART.fullmatch(text):
        return True
    try:
        ast.literal_eval(text.removeprefix("$"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return text.startswith("$")
