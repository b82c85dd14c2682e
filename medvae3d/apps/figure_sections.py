"""The sections of the figures of a bundle: what each computes of its cases and samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from medvae3d.apps.bundle import Bundle
from medvae3d.apps.bundle_files import read_json
from medvae3d.apps.figure_cases import CaseSource, words_of
from medvae3d.data.augmentation import Augmentation
from medvae3d.errors import MedvaeError
from medvae3d.evaluation.agreement import (
    SegmenterSettings,
    agreement,
    as_segment,
    make_segmenter,
    train_segmenter,
)
from medvae3d.evaluation.cases import MIN_VOXELS, Cases, framed_as, joined, spread
from medvae3d.evaluation.control import control_before_level, volume_control
from medvae3d.evaluation.curves import plot_control
from medvae3d.evaluation.evidence import bounds, evidence, log_weights
from medvae3d.evaluation.privacy import copy_check
from medvae3d.evaluation.reconstruction import reconstruction, shape_stage, texture_stage
from medvae3d.models.latent import LatentModel
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.seeding import derive_generator
from medvae3d.synthesis.conditions import ConditionDraw
from medvae3d.synthesis.preview import Panel, contact_sheet
from medvae3d.synthesis.records import rejections
from medvae3d.training.checkpoints import load_state, save_atomically

DRAWN_CASES = 4


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


class Sections:
    """One report: what its sections share is made when it is first needed.

    Args:
        cases: Training cases, unseen cases and samples of a bundle.
        effort: How much is drawn and trained.
    """

    def __init__(self, cases: CaseSource, effort: Effort) -> None:
        self.cases, self.effort = cases, effort
        self.bundle, self.recipe, self.network = cases.bundle, cases.recipe, cases.bundle.network
        self.folder, self.seed, self.say = cases.folder, cases.seed, cases.say
        self.twins: dict[str, LatentModel] = {}
        self.is_two_stage = isinstance(self.network, TwoStageModel)
        self.words = words_of(self.bundle, self.seed)

    def guarded(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A section, or why there is none; the others are not held up by it."""
        self.say(name)
        try:
            return compute()
        except MedvaeError as error:
            return {"not_computed": f"{type(error).__name__}: {error}"}

    # -- sections of reconstruction ---------------------------------------------------------------

    def reconstruction(self) -> dict[str, Any]:
        if self.is_two_stage:
            return {}
        augmented = None
        config = _augmentation_of(self.bundle)
        if self.effort.augmented > len(self.cases.train) and config is not None:
            augmented = _augmented(self.cases.train, config, self.effort.augmented, self.seed)
        model = cast(LatentModel, self.network)
        found, made = reconstruction(
            model, self.cases.train, self.cases.unseen, self.words, augmented, self.twins
        )
        shown = {"real": (self.cases.unseen.image, self.cases.unseen.mask)}
        shown |= {name: made[name] for name in list(made) if name == "model" or "PCA, " in name}
        self._draw(shown, "reconstruction.png")
        return found

    def shape(self) -> dict[str, Any]:
        if not self.is_two_stage:
            return {}
        model = cast(TwoStageModel, self.network).shape
        train = self.cases.masks(self.cases.train_items)
        unseen = self.cases.masks(self.cases.unseen_items)
        found = shape_stage(model, train, unseen, self.words)
        judged = unseen[spread(len(unseen), 4 * self.effort.judged)]
        batches = self.words.batches(judged, 8)
        found["evidence"] = bounds(log_weights(model, batches, self.effort.draws, self.seed))
        return found

    def texture(self) -> dict[str, Any]:
        if not self.is_two_stage:
            return {}
        model = cast(TwoStageModel, self.network).texture
        words = replace(self.words, statistics=type(self.words.statistics)())
        found, made = texture_stage(model, self.cases.train, self.cases.unseen, words)
        if self.cases.is_insertion:
            found["smallest_lesion_voxels"] = MIN_VOXELS
        shown = {"real": self.cases.unseen.image, **made}
        self._draw({n: (x, self.cases.unseen.region) for n, x in shown.items()}, "texture.png")
        return found

    def evidence(self) -> dict[str, Any]:
        if self.is_two_stage:
            return {}
        model = cast(LatentModel, self.network)
        unseen = self.cases.unseen
        judged = unseen[spread(len(unseen), self.effort.judged)]
        batches = self.words.batches(judged, 2)
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
        if self.cases.is_insertion:
            options, count = self.cases.insertion(count)
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

    def agreement(self) -> dict[str, Any]:
        settings = SegmenterSettings(steps=self.effort.segmenter_steps)
        train, unseen = self.cases.jittered()
        if self.cases.is_insertion:
            settings = replace(settings, channels=(16, 32, 64), batch_size=8)
        if min(train.image.shape[2:]) < 32:
            settings = replace(settings, channels=settings.channels[:3])
        network = self._segmenter(train, settings)
        samples = self.cases.samples
        if not self.cases.is_insertion:  # what is not observed of a patch are its other lesions
            samples = framed_as(samples, train, self.seed)
        found = agreement(as_segment(network), unseen, samples, self.words.labels, self.seed)
        return {
            "segmenter_steps": settings.steps,
            "train": len(train),
            "unseen": len(unseen),
            "synthetic": len(self.cases.samples),
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
        return copy_check(self.cases.samples, self.cases.train, self.cases.unseen)

    # -- pictures ---------------------------------------------------------------------------------

    def _draw(self, rows: Mapping[str, tuple[Tensor, Tensor]], name: str) -> None:
        """The first unseen cases, each row beside the others."""
        panels = []
        schemes = self.recipe.intensities.specs
        for case in range(min(DRAWN_CASES, len(self.cases.unseen))):
            for title, (image, mask) in rows.items():
                # Where a host sets the scale there is none here: from 0 to 1 will do.
                pairs = zip(schemes, image[case], strict=True)
                native = torch.stack([scheme.denormalize(x, (0.0, 1.0)) for scheme, x in pairs])
                label = mask[case, 0].numpy().astype("uint8")
                text = f"{self.cases.unseen.names[case]}   {title}"
                panels.append(Panel(text, native.numpy(), label, self.recipe.grid))
        if panels:
            contact_sheet(panels, self.recipe.channels, self.folder / name, columns=len(rows))


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
    config = read_json(path)
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
