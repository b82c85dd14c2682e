"""Training as one call: a thin front over a bundle's own ``train.json``, through MONAI's workflow.

Everything that can be wrong is looked for before the folder of the run is made: the settings, the
data list and every file that it names. If the networks cannot be built or the cases not be prepared
after that, the folder is removed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

from medvae3d import __version__
from medvae3d.apps.bundle_files import usable_device
from medvae3d.apps.console import Advance, duration, times
from medvae3d.apps.data_for_training import require_trainable
from medvae3d.apps.settings import (
    changed,
    parse_changes,
    read_settings,
    require_trainable_settings,
)
from medvae3d.apps.sources import is_system, require_source
from medvae3d.apps.surroundings import Reporter, Say, own_errors, quiet, stopping
from medvae3d.apps.systems import write_system_bundle
from medvae3d.apps.trained import (
    LACKING,
    read_contents,
    read_run,
    require_same_run,
    write_bundle,
    write_run,
)
from medvae3d.apps.trust import require_trusted
from medvae3d.data.datalists import SPLITS, DataList, read_datalist
from medvae3d.data.integrity import check
from medvae3d.data.locks import sole_writer
from medvae3d.data.stamps import (
    Stamps,
    changed_files,
    contents_of,
    require_same_contents,
    require_unchanged,
    stamps_of,
)
from medvae3d.errors import MedvaeError, MemoryLimitError, OutputError, causes
from medvae3d.evaluation.curves import CURVES, plot_run
from medvae3d.exhaustion import first_line, is_out_of_memory
from medvae3d.training.trouble import LatentWatch, TrainingWatch


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        folder: Its folder.
        steps: Steps taken in all, also by earlier runs.
        of_steps: Steps that a whole training takes.
        signal: Number of the signal that stopped it; ``None`` if it ended by itself.
    """

    folder: Path
    steps: int
    of_steps: int
    signal: int | None = None


def train(
    what: str | Path,
    datalist: str | Path,
    out: str | Path,
    *,
    like: str | Path | None = None,
    recipe: str | None = None,
    seed: int | None = None,
    resume: bool = False,
    device: str | None = None,
    changes: Sequence[str] = (),
    verbose: bool = False,
    say: Say = lambda text: None,
    advance: Advance | None = None,
) -> Outcome:
    """Trains a bundle, or a system by its name, on a data list.

    Args:
        what: Name of a system or of a shipped bundle, or the folder of any bundle.
        datalist: MONAI data list.
        out: Folder of the run, which is a bundle again afterwards.
        like: For a system: bundle whose channels, labels, voxels and attributes are taken; those
            that the cases have if not given.
        recipe: Name of a recipe of the bundle; its full training if not given.
        seed: Seed of all noise; that of ``train.json`` if not given.
        resume: Whether to go on with the run in the folder, if there is one.
        device: Where to train; a GPU where there is one, if not given.
        changes: ``KEY=VALUE`` texts that replace settings of ``train.json``.
        verbose: Whether to show what MONAI and ignite log.
        say: Told what a user may want to know, line by line.
        advance: Told about each step.

    Raises:
        BundleError: If the system or bundle is unknown or cannot be trained.
        SettingError: If a setting cannot be used, or is not that of the run to resume.
        OutputError: If the folder holds a run that is not to be resumed, or other files.
        DataListError: If the list has no case to train on, or one that cannot be trained on.
        MedvaeError: For whatever else is wrong with the data or happens in training.
    """
    folder = Path(out)
    source = require_source(what, like)
    found = read_run(folder)
    if found is not None and not resume:
        raise OutputError(
            f"{folder} holds a training run of {found.get('bundle')} already. Add --resume to go "
            f"on with it, or choose another folder for --out."
        )
    listed = read_datalist(datalist)
    if found is not None and not found.get("finished"):
        require_same_contents(read_contents(folder), listed, listed.root)
    stamps: Stamps = {}
    for case in listed:
        stamps |= stamps_of(case)
    asked: dict[str, Any] = {
        "bundle": None if found is not None and source == folder.resolve() else source.name,
        "like": None if like is None else Path(like).name,
        "recipe": recipe,
        "seed": seed,
        "cases_sha256": _fingerprint(listed),
    }
    with ExitStack() as stack:
        parts = None
        if found is None:
            report = None
            say(f"checking {len(listed)} cases")
            if is_system(what):
                report = check(listed)
                root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                source = root / source.name
                form = write_system_bundle(
                    source, source.name, listed, report, like=like, changes=changes
                )
                for line in form.notes:
                    say(line)
            original = read_settings(source, recipe)
            require_trainable_settings(original, source / "configs" / "train.json")
            parsed = parse_changes(changes, original)
            settings = changed(original, parsed | ({} if seed is None else {"seed": seed}))
            run = {**asked, "seed": settings.get("seed"), "settings": parsed}
            run |= _circumstances(listed)
            for line in require_trainable(listed, settings, None if like else report):
                say(line)
            contents = contents_of(listed, listed.root)
            parts = (source, settings, read_settings(source), listed, run, contents)
        else:
            settings = read_settings(folder)
            require_trainable_settings(settings, folder / "configs" / "train.json")
            parsed = parse_changes(changes, settings)
            asked["settings"] = parsed or None
            require_same_run(folder, found, asked)
            require_trusted(folder)
            run = found
            if found.get("finished"):
                say(f"{folder} has been trained to its end already; there is nothing to resume.")
                steps = settings["max_epochs"] * settings["epoch_length"]
                return Outcome(folder, steps, steps)
        job = _Job(folder, settings, listed, resume, device, say, advance)
        with (
            quiet(verbose),
            own_errors(
                lambda: bool(parsed) and not verbose and not job.can_resume, job.lack_of_memory
            ),
            job.folder_for(parts),
        ):
            job.prepare()
            require_unchanged(stamps)
            outcome = job.run()
            for path in changed_files(stamps):
                say(
                    f"note: {path} has changed or gone since the training began; what was learned "
                    f"is of what it held before"
                )
    if outcome.signal is None:
        # The weights are there; a picture that cannot be drawn is no reason to fail. It is drawn
        # first: a run that is finished has everything, whenever it was killed.
        with suppress(MedvaeError, OSError):
            plot_run(job.output, job.output / CURVES)
        write_run(folder, {**run, "finished": True})
    return outcome


