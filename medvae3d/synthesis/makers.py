"""What makes a block of samples with any kind of network: latents, decoding, levels, records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from medvae3d.data.attributes import mask_attributes
from medvae3d.data.volumes import Volume
from medvae3d.errors import BundleError
from medvae3d.models.latent import LatentModel
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.networks.blocks import channels_last
from medvae3d.seeding import derive_generator
from medvae3d.synthesis.conditions import (
    ConditionDraw,
    Told,
    VolumeRequest,
    natural,
)
from medvae3d.synthesis.levels import (
    Levelled,
    fault,
    labels_at_volumes,
    mask_at_level,
    mask_at_volume,
    tidy,
    touches_border,
)
from medvae3d.synthesis.recipe import Recipe
from medvae3d.synthesis.records import describe_channels, describe_grid, measure_image

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Settings:
    """What of a request changes the samples.

    Attributes:
        seed: Seed of all samples.
        temperature: Scales the deviation of latents.
        volume_ml: Volumes asked for.
        extrapolate: Whether they may lie beyond the training set.
        mask: A mask to fill with intensities.
        options: All of these in the words of a record.
        class_name: Class asked for.
    """

    seed: int
    temperature: float
    volume_ml: VolumeRequest
    extrapolate: bool
    mask: Volume | None = field(repr=False)
    options: Mapping[str, Any]
    class_name: str | None = None


@dataclass(eq=False)
class Draft:
    """A sample on its way.

    Attributes:
        index: Its number.
        attempt: Draws before this one.
        generator: All of its noise.
        told: What it is asked to be.
        levelled: Its labels, once they are cut.
        reason: Why it is rejected; ``None`` if it is not.
        image: Network values, :math:`(C, I, J, K)`.
    """

    index: int
    attempt: int
    generator: torch.Generator
    told: Told
    levelled: Levelled | None = None
    reason: str | None = None
    image: Tensor | None = None

    @property
    def label(self) -> NDArray[np.uint8]:
        """Its labels, :math:`(I, J, K)`."""
        return cast(Levelled, self.levelled).label


def prepare(network: nn.Module, device: torch.device | str) -> None:
    """Puts a network on its device, ready to make samples, in the layout of fast convolutions."""
    channels_last(network.eval().to(device))


def exact_float32() -> AbstractContextManager[object]:
    """Keeps GPUs from rounding to TF32 and from choosing an algorithm by a race."""
    flags: AbstractContextManager[object] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


class Maker(ABC):
    """What all kinds have in common; abstract.

    Args:
        network: The network, with its ``statistics``.
        recipe: What it makes.
        settings: What is asked for.
        device: Where to compute.
    """

    def __init__(
        self,
        network: LatentModel | TwoStageModel,
        recipe: Recipe,
        settings: Settings,
        device: torch.device,
    ) -> None:
        if network.image_channels != len(recipe.channels) or network.values != recipe.values:
            raise BundleError(
                f"the network makes {network.image_channels} channels and the label values "
                f"{network.values}; inference.json says {len(recipe.channels)} and "
                f"{recipe.values}. Make `channels` and `labels` agree with network_def."
            )
        recipe.require_references(network.statistics)
        self.recipe = recipe
        self.settings = settings
        self.device = device
        self.statistics: TrainingStatistics = network.statistics
        self.draw = ConditionDraw(
            self.statistics,
            recipe,
            settings.volume_ml,
            settings.extrapolate,
            settings.class_name,
        )
        known = self.draw.percentiles_ml
        self.limits = None if known is None else tuple(ml / recipe.voxel_ml for ml in known)
        self.grid = recipe.grid
        # Rows of a batch at most, once memory has not sufficed for more.
        self.most_rows: int | None = None
        self.given: NDArray[np.uint8] | None = None
        prepare(network, device)

    @abstractmethod
    def fill(self, drafts: Sequence[Draft], size: int) -> None:
        """Gives drafts their labels and images, decoded in batches of exactly ``size`` rows."""

    def drafts(self, indices: Sequence[int], attempt: int) -> list[Draft]:
        """Begins samples: a generator each, and what it is asked to be."""
        begun = []
        for index in indices:
            generator = derive_generator(self.settings.seed, "sample", index, attempt)
            begun.append(Draft(index, attempt, generator, self.draw(generator)))
        return begun

    def decode(self, model: LatentModel, drafts: Sequence[Draft], size: int) -> Mapping[str, Any]:
        """Draws latents and decodes them, told the attributes of the drafts."""
        told = self.attributes(drafts)
        prior = model.sampling_prior
        known = told if prior is not None and prior.attributes else None
        generators = [draft.generator for draft in drafts]
        shape = self.grid.shape
        nothing = model.blank(len(drafts), shape, device=self.device)
        share = self.settings.temperature
        mask = None
        if self.given is not None:
            mask = torch.from_numpy(self.given)[None, None].float().to(self.device)
            mask = mask.expand(len(drafts), *mask.shape[1:])
        z = model.sample_latent(len(drafts), known, generators, share, nothing, mask)
        attributes = None if told is None or model.embedding is None else filled(told, size)
        condition = model.blank(size, shape, attributes, self.device)
        return model.decode(filled(z.to(self.device), size), condition)

    def with_grain(self, model: LatentModel, image: Tensor, draft: Draft) -> Tensor:
        """A decoded image with what the decoder left out, where that is known and wanted."""
        grain = model.grain
        share = self.settings.temperature
        wanted = bool(self.recipe.synthesis.options.get("grain", True))
        if grain is None or not grain.is_fitted or not share or not wanted:
            return image
        return image + share * grain.draw(image, draft.generator)

    def attributes(self, drafts: Sequence[Draft]) -> Tensor | None:
        """What drafts are told, standardised, ``(B, F)``; ``None`` if one is told nothing."""
        rows = [draft.told.attributes for draft in drafts]
        known = [row for row in rows if row is not None]
        if len(known) < len(rows):
            return None
        return self.statistics.standardise(torch.stack(known)).to(self.device)

    def cut(self, draft: Draft, logits: NDArray[Any]) -> None:
        """Chooses the level of a mask field, ``(N, I, J, K)``, and judges the mask."""
        synthesis, values = self.recipe.synthesis, self.recipe.values
        wanted, keep = draft.told.voxels(self.recipe.voxel_ml), synthesis.max_components
        if self.given is not None:
            keep = self.given.size
        if not np.isfinite(logits).all():
            raise BundleError(
                "the weights make NaN or infinite values. They were damaged, or training had "
                "diverged; copy them again, or train anew."
            )
        if len(logits) > 1:
            draft.levelled = labels_at_volumes(logits, values, wanted, keep=keep)
        elif wanted is None:
            draft.levelled = mask_at_level(logits[0], 0.0, keep)
        else:
            total = cast(float, draft.told.total_ml) / self.recipe.voxel_ml
            draft.levelled = mask_at_volume(logits[0], total, keep=keep)
        draft.reason = fault(
            draft.levelled,
            asked=wanted,
            allowed=cast("tuple[float, float] | None", self.limits),
            values=values,
            allow_border=synthesis.allow_border,
        )

    def finish(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        """Labels, ``(B, 1, I, J, K)``, and images in native units, ``(B, C, I, J, K)``."""
        labels = torch.stack([torch.from_numpy(draft.label)[None] for draft in drafts])
        images = torch.stack([cast(Tensor, draft.image) for draft in drafts])
        if images.shape[2:] != self.grid.shape:
            raise BundleError(
                f"the network makes {tuple(images.shape[2:])} voxels; inference.json says "
                f"{self.grid.shape}. Make `spatial_shape` agree with network_def."
            )
        return labels, self.recipe.to_native(images, self.statistics).cpu()

    def records(self, drafts: Sequence[Draft], labels: Tensor, images: Tensor) -> list[Any]:
        """What is known of samples so far."""
        told = self.statistics
        measured = [n for i, n in enumerate(told.names) if i not in told.class_columns]
        names = tuple(measured)
        reached = mask_attributes(labels, self.grid.spacing, names)
        return [
            self._record(draft, image.numpy(), natural(names, row))
            for draft, image, row in zip(drafts, images, reached, strict=True)
        ]

    def _record(
        self, draft: Draft, image: NDArray[Any], reached: Mapping[str, float]
    ) -> dict[str, Any]:
        recipe, levelled = self.recipe, cast(Levelled, draft.levelled)
        splits = {recipe.label_name(value): level for value, level in levelled.splits.items()}
        foreground = levelled.label > 0
        return {
            "kind": recipe.synthesis.kind,
            "seed": self.settings.seed,
            "options": dict(self.settings.options),
            "index": draft.index,
            "device": self.device.type,
            "condition": {
                "asked": natural(self.statistics.names, draft.told.attributes),
                "reached": reached,
            },
            "level": {"foreground": levelled.level, **splits},
            "attempts": draft.attempt + 1,
            "grid": describe_grid(self.grid),
            "channels": describe_channels(recipe),
            "labels": dict(recipe.labels),
            "checks": {
                "components": tidy(foreground).components,
                "touches_border": touches_border(foreground),
                "volume_asked_ml": draft.told.total_ml,
                "volume_ml": int(foreground.sum()) * recipe.voxel_ml,
                "volume_of_label_ml": {
                    name: int((levelled.label == value).sum()) * recipe.voxel_ml
                    for name, value in recipe.labels.items()
                    if value
                },
                **measure_image(image, levelled.label, recipe),
            },
        }


def filled(x: Tensor, size: int) -> Tensor:
    """Repeats the last row up to ``size`` rows, in the layout that convolutions are fastest in."""
    if len(x) < size:
        x = torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])])
    return x.contiguous(memory_format=torch.channels_last_3d) if x.ndim == 5 else x
