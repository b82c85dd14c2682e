"""A round of generative active learning.

The generator is trained on what people labelled, synthesises around scans that the segmenter is
uncertain of, and the segmenter is trained on the real pairs and on those of the synthetic ones that
are no copies. The safeguards:

- Real cases that were held out stay held out, and nothing is made from them.
- There are never more synthetic than real training cases.
- Candidates that lie nearer to a real scan than such do to each other are dropped.
- A generator that explains held-out cases worse, or mostly makes near-copies, and a segmenter that
  finds less in held-out cases give way to the weights from before. What a segmenter was taken back
  for goes with it.
- After a round that was taken back, there is none until another case has been labelled.

Each round leaves a report in ``rounds/`` of the application.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.train import TrainTask

from medvae3d.apps.label import save_volume
from medvae3d.apps.label_app.datastore import SYNTHETIC, SafeDatastore
from medvae3d.apps.label_app.scoring import WeightsScoring
from medvae3d.apps.label_app.training import PairTraining, split_pairs, usable_synthetic
from medvae3d.apps.label_scores import GeneratorJudge, SegmenterJudge
from medvae3d.data.nifti import write_bytes
from medvae3d.errors import MedvaeError, SettingError
from medvae3d.seeding import derive_seed
from medvae3d.studies.active_learning import pick, room_for
from medvae3d.synthesis.conditions import VolumeRequest
from medvae3d.synthesis.generator import Sample

logger = logging.getLogger(__name__)

# Share of near-copies among candidates from which a generator that was just trained is taken back.
MOST_COPIES = 0.5


@dataclass(frozen=True)
class Candidates:
    """What the generator made, and what of it is to be kept.

    Attributes:
        samples: Each with the files of its image and mask.
        rows: Of those to keep.
        near_copies: Share of the candidates that is too near to a real scan.
        facts: For the report.
    """

    samples: list[tuple[Sample, Path, Path]]
    rows: list[int]
    near_copies: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class RoundSettings:
    """What a round may be asked.

    Attributes:
        seed: Seed of all.
        candidates: Samples to make.
        keep: Most of them to keep.
        around: Most uncertain scans to synthesise around.
        generator_epochs: Epochs of the generator; 0 leaves it as it is.
        segmenter_epochs: Epochs of the segmenter.
        epoch_length: Steps of an epoch of either; 0 for what each bundle has.
        tolerance: By how much the Dice of held-out cases may fall.
        near_percent: See `medvae3d.studies.active_learning.pick`.
    """

    seed: int = 0
    candidates: int = 12
    keep: int = 4
    around: int = 3
    generator_epochs: int = 1
    segmenter_epochs: int = 10
    epoch_length: int = 0
    tolerance: float = 0.01
    near_percent: float = 1.0

    @classmethod
    def read(cls, request: Mapping[str, Any]) -> RoundSettings:
        """Reads them from a request; other entries are left alone.

        Raises:
            SettingError: If one is not of its kind, or below 0.
        """
        given = {}
        for name, default in cls().__dict__.items():
            value = request.get(name, default)
            try:
                number = type(default)(value)
                if number < 0 or (isinstance(default, int) and number != float(value)):
                    raise ValueError(value)
            except (TypeError, ValueError) as error:
                kind = "a whole number" if isinstance(default, int) else "a number"
                raise SettingError(
                    f"{name} is {value!r}; allowed is {kind} from 0 on. Correct the request."
                ) from error
            given[name] = number
        return cls(**given)


class GenerativeRound(TrainTask):
    """See the module.

    Args:
        app_dir: Folder of the application.
        generator: Task that trains the generator.
        segmenter: Task that trains the segmenter.
        scorings: Run over the unlabelled scans at the end.
    """

    def __init__(
        self,
        app_dir: Path,
        generator: PairTraining,
        segmenter: PairTraining,
        scorings: Sequence[WeightsScoring],
    ) -> None:
        super().__init__("Generative active learning: one round of training and synthesis")
        self.generator, self.segmenter, self.scorings = generator, segmenter, tuple(scorings)
        self.generator_root = Path(generator.bundle_path)
        self.segmenter_root = Path(segmenter.bundle_path)
        self.reports = app_dir / "rounds" / self.generator_root.name

    def config(self) -> dict[str, Any]:
        return dict(RoundSettings().__dict__)

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        settings = RoundSettings.read(request)
        if not isinstance(datastore, SafeDatastore):
            raise SettingError(
                "a round adds images to the studies, which a DICOMweb server does not take. Start "
                "the server on a folder."
            )
        training, validation = split_pairs(datastore)
        if len(training) < 2 or not validation:
            raise SettingError(
                f"there are {len(training) + len(validation)} labelled cases; a round needs 3, one "
                f"of which is held out. Label more, and save them as final."
            )
        number = self._require_new_cases(training, validation)
        report: dict[str, Any] = {
            "round": number,
            "settings": settings.__dict__,
            "training": [pair["id"] for pair in training],
            "validation": [pair["id"] for pair in validation],
        }
        with tempfile.TemporaryDirectory() as name, _kept_weights(self.generator_root) as take_back:
            trained = self._train_generator(settings, training, validation, take_back)
            made = self._candidates(settings, number, datastore, training, validation, Path(name))
            if trained["accepted"] and made.near_copies > MOST_COPIES:
                take_back()
                trained |= {"accepted": False, "near_copies": made.near_copies}
                made = self._candidates(
                    settings, number, datastore, training, validation, Path(name)
                )
            report["generator"] = trained
            report |= {**made.facts, "kept": self._store(made, number, datastore)}
        report["segmenter"] = self._train_segmenter(settings, datastore, training, validation)
        if not report["segmenter"]["accepted"]:
            for name in report["kept"]:
                datastore.remove_image(name)
            report["kept"] = []
        for scoring in self.scorings:
            try:
                report[scoring.name] = scoring({}, datastore)
            except MedvaeError as error:  # for instance a segmenter without weights
                report[scoring.name] = str(error)
        self.reports.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1).encode() + b"\n"
        write_bytes(self.reports / f"round_{number}.json", text)
        logger.info("round %d: %s", number, json.dumps(report["segmenter"]))
        return report

    def _require_new_cases(self, *pairs: Sequence[Mapping[str, Any]]) -> int:
        done = sorted(self.reports.glob("round_*.json"), key=lambda path: int(path.stem[6:]))
        if not done:
            return 1
        last = json.loads(done[-1].read_text(encoding="utf-8"))
        now = {pair["id"] for part in pairs for pair in part}
        if not last["segmenter"]["accepted"] and now <= {*last["training"], *last["validation"]}:
            raise SettingError(
                f"round {last['round']} was taken back, since held-out cases were found less well "
                f"after it, and no case has been labelled since. Label more before the next."
            )
        return int(last["round"]) + 1

    # -- the steps ----------------------------------------------------------------------------

    def _train_generator(
        self, settings: RoundSettings, training: Any, validation: Any, take_back: Any
    ) -> dict[str, Any]:
        if not settings.generator_epochs:
            return {"trained": False, "accepted": False}
        judged = GeneratorJudge.load(self.generator_root)
        before = judged.misfit(validation) if judged.is_joint else None
        self.generator.fit(
            training,
            validation,
            max_epochs=settings.generator_epochs,
            epoch_length=settings.epoch_length,
        )
        after = None
        if before is not None:
            after = GeneratorJudge.load(self.generator_root).misfit(validation)
        is_better = before is None or after is None or after <= before
        if not is_better:
            take_back()
        return {"trained": True, "before": before, "after": after, "accepted": is_better}

    def _candidates(
        self,
        settings: RoundSettings,
        number: int,
        store: SafeDatastore,
        training: list[Any],
        validation: list[Any],
        folder: Path,
    ) -> Candidates:
        """Makes candidates around uncertain scans and picks some."""
        judge = GeneratorJudge.load(self.generator_root)
        around, volumes = self._uncertain(settings, store)
        room = room_for(
            len(training), len(usable_synthetic(store, training, validation)), settings.keep
        )
        made: list[tuple[Sample, Path, Path]] = []
        if room:
            seed = derive_seed(settings.seed, "round", number) % 2**31
            for index, sample in self._samples(judge, settings, seed, volumes, training):
                place = np.array(sample.grid.affine)
                image = folder / f"{index}.nii.gz"
                label = folder / f"{index}_mask.nii.gz"
                save_volume(sample.image, image, np.float32, place)
                save_volume(sample.label, label, np.uint8, place)
                made.append((sample, image, label))
        facts: dict[str, Any] = {"around": around, "room": room, "candidates": len(made)}
        rows, near = list(range(min(room, len(made)))), 0.0
        # A scan with a lesion put into it is near to that scan: there it says nothing.
        if made and judge.bundle.recipe.synthesis.kind != "insertion":
            others = [name for name in store.get_unlabeled_images() if name not in around]
            scans = [store.get_image_uri(name) for name in (*around, *others)]
            real = judge.features([*scans, *(pair["image"] for pair in training)])
            mine = judge.features([str(image) for _, image, _ in made])
            picked = pick(mine, real, real[: len(around)], room, settings.near_percent)
            rows, near = picked.rows, picked.near_copies
            facts |= {"near_copies": near, "copy_limit": picked.limit}
        return Candidates(made, rows, near, facts)

    def _store(self, made: Candidates, number: int, store: SafeDatastore) -> list[str]:
        """Adds what is kept to the studies."""
        kept = []
        for row in made.rows:
            sample, image, label = made.samples[row]
            info = {
                "synthetic": True,
                "source": sample.record.get("host", {}).get("name"),
                "model": self.generator_root.name,
                "seed": sample.record["seed"],
                "index": sample.record["index"],
                "round": number,
            }
            name = f"synthetic_r{number}_{row:03d}"
            store.add_image(name, str(image), dict(info))
            store.save_label(name, str(label), SYNTHETIC, dict(info))
            kept.append(name)
        return kept

    def _uncertain(
        self, settings: RoundSettings, store: SafeDatastore
    ) -> tuple[list[str], list[Mapping[str, float]]]:
        """The scans that the segmenter is most uncertain of, and the volumes it finds there."""
        names = store.get_unlabeled_images()
        if not (self.segmenter_root / "models" / "model.pt").is_file():
            return [], []
        judge = SegmenterJudge.load(self.segmenter_root)
        found = []
        for name in names:
            try:
                found.append((judge.find(store.get_image_uri(name)), name))
            except MedvaeError as error:
                logger.error("%s left out: %s", name, error)
        found.sort(key=lambda entry: -entry[0].uncertainty)
        top = found[: settings.around]
        return [name for _, name in top], [each.volume_ml for each, _ in top]

    def _samples(
        self,
        judge: GeneratorJudge,
        settings: RoundSettings,
        seed: int,
        volumes: list[Mapping[str, float]],
        training: list[Any],
    ) -> Iterator[tuple[int, Sample]]:
        """Candidates of the volumes of the uncertain scans in turn; hosts are training cases."""
        bundle = judge.bundle
        options: dict[str, Any] = {}
        if bundle.recipe.synthesis.kind == "insertion":
            options["hosts"] = [pair["image"] for pair in training]
            options["host_labels"] = [pair["label"] for pair in training]
        for index in range(settings.candidates):
            wanted = self._volume(judge, volumes[index % len(volumes)]) if volumes else None
            try:
                yield (
                    index,
                    next(bundle.generate(1, seed, start=index, volume_ml=wanted, **options)),
                )
            except MedvaeError as error:
                logger.warning("candidate %d left out: %s", index, error)

    @staticmethod
    def _volume(judge: GeneratorJudge, found: Mapping[str, float]) -> VolumeRequest:
        """The volume of a scan, a fifth up and down, as far as the training set reaches."""
        recipe, statistics = judge.bundle.recipe, judge.bundle.statistics
        called = {str(value): name for name, value in recipe.labels.items()}
        ranges: dict[str, tuple[float, float]] = {}
        for attribute in recipe.synthesis.volume_attributes:
            label = called.get(attribute.partition(":")[2], "")
            ml = found[label] if label else sum(found.values())
            if attribute not in statistics.names or ml <= 0:
                return None
            column = statistics.names.index(attribute)
            low, high = (float(edge[column].exp()) for edge in (statistics.low, statistics.high))
            ranges[label] = (min(max(ml * 0.8, low), high), min(max(ml * 1.25, low), high))
        return ranges.get("", ranges or None)

    def _train_segmenter(
        self, settings: RoundSettings, store: SafeDatastore, training: Any, validation: Any
    ) -> dict[str, Any]:
        has_weights = (self.segmenter_root / "models" / "model.pt").is_file()
        before = SegmenterJudge.load(self.segmenter_root).dice(validation) if has_weights else None
        made = usable_synthetic(store, training, validation)
        with _kept_weights(self.segmenter_root) as take_back:
            self.segmenter.fit(
                [*training, *made],
                validation,
                max_epochs=settings.segmenter_epochs,
                epoch_length=settings.epoch_length,
            )
            after = SegmenterJudge.load(self.segmenter_root).dice(validation)
            is_better = before is None or after >= before - settings.tolerance
            if not is_better:
                take_back()
        return {
            "real": len(training),
            "synthetic": len(made),
            "dice_before": before,
            "dice_after": after,
            "accepted": is_better,
        }


@contextmanager
def _kept_weights(root: Path) -> Iterator[Any]:
    """Keeps the weights of a bundle to go back to, also after an error."""
    weights = root / "models" / "model.pt"
    kept = weights.with_name("model_before_round.pt")
    kept.unlink(missing_ok=True)
    if weights.is_file():
        shutil.copy2(weights, kept)

    def take_back() -> None:
        if kept.is_file():
            shutil.copy2(kept, weights.with_name(".model.part"))
            weights.with_name(".model.part").replace(weights)

    try:
        yield take_back
    except BaseException:
        take_back()
        raise
    finally:
        kept.unlink(missing_ok=True)
