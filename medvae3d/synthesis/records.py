"""The record beside a sample: what was asked, what came out, and whether it may be published.

A record is plain JSON whose bytes depend on nothing but the sample. All files of a folder that are
about several samples are made from its records, so that ranges made apart and put together give
the same folder as one run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from medvae3d import __version__
from medvae3d.errors import OutputError
from medvae3d.files import json_bytes, load_json
from medvae3d.geometry import Grid
from medvae3d.synthesis.levels import FACES, bounding_box
from medvae3d.synthesis.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What the samples of one run have in common; only such samples share a folder.
RUN_KEYS = ("medvae3d", "bundle", "weights_sha256", "kind", "seed", "options")
ORDER = (
    "case",
    *RUN_KEYS,
    "index",
    "device",
    "condition",
    "level",
    "attempts",
    "rejected",
    "grid",
    "channels",
    "labels",
    "synthetic",
    "checks",
    "host",
    "lesions",
    "licence",
    "cite",
)
# Numbers are kept to this many digits: enough to reproduce a mask, and short enough to read.
DIGITS = 6
# Width of the shell around a mask whose mean is recorded beside that of the mask.
RIM_VOXELS = 2


@dataclass(frozen=True)
class Provenance:
    """Which weights made a sample, and on what terms.

    Attributes:
        bundle: Name of the bundle.
        version: Its version.
        weights_sha256: Hash of the file of weights.
        licence: ``weights``, a name, and ``data``, a list.
        cite: References.
    """

    bundle: str
    version: str = "0"
    weights_sha256: str = ""
    licence: Mapping[str, Any] | None = None
    cite: Sequence[str] = ()

    def case_name(self, seed: int, index: int) -> str:
        """The name of a sample's files: bundle, seed and index."""
        return f"{self.bundle}_s{seed}_{index:06d}"

    def run(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What all samples of a run have in common, from the parts of one that are known."""
        return {**plain({key: record.get(key) for key in RUN_KEYS}), **self._named()}

    def complete(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Adds to a generator's record what only the bundle knows, in the order of reading."""
        whole = {
            **record,
            **self._named(),
            "case": self.case_name(record["seed"], record["index"]),
            "synthetic": True,
            "licence": dict(self.licence or {"weights": "unknown", "data": []}),
            "cite": list(self.cite),
        }
        ordered = {key: whole[key] for key in ORDER if key in whole}
        return plain({**ordered, **whole})

    def _named(self) -> dict[str, Any]:
        return {
            "medvae3d": __version__,
            "bundle": f"{self.bundle} {self.version}",
            "weights_sha256": self.weights_sha256,
        }


def describe_grid(grid: Grid) -> dict[str, Any]:
    """A grid in the words of a record."""
    return {"shape": grid.shape, "spacing_mm": grid.spacing, "axcodes": grid.axcodes}


def describe_channels(recipe: Recipe) -> list[dict[str, str]]:
    """The channels of an image in the words of a record."""
    return [{"name": each.name, "unit": each.unit} for each in recipe.channels]


def measure_image(
    image: NDArray[np.floating[Any]], label: NDArray[np.integer[Any]], recipe: Recipe
) -> dict[str, dict[str, float]]:
    """Mean intensity of each channel inside the mask and in a rim of two voxels around it.

    Args:
        image: Native units, :math:`(C, I, J, K)`.
        label: Label map, :math:`(I, J, K)`.
        recipe: Names the channels.
    """
    box = bounding_box(label > 0)
    if box is None:
        return {}
    wide = tuple(slice(max(0, s.start - RIM_VOXELS), s.stop + RIM_VOXELS) for s in box)
    inside = label[wide] > 0
    rim = ndimage.binary_dilation(inside, FACES, RIM_VOXELS) & ~inside
    means: dict[str, dict[str, float]] = {}
    for name, where in (("mean_inside", inside), ("mean_rim", rim)):
        means[name] = {
            channel.name: float(part[wide][where].mean(dtype=np.float64)) if where.any() else 0.0
            for channel, part in zip(recipe.channels, image, strict=True)
        }
    return means


def plain(value: Any) -> Any:
    """Turns tuples, arrays' numbers and long fractions into what JSON holds the same everywhere."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return value.name
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def to_bytes(record: Mapping[str, Any]) -> bytes:
    """JSON of a record; the same record gives the same bytes."""
    return json_bytes(record, indent=2)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records of a folder of samples, by name of the case.

    Raises:
        OutputError: If a file is no record.
    """
    records = []
    for path in sorted((folder / "records").glob("*.json")):
        try:
            record = load_json(path)
            if record["case"] != path.stem:
                raise ValueError(f"it is of case {record['case']}")
            _require_counts(record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path} is no record of a sample ({type(error).__name__}: {error}). Choose an "
                f"empty folder, or delete this file."
            ) from error
        records.append(record)
    return records


def _require_counts(record: Mapping[str, Any]) -> None:
    """Checks what is added up over all records of a folder.

    Raises:
        ValueError: If it is not of the form that is written.
    """
    rejected, attempts = record.get("rejected") or {}, record.get("attempts") or 0
    counts = [attempts, *(rejected.values() if isinstance(rejected, dict) else [None])]
    if not all(isinstance(count, int) and 0 <= count < 1 << 53 for count in counts):
        raise ValueError(f"it has {attempts!r} attempts and rejected {rejected!r}")


def rejections(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How many draws the samples took, and why the others were rejected."""
    reasons: Counter[str] = Counter()
    samples = draws = 0
    for record in records:
        rejected = record.get("rejected") or {}
        samples += 1
        draws += record.get("attempts") or 1 + sum(rejected.values())
        reasons.update(rejected)
    return {
        "samples": samples,
        "draws": draws,
        "rejection_rate": plain(sum(reasons.values()) / draws) if draws else 0.0,
        "rejected": dict(sorted(reasons.items())),
    }
