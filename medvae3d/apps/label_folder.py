"""The folder of our MONAI Label application: bundles, a segmenter for each, and an entry file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from medvae3d.apps.bundle import find_bundle
from medvae3d.apps.segmenter_bundle import SUFFIX, write_segmenter
from medvae3d.apps.trust import require_inside, require_trusted
from medvae3d.data.staging import staged_folder
from medvae3d.errors import BundleError, SettingError

ENTRY = '''"""Where MONAI Label enters; the application itself is in medvae3d."""

from medvae3d.apps.label_app.application import SyntheticDataApp

__all__ = ["SyntheticDataApp"]
'''
# Of a bundle: what its own runs leave is not its own.
# A server trains further, so the hash of the weights will not be theirs for long.
LEFT_OUT = shutil.ignore_patterns(
    "eval", "__pycache__", "train_state.pt", "run.json", "cases.json", "model.pt.sha256"
)


def write_app(out: str | Path, bundles: Sequence[str | Path]) -> Path:
    """Writes the application; bundles are copied, since training in it replaces their weights.

    Args:
        out: Folder to make; new or empty.
        bundles: Names of shipped bundles, or folders of any.

    Raises:
        SettingError: If a bundle is named twice.
        BundleError: If one is unknown or has no weights.
        OutputError: If the folder holds something, or cannot be written.
    """
    roots = [find_bundle(bundle) for bundle in bundles]
    names = [root.name for root in roots]
    if len(set(names)) < len(names) or not names:
        raise SettingError(
            f"bundles are {', '.join(names) or 'none'}; allowed are one or more, each of another "
            f"name. Name each once."
        )
    for root in roots:
        if not (root / "models" / "model.pt").is_file():
            raise BundleError(f"{root} has no models/model.pt. Train the bundle first.")
    for root in roots:
        require_trusted(root)
        require_inside(root)
    with staged_folder(out) as folder:
        (folder / "main.py").write_text(ENTRY, encoding="utf-8")
        for root in roots:
            shutil.copytree(root, folder / "model" / root.name, ignore=LEFT_OUT)
            write_segmenter(root, folder / "model" / f"{root.name}{SUFFIX}")
    return Path(out)
