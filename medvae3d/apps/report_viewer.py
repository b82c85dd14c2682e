"""The viewer of a report: a few volumes in the page itself, and what shows them.

The page has a small viewer of its own, three planes on a canvas. Where the extra
``medvae3d[report]`` is installed, NiiVue is put into the page as well, for volume rendering.
Nothing is fetched when the page is opened.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from medvae3d.apps.evaluate_sections import Judged
from medvae3d.data.nifti import pack
from medvae3d.evaluation.cases import Cases, spread
from medvae3d.evaluation.voxelwise import unit
from medvae3d.synthesis.preview import COLOURS

PACKAGE, WIDGET = "ipyniivue", "ipyniivue/static/widget.js"
# Of all volumes together, before compression: a page of 15 MB opens at once, one of 100 does not.
VOXEL_BYTES = 9_000_000
# The widget carries NiiVue once more for pages that it saves: a whole module, as quoted text.
QUOTED_MODULE = re.compile(r'"((?:%[0-9A-F]{2}|[\w.!~*\'()-]){200000,})"')
EXPORTED = re.compile(r"export\s*\{[^}]*\bNiivue\b[^}]*\}\s*;?\s*$")


@dataclass(frozen=True)
class NiiVue:
    """NiiVue as a module that a page can hold.

    Attributes:
        source: The module.
        package: Where it comes from, with its version.
        licence: Its licence, in full.
    """

    source: str
    package: str
    licence: str


def find_niivue() -> NiiVue | None:
    """NiiVue from the installed package that carries it; ``None`` without the extra.

    The package is read, not imported: importing it would bring up Jupyter's widgets.
    """
    try:
        found = distribution(PACKAGE)
    except PackageNotFoundError:
        return None
    files = {str(file): file for file in found.files or ()}
    licences = [file for name, file in files.items() if "LICENSE" in name.upper()]
    if WIDGET not in files or not licences:
        return None
    source = module_in(files[WIDGET].read_text(encoding="utf-8"))
    if source is None:
        return None
    return NiiVue(source, f"{PACKAGE} {found.version}", licences[0].read_text(encoding="utf-8"))


def module_in(widget: str) -> str | None:
    """The module that a widget carries as percent-encoded text; ``None`` if it has none."""
    quoted = QUOTED_MODULE.search(widget)
    source = unquote(quoted.group(1)) if quoted else ""
    return source if EXPORTED.search(source) else None


def viewer_parts(judged: Judged, count: int, niivue: NiiVue | None) -> dict[str, str]:
    """What the page holds for the viewer: volumes, script, and the module of NiiVue.

    Args:
        judged: The cases.
        count: How many of them, half of them real.
        niivue: The module, if there is one.

    Returns:
        ``volumes`` as JSON, ``script`` as text, ``module`` compressed in base64.
    """
    real, made = judged.real, judged.synthetic
    # Half of them each; where one set has few, the other may have more.
    of_made = min(len(made), max(count - count // 2, count - len(real)))
    shares = (("synthetic", made, of_made), ("real", real, min(len(real), count - of_made)))
    budget = VOXEL_BYTES // max(1, count)
    entries = [
        _entry(cases, row, kind, judged, budget)
        for kind, cases, share in shares
        for row in spread(len(cases), share)
    ]
    labels = [
        {"name": name, "colour": COLOURS[number % len(COLOURS)]}
        for number, name in enumerate(judged.frame.labels)
    ]
    content = {"channels": list(judged.frame.channels), "labels": labels, "cases": entries}
    module = b"" if niivue is None else b"".join(pack(niivue.source.encode(), level=9))
    script = resources.files("medvae3d.apps").joinpath("report.js").read_text(encoding="utf-8")
    return {
        # A name may hold anything; in a script element, "</" would end it.
        "volumes": json.dumps(content).replace("<", "\\u003c"),
        "script": script,
        "module": base64.b64encode(module).decode(),
    }


def _entry(cases: Cases, row: int, kind: str, judged: Judged, budget: int) -> dict[str, Any]:
    """One case: a NIfTI file for each channel and one for the mask, eight bits a voxel."""
    image, mask = unit(cases.image[row : row + 1]).clamp(0, 1), cases.mask[row : row + 1]
    channels = image.shape[1]
    voxels = image[0, 0].numel() * (channels + 1)
    step = max(1, int(np.ceil((voxels / budget) ** (1 / 3))))
    if step > 1:
        image = F.avg_pool3d(image, step, ceil_mode=True)
        # The first of the voxels that are averaged would move masks, and lose those of one voxel.
        mask = F.max_pool3d(mask, step, ceil_mode=True)
    spacing = [size * step for size in judged.frame.spacing_mm]
    grey = (255 * image[0]).round().to(torch.uint8).numpy()
    volumes = [*grey, mask[0, 0].to(torch.uint8).numpy()]
    files = [_nifti(volume, spacing) for volume in volumes]
    return {"name": cases.names[row], "kind": kind, "step": step, "files": files}


def _nifti(volume: Any, spacing: Any) -> str:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-s * (n - 1) / 2 for n, s in zip(volume.shape, spacing, strict=True)]
    made = nib.Nifti1Image(volume, affine)
    return base64.b64encode(b"".join(pack(made.to_bytes()))).decode()
