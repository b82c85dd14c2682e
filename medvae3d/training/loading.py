"""Batches as a pure function of seed and step, so that a resumed run sees what it would have seen.

Whole volumes (after cropping and padding to one shape) are prepared once and kept in memory; what
changes from step to step, the order and the augmentation, is drawn from a generator that is seeded
with the run's seed and the step's number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from medvae3d.data.datalists import require_class
from medvae3d.data.transforms import missing_channels
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.seeding import derive_generator, derive_seed


class Augmentation(Protocol):
    """Changes image, mask and what was observed together; see `medvae3d.data.augmentation`."""

    def __call__(
        self, batch: Mapping[str, Any], generator: torch.Generator | None = None
    ) -> dict[str, Any]: ...


class StepLoader:
    """Endless batches over prepared cases, addressed by step.

    Args:
        dataset: Prepared cases, dictionaries with ``image``, ``label`` (a key may be missing where
            a case has none) and optionally ``case``.
        batch_size: Cases a batch and process.
        seed: Seed of order and augmentation.
        epoch_length: Steps that one epoch counts; one pass over the cases by default.
        augmentation: Applied to whole batches; none by default.
        rank: Number of this process; each takes its own part of every global batch.
        world_size: Number of processes.
        device: Where batches are augmented; where the cases are by default. What is drawn for that
            comes from the CPU all the same, so that it does not depend on the device.
    """

    def __init__(
        self,
        dataset: Sequence[Mapping[str, Any]],
        batch_size: int,
        seed: int = 0,
        epoch_length: int | None = None,
        augmentation: Augmentation | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        per_epoch = -(-len(dataset) // (batch_size * world_size)) if len(dataset) else 0
        self.epoch_length = per_epoch if epoch_length is None else epoch_length
        self.augmentation = augmentation
        self.rank = rank
        self.world_size = world_size
        self.first_step = 0

    def __len__(self) -> int:
        return self.epoch_length

    def alone(self) -> StepLoader:
        """The same cases as one process would see them, for fits that all processes must share."""
        return StepLoader(
            self.dataset, self.batch_size, self.seed, self.epoch_length, self.augmentation,
            device=self.device,
        )  # fmt: skip

    def start_at(self, step: int) -> None:
        """Makes the next iteration begin with the batch of this step."""
        self.first_step = step

    def indices(self, step: int) -> list[int]:
        """Cases of this process in one step; every case comes once before any comes twice."""
        size = self.batch_size * self.world_size
        first = step * size + self.rank * self.batch_size
        wanted = range(first, first + self.batch_size)
        count, orders = len(self.dataset), {}
        picked = []
        for position in wanted:
            turn, place = divmod(position, count)
            if turn not in orders:
                generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", turn))
                orders[turn] = torch.randperm(count, generator=generator).tolist()
            picked.append(orders[turn][place])
        return picked

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of one step."""
        picked = self.indices(step)
        batch = collate([self.dataset[index] for index in picked])
        if self.augmentation is not None:
            seed = derive_seed(self.seed, "augmentation", step, self.rank)
            generator = torch.Generator().manual_seed(seed)
            batch = self.augmentation(to_device(batch, self.device), generator)
        return batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step = self.first_step
        while True:
            yield self.batch(step)
            step += 1


