"""Synthetic lesions in a real scan, of which nothing else is changed.

A shape is drawn and cut at its volume, a place is drawn by the training set's location map and the
host's own anatomy, intensities are decoded in boxes around the new lesions with the host as their
context, and blended in. What is made depends on seed and index alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from medvae3d.data.location import bounding_box
from medvae3d.data.volumes import Volume
from medvae3d.errors import BundleError, SettingError
from medvae3d.geometry import Grid
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.networks.blocks import channels_last
from medvae3d.seeding import derive_generator
from medvae3d.synthesis.blending import REACH, border_of, gradient_at
from medvae3d.synthesis.generator import Sample
from medvae3d.synthesis.hosts import HostScan, Scan
from medvae3d.synthesis.makers import exact_float32
from medvae3d.synthesis.painting import grown, paint_lesions
from medvae3d.synthesis.recipe import Recipe
from medvae3d.synthesis.records import describe_channels, describe_grid
from medvae3d.synthesis.shapes import Lesion, Shapes, lesions_of_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Mask = NDArray[np.bool_]

# Fewest and most lesions, where neither a number nor places are given.
LESIONS = (1, 5)
# Below this weight a voxel of another size than the weights' keeps its stored value.
LEAST_CHANGE = 1e-3
# Voxels of the brain from which the host's own gradients are told.
SEAM_VOXELS = 100_000


@dataclass(frozen=True, eq=False)
class Inserted:
    """A host with new lesions.

    Attributes:
        host: The scan as it was.
        image: Native units as the host stores them, :math:`(C, I, J, K)`.
        label: Label of the host and new lesions, uint8, :math:`(I, J, K)`.
        added: New lesions alone.
        zone: Voxels of the image that may differ from the host's.
        record: How it was made.
    """

    host: HostScan
    image: Floats = field(repr=False)
    label: NDArray[np.uint8] = field(repr=False)
    added: Mask = field(repr=False)
    zone: Mask = field(repr=False)
    record: Mapping[str, Any] = field(repr=False)

    @property
    def grid(self) -> Grid:
        """The host's grid."""
        return self.host.grid

    @property
    def lesions(self) -> Sequence[Mapping[str, Any]]:
        """One record a lesion: place, volume asked and reached, attempts, zone, contrast."""
        return cast("Sequence[Mapping[str, Any]]", self.record["lesions"])

    def as_sample(self) -> Sample:
        """The same as a sample, which is what bundles write."""
        label = torch.from_numpy(self.label)[None]
        return Sample(torch.from_numpy(self.image), label, self.grid, self.record, self)

    def write_image(self, channel: int, path: str | PathLike[str]) -> None:
        """Writes a channel; header and voxels outside of the zone are the host's, bit for bit."""
        self.host.write_channel(channel, path, self.image[channel], self.zone)


def insert_lesions(
    host: HostScan,
    network: nn.Module,
    recipe: Recipe,
    *,
    seed: int,
    index: int = 0,
    lesions: tuple[int, int] | None = None,
    volume_ml: tuple[float, float] | None = None,
    at_mm: Sequence[float] | Sequence[Sequence[float]] | None = None,
    mask: Volume | str | PathLike[str] | None = None,
    extrapolate: bool = False,
    allow_overlap: bool = False,
    temperature: float | None = None,
    device: torch.device | str = "cpu",
) -> Inserted:
    """Puts synthetic lesions into a scan.

    Args:
        host: The scan.
        network: Two-stage model with its ``statistics``; the latent of its images is a map.
        recipe: What the network makes.
        seed: Seed of all samples.
        index: Number of this one; the result depends on seed and index alone.
        lesions: Smallest and largest number of lesions; `LESIONS` if not given.
        volume_ml: Smallest and largest volume of a lesion; as in the training set if not given.
        at_mm: Where the centre of a lesion is to lie, in mm along right, anterior, superior; or
            several such places. There are then as many lesions as places, and ``lesions`` is
            left out.
        mask: New lesions drawn by the user on the host's grid; only their intensities are made.
        extrapolate: Whether volumes beyond the training set may be asked for.
        allow_overlap: Whether new lesions may lie on others.
        temperature: Scales the deviation of latents; the recipe's if not given.
        device: Where to compute.

    Raises:
        BundleError: If the network cannot be used for insertion.
        SettingError: If the request contradicts itself.
        RangeError: If a place lies outside of the host, or a volume outside of the training set.
        GridMismatchError: If the mask does not lie on the host's grid.
        LabelError: If the mask is empty or meets lesions of the host.
        RejectionError: If no place or no plausible shape was found for a lesion.
    """
    model = _usable(network, recipe)
    places = _places(at_mm)
    _require_sense(lesions, volume_ml, places, mask)
    channels_last(model.eval().to(device))
    if temperature is None:
        temperature = recipe.synthesis.temperature
    scan = Scan.of(host, model, recipe, allow_overlap)
    rejected: Counter[str] = Counter()
    if mask is not None:
        made = lesions_of_mask(mask, scan, recipe)
    else:
        shapes = Shapes(model, recipe, scan, volume_ml, extrapolate, temperature, rejected)
        if not places:
            generator = derive_generator(seed, "insertion", index)
            low, high = lesions or LESIONS
            count = int(torch.randint(low, high + 1, (1,), generator=generator))
            places = [None] * count
        made = [
            shapes.place(number, len(places), point, seed, index)
            for number, point in enumerate(places)
        ]
    generator = derive_generator(seed, "texture", index)
    with torch.inference_mode(), exact_float32():
        change, weights = paint_lesions(model.texture, recipe, scan, made, generator, temperature)
    request = {
        "lesions": lesions,
        "volume_ml": volume_ml,
        "at_mm": places if at_mm is not None else None,
        "mask": _fingerprint(mask),
        "extrapolate": extrapolate,
        "allow_overlap": allow_overlap,
        "temperature": temperature,
    }
    facts = {
        "seed": seed,
        "index": index,
        "options": request,
        "rejected": dict(sorted(rejected.items())),
    }
    return _finish(scan, recipe, made, change, weights, facts)


