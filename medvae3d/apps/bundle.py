"""A bundle as an object: found by name or folder, loaded strictly, asked for samples.

The command line, the bundle's own ``inference.json`` and Python all make samples through `Bundle`,
so that the same seed gives the same bytes whichever way it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from medvae3d.apps.bundle_files import (
    content,
    licence_of,
    load_weights,
    parser_of,
    read_json,
    texts,
    usable_device,
)
from medvae3d.apps.bundle_hosts import FilePath, HostRequest, Hosts, grouped
from medvae3d.apps.catalogue import shipped_bundles, unknown
from medvae3d.apps.trust import require_own_weights, trusting
from medvae3d.data.volumes import Volume, read_mask
from medvae3d.errors import BundleError, SettingError
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.synthesis.conditions import ConditionDraw, VolumeRequest
from medvae3d.synthesis.generator import Progress, Request, Sample, Skip, generate
from medvae3d.synthesis.hosts import HostScan
from medvae3d.synthesis.insertion import insert_lesions
from medvae3d.synthesis.recipe import Recipe
from medvae3d.synthesis.records import Provenance
from medvae3d.synthesis.writing import is_whole, write_cases

RECIPE_IDS = ("channels", "labels", "spacing", "spatial_shape", "synthesis")
# Hosts kept in memory while they are used in turn: a head of four channels takes 150 MB.
MOST_HOSTS = 4


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained model with all that is needed to make samples.

    Attributes:
        name: Name of its folder.
        version: From its metadata.
        root: Its folder.
        recipe: What it makes.
        network: With its weights, in evaluation mode.
        weights_sha256: Hash of the file of weights.
        licence: ``weights``, a name, and ``data``, a list.
        cite: References.
        device: Where it computes.
    """

    name: str
    version: str
    root: Path
    recipe: Recipe
    network: nn.Module = field(repr=False)
    weights_sha256: str
    licence: Mapping[str, Any]
    cite: tuple[str, ...] = ()
    device: torch.device = torch.device("cpu")

    @property
    def provenance(self) -> Provenance:
        """What records say of where samples come from."""
        return Provenance(self.name, self.version, self.weights_sha256, self.licence, self.cite)

    def generate(
        self,
        count: int,
        seed: int = 0,
        *,
        start: int = 0,
        volume_ml: VolumeRequest = None,
        temperature: float | None = None,
        extrapolate: bool = False,
        mask: FilePath | Volume | None = None,
        class_name: str | None = None,
        hosts: Hosts = (),
        host_labels: Sequence[FilePath] = (),
        host_brains: Sequence[FilePath] = (),
        lesions: tuple[int, int] | None = None,
        at_mm: tuple[float, float, float] | None = None,
        allow_overlap: bool = False,
        progress: Progress | None = None,
        skip: Skip | None = None,
    ) -> Samples:
        """Makes samples; what is asked for is checked at once, samples are made as they are taken.

        Args:
            count: How many.
            seed: Seed of all of them; sample *i* depends on the seed and on *i* alone.
            start: Index of the first.
            volume_ml: Smallest and largest volume, of the mask (or of each lesion put into a
                host), or of each label by name.
            temperature: Scales the deviation of latents; that of the bundle if not given.
            extrapolate: Whether volumes beyond the training set may be asked for.
            mask: A mask to fill, for bundles that make the image from the mask.
            class_name: Class of all of them, for bundles that are told classes.
            hosts: Scans to put lesions into, a file or a list of files (one a channel) each; used
                in turn. Without any, bundles of kind insertion draw phantom heads.
            host_labels: Their masks, in the same order.
            host_brains: Masks of their brains or bodies, in the same order; found if not given.
            lesions: Fewest and most lesions put into a host.
            at_mm: Where to put a lesion, in mm of the host's world.
            allow_overlap: Whether a new lesion may overlap one that is there.
            progress: Called after each sample with samples made, samples wanted and rejected
                draws by reason.
            skip: Says of an index that it need not be made; asked when its turn comes.

        Raises:
            SettingError: If the request does not fit the bundle.
            RangeError: If it leaves the range of the training set.
        """
        if isinstance(mask, (str, Path)):
            mask = read_mask(mask, self.recipe.values, what="mask")
        request = Request(count, seed, start, volume_ml, temperature, extrapolate, mask, class_name)
        wanted = HostRequest(
            grouped(hosts, self.recipe, name=self.name),
            tuple(map(Path, host_labels)),
            tuple(map(Path, host_brains)),
            lesions,
            at_mm,
            allow_overlap,
        )
        if self.recipe.synthesis.kind == "insertion" or wanted.hosts:
            if not isinstance(self.network, TwoStageModel):
                raise SettingError(
                    f"{self.name} makes whole volumes from one latent and cannot put lesions into "
                    f"a host. Leave out --host, or use a two-stage bundle."
                )
            return self._insert(request, wanted, progress, skip)
        if wanted != HostRequest():
            raise SettingError(
                f"--lesions, --at and --host-label are for lesions put into a host; {self.name} "
                f"makes whole volumes. Give a --host, or leave them out."
            )
        made = generate(
            self.network, self.recipe, request, progress=progress, device=self.device, skip=skip
        )
        record = {
            "kind": self.recipe.synthesis.kind,
            "seed": seed,
            "options": request.options(self.recipe),
        }
        return self.samples(record, made)

    def as_dataset(
        self,
        count: int,
        seed: int = 0,
        *,
        kind: str = "monai",
        transform: Any = None,
        **options: Any,
    ) -> Any:
        """Samples as a data set, made when they are asked for; nothing is written.

        Args:
            count: How many.
            seed: Item *i* depends on the seed and on *i* alone.
            kind: ``monai`` for a ``monai.data.Dataset`` of dictionaries with ``image`` and
                ``label``, ``torchio`` for a ``SubjectsDataset`` with one image a channel.
            transform: Applied to each item.
            **options: As for `generate`.

        Raises:
            SettingError: If the request does not fit the bundle, or the kind is unknown.
            RangeError: If it leaves the range of the training set.
        """
        from medvae3d.apps.datasets import samples_as_dataset

        return samples_as_dataset(self, count, seed, kind=kind, transform=transform, **options)

    def samples(self, run: Mapping[str, Any], made: Iterator[Sample]) -> Samples:
        """Completes the records of samples with what only the bundle knows."""
        provenance = self.provenance
        complete = (replace(sample, record=provenance.complete(sample.record)) for sample in made)
        return Samples(provenance.run(run), complete)

    def write(
        self,
        out: FilePath,
        count: int,
        seed: int = 0,
        *,
        threads: int = 2,
        preview: bool = True,
        finish: bool = True,
        **options: Any,
    ) -> Path:
        """Makes samples and writes them; a further range of the same run may be added later.

        Cases that are there already, whole, are not made again: a run that was killed goes on.

        Args:
            out: Folder; see `medvae3d.synthesis.writing` for what is in it.
            count: How many.
            seed: Seed of all of them.
            threads: Cases compressed and written at a time.
            preview: Whether to draw ``preview.png``.
            finish: Whether to write the files about all cases; see `write_cases`.
            **options: As for `generate`.

        Returns:
            The folder.

        Raises:
            OutputError: If the folder holds the files of another run, or cannot be written, or
                another process is writing some of these cases.
            RejectionError: If a sample was rejected too often. Whole cases made until then stay.
        """
        start = int(options.get("start", 0))
        folder, indices = Path(out), range(start, start + count)

        def skip(index: int) -> bool:
            # Whoever makes the first case in a host draws it, and has to have it for that.
            is_drawn = not preview or index > start or (folder / "preview.png").exists()
            name = self.provenance.case_name(seed, index)
            return is_drawn and is_whole(folder, name, self.recipe)

        samples = self.generate(count, seed, **options, skip=skip)
        write_cases(
            samples, folder, self.recipe, samples.run,
            indices=indices, threads=threads, preview=preview, finish=finish,
        )  # fmt: skip
        return folder

    def _insert(
        self, request: Request, wanted: HostRequest, progress: Progress | None, skip: Skip | None
    ) -> Samples:
        """Puts lesions into hosts, or into phantoms where there are none."""
        if isinstance(request.volume_ml, Mapping):
            raise SettingError(
                "volumes were asked for by label; lesions put into a host have one volume each. "
                "Write it as LOW:HIGH."
            )
        options = {**request.options(self.recipe), **wanted.options()}
        run = {"kind": "insertion", "seed": request.seed, "options": options}
        if self.statistics.names:
            ConditionDraw(self.statistics, self.recipe, request.volume_ml, request.extrapolate)
        return self.samples(run, self._inserted(request, wanted, run, progress, skip))

    def _inserted(
        self,
        request: Request,
        wanted: HostRequest,
        run: Mapping[str, Any],
        progress: Progress | None,
        skip: Skip | None,
    ) -> Iterator[Sample]:
        chosen: dict[str, Any] = {}
        if wanted.lesions is not None:
            chosen["lesions"] = wanted.lesions
        rejected: Counter[str] = Counter()
        read: dict[int, HostScan] = {}
        for done, index in enumerate(request.indices, start=1):
            if skip is not None and skip(index):
                continue
            turn = index % len(wanted.hosts) if wanted.hosts else index
            if turn not in read:
                if len(read) >= MOST_HOSTS:
                    read.clear()
                read[turn] = wanted.host(turn, self.recipe, request.seed)
            sample = insert_lesions(
                read[turn],
                self.network,
                self.recipe,
                seed=request.seed,
                index=index,
                volume_ml=cast("tuple[float, float] | None", request.volume_ml),
                at_mm=wanted.at_mm,
                mask=request.mask,
                extrapolate=request.extrapolate,
                allow_overlap=wanted.allow_overlap,
                temperature=request.temperature_for(self.recipe),
                device=self.device,
                **chosen,
            ).as_sample()
            record = {"device": self.device.type, **sample.record, **run}
            rejected.update(record.get("rejected", {}))
            if progress is not None:
                progress(done, request.count, dict(rejected))
            yield replace(sample, record=record)

    @property
    def statistics(self) -> TrainingStatistics:
        """What the weights remember of their training set."""
        return cast(TrainingStatistics, self.network.statistics)