class PatchStream:
    """Steps over a patch loader, addressed by step, with augmentation of whole batches.

    Args:
        patches: A loader of `medvae3d.data.patches`, whose epochs and batches can be chosen.
        seed: Seed of the augmentation.
        epoch_length: Steps that one epoch of the trainer counts.
        augmentation: Applied to whole batches; none by default.
        device: Where batches are augmented; where they are by default.
    """

    def __init__(
        self,
        patches: Any,
        seed: int = 0,
        epoch_length: int = 100,
        augmentation: Augmentation | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.patches = patches
        self.seed = seed
        self.device = device
        self.epoch_length = epoch_length
        self.augmentation = augmentation
        self.first_step = 0

    def __len__(self) -> int:
        return self.epoch_length

    def start_at(self, step: int) -> None:
        """Makes the next iteration begin with the batch of this step."""
        self.first_step = step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step = self.first_step
        self.patches.set_epoch(*divmod(step, len(self.patches)))
        while True:
            for batch in self.patches:
                batch = {key: plain(value) for key, value in batch.items()}
                if self.augmentation is not None:
                    generator = derive_generator(self.seed, "patch augmentation", step)
                    batch = self.augmentation(to_device(batch, self.device), generator)
                yield batch
                step += 1


class PairedLoader:
    """Several loaders side by side: a step's batch holds the batch of each by its name.

    Args:
        loaders: Loaders by name; the first tells the length of an epoch.
    """

    def __init__(self, loaders: Mapping[str, Any]) -> None:
        self.loaders = dict(loaders)

    def __len__(self) -> int:
        return len(next(iter(self.loaders.values())))

    def start_at(self, step: int) -> None:
        """Makes the next iteration begin with the batch of this step."""
        for loader in self.loaders.values():
            loader.start_at(step)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batches in zip(*self.loaders.values(), strict=False):
            batch: dict[str, Any] = dict(zip(self.loaders, batches, strict=True))
            batch["case"] = [case for part in batches for case in part["case"]]
            yield batch


class Part:
    """Picks one part of a paired batch, or the whole of a single one; a ``select`` for players.

    Args:
        name: Name of the loader.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        part: Mapping[str, Any] = batch[self.name]
        return part


class CaseLoader:
    """All prepared cases once, in their order, as batches; for validation.

    Args:
        dataset: See `StepLoader`.
        batch_size: Cases a batch; the last one may be smaller.
    """

    def __init__(self, dataset: Sequence[Mapping[str, Any]], batch_size: int = 1) -> None:
        self.dataset = dataset
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for first in range(0, len(self.dataset), self.batch_size):
            last = min(first + self.batch_size, len(self.dataset))
            yield collate([self.dataset[index] for index in range(first, last)])


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stacks prepared cases into one batch of plain tensors, with the names of its cases.

    ``valid`` says where their images were observed, :math:`(B, C, I, J, K)` if any of them lacks a
    channel, else :math:`(B, 1, I, J, K)`; it is left out where all of them were, everywhere.
    """
    masks = torch.stack([torch.as_tensor(item["label"]) for item in items])
    channels = max((len(item["image"]) for item in items if "image" in item), default=1)
    blank = torch.zeros(channels, *masks.shape[2:])
    images = [torch.as_tensor(item["image"]) if "image" in item else blank for item in items]
    seen = [_observed(item, masks[0]) for item in items]
    rows = max(map(len, seen))
    valid = torch.stack([each.expand(rows, *each.shape[1:]) for each in seen])
    batch: dict[str, Any] = {
        "image": torch.stack(images).float(),
        "mask": masks.float(),
        "case": [str(item.get("case", index)) for index, item in enumerate(items)],
    }
    if not bool(valid.all()):
        batch["valid"] = valid
    if any("class" in item for item in items):
        batch["class"] = [None if "class" not in item else str(item["class"]) for item in items]
    return {key: plain(value) for key, value in batch.items()}


def _observed(item: Mapping[str, Any], like: Tensor) -> Tensor:
    """Where the image of a case was observed, ``(1, I, J, K)``, or ``(C, I, J, K)``."""
    if "image" not in item:
        return torch.zeros(1, *like.shape[1:])
    if "valid" in item:
        return torch.as_tensor(item["valid"]).float()
    missing = list(missing_channels(item["image"]))
    seen = torch.ones(len(item["image"]) if missing else 1, *like.shape[1:])
    seen[missing] = 0
    return seen


def to_device(
    batch: Mapping[str, Any], device: torch.device | str | None, non_blocking: bool = False
) -> dict[str, Any]:
    """The batch with its tensors on a device; where they are, if none is given."""
    if device is None:
        return dict(batch)
    return {
        key: value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


def plain(value: Any) -> Any:
    """A tensor without metadata; anything else as it is."""
    return value.as_tensor() if hasattr(value, "as_tensor") else value


class BatchPreparation:
    """Moves a batch, or each part of a paired one, to the device and adds mask attributes.

    Args:
        statistics: Where attributes are standardised; fitted or not.
        spacing_mm: Size of a voxel along (I, J, K).
    """

    def __init__(self, statistics: TrainingStatistics, spacing_mm: Sequence[float]) -> None:
        self.statistics = statistics
        self.spacing_mm = tuple(float(s) for s in spacing_mm)

    def __call__(
        self, batch: Mapping[str, Any], device: torch.device | str, non_blocking: bool = False
    ) -> dict[str, Any]:
        parts = {
            key: self(value, device, non_blocking) if isinstance(value, Mapping) else value
            for key, value in batch.items()
        }
        moved = to_device(parts, device, non_blocking)
        if self.statistics.names and "mask" in moved:
            values = self.attributes(moved["mask"], moved)
            moved["attributes"] = self.statistics.standardise(values)
        return moved

    def attributes(self, mask: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Natural attribute values of label maps and of the classes of a batch, ``(B, F)``.

        Raises:
            DataListError: If the model is told classes, and a case has none or another one.
        """
        known = self.statistics.classes
        if not known:
            return self.statistics.measure(mask, self.spacing_mm)
        classes = batch.get("class", [None] * len(mask))
        for case, name in zip(batch.get("case", range(len(mask))), classes, strict=True):
            require_class(name, known, f"case {case}")
        return self.statistics.measure(mask, self.spacing_mm, classes)