def _usable(network: nn.Module, recipe: Recipe) -> TwoStageModel:
    if not isinstance(network, TwoStageModel):
        raise BundleError(
            f"lesions are inserted by a two-stage model; this bundle holds a "
            f"{type(network).__name__}. Use one whose `synthesis` kind is insertion."
        )
    texture = network.texture
    if not texture.is_local or texture.context is None:
        raise BundleError(
            "the second stage has a vector latent or is not told the surroundings of a lesion; "
            "insertion needs a latent map and context. Train it with medvae3d.models.zoo.pavae."
        )
    if network.values != recipe.values or len(recipe.values) != 2:
        raise BundleError(
            f"the network makes the label values {network.values}, inference.json says "
            f"{recipe.values}; insertion needs background and one kind of lesion in both."
        )
    if network.image_channels != len(recipe.channels):
        raise BundleError(
            f"the network makes {network.image_channels} channels, inference.json says "
            f"{len(recipe.channels)}. Make `channels` agree with network_def."
        )
    return network


def _places(at_mm: Any) -> list[Any]:
    if at_mm is None:
        return []
    rows = [at_mm] if np.ndim(at_mm) == 1 else list(at_mm)
    points = [tuple(float(v) for v in row) for row in rows]
    if not points or any(len(p) != 3 or not np.isfinite(p).all() for p in points):
        raise SettingError(
            f"a place is {at_mm}; allowed are three numbers in mm: right, anterior, superior of "
            f"the scanner's origin, as a viewer shows them for RAS."
        )
    return points


def _require_sense(
    lesions: tuple[int, int] | None, volume_ml: Any, places: Sequence[Any], mask: Any
) -> None:
    low, high = lesions or LESIONS
    if not 1 <= low <= high:
        raise SettingError(
            f"the number of lesions is to lie from {low} to {high}; allowed are whole numbers "
            f"from 1 on, the smaller one first."
        )
    if lesions is not None and places and not low <= len(places) <= high:
        raise SettingError(
            f"the number of lesions is to lie from {low} to {high}, and places were given for "
            f"{len(places)}; there is one lesion a place. Leave out the number, or the places."
        )
    if volume_ml is not None and not 0 < volume_ml[0] <= volume_ml[1] < float("inf"):
        raise SettingError(
            f"volume range is {volume_ml[0]:g} to {volume_ml[1]:g} ml; allowed are numbers above "
            f"0, the smaller one first. Write it as LOW:HIGH."
        )
    if mask is not None and (volume_ml is not None or places):
        raise SettingError(
            "a mask was given together with a volume or a place; a mask has both. Leave out one."
        )


def _fingerprint(mask: Volume | str | PathLike[str] | None) -> dict[str, str] | None:
    if mask is None:
        return None
    path = mask.path if isinstance(mask, Volume) else Path(mask)
    content = mask.array.tobytes() if isinstance(mask, Volume) else path.read_bytes()
    return {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}


