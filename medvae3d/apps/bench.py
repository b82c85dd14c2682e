"""What a machine gives: time and memory of a training step of a bundle, and pairs a second.

A step is the one of training: the players of a bundle's own ``train.json``, on the device and in
the format that training would take, with everything in it that the end of a training has (flow,
discriminator). The batch is made up, which changes no operation.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medvae3d.apps.bundle import find_bundle, load_bundle
from medvae3d.apps.bundle_files import parser_of, usable_device
from medvae3d.errors import BundleError
from medvae3d.evaluation.speed import matrix_rate, median_seconds, operations
from medvae3d.evaluation.throughput import peak_memory_mb, written_per_second
from medvae3d.models.latent import LatentModel
from medvae3d.networks.blocks import channels_last
from medvae3d.training.players import Turn
from medvae3d.training.precision import autocast_dtype, keep_thin_in_float32

MB = 1024**2
# How much larger the second volume is, by which the memory of others is foretold.
LARGER = 4 / 3


class TrainingStep:
    """A training step of a bundle on made-up cases, ready to be run again and again.

    Args:
        root: Folder of the bundle.
        device: Where to train.
        shape: Voxels of a volume; those of the bundle if not given.
        batch_size: Cases; those of the bundle if not given.
        changes: Further settings of ``train.json``, such as ``network_def#num_steps``.
        precision: Format of the step, see `autocast_dtype`.

    Raises:
        BundleError: If the bundle trains more than one model at a time.
    """

    def __init__(
        self,
        root: Path,
        device: torch.device,
        shape: Sequence[int] | None = None,
        batch_size: int | None = None,
        changes: Mapping[str, Any] | None = None,
        precision: str = "auto",
    ) -> None:
        parser = parser_of(root / "configs" / "train.json", root)
        parser["device"] = f"$torch.device({str(device)!r})"
        for key, value in (changes or {}).items():
            parser[key] = value
        if shape is not None:
            parser["spatial_shape"] = list(shape)
        self.device = device
        self.shape = tuple(int(n) for n in parser["spatial_shape"])
        self.network = parser.get_parsed_content("network")
        if not isinstance(self.network, LatentModel):
            raise BundleError(
                f"{root.name} trains {type(self.network).__name__}, several models at a time; "
                f"this measures bundles of one, such as sts_petct_hvae. Name another bundle."
            )
        self.players = list(parser.get_parsed_content("train#players"))
        count = int(batch_size or parser["batch_size"])
        self.batch = self._batch(count, parser.get_parsed_content("preparation"))
        for player in self.players:
            keep_thin_in_float32(channels_last(player.network.to(device).train()))
        dtype = autocast_dtype(device, precision)
        self.format = "float32" if dtype is None else str(dtype).removeprefix("torch.")
        self.autocast: Any = (
            contextlib.nullcontext
            if dtype is None
            else partial(torch.autocast, device.type, dtype=dtype)
        )
        self.last = int(parser["max_epochs"]) * int(parser["epoch_length"]) - 1

    def _batch(self, count: int, preparation: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(count, self.network.image_channels, *self.shape, generator=generator)
        sides = [torch.linspace(-1, 1, n) for n in self.shape]
        away = torch.stack(torch.meshgrid(*sides, indexing="ij")).square().sum(0).sqrt()
        radius = torch.linspace(0.2, 0.4, count).reshape(-1, 1, 1, 1, 1)
        mask = (away < radius).float() * float(self.network.values[-1])
        batch = {"image": 2 * image - 1, "mask": mask, "case": [f"made {n}" for n in range(count)]}
        statistics = self.network.statistics
        if statistics.classes:
            batch["class"] = [statistics.classes[0]] * count
        if statistics.names:
            values = preparation.attributes(mask, batch)
            statistics.fit_attributes(torch.cat([values, values + 1]))  # one case has no spread
        return dict(preparation(batch, self.device))

    def __call__(self, step: int | None = None) -> None:
        """Takes a step; the last one of a training, if no other is asked for."""
        generator = torch.Generator(self.device).manual_seed(0)
        turn = Turn(self.batch, self.last if step is None else step, generator)
        for player in self.players:
            if player.is_active(turn.step):
                player.play(turn, self.autocast)

    @property
    def stride(self) -> Sequence[int]:
        """What the sides of a volume are multiples of."""
        return tuple(self.network.decoder.stride)


def peak_mb(device: torch.device) -> float:
    """Largest memory so far: of the process, or on a GPU of its tensors."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / MB
    return peak_memory_mb()


