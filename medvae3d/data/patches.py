"""Training patches around lesions, over torchio's queue, the same whatever the number of workers.

Three random choices make an epoch: the order of cases, the places of patches within a case, and
the order in which a block of patches leaves the queue. Each is drawn from a generator of its own,
seeded by (seed, epoch, what it is for, index). So the patches depend on nothing else: not on the
number of workers, not on the speed of the disk, not on the global random state, which is neither
read nor written. An epoch can be entered at any batch without making the ones before.

torchio's queue stands still while it refills, forgets its workers after each epoch, and measures a
case anew at each visit. Here cases are cut where they are loaded, blocks are filled while the last
one trains, and one set of workers serves all epochs; ``docs/concepts/patches.md`` has the numbers.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio as tio
from monai.data.thread_buffer import ThreadBuffer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medvae3d.data.datalists import Case, require_all_channels
from medvae3d.data.intensity import IntensityChannels
from medvae3d.data.sampling import LesionSampler, Sampling, places_of
from medvae3d.data.stamps import require_unchanged, stamps_of
from medvae3d.data.transforms import missing_channels, require_values
from medvae3d.data.unpacked import Unpacked
from medvae3d.data.volumes import read_mask, read_volume
from medvae3d.errors import DataListError, GridError, LabelError, SettingError

CaseLike = Case | Mapping[str, Any]
Batch = dict[str, Any]
Batches = Generator[Any, None, None]

ORDER, PLACES, SHUFFLE = range(3)


def _random(seed: int, epoch: int, purpose: int, index: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, purpose, index])


def load_case(
    case: CaseLike,
    intensities: IntensityChannels | None = None,
    values: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Reads one case: ``image`` (C, I, J, K) or ``None``, ``mask`` (1, I, J, K), ``case``.

    Args:
        case: A :class:`Case`, or a dictionary whose ``image`` and ``label`` (or ``mask``) are
            files, lists of one file a channel, or tensors.
        intensities: Brings the image from native units to network values.
        values: Label values the mask may hold.

    Raises:
        GridMismatchError: If channels and mask do not lie voxel on voxel.
        LabelError: If there is no mask, or it holds other values.
        DataListError: If the case lacks a channel.
    """
    if isinstance(case, Case):
        require_all_channels([case], "a patch")
        entry: dict[str, Any] = {"image": list(case.image), "label": case.label, "case": case.name}
        entry |= {k: v for k, v in case.extra.items() if k == "weights"}
    else:
        entry = dict(case)
    label = entry.get("mask", entry.get("label"))
    name = _name(entry, label)
    if label is None:
        raise LabelError(f"case {name} has no label; patches need one. Add it to the data list.")
    mask, mask_grid = _read(label, f"label of {name}", is_mask=True)
    if values is not None:
        require_values(mask, (0, *values), what=f"mask of {name}")
    found: dict[str, Any] = {"case": name, "mask": mask, "image": None}
    image = entry.get("image")
    if missing_channels(image):
        raise DataListError(
            f"case {name} lacks a channel, and patches need all of them. Leave the case out, or "
            f"have its channels made with `medvae3d impute`."
        )
    if image is not None and (isinstance(image, (Tensor, np.ndarray)) or len(image)):
        voxels, image_grid = _read(image, f"image of {name}", is_mask=False)
        if voxels.shape[1:] != mask.shape[1:]:
            raise GridError(
                f"case {name}: image has {tuple(voxels.shape[1:])} voxels, mask "
                f"{tuple(mask.shape[1:])}. Resample one onto the other with `medvae3d data align`."
            )
        if image_grid is not None and mask_grid is not None:
            image_grid.require_same(mask_grid, this=f"image of {name}", that=f"label of {name}")
        found["image"] = voxels if intensities is None else intensities.normalize(voxels)
    if entry.get("weights") is not None:
        found["weights"] = _read(entry["weights"], f"weights of {name}", is_mask=False)[0]
    return found


def _name(entry: Mapping[str, Any], label: Any) -> str:
    for key in ("case", "subject"):
        if key in entry:
            return str(entry[key])
    return Path(label).name.split(".")[0] if isinstance(label, (str, os.PathLike)) else "unnamed"


