"""The demonstration: samples from every shipped bundle, and lesions in a phantom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medvae3d.apps.bundle import Bundle, load_bundle
from medvae3d.apps.catalogue import entries
from medvae3d.apps.console import Stopwatch
from medvae3d.errors import BundleError
from medvae3d.synthesis.hosts import phantom_host

CASES = 4
INSERTED = (3, 6)


@dataclass(frozen=True)
class Part:
    """A part of the demonstration: what it is, how many cases in how long, and their picture."""

    what: str
    cases: int
    seconds: float
    picture: Path


def run_demo(
    out: str | Path,
    seed: int = 20,
    device: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Part]:
    """Makes everything that the demonstration shows.

    Args:
        out: Folder; each bundle gets one in it.
        seed: Seed of all samples.
        device: Where to compute.
        say: Told what comes next.

    Returns:
        Each part that was made.

    Raises:
        BundleError: If no bundle is shipped, or one has no weights.
        OutputError: If the folder holds other files.
    """
    folder = Path(out)
    shipped = entries()
    if not shipped:
        raise BundleError(
            "there is no bundle to show: neither beside the package nor inside of it. Install "
            "medvae3d from a checkout with its bundles/, or from a wheel."
        )
    for entry in shipped:
        if not entry.has_weights:
            raise BundleError(
                f"bundle {entry.name} has no weights: {entry.root / 'models' / 'model.pt'} does "
                f"not exist. Get the whole repository with its weights, or train the bundle with "
                f"`medvae3d train {entry.name} --datalist LIST --out DIR`."
            )
    place = device or default_device()
    made = []
    for entry in shipped:
        say(f"{entry.name}: {CASES} cases")
        bundle = load_bundle(entry.root, place)
        made.append(_pairs(bundle, folder / entry.name, seed))
        if bundle.recipe.synthesis.kind == "insertion":
            say(f"{entry.name}: lesions into a phantom")
            made.append(_insertion(bundle, folder / f"{entry.name}_into_phantom", seed))
    return made


def default_device() -> str:
    """A GPU where there is one, as in the configurations of the bundles."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _pairs(bundle: Bundle, folder: Path, seed: int) -> Part:
    watch = Stopwatch()
    bundle.write(folder, CASES, seed)
    return Part(bundle.name, CASES, watch.seconds, folder / "preview.png")


def _insertion(bundle: Bundle, folder: Path, seed: int) -> Part:
    """Puts lesions into a phantom that lies there as a file, as a user's own scan would."""
    watch = Stopwatch()
    host = phantom_host(bundle.recipe, seed, 0)
    nowhere = np.zeros(host.grid.shape, bool)
    files = []
    for number, channel in enumerate(bundle.recipe.channels):
        files.append(folder / "host" / f"phantom_{channel.name.lower()}.nii.gz")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        host.write_channel(number, files[-1], host.volumes[number].array, nowhere)
    bundle.write(folder, 1, seed, hosts=[files], lesions=INSERTED)
    what = f"{bundle.name}, lesions put into a phantom"
    return Part(what, 1, watch.seconds, folder / "preview.png")
