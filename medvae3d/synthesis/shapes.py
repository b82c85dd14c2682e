"""The lesions of an insertion: shapes drawn and placed in a host, or taken from a given mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from medvae3d.data.location import bounding_box
from medvae3d.data.volumes import Volume, read_mask
from medvae3d.errors import LabelError, RangeError, RejectionError
from medvae3d.models.latent import Condition
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.seeding import derive_generator
from medvae3d.synthesis import levels
from medvae3d.synthesis.conditions import ConditionDraw, natural
from medvae3d.synthesis.frames import Frame
from medvae3d.synthesis.hosts import Scan
from medvae3d.synthesis.makers import exact_float32
from medvae3d.synthesis.placement import MOST_OUTSIDE, centre_of
from medvae3d.synthesis.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Mask = NDArray[np.bool_]
    Slices = tuple[slice, slice, slice]

AXES = ("right", "anterior", "superior")
# Deviation in voxels by which a mask is smoothed before it is cut on voxels of another size.
SOFTNESS = 0.6


@dataclass(eq=False)
class Lesion:
    """A lesion in its place.

    Attributes:
        mask: In the frame of the weights, in its bounding box.
        start: Voxel of the frame where that box starts.
        host_mask: On the host's own voxels, in its bounding box there.
        host_box: That box.
        record: What led to it.
    """

    mask: Mask
    start: tuple[int, int, int]
    host_mask: Mask
    host_box: Slices
    record: dict[str, Any] = field(default_factory=dict)


class Shapes:
    """Draws shapes and finds places for them.

    Args:
        model: Its first stage makes the shapes.
        recipe: What it makes.
        scan: The host.
        volume_ml: Smallest and largest volume; as in the training set if ``None``.
        extrapolate: Whether volumes beyond the training set may be asked for.
        temperature: Scales the deviation of latents.
        rejected: Counts rejected shapes by reason.
    """

    def __init__(
        self,
        model: TwoStageModel,
        recipe: Recipe,
        scan: Scan,
        volume_ml: tuple[float, float] | None,
        extrapolate: bool,
        temperature: float,
        rejected: Counter[str],
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.scan = scan
        self.statistics = model.statistics
        self.draw = ConditionDraw(self.statistics, recipe, volume_ml, extrapolate)
        self.temperature = temperature
        self.rejected = rejected

    def place(
        self, number: int, count: int, point: Sequence[float] | None, seed: int, index: int
    ) -> Lesion:
        """Draws shapes until one is plausible and finds a place.

        Args:
            number: Which lesion of the host this is.
            count: How many there will be.
            point: Where to, in mm; drawn if ``None``.
            seed: Seed of all samples.
            index: Number of this sample.

        Raises:
            RangeError: If the place asked for lies outside of the host or its brain.
            RejectionError: If none does.
        """
        centre = None if point is None else self._centre(point)
        reasons: Counter[str] = Counter()
        before = self.scan.site.refused.copy()
        for attempt in range(self.recipe.synthesis.max_attempts):
            generator = derive_generator(seed, "lesion", index, number, attempt)
            found = self._attempt(generator, centre)
            if isinstance(found, Lesion):
                self.scan.site.take(found.mask, found.start)
                self.scan.added[found.host_box] |= found.host_mask
                places = (self.scan.site.refused - before).total()
                found.record["attempts"] = {"shapes": attempt + 1, "places": places + 1}
                return found
            reasons[found] += 1
            self.rejected[found] += 1
        refused = self.scan.site.refused - before
        listed = ", ".join(f"{why} ({n})" for why, n in sorted(reasons.items()))
        spots = ", ".join(f"{why} ({n})" for why, n in sorted(refused.items())) or "none"
        raise RejectionError(
            f"lesion {number + 1} of {count} in {self.scan.host.name}: all "
            f"{reasons.total()} shapes were rejected: {listed}; places refused: {spots}. Ask for "
            f"smaller or fewer lesions, another place or seed, or allow overlap."
        )

    def _centre(self, point: Sequence[float]) -> NDArray[np.int64]:
        frame, grid = self.scan.frame, self.scan.host.grid
        index = np.rint(frame.to_index(point)).astype(int)
        said = ", ".join(f"{v:g}" for v in point)
        if (index < 0).any() or (index >= frame.shape).any():
            low, high = grid.corners.min(0), grid.corners.max(0)
            limits = "; ".join(
                f"{a} {x:.0f} to {y:.0f}" for a, x, y in zip(AXES, low, high, strict=True)
            )
            raise RangeError(
                f"the place ({said}) mm lies outside of {self.scan.host.name}, which spans "
                f"{limits} mm. Give a place within it."
            )
        if not self.scan.site.brain[tuple(index)]:
            raise RangeError(
                f"the place ({said}) mm lies outside of the brain of {self.scan.host.name}. Give a "
                f"place within it, or a brain mask if it was not found well."
            )
        return index

    def _attempt(
        self, generator: torch.Generator, centre: NDArray[np.int64] | None
    ) -> Lesion | str:
        """A lesion in its place, or why there is none."""
        frame, site = self.scan.frame, self.scan.site
        told = self.draw(generator)
        attributes = None
        if told.attributes is not None:
            attributes = self.statistics.standardise(told.attributes[None])
        field_ = self._field(attributes, generator)
        flips = [axis for axis in range(3) if torch.rand((), generator=generator) < 0.5]
        field_ = np.ascontiguousarray(np.flip(field_, tuple(flips)))
        asked = told.total_ml
        if asked is None:
            cut = levels.mask_at_level(field_)
        else:
            cut = levels.mask_at_volume(field_, volume_ml=asked, voxel_ml=frame.voxel_ml)
        wanted = None if asked is None else asked / frame.voxel_ml
        why = levels.fault(cut, asked=wanted)
        if why is not None:
            return f"shape: {why}"
        box = bounding_box(cut.tidied.mask)
        mask = np.ascontiguousarray(cut.tidied.mask[box])
        if centre is None:
            start = site.draw(mask, generator)
            if start is None:
                return "no place"
        else:
            i, j, k = (int(c - m) for c, m in zip(centre, centre_of(mask), strict=True))
            start = (i, j, k)
            why = site.fault(mask, start, in_tissue=False)
            if why is not None:
                site.refused[why] += 1
                return "no place"
        corner = [a - side.start for a, side in zip(start, box, strict=True)]
        on_host = self._on_host(cut.tidied.mask, corner, asked)
        if isinstance(on_host, str):
            return on_host
        reached = int(on_host[0].sum()) * self.scan.host.grid.voxel_volume_ml
        record = {
            "volume_ml": {"asked": asked, "reached": reached},
            "attributes": natural(self.statistics.names, told.attributes),
            "level": cut.level,
            "mirrored": [AXES[axis] for axis in flips],
        }
        return Lesion(mask, start, *on_host, record)

    def _field(self, attributes: Tensor | None, generator: torch.Generator) -> Floats:
        shape = self.model.shape
        device = next(shape.parameters()).device
        prior = shape.sampling_prior
        known = attributes if prior is not None and prior.attributes else None
        with torch.inference_mode(), exact_float32():
            known = None if known is None else known.to(device)
            z = shape.sample_latent(1, known, [generator], self.temperature)
            told = None if attributes is None or shape.embedding is None else attributes.to(device)
            head = shape.decode(z.to(device), Condition(told))["mask"]
            return np.asarray(head.field()[0, 0].float().cpu().numpy())

    def _on_host(
        self, mask: Mask, corner: Sequence[int], asked: float | None
    ) -> tuple[Mask, Slices] | str:
        """The mask on the host's own voxels, at its volume there, and its box; or why not."""
        frame = self.scan.frame
        if frame.is_exact:
            moved, box = frame.to_host(mask, corner)
            on_host = moved > 0.5
        else:
            # A little smooth, so that there is a level for every volume.
            soft = ndimage.gaussian_filter(np.pad(mask, 2).astype(np.float32), SOFTNESS)
            moved, box = frame.to_host(soft, [a - 2 for a in corner])
            if asked is None:
                on_host = levels.mask_at_level(moved, 0.5).tidied.mask
            else:
                voxel_ml = self.scan.host.grid.voxel_volume_ml
                cut = levels.mask_at_volume(moved, volume_ml=asked, voxel_ml=voxel_ml)
                on_host = cut.tidied.mask
                if levels.missed(cut, asked / voxel_ml):
                    return "shape: volume missed on the host's voxels"
        if not on_host.any():
            return "shape: vanishes between the host's voxels"
        inner = bounding_box(on_host)
        i, j, k = (
            slice(b.start + s.start, b.start + s.stop) for b, s in zip(box, inner, strict=True)
        )
        tight = np.ascontiguousarray(on_host[inner])
        why = self.scan.inside_host(tight, (i, j, k))
        if why is not None:
            self.scan.site.refused[why] += 1
            return "no place"
        return tight, (i, j, k)