def _read(source: Any, what: str, is_mask: bool) -> tuple[Tensor, Any]:
    if isinstance(source, (Tensor, np.ndarray)):
        voxels = torch.as_tensor(source).as_subclass(Tensor)
        return (voxels if voxels.ndim == 4 else voxels[None]), None
    if is_mask:
        volume = read_mask(source, what=what)
        return torch.from_numpy(volume.array)[None], volume.grid
    files = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    volumes = [read_volume(file, what=what, channels=len(files) == 1) for file in files]
    for volume in volumes[1:]:
        volumes[0].grid.require_same(volume.grid, this=str(files[0]), that=str(volume.path))
    arrays = [v.array if v.array.ndim == 4 else v.array[None] for v in volumes]
    return torch.from_numpy(np.concatenate(arrays)).float(), volumes[0].grid


class _Patches(Dataset[dict[str, Any]]):
    """All patches of one visit to a case, by ``(epoch, case)``; cut in the worker."""

    def __init__(
        self,
        cases: Sequence[CaseLike],
        load: Callable[[CaseLike], dict[str, Any]],
        sampler: LesionSampler,
        samples_per_case: int,
        seed: int,
        channels: int | None,
        cache_bytes: float,
    ) -> None:
        self.cases, self.load, self.sampler = cases, load, sampler
        self.stamps = [stamps_of(case) for case in cases]
        self.samples_per_case, self.seed, self.channels = samples_per_case, seed, channels
        self.cache_bytes = cache_bytes
        self.cache: dict[int, tio.Subject] = {}
        self.cached_bytes = 0
        self.unpacked: Unpacked | None = None

    def __len__(self) -> int:
        return len(self.cases)

    def dry_iter(self) -> list[int]:
        """Stands for the cases when torchio's queue counts them."""
        return list(range(len(self.cases)))

    def __getitem__(self, visit: tuple[int, int]) -> dict[str, Any]:
        epoch, index = visit
        subject = self.subject(index)
        subject["random"] = _random(self.seed, epoch, PLACES, index)
        return {**self.sampler.cut(subject, self.samples_per_case), "case": subject["case"]}

    def subject(self, index: int) -> tio.Subject:
        """The whole case, from memory or from what was unpacked where it fits there."""
        if index in self.cache:
            return self.cache[index]
        require_unchanged(self.stamps[index])
        kept = None if self.unpacked is None else self.unpacked.get(index)
        if kept is not None:
            places = {value: rows.numpy() for value, rows in kept.pop("places").items()}
            return _subject(**kept, places=places)
        loaded = self.load(self.cases[index])
        require_unchanged(self.stamps[index])
        image, mask, name = loaded["image"], loaded["mask"], loaded["case"]
        if image is None and self.channels is None:
            self.channels = self._channels_of_others()
        channels = len(image) if image is not None else self.channels
        if self.channels is not None and channels != self.channels:
            raise DataListError(
                f"case {name} has {channels} channels, others have {self.channels}. Give every "
                f"case the same channels in the same order."
            )
        tensors = {"mask": mask}
        if image is not None:
            tensors["image"] = image.float()
        if "weights" in loaded:
            tensors["weights"] = loaded["weights"].float()
        facts: dict[str, Any] = {"case": name, "channels": channels}
        places = places_of(mask)
        subject = _subject(tensors, **facts, places=places)
        size = sum(tensor.nbytes for tensor in tensors.values())
        size += sum(indices.nbytes for indices in places.values())
        if self.cached_bytes + size <= self.cache_bytes:
            self.cache[index] = subject
            self.cached_bytes += size
        elif self.unpacked is not None:
            rows = {value: torch.from_numpy(indices) for value, indices in places.items()}
            # Copies, as a crop would be written with all that it was cut from.
            plain = {key: tensor.as_subclass(Tensor).clone() for key, tensor in tensors.items()}
            self.unpacked.keep(index, {"tensors": plain, **facts, "places": rows}, size)
        return subject

    def _channels_of_others(self) -> int:
        for case in self.cases:
            image = case.image if isinstance(case, Case) else case.get("image")
            if isinstance(image, (Tensor, np.ndarray)) or image:
                found = self.load(case)["image"]
                return len(found)
        return 1


def _subject(tensors: Mapping[str, Tensor], **facts: Any) -> tio.Subject:
    images: dict[str, Any] = {
        name: (tio.LabelMap if name == "mask" else tio.ScalarImage)(tensor=tensor)
        for name, tensor in tensors.items()
    }
    return tio.Subject(**images, **facts)