class _Job:
    """A workflow on its way from configuration to weights."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        datalist: DataList,
        resume: bool,
        device: str | None,
        say: Say,
        advance: Advance | None,
    ) -> None:
        self.folder = folder
        self.say = say
        self.advance = advance
        # Relative paths in a configuration start from the working directory.
        self.changes: dict[str, Any] = {
            "bundle_root": str(folder.resolve()),
            "datalist": str(Path(str(datalist.path)).resolve()),
            "resume": resume,
        }
        if device is not None:
            self.changes["device"] = f"$torch.device({str(usable_device(device))!r})"
        handlers = settings["train"]["handlers"]
        self.parts = ["train", "validate"] if datalist.split("validation") else ["train"]
        if "validate" not in self.parts:
            say("no validation cases: nothing will be validated")
            self.changes["train#handlers"] = [
                each for each in handlers if "@validate" not in json.dumps(each)
            ]
        self.settings = settings
        self.workflow: Any = None
        self.trainer: Any = None
        self.output = folder / "eval"  # of learning curves

    @property
    def can_resume(self) -> bool:
        """Whether a state has been saved."""
        return (self.folder / "models" / "train_state.pt").exists()

    @contextmanager
    def folder_for(self, parts: Sequence[Any] | None) -> Iterator[None]:
        """Makes the folder of a new run; it is removed if the run fails with nothing saved.

        Args:
            parts: What `write_bundle` writes; ``None`` if the folder is there.

        Raises:
            OutputError: If it cannot be made, or another process writes it.
        """
        if parts is None:
            with sole_writer(self.folder):
                yield
            return
        is_new = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot be made: {error.strerror}. Choose another folder for --out."
            ) from error
        with sole_writer(self.folder):
            if read_run(self.folder) is not None:
                raise OutputError(
                    f"{self.folder} was begun by another process meanwhile. Choose another folder "
                    f"for --out."
                )
            with self._removed_on_failure(is_new):
                write_bundle(self.folder, *parts, name=self.folder.resolve().name)
                yield

    @contextmanager
    def _removed_on_failure(self, is_new: bool) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if not self.can_resume:
                shutil.rmtree(self.folder, ignore_errors=True)
                if not is_new:
                    self.folder.mkdir()
            raise

    def prepare(self) -> None:
        """Reads the cases and builds networks and trainer."""
        self.say("reading the cases")
        config = str(self.folder / "configs" / "train.json")
        self.workflow = ConfigWorkflow(
            config, logging_file=False, workflow_type="train", **self.changes
        )
        self.workflow.initialize()
        parser = self.workflow.parser
        self.trainer = parser.get_parsed_content("train#trainer")
        for part in self.parts:
            for handler in parser.get_parsed_content(f"{part}#handlers"):
                if isinstance(handler, LatentWatch | TrainingWatch):
                    handler.tell = self.say  # the log is held back, see `quiet`
        self._say_where_to_look(parser)

    def _say_where_to_look(self, parser: Any) -> None:
        curves = parser.get("output_dir") and parser.get_parsed_content("output_dir")
        if not curves:
            return
        self.output = Path(curves)
        look = f"{curves}/history.csv"
        if "validate" in self.parts:
            look += f", pictures in {curves}/grids"
        if parser.get("tensorboard") and parser.get_parsed_content("tensorboard"):
            look += f", or tensorboard --logdir {curves}"
        if parser.get("mlflow") and parser.get_parsed_content("mlflow"):
            uri = parser.get_parsed_content("mlflow_uri")
            look += f", or mlflow ui --backend-store-uri {uri}"
        self.say(f"to watch it: {look}")

    def lack_of_memory(self, error: BaseException) -> MedvaeError | None:
        """What to do where memory does not suffice: half the batch, the same gradient."""
        lack = next((each for each in causes(error) if is_out_of_memory(each)), None)
        if lack is None:
            return None
        batch = int(self.settings.get("batch_size", 1))
        steps = int(self.settings.get("accumulation_steps", 1))
        sides = self.settings.get("spatial_shape")
        shape = times(sides) if isinstance(sides, list) else "these"
        done = 0 if self.trainer is None else int(self.trainer.state.iteration)
        advice = (
            f"batch_size={batch // 2} accumulation_steps={2 * steps} takes about half of it for "
            f"the same gradient"
            if batch > 1
            else "a smaller spatial_shape, or fewer network_def#channels, takes less"
        )
        return MemoryLimitError(
            f"step {done}: memory does not suffice for batches of {batch} of {shape} voxels "
            f"({first_line(lack)}). Train anew in another folder: {advice}; precision=bfloat16 "
            f"helps as well. Where another program took the memory, end it and add --resume."
        )

    def run(self) -> Outcome:
        """Trains to the end, or to the first signal."""
        reporter = Reporter(self.trainer, self.say, self.advance)
        before = list(sys.path)
        try:
            with stopping(self.trainer, self.say) as stopped:
                self.workflow.run()
                self.workflow.finalize()
        finally:
            sys.path[:] = before  # MONAI adds the bundle's folder
            set_determinism(None)
        steps, total = int(self.trainer.state.iteration), reporter.total
        # A signal within the very last step comes too late to stop anything.
        if stopped and self.trainer.should_terminate:
            return Outcome(self.folder, steps, total, stopped[0])
        self.say(f"trained {steps - reporter.first} steps in {duration(reporter.watch.seconds)}")
        return Outcome(self.folder, steps, total)


def _fingerprint(datalist: DataList) -> str:
    """Hash of what is in a list: splits, and files relative to it with their sizes."""
    lines = [
        f"{case.split} {os.path.relpath(file, datalist.root)} {file.stat().st_size}"
        for case in datalist
        for file in case.files
    ]
    lines += [f"{case.name} lacks {case.missing}" for case in datalist if case.missing]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _circumstances(datalist: DataList) -> dict[str, Any]:
    """Versions and data that a run was begun with."""
    import monai

    lacking = sum(bool(case.missing) for case in datalist.split("training"))
    return {
        **({LACKING: lacking} if lacking else {}),
        "datalist": Path(str(datalist.path)).name,
        "cases": {split: len(datalist.split(split)) for split in SPLITS},
        # A study asks whether the generator has seen what it is judged on.
        "training_cases": [case.name for case in datalist.split("training")],
        "versions": {
            "medvae3d": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "monai": monai.__version__,
        },
    }