def _finish(
    scan: Scan,
    recipe: Recipe,
    lesions: Sequence[Lesion],
    change: Floats,
    weight: Floats,
    facts: Mapping[str, Any],
) -> Inserted:
    host = scan.host
    zone = weight > LEAST_CHANGE
    before, image = host.image, host.image
    for channel, values in enumerate(image):
        # No darker than the host anywhere: magnitudes and uptake have no values below 0.
        made = np.maximum(values[zone] + change[channel][zone], values.min())
        values[zone] = host.as_stored(channel, made)
    label = host.label.astype(np.uint8)
    label[scan.added & (label == 0)] = recipe.values[1]
    records = [_describe(scan, recipe, lesion, before, image, zone) for lesion in lesions]
    record = {
        "kind": "insertion",
        **facts,
        "condition": {"lesions": len(lesions)},
        "attempts": sum(r.get("attempts", {}).get("shapes", 1) for r in records),
        "grid": describe_grid(host.grid),
        "channels": describe_channels(recipe),
        "labels": dict(recipe.labels),
        "checks": {
            "label_voxels_before": int((host.label > 0).sum()),
            "label_voxels_added": int((label != host.label).sum()),
            "zone_voxels": int(zone.sum()),
            "seam": _seam(host, recipe, image, zone),
        },
        "host": {
            "name": host.name,
            "files": [volume.path.name for volume in host.volumes] if host.is_file else [],
            "is_phantom": not host.is_file,
            "percentiles": {
                channel.name: list(pair)
                for channel, pair in zip(recipe.channels, scan.params, strict=True)
            },
            "is_interpolated": not scan.frame.is_exact,
        },
        "lesions": records,
    }
    return Inserted(host, image, label, scan.added, zone, record)


def _seam(host: HostScan, recipe: Recipe, image: Floats, zone: Mask) -> dict[str, dict[str, float]]:
    """Gradients across the border of the zone, before and after, and those of all tissue, per mm.

    Their 99th percentiles: a visible join would stand out of what the brain has anyway.
    """
    box = grown(bounding_box(zone), 1, zone.shape)
    border = np.argwhere(border_of(zone[box])) + [side.start for side in box]
    tissue = np.flatnonzero(host.brain)
    tissue = tissue[:: max(1, len(tissue) // SEAM_VOXELS)]
    places = np.stack(np.unravel_index(tissue, host.brain.shape), axis=1)
    spacing = host.grid.spacing
    seam = {}
    for channel, volume, new in zip(recipe.channels, host.volumes, image, strict=True):
        found = {
            "before": gradient_at(volume.array, border, spacing),
            "after": gradient_at(new, border, spacing),
            "tissue": gradient_at(volume.array, places, spacing),
        }
        seam[channel.name] = {key: float(np.percentile(v, 99)) for key, v in found.items()}
    return seam


def _describe(
    scan: Scan, recipe: Recipe, lesion: Lesion, before: Floats, after: Floats, zone: Mask
) -> dict[str, Any]:
    """Place, volume, zone, and contrast with the zone around it, before and after."""
    grid = scan.host.grid
    # The zone in voxels of the host, which may be smaller or larger than the weights' own.
    order = np.argsort(scan.frame.order)
    reach = [int(np.ceil((REACH + 1) * scan.frame.steps[axis])) for axis in order]
    sides = [
        slice(max(0, s.start - r), min(n, s.stop + r))
        for s, r, n in zip(lesion.host_box, reach, grid.shape, strict=True)
    ]
    box = (sides[0], sides[1], sides[2])
    inside = np.zeros([s.stop - s.start for s in box], bool)
    inner = tuple(
        slice(s.start - b.start, s.stop - b.start)
        for s, b in zip(lesion.host_box, box, strict=True)
    )
    inside[inner] = lesion.host_mask
    around = zone[box] & ~scan.added[box] & ~(scan.host.label[box] > 0)
    contrast = {}
    for channel, old, new in zip(recipe.channels, before, after, strict=True):
        contrast[channel.name] = {
            name: float(values[box][inside].mean() - values[box][around].mean())
            if around.any()
            else None
            for name, values in (("before", old), ("after", new))
        }
    middle = ndimage.center_of_mass(inside) + np.array([side.start for side in box])
    return {
        "place_mm": grid.to_world(middle).tolist(),
        **lesion.record,
        "voxels": int(lesion.host_mask.sum()),
        "zone_voxels": int(zone[box].sum()),
        "contrast": contrast,
    }
