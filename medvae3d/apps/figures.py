"""All figures of a bundle in one command: loads it, reads the cases, makes samples, judges them.

::

    medvae3d figures BUNDLE --datalist LIST --out DIR

What each figure is, and how it is computed, is in ``docs/reference/figures.md``.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from monai.transforms import Compose
from torch import Tensor, nn

from medvae3d import __version__
from medvae3d.apps.bundle import Bundle, load_bundle
from medvae3d.data.augmentation import Augmentation
from medvae3d.data.datalists import as_monai, read_datalist
from medvae3d.data.lesions import single_lesions
from medvae3d.data.preparation import case_transforms
from medvae3d.errors import DataListError, MedvaeError, SettingError
from medvae3d.evaluation import figures as judge
from medvae3d.evaluation.agreement import (
    SegmenterSettings,
    agreement,
    as_segment,
    make_segmenter,
    train_segmenter,
)
from medvae3d.evaluation.cases import (
    MIN_VOXELS,
    Cases,
    joined,
    lesion_cases,
    mask_cases,
    whole_cases,
)
from medvae3d.evaluation.control import control_before_level, volume_control
from medvae3d.evaluation.curves import plot_control, plot_history
from medvae3d.evaluation.evidence import bounds, evidence, log_weights
from medvae3d.evaluation.privacy import copy_check
from medvae3d.evaluation.throughput import in_process, written_per_second
from medvae3d.models.latent import LatentModel
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.seeding import derive_generator
from medvae3d.synthesis.conditions import ConditionDraw
from medvae3d.synthesis.preview import Panel, contact_sheet
from medvae3d.synthesis.records import read_records, rejections
from medvae3d.training.checkpoints import load_state, save_atomically

Say = Callable[[str], None]
SECTIONS = (
    "reconstruction",
    "shape",
    "texture",
    "evidence",
    "control",
    "agreement",
    "copying",
    "throughput",
)
DRAWN_CASES = 4
JITTER = 6
REPEATS = 3
LESIONS_PER_HOST = 10


@dataclass(frozen=True)
class Effort:
    """How much is drawn and trained.

    Attributes:
        samples: Synthetic cases, or lesions in hosts.
        controlled: Samples whose volume is asked for.
        draws: Draws of the importance-weighted bound.
        judged: Unseen cases that the bound is computed for.
        segmenter_steps: Steps of the segmenter.
        augmented: Augmented training cases that components are fitted on; 0 for none.
        timed: Samples that are timed.
    """

    samples: int = 64
    controlled: int = 50
    draws: int = 16
    judged: int = 8
    segmenter_steps: int = 400
    augmented: int = 256
    timed: int = 64


QUICK = Effort(8, 8, 2, 2, 20, 0, 8)


def report(
    bundle_root: str | Path,
    datalist: str | Path,
    split: str = "validation",
    out: str | Path | None = None,
    *,
    seed: int = 0,
    quick: bool = False,
    progress: Say | None = None,
    twin: str | Path | Mapping[str, str | Path] | None = None,
    weights: str | Path | None = None,
    sections: Sequence[str] | str | None = None,
) -> dict[str, Any]:
    """Computes all figures of a bundle; plain numbers, nested by section.

    With ``out``, they are also written there, as ``figures.json`` and ``figures.md``, with
    pictures, the samples, and the segmenter, which a second run uses again.

    Args:
        bundle_root: Name of a shipped bundle, or the folder of any.
        datalist: Data list; its training cases are those the bundle was trained on.
        split: Unseen cases: ``validation``, ``testing``, or both with a comma.
        out: Folder to write to.
        seed: Seed of everything that is random.
        quick: Whether to draw and train so little that the figures only show that all runs.
        progress: Told what is being done.
        twin: Weights of the same network trained without its flow; several by what they share
            with this one, such as ``equal time``.
        weights: Other weights than the bundle's.
        sections: Which of the sections to compute; all that apply by default.

    Raises:
        BundleError: If the bundle cannot be loaded.
        DataListError: If the list has no case to judge.
        SettingError: If a section is unknown.
    """
    wanted = _sections(sections)
    bundle = load_bundle(bundle_root, weights=weights)
    effort = QUICK if quick else Effort()
    with _folder(out) as folder:
        run = _Run(bundle, Path(datalist), split, folder, seed, effort, progress or _silent)
        run.twins = _twins(bundle, twin)
        found: dict[str, Any] = {
            "bundle": f"{bundle.name} {bundle.version}",
            "weights_sha256": bundle.weights_sha256,
            "medvae3d": __version__,
            "split": split,
            "seed": seed,
            "quick": quick,
        }
        for name in wanted:
            if name == "throughput":
                section = run.guarded(name, lambda: _throughput(bundle, weights, effort, seed))
            else:
                section = run.guarded(name, getattr(run, name))
            if section:
                found[name] = section
        if run.generation:
            found["generation"] = run.generation
        joint = bundle.recipe.synthesis.kind == "joint"
        found["targets"] = judge.targets(found, is_fast=joint)
        result = judge.plain(found)
        if out is not None:
            history, scores = (
                bundle.root / "eval" / n for n in ("history.csv", "validation.jsonl")
            )
            if history.is_file():
                validation = scores if scores.is_file() else None
                plot_history(history, validation, folder / "training.png")
            judge.write_figures(result, folder)
    return cast("dict[str, Any]", result)


class _Run:
    """One report: what its sections share is made when it is first needed."""

    def __init__(
        self,
        bundle: Bundle,
        datalist: Path,
        split: str,
        folder: Path,
        seed: int,
        effort: Effort,
        say: Say,
    ) -> None:
        self.bundle, self.recipe, self.network = bundle, bundle.recipe, bundle.network
        self.folder, self.seed, self.effort, self.say = folder, seed, effort, say
        self.twins: dict[str, LatentModel] = {}
        self.generation: dict[str, Any] = {}
        self.is_insertion = self.recipe.synthesis.kind == "insertion"
        self.is_two_stage = isinstance(self.network, TwoStageModel)
        listed = read_datalist(datalist)
        self.train_items = as_monai(listed.split("training"))
        parts = [name.strip() for name in split.split(",")]
        self.unseen_items = as_monai([case for name in parts for case in listed.split(name)])
        for name, items in (("training", self.train_items), (split, self.unseen_items)):
            if not any("label" in item for item in items):
                raise DataListError(
                    f"{datalist} has no case with a label under {name}; figures compare training "
                    f"cases with unseen ones. Add cases there, or name another split."
                )
        channels = [{"intensity": config} for config in self.recipe.intensities.to_config()]
        shape = None if self.is_insertion else self.recipe.spatial_shape
        self.prepare = Compose(
            case_transforms(
                channels, self.recipe.spacing, shape, self.recipe.labels, allow_missing_images=True
            )
        )
        self.words = judge.Words(
            tuple(channel.name for channel in self.recipe.channels),
            tuple(name for name, value in self.recipe.labels.items() if value),
            self.recipe.spacing,
            bundle.statistics,
            seed,
        )
        self._made: dict[str, Any] = {}

    def guarded(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A section, or why there is none; the others are not held up by it."""
        self.say(name)
        try:
            return compute()
        except MedvaeError as error:
            return {"not_computed": f"{type(error).__name__}: {error}"}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What several sections need, made once."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    # -- cases ------------------------------------------------------------------------------------

    @property
    def train(self) -> Cases:
        """Training cases, or patches round the training lesions."""
        return self.once("train", lambda: self._cases(self.train_items))

    @property
    def unseen(self) -> Cases:
        """Unseen cases, or patches round unseen lesions."""
        return self.once("unseen", lambda: self._cases(self.unseen_items))

    def _cases(self, items: Sequence[Mapping[str, Any]], **options: Any) -> Cases:
        imaged = [item for item in items if "image" in item and "label" in item]
        if not self.is_insertion:
            return whole_cases([self.prepare(item) for item in imaged])
        shape = self.recipe.spatial_shape
        return joined(
            [lesion_cases(self.prepare(item), shape, seed=self.seed, **options) for item in imaged]
        )

    def masks(self, items: Sequence[Mapping[str, Any]]) -> Cases:
        """What the first stage makes: whole masks, or single lesions."""
        shape = cast(TwoStageModel, self.network).mask_shape
        found, names = [], []
        for item in items:
            if "label" not in item:
                continue
            only = {key: value for key, value in item.items() if key != "image"}
            label = self.prepare(only)["label"]
            if not self.is_insertion and tuple(label.shape[1:]) == shape:
                patches = [torch.as_tensor(label)]
            else:
                patches = single_lesions(torch.as_tensor(label), shape)
            found += patches
            names += [str(item["case"])] * len(patches)
        if not found:
            raise DataListError(
                f"no case has a lesion that fits into {shape} voxels. Check the masks with "
                f"`medvae3d data check`."
            )
        return mask_cases(found, names)

    # -- sections of reconstruction ---------------------------------------------------------------

    def reconstruction(self) -> dict[str, Any]:
        if self.is_two_stage:
            return {}
        augmented = None
        config = _augmentation_of(self.bundle)
        if self.effort.augmented > len(self.train) and config is not None:
            augmented = _augmented(self.train, config, self.effort.augmented, self.seed)
        model = cast(LatentModel, self.network)
        found, made = judge.reconstruction(
            model, self.train, self.unseen, self.words, augmented, self.twins
        )
        shown = {"real": (self.unseen.image, self.unseen.mask)}
        shown |= {name: made[name] for name in list(made) if name == "model" or "PCA, " in name}
        self._draw(shown, "reconstruction.png")
        return found

    def shape(self) -> dict[str, Any]:
        if not self.is_two_stage:
            return {}
        model = cast(TwoStageModel, self.network).shape
        train, unseen = self.masks(self.train_items), self.masks(self.unseen_items)
        found = judge.shape_stage(model, train, unseen, self.words)
        batches = self.words.batches(unseen[: 4 * self.effort.judged])
        found["evidence"] = bounds(log_weights(model, batches, self.effort.draws, self.seed))
        return found

    def texture(self) -> dict[str, Any]:
        if not self.is_two_stage:
            return {}
        model = cast(TwoStageModel, self.network).texture
        words = replace(self.words, statistics=type(self.words.statistics)())
        found, made = judge.texture_stage(model, self.train, self.unseen, words)
        if self.is_insertion:
            found["smallest_lesion_voxels"] = MIN_VOXELS
        shown = {"real": self.unseen.image, **made}
        self._draw({n: (x, self.unseen.region) for n, x in shown.items()}, "texture.png")
        return found

    def evidence(self) -> dict[str, Any]:
        if self.is_two_stage:
            return {}
        model = cast(LatentModel, self.network)
        batches = self.words.batches(self.unseen[: self.effort.judged], 2)
        found = evidence(model, batches, self.effort.draws, self.seed)
        for name, each in self.twins.items():
            drawn = log_weights(each, batches, self.effort.draws, self.seed, with_flow=False)
            found["rows"][name] = bounds(drawn)
        return found

    # -- sections of samples ----------------------------------------------------------------------

    def control(self) -> dict[str, Any]:
        statistics = self.bundle.statistics
        if not statistics.names:
            return {}
        model = self.network.shape if isinstance(self.network, TwoStageModel) else self.network
        count = max(8, self.effort.controlled)
        temperature = self.recipe.synthesis.temperature
        found: dict[str, Any] = {
            "before_level": control_before_level(
                cast(LatentModel, model), statistics, self.recipe.spacing, count, self.seed,
                temperature,
            )
        }  # fmt: skip
        limits = ConditionDraw(statistics, self.recipe).percentiles_ml
        if limits is None:
            return found
        count = self.effort.controlled
        options: dict[str, Any] = {}
        if self.is_insertion:
            options, count = self._insertion(count)
        asked, made, records = [], [], []
        for sample in self.bundle.generate(count, self.seed + 1, volume_ml=limits, **options):
            records.append(sample.record)
            for wanted, reached in _volumes(sample.record):
                asked.append(wanted)
                made.append(reached)
        found |= volume_control(asked, made)
        found["rejection_rate"] = rejections(records)["rejection_rate"]
        plot_control(asked, made, self.folder / "control.png")
        return found

    @property
    def samples(self) -> Cases:
        """Samples as a user reads them, from their files."""
        return self.once("samples", self._samples)

    def _samples(self) -> Cases:
        self.say("samples")
        folder = self.folder / "samples"
        count = self.effort.samples
        options: dict[str, Any] = {}
        if self.is_insertion:
            options, count = self._insertion(count)
        if folder.exists():  # of an earlier report; other weights would be refused
            shutil.rmtree(folder)
        self.bundle.write(folder, count, self.seed, **options)
        records = read_records(folder)
        self.generation = rejections(records)
        items = as_monai(read_datalist(folder / "dataset.json").split("training"))
        if not self.is_insertion:
            return whole_cases([self.prepare(item) for item in items])
        hosts = self._hosts()
        cut = []
        for index, item in enumerate(items):
            case = self.prepare(item)
            there = None
            if hosts:
                host = hosts[index % len(hosts)]
                there = self.prepare({"label": host["label"], "case": host["case"]})["label"]
            cut.append(
                lesion_cases(
                    case, self.recipe.spatial_shape, ignore=there, jitter=JITTER,
                    seed=self.seed + index,
                )
            )  # fmt: skip
        return joined(cut)

    def _hosts(self) -> list[dict[str, Any]]:
        """Unseen scans that lesions are put into; none means phantoms."""
        return [item for item in self.unseen_items if "image" in item and "label" in item]

    def _insertion(self, lesions: int) -> tuple[dict[str, Any], int]:
        """Options of an insertion into unseen scans, and how many it takes for some lesions."""
        channels = len(self.recipe.channels)
        per_host = min(LESIONS_PER_HOST, lesions)
        options: dict[str, Any] = {"lesions": (per_host, per_host)}
        hosts = self._hosts()
        if hosts:
            files = [
                [item["image"]] if isinstance(item["image"], str) else item["image"]
                for item in hosts
            ]
            options["hosts"] = [each[:channels] for each in files]
            options["host_labels"] = [item["label"] for item in hosts]
        return options, -(-lesions // per_host)

    def agreement(self) -> dict[str, Any]:
        settings = SegmenterSettings(steps=self.effort.segmenter_steps)
        train, unseen = self.train, self.unseen
        if self.is_insertion:  # off the middle, or the place alone would tell where the lesion is
            jittered = {"jitter": JITTER}
            train = self._cases(self.train_items, repeats=REPEATS, **jittered)
            unseen = self._cases(self.unseen_items, **jittered)
            settings = replace(settings, channels=(16, 32, 64), batch_size=8)
        if min(train.image.shape[2:]) < 32:
            settings = replace(settings, channels=settings.channels[:3])
        network = self._segmenter(train, settings)
        found = agreement(as_segment(network), unseen, self.samples, self.words.labels, self.seed)
        return {
            "segmenter_steps": settings.steps,
            "train": len(train),
            "unseen": len(unseen),
            "synthetic": len(self.samples),
            **found,
        }

    def _segmenter(self, train: Cases, settings: SegmenterSettings) -> nn.Module:
        """A trained segmenter, from the folder of an earlier report if that fits."""
        labels = len(self.recipe.labels)
        key = json.dumps(
            [settings.to_dict(), self.seed, list(train.names), list(train.image.shape)]
        )
        path = self.folder / "segmenter.pt"
        if path.is_file():
            state = load_state(path)
            if state.get("key") == key:
                network = make_segmenter(train.image.shape[1], labels, settings)
                network.load_state_dict(state["network"])
                return network.eval()

        def told(step: int, steps: int) -> None:
            if step % 50 == 0:
                self.say(f"segmenter, step {step} of {steps}")

        network = train_segmenter(train, labels, settings, self.seed, told)
        save_atomically({"key": key, "network": network.state_dict()}, path)
        return network

    def copying(self) -> dict[str, Any]:
        return copy_check(self.samples, self.train, self.unseen)

    # -- pictures ---------------------------------------------------------------------------------

    def _draw(self, rows: Mapping[str, tuple[Tensor, Tensor]], name: str) -> None:
        """The first unseen cases, each row beside the others."""
        panels = []
        statistics = self.bundle.statistics
        for case in range(min(DRAWN_CASES, len(self.unseen))):
            for title, (image, mask) in rows.items():
                native = self.recipe.to_native(image[case : case + 1], statistics)[0]
                label = mask[case, 0].numpy().astype("uint8")
                text = f"{self.unseen.names[case]}   {title}"
                panels.append(Panel(text, native.numpy(), label, self.recipe.grid))
        if panels:
            contact_sheet(panels, self.recipe.channels, self.folder / name, columns=len(rows))


def throughput(bundle_root: str, count: int = 64, seed: int = 0, weights: str = "") -> None:
    """Prints how fast a bundle writes samples and what memory it takes; in a process of its own."""
    bundle = load_bundle(bundle_root, weights=weights or None)
    options: dict[str, Any] = {}
    warm_up = 8
    if bundle.recipe.synthesis.kind == "insertion":
        count, warm_up = max(1, count // 16), 1

    def write(folder: Path, number: int, start: int) -> None:
        bundle.write(folder, number, seed, start=start, preview=False, **options)

    print(json.dumps(written_per_second(write, count, warm_up)))


def _throughput(
    bundle: Bundle, weights: str | Path | None, effort: Effort, seed: int
) -> dict[str, Any]:
    arguments = [str(bundle.root), str(effort.timed), str(seed), str(weights or "")]
    return in_process(["-m", "medvae3d.apps.figures", *arguments])


def _volumes(record: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    """Volume asked for and made, in ml, of a sample or of each lesion put into a host."""
    pairs = [each["volume_ml"] for each in record.get("lesions") or ()]
    if not pairs:
        checks = record["checks"]
        pairs = [{"asked": checks["volume_asked_ml"], "reached": checks["volume_ml"]}]
    for pair in pairs:
        if pair["asked"] is not None:
            yield float(pair["asked"]), float(pair["reached"])


def _augmentation_of(bundle: Bundle) -> Augmentation | None:
    """The augmentation that a bundle's ``train.json`` names, if it can be read."""
    path = bundle.root / "configs" / "train.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    settings = config.get("train", {}).get("augmentation", {}).get("config")
    return None if settings is None else Augmentation.from_config(settings)


def _augmented(train: Cases, augmentation: Augmentation, count: int, seed: int) -> Cases:
    """The training cases and as many augmented ones as make ``count`` together."""
    parts = [train]
    for number in range(count - len(train)):
        row = train[number % len(train) : number % len(train) + 1]
        generator = derive_generator(seed, "components", number)
        moved = augmentation({"image": row.image, "mask": row.mask}, generator)
        parts.append(replace(row, image=moved["image"], mask=moved["mask"]))
    return joined(parts)


def _twins(
    bundle: Bundle, twin: str | Path | Mapping[str, str | Path] | None
) -> dict[str, LatentModel]:
    """Networks of the same layers with other weights; their flow is not used."""
    if twin is None or twin == "":
        return {}
    if isinstance(bundle.network, TwoStageModel):
        raise SettingError(f"{bundle.name} has no flow, so it has no twin without one.")
    files = dict(twin) if isinstance(twin, Mapping) else {"": twin}
    found = {}
    for shared, path in files.items():
        network = copy.deepcopy(cast(LatentModel, bundle.network))
        state = {k: v for k, v in load_state(path).items() if not k.startswith("flow.")}
        own = {k: v for k, v in network.state_dict().items() if k.startswith("flow.")}
        try:
            network.load_state_dict({**state, **own})
        except RuntimeError as error:
            raise SettingError(
                f"{path} holds the weights of another network than {bundle.name}: "
                f"{str(error).splitlines()[-1].strip()}. A twin has the same layers, trained with "
                f"flow_start after the last step or num_steps 0."
            ) from error
        name = "twin without the flow" + (f", {shared}" if shared else "")
        found[name] = network.eval()
    return found


def _sections(sections: Sequence[str] | str | None) -> tuple[str, ...]:
    if sections is None:
        return SECTIONS
    wanted = sections.split(",") if isinstance(sections, str) else list(sections)
    wanted = [name.strip() for name in wanted]
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown or not wanted:
        raise SettingError(
            f"sections are {', '.join(wanted) or 'none'}; allowed are {', '.join(SECTIONS)}."
        )
    return tuple(name for name in SECTIONS if name in wanted)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is None:
        with tempfile.TemporaryDirectory(prefix="medvae3d-figures-") as folder:
            yield Path(folder)
    else:
        Path(out).mkdir(parents=True, exist_ok=True)
        yield Path(out)


def _silent(text: str) -> None:
    """Says nothing."""


if __name__ == "__main__":
    throughput(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