def room_mb(device: torch.device) -> float:
    """Memory that more could be taken of."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0]) / MB
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    with contextlib.suppress(ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MB
    return 0.0


def largest_edge(fixed_mb: float, per_voxel_mb: float, room: float, step: int) -> int:
    """The largest cube, a multiple of a step, whose training fits into the room.

    Args:
        fixed_mb: What a step takes whatever the volume.
        per_voxel_mb: What each voxel adds.
        room: What there is, in MB.
        step: What edges are multiples of.
    """
    edge = 0
    while fixed_mb + per_voxel_mb * (edge + step) ** 3 <= room:
        edge += step
        if per_voxel_mb <= 0:
            break
    return edge


def bench(what: str | Path, device: str | None = None, rounds: int = 3) -> Iterator[dict[str, Any]]:
    """Measures a bundle on this machine, row by row: ``name``, ``value``, ``unit``, ``note``.

    Args:
        what: Name of a bundle, or its folder.
        device: Where; a GPU where there is one.
        rounds: Timed steps; their median counts.
    """
    root = find_bundle(what)
    given = device or ("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.device(usable_device(given))
    threads = f"{torch.get_num_threads()} threads" if place.type == "cpu" else ""

    def row(name: str, value: float, unit: str, note: str = "") -> dict[str, Any]:
        return {"name": name, "value": value, "unit": unit, "note": note}

    step = TrainingStep(root, place)
    dtype = getattr(torch, step.format)
    rate = matrix_rate(dtype, device=str(place))
    machine = platform.machine() if place.type == "cpu" else torch.cuda.get_device_name(place)
    yield row("matrix products", rate / 1e9, "GFLOP/s", f"{step.format}, {machine} {threads}")
    size = " x ".join(map(str, step.shape))
    cases = len(step.batch["image"])
    before = peak_mb(place)
    first = median_seconds(partial(step, 0), rounds, device=str(place))
    yield row("training step, first", 1e3 * first, "ms", f"{cases} cases of {size}, no flow")
    seconds = median_seconds(step, rounds, device=str(place))
    yield row("training step, last", 1e3 * seconds, "ms", "with flow and discriminator")
    count = operations(step)
    yield row("share of matrix products", 100 * count / seconds / rate, "%", f"{count:.2e} FLOP")
    yield row("cases trained", cases / seconds, "1/s")
    small, voxels = peak_mb(place), _volume(step.batch["image"])
    yield row("memory of a step", small, "MB", f"{before:.0f} MB before it")
    shape = [
        max(s, round(n * LARGER / s) * s) for n, s in zip(step.shape, step.stride, strict=True)
    ]
    stride = max(step.stride)
    del step
    larger = TrainingStep(root, place, shape)
    larger()
    more = _volume(larger.batch["image"]) - voxels
    per_voxel = max(0.0, peak_mb(place) - small) / max(1, more)
    room = room_mb(place) + (small if place.type == "cpu" else 0)
    edge = largest_edge(small - per_voxel * voxels, per_voxel, room, stride)
    note = f"{cases} cases, {room:.0f} MB; foretold from {size} and {' x '.join(map(str, shape))}"
    yield row("largest patch that trains", edge, "voxels a side", note)
    del larger
    bundle = load_bundle(root, device=str(place))

    def write(folder: Path, number: int, start: int) -> None:
        bundle.write(folder, number, 0, start=start, preview=False)

    made = written_per_second(write, count=8, warm_up=2)
    yield row("pairs written", made["per_second"], "1/s", "drawn, checked, compressed")


def _volume(image: Tensor) -> int:
    """Voxels of one case."""
    return int(image[0, 0].numel())