class Samples(Iterator[Sample]):
    """Samples as they are made, and what they have in common.

    Args:
        run: Bundle, weights, seed and options.
        made: The samples.
    """

    def __init__(self, run: Mapping[str, Any], made: Iterator[Sample]) -> None:
        self.run = run
        self._made = made

    def __next__(self) -> Sample:
        return next(self._made)


def find_bundle(name_or_path: FilePath) -> Path:
    """The folder of a bundle, by the name of a shipped one or by its path.

    Raises:
        BundleError: If there is none; lists those that there are.
    """
    shipped = shipped_bundles()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    folder = Path(name_or_path)
    if (folder / "configs").is_dir():
        return folder.resolve()
    raise BundleError(unknown(name_or_path, shipped, "bundle"))


def load_bundle(
    name_or_path: FilePath,
    device: str | torch.device = "cpu",
    *,
    weights: FilePath | None = None,
    trust: bool = False,
) -> Bundle:
    """Loads a bundle with its weights.

    Args:
        name_or_path: Name of a shipped bundle, or the folder of any.
        device: Where to compute, such as ``cpu`` or ``cuda``.
        weights: Other weights than its ``models/model.pt``.
        trust: Whether its configuration may execute what shipped ones do not.

    Raises:
        BundleError: If it is unknown or incomplete, its weights do not fit its network or are not
            those that it was shipped with, or it would execute what is not known.
        SettingError: If the device is not there.
    """
    root = find_bundle(name_or_path)
    place = usable_device(device)
    config = root / "configs" / "inference.json"
    metadata = read_json(root / "configs" / "metadata.json")
    with trusting(trust):
        parser = parser_of(config, root)
    recipe = Recipe.from_config(content(parser, RECIPE_IDS, config), source=str(config))
    network = content(parser, ("network_def",), config).get("network_def")
    if not isinstance(network, nn.Module):
        raise BundleError(
            f"{config} has no network under `network_def`. Add it, with a `_target_` from "
            f"medvae3d.models.zoo."
        )
    path = Path(weights) if weights is not None else root / "models" / "model.pt"
    digest = require_own_weights(path) if path.is_file() else ""
    load_weights(network, path)
    network.eval().requires_grad_(False).to(place)
    return Bundle(
        name=root.name,
        version=str(metadata.get("version", "0")),
        root=root,
        recipe=recipe,
        network=network,
        weights_sha256=digest,
        licence=licence_of(root, metadata),
        cite=texts(metadata.get("cite") or metadata.get("references")),
        device=place,
    )