def lesions_of_mask(mask: Volume | str | PathLike[str], scan: Scan, recipe: Recipe) -> list[Lesion]:
    """The lesions of a mask that the user drew, on the host's own voxels.

    Raises:
        GridMismatchError: If it does not lie on the host's grid.
        LabelError: If it is empty or meets lesions of the host.
        RangeError: If it leaves the brain.
    """
    volume = mask if isinstance(mask, Volume) else read_mask(mask, recipe.values, what="mask")
    host, frame = scan.host, scan.frame
    host.grid.require_same(volume.grid, this=host.name, that=str(volume.path))
    inside = volume.array > 0
    count = int(inside.sum())
    if not count:
        raise LabelError(f"{volume.path} is empty; a mask to fill needs voxels. Draw a lesion.")
    outside = int((inside & ~host.brain).sum())
    if outside > MOST_OUTSIDE * count:
        raise RangeError(
            f"{volume.path} leaves the brain of {host.name} with {100 * outside / count:.0f} % of "
            f"its voxels; allowed are {100 * MOST_OUTSIDE:.0f} %. Move it, or give a brain mask if "
            f"the brain was not found well."
        )
    met = int((inside & (host.label > 0)).sum())
    if met and scan.site.keep_apart:
        raise LabelError(
            f"{volume.path} meets lesions of {host.name} in {met} voxels; allowed are none. Move "
            f"it, or allow overlap."
        )
    numbered, found = ndimage.label(inside, levels.NEIGHBOURS)
    lesions = []
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        part = numbered[box] == number
        framed, start = _framed(part, box, frame)
        ml = int(part.sum()) * host.grid.voxel_volume_ml
        record = {"volume_ml": {"asked": None, "reached": ml}, "given": True}
        lesions.append(Lesion(framed, start, part, box, record))
        scan.site.take(framed, start)
    scan.added |= inside
    return lesions


def _framed(part: Mask, box: Slices, frame: Frame) -> tuple[Mask, tuple[int, int, int]]:
    """A component of a mask on the host, in the frame: its mask there, and where that starts."""
    share, start = frame.box_to_frame(part, box)
    # Thinner than half a voxel of the frame, it is where most of it is.
    inside = share >= min(0.5, float(share.max()))
    inner = bounding_box(inside)
    i, j, k = (a + side.start for a, side in zip(start, inner, strict=True))
    return np.ascontiguousarray(inside[inner]), (i, j, k)
