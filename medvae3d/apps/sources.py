"""What can be trained: a system by its name, or a bundle by its name or folder."""

from __future__ import annotations

from pathlib import Path

from medvae3d.apps.bundle import find_bundle
from medvae3d.apps.catalogue import shipped_bundles, unknown
from medvae3d.apps.trust import require_inside, require_trusted
from medvae3d.errors import BundleError, SettingError
from medvae3d.models.systems.files import system_names


def is_system(what: str | Path) -> bool:
    """Whether that is the name of a system; a folder of that name is written ``./NAME``."""
    return str(what) in system_names() and str(what) not in shipped_bundles()


def require_source(what: str | Path, like: str | Path | None = None) -> Path:
    """The folder of a bundle, or a path whose name is that of a system.

    Raises:
        BundleError: If there is neither, or no bundle of the name ``like``, or if it would execute
            what is not known.
        SettingError: If a bundle is asked to be like another.
    """
    if like is not None:
        # Its channels and labels become settings of the training, which are evaluated.
        require_trusted(find_bundle(like))
    if is_system(what):
        return Path(str(what))
    try:
        found = find_bundle(what)
    except BundleError:
        raise BundleError(unknown(what, shipped_bundles(), "system or bundle")) from None
    if like is not None:
        raise SettingError(
            f"{found.name} is a bundle and states the form of its data itself; --like is for "
            f"systems: {', '.join(system_names())}. Leave it out."
        )
    require_trusted(found)
    require_inside(found)
    return found