class _Visits(Sampler[tuple[int, int]]):
    """The order of cases, epoch after epoch without end; each process its own share."""

    def __init__(self, count: int, seed: int, rank: int, world_size: int) -> None:
        self.count, self.seed, self.rank, self.world_size = count, seed, rank, world_size
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return math.ceil(self.count / self.world_size)

    def order(self, epoch: int) -> list[int]:
        """Cases of this process; some come twice, so that all processes have equally many."""
        order = _random(self.seed, epoch, ORDER).permutation(self.count)
        own = np.resize(order, len(self) * self.world_size)[self.rank :: self.world_size]
        return [int(case) for case in own]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = self.first
        for epoch in itertools.count(self.epoch):
            yield from ((epoch, case) for case in self.order(epoch)[first:])
            first = 0


class PatchQueue(tio.Queue):
    """torchio's queue, filled block by block in a fixed order from workers that stay.

    Items are dictionaries of tensors, in the order of :class:`PatchLoader`.
    """

    def __init__(
        self, patches: _Patches, visits: _Visits, cases_per_block: int, num_workers: int
    ) -> None:
        self.patches, self.visits, self.cases_per_block = patches, visits, cases_per_block
        self.epoch = self.block = 0
        super().__init__(
            patches,  # type: ignore[arg-type]
            max_length=cases_per_block * patches.samples_per_case,
            samples_per_volume=patches.samples_per_case,
            sampler=patches.sampler,
            subject_sampler=visits,
            num_workers=num_workers,
            shuffle_subjects=False,
            start_background=False,
        )

    @property
    def iterations_per_epoch(self) -> int:
        return len(self.visits) * self.samples_per_volume

    def stop(self) -> None:
        """Ends the workers now; left to the garbage collector, that takes each of them 5 s."""
        shut_down = getattr(self._subjects_iterable, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()
        self._subjects_iterable = None
        self.patches_list = []

    def start(self, epoch: int, patch: int) -> None:
        """Goes to a patch of an epoch; loads no block before the one it lies in."""
        self.epoch, self.block = epoch, patch // self.max_length
        self.visits.epoch, self.visits.first = epoch, self.block * self.cases_per_block
        self.patches_list = []
        self._initialize_subjects_iterable()
        for _ in range(patch % self.max_length):
            self[0]

    def _fill(self) -> None:
        done = self.block * self.cases_per_block
        for _ in range(min(self.cases_per_block, len(self.visits) - done)):
            case: Any = self._get_next_subject()
            name = case.pop("case")
            for patch in range(self.samples_per_volume):
                item: Any = {"case": name, **{key: rows[patch] for key, rows in case.items()}}
                self.patches_list.append(item)
        self._shuffle_patches_list()
        self.block += 1
        if self.block * self.cases_per_block >= len(self.visits):
            self.epoch, self.block = self.epoch + 1, 0

    def _shuffle_patches_list(self) -> None:
        random = _random(self.patches.seed, self.epoch, SHUFFLE, self.block)
        self.patches_list = [self.patches_list[i] for i in random.permutation(self.num_patches)]

    def _get_subjects_iterable(self) -> Iterator[Any]:
        # The generator keeps the loader off the global random state.
        loader: DataLoader[Any] = DataLoader(
            self.subjects_dataset,
            batch_size=None,
            sampler=self.visits,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(0),
        )
        return iter(loader)


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class PatchLoader:
    """Batches of patches, epoch after epoch; made by :func:`patch_loader`.

    Iterating gives the batches of the current epoch, then moves to the next. ``state_dict`` says
    which batch comes next, and ``load_state_dict`` goes there.

    Attributes:
        epoch: The epoch that the next iteration gives.
        start_batch: The batch that the next iteration begins with.
    """

    def __init__(
        self, queue: PatchQueue, batch_size: int, drop_last: bool, prefetch_batches: int
    ) -> None:
        self.queue, self.batch_size, self.drop_last = queue, batch_size, drop_last
        self.prefetch_batches = prefetch_batches
        self.epoch = self.start_batch = 0
        self._stream: Batches | None = None
        self._stop: Callable[[], Any] = lambda: None
        self._stream_at = (-1, -1)

    def __len__(self) -> int:
        patches = self.queue.iterations_per_epoch
        return patches // self.batch_size if self.drop_last else -(-patches // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        epoch, batch = self._position()
        if self._stream_at != (epoch, batch) or self._stream is None:
            self.close()
            self._stream = self._open(epoch, batch)
        for number in range(batch, len(self)):
            # Until a batch is here, nobody knows where the stream is.
            self._stream_at = (-1, -1)
            item = next(self._stream)
            if isinstance(item, _Failed):
                self.close()
                raise item.error
            self.epoch, self.start_batch = epoch, number + 1
            self._stream_at = self._position()
            yield item
        self.epoch, self.start_batch = epoch + 1, 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Chooses what the next iteration gives: an epoch, from a batch on."""
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise SettingError(
                f"epoch {epoch}, batch {start_batch} was asked; epochs count from 0, and batches "
                f"from 0 to {len(self)}."
            )
        self.epoch, self.start_batch = epoch, start_batch

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is found; batches made ahead but not handed out do not count."""
        epoch, batch = self._position()
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes where :meth:`state_dict` was."""
        self.set_epoch(state["epoch"], state["batch"])

    def close(self) -> None:
        """Stops the thread and the workers; the next iteration starts them again."""
        if self._stream is not None:
            self._stream.close()
        self._stop()
        self._stream, self._stream_at = None, (-1, -1)

    @property
    def max_memory_bytes(self) -> int:
        """What queue, batches made ahead and cached cases hold at most, by estimate."""
        patches = self.queue.patches
        channels = patches.channels or 1
        voxels = math.prod(patches.sampler.patch_shape)
        ahead = self.queue.max_length + self.prefetch_batches * self.batch_size
        cached = patches.cache_bytes * max(1, self.queue.num_workers)
        return int(ahead * voxels * (4 * channels + 2) + cached)

    def _position(self) -> tuple[int, int]:
        at_end = self.start_batch >= len(self)
        return (self.epoch + 1, 0) if at_end else (self.epoch, self.start_batch)

    def _open(self, epoch: int, batch: int) -> Batches:
        # Workers are forked here, by the thread of the caller and before there is another one:
        # a fork beside a running thread may hang.
        self.queue.start(epoch, batch * self.batch_size)
        batches = _caught(_batches(self.queue, self.batch_size, self.drop_last, batch))
        buffer = ThreadBuffer(batches, max(1, self.prefetch_batches))
        # The thread knows the queue but not the loader: a loader that nobody holds ends it.
        self._stop = weakref.finalize(self, _end, buffer, self.queue)
        return iter(buffer) if self.prefetch_batches else batches


def _batches(queue: PatchQueue, batch_size: int, drop_last: bool, first: int) -> Batches:
    """Batches of the queue's epoch from ``first`` on, then of all epochs after it."""
    patches = queue.iterations_per_epoch
    starts = range(0, patches - batch_size + 1 if drop_last else patches, batch_size)
    while True:
        for start in starts[first:]:
            yield _join([queue[0] for _ in range(min(patches - start, batch_size))])
        if drop_last:
            for _ in range(patches % batch_size):
                queue[0]
        first = 0


def _end(buffer: ThreadBuffer, queue: PatchQueue) -> None:
    buffer.stop()
    queue.stop()


def _caught(batches: Batches) -> Batches:
    # MONAI's buffer drops what its thread raises: the epoch would just end early.
    try:
        yield from batches
    except Exception as error:
        yield _Failed(error)


def _join(patches: Sequence[Mapping[str, Any]]) -> Batch:
    batch: Batch = {"case": [patch["case"] for patch in patches]}
    for key in ("image", "mask", "valid", "location"):
        batch[key] = torch.stack([patch[key] for patch in patches])
    batch["valid"] = batch["valid"].float()
    return batch


def patch_loader(
    cases: Sequence[CaseLike],
    *,
    patch_shape: Sequence[int],
    batch_size: int,
    seed: int,
    samples_per_case: int = 4,
    sampling: Sampling = "label",
    label_probabilities: Mapping[int, float] | None = None,
    jitter: int = 0,
    num_workers: int = 0,
    max_length: int | None = None,
    intensities: IntensityChannels | None = None,
    values: Sequence[int] | None = None,
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    channels: int | None = None,
    fill: float = -1.0,
    pad: bool = True,
    allow_empty: bool = False,
    cache_mb: float = 2048.0,
    disk_cache_mb: float = 0.0,
    disk_cache_dir: str | os.PathLike[str] | None = None,
    drop_last: bool = True,
    prefetch: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> PatchLoader:
    """Makes batches of patches around lesions.

    Each batch is a dictionary: ``image`` (B, C, I, J, K) float32, ``mask`` (B, 1, I, J, K),
    ``valid`` (B, 1, I, J, K) float32, 1 where the image was observed, ``location`` (B, 6) and
    ``case``, a list of names. A case without image gives zeros that are nowhere valid.

    Args:
        cases: What to read; see :func:`load_case`.
        patch_shape: Voxels of a patch.
        batch_size: Patches in a batch.
        seed: Decides everything that is random, together with the epoch.
        samples_per_case: Patches that each case gives an epoch.
        sampling: ``label``, ``weights`` or ``uniform``; see :class:`LesionSampler`.
        label_probabilities: Share of patches a label value at the centre.
        jitter: Largest shift of a patch off the drawn voxel, in voxels.
        num_workers: Processes that load; 0 loads in a thread, best where all cases fit in memory.
        max_length: Patches in memory at most: half of them in the queue, half joined to batches
            ahead of time. More mixes cases better. 16 cases' worth if not given.
        intensities: Brings images to network values.
        values: Label values besides 0 that masks may hold.
        prepare: Changes a loaded case once, before it is kept in memory: spacing, crop, channels.
        channels: Channels of images; found out if not given.
        fill: Intensity outside of a volume.
        pad: Whether volumes smaller than the patch are filled up, or refused.
        allow_empty: Whether cases without lesion are sampled anywhere, or refused.
        cache_mb: Memory for cases that stay loaded, shared by all workers.
        disk_cache_mb: Room on a disk for further ones, uncompressed; see `Unpacked`. 0 for none.
        disk_cache_dir: Folder in which to make theirs; that of temporary files by default.
        drop_last: Whether an epoch ends with its last full batch.
        prefetch: Whether batches are made ahead, in a thread.
        rank: Number of this process.
        world_size: Number of processes; each sees its share of the cases.

    Raises:
        SettingError: If a number does not make sense.
        DataListError: If there is no case.
    """
    if not len(cases):
        raise DataListError("no case to take patches from; the data list or its split is empty.")
    counts = {"batch_size": batch_size, "samples_per_case": samples_per_case}
    counts["world_size"] = world_size
    wrong = [f"{name} is {n}" for name, n in counts.items() if n < 1]
    wrong += [f"{n} is {v}" for n, v in (("seed", seed), ("num_workers", num_workers)) if v < 0]
    if wrong or not 0 <= rank < world_size:
        raise SettingError(
            f"{', '.join(wrong) or f'rank is {rank} of {world_size}'}; counts must be 1 or more, "
            f"seed and num_workers 0 or more, rank below world_size."
        )

    sampler = LesionSampler(
        patch_shape, sampling, label_probabilities, jitter, pad, allow_empty, fill
    )
    shares = max(1, num_workers)
    patches = _Patches(
        cases,
        _Load(intensities, values, prepare),
        sampler,
        samples_per_case,
        seed,
        channels,
        cache_mb * 2**20 / shares,
    )
    visits = _Visits(len(cases), seed, rank, world_size)
    half = (max_length or 16 * samples_per_case) // 2
    cases_per_block = max(1, min(half // samples_per_case, len(visits)))
    queue = PatchQueue(patches, visits, cases_per_block, num_workers)
    if len(visits) * samples_per_case < batch_size and drop_last:
        raise SettingError(
            f"{len(visits)} cases with {samples_per_case} patches each make no full batch of "
            f"{batch_size}. Raise samples_per_case, lower batch_size, or set drop_last to False."
        )
    ahead = max(2, half // batch_size) if prefetch else 0
    loader = PatchLoader(queue, batch_size, drop_last, ahead)
    if disk_cache_mb > 0:
        patches.unpacked = Unpacked(disk_cache_dir, disk_cache_mb * 2**20 / shares)
        weakref.finalize(loader, patches.unpacked.remove)
    return loader


class _Load:
    """Loading as an object rather than a closure, so that spawned workers can have it."""

    def __init__(
        self,
        intensities: IntensityChannels | None,
        values: Sequence[int] | None,
        prepare: Callable[[dict[str, Any]], dict[str, Any]] | None,
    ) -> None:
        self.intensities, self.values, self.prepare = intensities, values, prepare

    def __call__(self, case: CaseLike) -> dict[str, Any]:
        loaded = load_case(case, self.intensities, self.values)
        return loaded if self.prepare is None else self.prepare(loaded)
