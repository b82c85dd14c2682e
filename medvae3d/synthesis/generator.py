"""From a seed to volumes with their masks.

Sample :math:`i` of a seed is a function of the seed and of :math:`i` alone. Its noise comes from a
generator of its own, and it is decoded in the same block of samples whoever asked for which part of
the block, since the last bits of a convolution depend on the size of its batch.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from medvae3d.data.volumes import Volume
from medvae3d.errors import MemoryLimitError, RejectionError, SettingError
from medvae3d.exhaustion import first_line, is_out_of_memory
from medvae3d.geometry import Grid
from medvae3d.synthesis.conditions import VolumeRequest
from medvae3d.synthesis.kinds import make_maker
from medvae3d.synthesis.makers import Draft, Maker, Settings
from medvae3d.synthesis.recipe import Recipe

# A batch of one takes torch's plain convolution on the CPU: 207 ms for 48^3, against 80 ms for two.
RETRY_ROWS = 2

if TYPE_CHECKING:
    from medvae3d.synthesis.insertion import Inserted

Progress: TypeAlias = Callable[[int, int, Mapping[str, int]], None]
"""Told after each sample: samples made or skipped, samples wanted, rejected draws by reason."""

Skip: TypeAlias = Callable[[int], bool]
"""Whether the sample of an index is there already."""


@dataclass(frozen=True)
class Request:
    """Which samples are wanted.

    Attributes:
        count: How many.
        seed: Seed of all of them.
        start: Index of the first.
        volume_ml: Smallest and largest volume, of the mask or of each label by name.
        temperature: Scales the deviation of latents; that of the recipe if not given.
        extrapolate: Whether volumes beyond the training set may be asked for.
        mask: A mask to fill with intensities, instead of drawing one.
        class_name: Class of all of them, for models that are told classes; any by default.
    """

    count: int
    seed: int = 0
    start: int = 0
    volume_ml: VolumeRequest = None
    temperature: float | None = None
    extrapolate: bool = False
    mask: Volume | None = field(default=None, repr=False)
    class_name: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise SettingError(
                f"count is {self.count}; allowed is 1 or more. Say how many to make."
            )
        if self.start < 0 or self.seed < 0:
            raise SettingError(
                f"start is {self.start} and seed {self.seed}; allowed are whole numbers from 0 on."
            )
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise SettingError(f"temperature is {self.temperature}; allowed is 0 or more.")
        for low, high in self.ranges_ml.values():
            if not 0 < low <= high < float("inf"):
                raise SettingError(
                    f"volume range is {low:g} to {high:g} ml; allowed are numbers above 0, the "
                    f"smaller one first. Write it as LOW:HIGH."
                )
        if self.mask is not None and self.volume_ml is not None:
            raise SettingError("a mask and a volume were given; a mask has its volume already.")

    @property
    def ranges_ml(self) -> Mapping[str, tuple[float, float]]:
        """The ranges asked for, by label name, or under an empty name."""
        if self.volume_ml is None:
            return {}
        return self.volume_ml if isinstance(self.volume_ml, Mapping) else {"": self.volume_ml}

    @property
    def indices(self) -> range:
        """Indices of the samples."""
        return range(self.start, self.start + self.count)

    def options(self, recipe: Recipe) -> dict[str, Any]:
        """All that changes a sample besides seed and index, for its record."""
        return {
            "volume_ml": self._volumes(),
            "temperature": self.temperature_for(recipe),
            "extrapolate": self.extrapolate,
            "mask": None if self.mask is None else _fingerprint(self.mask),
            **({} if self.class_name is None else {"class": self.class_name}),
        }

    def _volumes(self) -> Any:
        """The ranges as floats: 4 and 4.0 ask for the same, and must read the same."""
        ranges = {name: [float(v) for v in pair] for name, pair in self.ranges_ml.items()}
        return ranges.get("", ranges or None)

    def temperature_for(self, recipe: Recipe) -> float:
        """The temperature, that of the recipe if none was asked for."""
        return float(recipe.synthesis.temperature if self.temperature is None else self.temperature)


@dataclass(frozen=True, eq=False)
class Sample:
    """A synthetic volume with its mask.

    Attributes:
        image: Native units, float32, :math:`(C, I, J, K)`.
        label: Label values, uint8, :math:`(1, I, J, K)`.
        grid: Where the voxels lie.
        record: How it was made; see `medvae3d.synthesis.records`.
        inserted: The host and what of it was changed, if lesions were put into one.
    """

    image: Tensor = field(repr=False)
    label: Tensor = field(repr=False)
    grid: Grid
    record: Mapping[str, Any] = field(repr=False)
    inserted: Inserted | None = field(default=None, repr=False)


def generate(
    network: nn.Module,
    recipe: Recipe,
    request: Request,
    *,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
    skip: Skip | None = None,
) -> Iterator[Sample]:
    """Draws samples without a host; the request is checked before the first one is asked for.

    Args:
        network: A joint or a two-stage model, with its ``statistics``.
        recipe: What it makes.
        request: Which samples are wanted.
        progress: Called after each sample.
        device: Where to compute. Bytes are the same for the same kind of device.
        skip: Says of an index that it need not be made; asked when its turn comes.

    Raises:
        SettingError: If the request does not fit the network.
        RangeError: If it leaves the range of the training set.
        RejectionError: While iterating, if a sample was rejected too often.
        MemoryLimitError: While iterating, if memory does not suffice for a single sample.
    """
    settings = Settings(
        request.seed,
        request.temperature_for(recipe),
        request.volume_ml,
        request.extrapolate,
        request.mask,
        request.options(recipe),
        request.class_name,
    )
    maker = make_maker(network, recipe, settings, torch.device(device))
    return _run(maker, request, progress, skip or (lambda index: False))


def _run(maker: Maker, request: Request, progress: Progress | None, skip: Skip) -> Iterator[Sample]:
    size = maker.recipe.synthesis.block_size
    rejected: Counter[str] = Counter()
    done = 0
    for first in range(request.start // size * size, request.start + request.count, size):
        asked = [i for i in range(first, first + size) if i in request.indices]
        wanted = [i for i in asked if not skip(i)]
        done += len(asked) - len(wanted)
        for sample in _block(maker, wanted, size) if wanted else ():
            done += 1
            rejected.update(sample.record["rejected"])
            if progress is not None:
                progress(done, request.count, dict(rejected))
            yield sample


def _block(maker: Maker, wanted: Sequence[int], size: int) -> list[Sample]:
    """Makes some samples of a block; a first draw is decoded with the block, others alone."""
    reasons: dict[int, Counter[str]] = {index: Counter() for index in wanted}
    made: list[Draft] = []
    for first in _decoded(maker, wanted, 0, size):
        draft = first
        while draft.reason is not None:
            reasons[draft.index][draft.reason] += 1
            if draft.attempt + 1 >= maker.recipe.synthesis.max_attempts:
                raise _gave_up(draft.index, reasons[draft.index])
            (draft,) = _decoded(maker, [draft.index], draft.attempt + 1, RETRY_ROWS)
        made.append(draft)
    labels, images = maker.finish(made)
    records = maker.records(made, labels, images)
    samples = []
    for draft, label, image, record in zip(made, labels, images, records, strict=True):
        more: dict[str, Any] = {"rejected": dict(sorted(reasons[draft.index].items()))}
        if maker.most_rows is not None:
            more["decoded_in_batches_of"] = maker.most_rows
        samples.append(Sample(image, label, maker.grid, {**record, **more}))
    return samples


def _decoded(maker: Maker, wanted: Sequence[int], attempt: int, size: int) -> list[Draft]:
    """Drafts with their labels and images, decoded in smaller batches if memory does not suffice.

    Noise is drawn for each draft alone, so that only the last bits of convolutions depend on the
    size of a batch; the record says if it was not that of the recipe.
    """
    while True:
        rows = size if maker.most_rows is None else min(size, maker.most_rows)
        drafts = maker.drafts(wanted, attempt)
        try:
            for first in range(0, len(drafts), rows):
                maker.fill(drafts[first : first + rows], rows)
            return drafts
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if rows == 1:
                raise MemoryLimitError(
                    f"sample {wanted[0]}: memory does not suffice to decode a single volume of "
                    f"{' x '.join(map(str, maker.recipe.spatial_shape))} voxels "
                    f"({first_line(error)}). End what else takes memory, or use another device "
                    f"with --device."
                ) from error
        # Not within the handler, where the error still holds what was computed.
        maker.most_rows = max(1, rows // 2)
        if maker.device.type == "cuda":
            torch.cuda.empty_cache()


def _gave_up(index: int, reasons: Mapping[str, int]) -> RejectionError:
    listed = ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
    return RejectionError(
        f"sample {index}: all {sum(reasons.values())} draws were rejected: {listed}. Ask for "
        f"other volumes, for another seed, or for a temperature below 1; or raise max_attempts "
        f"under `synthesis` in inference.json."
    )


def _fingerprint(mask: Volume) -> dict[str, str]:
    """Says which mask was given, so that another one is not taken for it."""
    content = mask.array.tobytes() + mask.grid.affine.tobytes()
    return {"file": mask.path.name, "sha256": hashlib.sha256(content).hexdigest()}
