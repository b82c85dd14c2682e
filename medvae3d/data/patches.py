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
from typing import Any

import numpy as np
import torch
import torchio as tio
from monai.data.thread_buffer import ThreadBuffer
from torch.utils.data import DataLoader, Sampler

from medvae3d.data.intensity import IntensityChannels
from medvae3d.data.patch_cases import ORDER, SHUFFLE, CaseLike, CasePatches, LoadCase, random_for
from medvae3d.data.sampling import LesionSampler, Sampling
from medvae3d.data.unpacked import Unpacked
from medvae3d.errors import DataListError, SettingError

Batch = dict[str, Any]
Batches = Generator[Any, None, None]


class _Visits(Sampler[tuple[int, int]]):
    """The order of cases, epoch after epoch without end; each process its own share."""

    def __init__(self, count: int, seed: int, rank: int, world_size: int) -> None:
        self.count, self.seed, self.rank, self.world_size = count, seed, rank, world_size
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return math.ceil(self.count / self.world_size)

    def order(self, epoch: int) -> list[int]:
        """Cases of this process; some come twice, so that all processes have equally many."""
        order = random_for(self.seed, epoch, ORDER).permutation(self.count)
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
        self, patches: CasePatches, visits: _Visits, cases_per_block: int, num_workers: int
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
        random = random_for(self.patches.seed, self.epoch, SHUFFLE, self.block)
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
        rows = channels if patches.lacks_channels else 1
        return int(ahead * voxels * (4 * channels + rows + 1) + cached)

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
    for key in ("image", "mask", "location"):
        batch[key] = torch.stack([patch[key] for patch in patches])
    # One row for all channels, or as many as there are beside a case that lacks some of them.
    seen = [patch["valid"] for patch in patches]
    rows = max(map(len, seen))
    batch["valid"] = torch.stack([each.expand(rows, *each.shape[1:]) for each in seen]).float()
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
    ``case``, a list of names. A case without image gives zeros that are nowhere valid. In a batch
    with a case that lacks a channel, ``valid`` is (B, C, I, J, K), and that channel is ``fill``.

    Args:
        cases: What to read; see :func:`~medvae3d.data.patch_cases.load_case`.
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
            Where it gives channels other numbers, those in ``missing_channels`` as well.
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
        DataListError: If there is no case; while iterating, if a case has none of its channels.
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
    patches = CasePatches(
        cases,
        LoadCase(intensities, values, prepare),
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
