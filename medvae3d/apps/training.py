"""Training as one call: a thin front over a bundle's own ``train.json``, through MONAI's workflow.

Everything that can be wrong is looked for before the folder of the run is made: the settings, the
data list and every file that it names. If the networks cannot be built or the cases not be prepared
after that, the folder is removed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

from medvae3d import __version__
from medvae3d.apps.bundle import find_bundle
from medvae3d.apps.bundle_files import usable_device
from medvae3d.apps.console import Advance, Stopwatch, duration
from medvae3d.apps.data_for_training import require_trainable
from medvae3d.apps.settings import changed, parse_changes, read_settings
from medvae3d.apps.trained import read_run, require_same_run, write_bundle, write_run
from medvae3d.data.datalists import SPLITS, DataList, read_datalist
from medvae3d.errors import MedvaeError, OutputError, SettingError

Say = Callable[[str], None]


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
    bundle: str | Path,
    datalist: str | Path,
    out: str | Path,
    *,
    recipe: str | None = None,
    seed: int | None = None,
    resume: bool = False,
    device: str | None = None,
    changes: Sequence[str] = (),
    verbose: bool = False,
    say: Say = lambda text: None,
    advance: Advance | None = None,
) -> Outcome:
    """Trains a bundle on a data list.

    Args:
        bundle: Name of a shipped bundle, or the folder of any.
        datalist: MONAI data list.
        out: Folder of the run, which is a bundle again afterwards.
        recipe: Name of a recipe of the bundle; its full training if not given.
        seed: Seed of all noise; that of ``train.json`` if not given.
        resume: Whether to go on with the run in the folder, if there is one.
        device: Where to train; a GPU where there is one, if not given.
        changes: ``KEY=VALUE`` texts that replace settings of ``train.json``.
        verbose: Whether to show what MONAI and ignite log.
        say: Told what a user may want to know, line by line.
        advance: Told about each step.

    Raises:
        BundleError: If the bundle is unknown or cannot be trained.
        SettingError: If a setting cannot be used, or is not that of the run to resume.
        OutputError: If the folder holds a run that is not to be resumed, or other files.
        DataListError: If the list has no case to train on, or one that cannot be trained on.
        MedvaeError: For whatever else is wrong with the data or happens in training.
    """
    folder = Path(out)
    source = find_bundle(bundle)
    found = read_run(folder)
    if found is not None and not resume:
        raise OutputError(
            f"{folder} holds a training run of {found.get('bundle')} already. Add --resume to go "
            f"on with it, or choose another folder for --out."
        )
    listed = read_datalist(datalist)
    asked: dict[str, Any] = {
        "bundle": None if found is not None and source == folder.resolve() else source.name,
        "recipe": recipe,
        "seed": seed,
        "cases_sha256": _fingerprint(listed),
    }
    if found is None:
        settings = read_settings(source, recipe)
        parsed = parse_changes(changes, settings)
        settings = changed(settings, parsed | ({} if seed is None else {"seed": seed}))
        run = {**asked, "seed": settings.get("seed"), "settings": parsed, **_circumstances(listed)}
        say(f"checking {len(listed)} cases")
        for line in require_trainable(listed, settings):
            say(line)
    else:
        settings = read_settings(folder)
        parsed = parse_changes(changes, settings)
        asked["settings"] = parsed or None
        require_same_run(folder, found, asked)
        run = found
        if found.get("finished"):
            say(f"{folder} has been trained to its end already; there is nothing to resume.")
            steps = settings["max_epochs"] * settings["epoch_length"]
            return Outcome(folder, steps, steps)
    with _quiet(verbose), _own_errors(settings_given=bool(parsed)):
        job = _Job(folder, settings, listed, resume, device, say, advance)
        if found is None:
            parts = (source, settings, read_settings(source), listed, run)
            name = folder.resolve().name
            job.prepare_new(lambda part: write_bundle(part, *parts, name=name))
        else:
            job.prepare()
    with _quiet(verbose), _own_errors():
        outcome = job.run()
    if outcome.signal is None:
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
        if not datalist.split("validation"):
            say("no validation cases: nothing will be validated")
            self.changes["train#handlers"] = [
                each for each in handlers if "@validate" not in json.dumps(each)
            ]
        self.workflow: Any = None
        self.trainer: Any = None

    def prepare_new(self, write: Callable[[Path], None]) -> None:
        """Makes the folder and builds everything from it; if that fails, nothing of it is left."""
        is_new = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot be made: {error.strerror}. Choose another folder for --out."
            ) from error
        try:
            write(self.folder)
            self.prepare()
        except BaseException:
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
        self.trainer = self.workflow.parser.get_parsed_content("train#trainer")

    def run(self) -> Outcome:
        """Trains to the end, or to the first signal."""
        reporter = _Reporter(self.trainer, self.say, self.advance)
        before = list(sys.path)
        try:
            with _stopping(self.trainer, self.say) as stopped:
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


class _Reporter:
    """Tells how far a trainer is; each step to a bar, each epoch as a line where there is none."""

    def __init__(self, trainer: Any, say: Say, advance: Advance | None) -> None:
        self.say = say
        self.advance = advance
        self.watch = Stopwatch()
        self.first = 0
        state = trainer.state
        self.total = int(state.max_epochs) * int(state.epoch_length)
        trainer.add_event_handler(Events.STARTED, self._started)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)

    def _started(self, engine: Engine) -> None:
        self.watch = Stopwatch()
        self.first = int(engine.state.iteration)
        if self.first:
            self.say(f"going on after step {self.first} of {self.total}")
        if self.advance is not None:
            self.advance(self.first, self.total, "")

    def _step(self, engine: Engine) -> None:
        done = int(engine.state.iteration)
        if self.advance is not None:
            loss = engine.state.output["loss"]  # type: ignore[index]
            words = "fitting the prior" if done == self.total else f"loss {loss:.4g}"
            self.advance(done, self.total, words)

    def _epoch(self, engine: Engine) -> None:
        if self.advance is not None:
            return
        done = int(engine.state.iteration)
        left = self.watch.seconds / max(1, done - self.first) * (self.total - done)
        loss = engine.state.output["loss"]  # type: ignore[index]
        self.say(
            f"epoch {engine.state.epoch}/{engine.state.max_epochs}, step {done}/{self.total}, "
            f"loss {loss:.4g}, {duration(left)} left"
        )


@contextmanager
def _stopping(trainer: Any, say: Say) -> Iterator[list[int]]:
    """Lets the first interruption end the step and save the state, and a second one end it all."""
    caught: list[int] = []
    is_running = False

    def start(engine: Engine) -> None:
        nonlocal is_running
        is_running = True

    def end_step(engine: Engine) -> None:
        # The last step of an epoch is followed by its validation, which belongs to it.
        if caught and engine.state.iteration % int(engine.state.epoch_length or 1):
            engine.terminate(skip_completed=True)

    def end_epoch(engine: Engine) -> None:
        nonlocal is_running
        is_running = engine.state.epoch < int(engine.state.max_epochs or 0)
        if caught and is_running:
            engine.terminate(skip_completed=True)

    def stop(number: int, frame: Any) -> None:
        # Before the first step there is nothing to save, after the last one it is saved.
        if caught or not is_running:
            raise KeyboardInterrupt
        caught.append(number)
        say("stopping after this step; once more to stop at once, without saving")

    trainer.add_event_handler(Events.STARTED, start)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, end_step)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, end_epoch)
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may take signals
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Holds back what MONAI, ignite and torch log and warn of; errors come as exceptions."""
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _own_errors(settings_given: bool = False) -> Iterator[None]:
    """Brings an error of ours to light that MONAI has wrapped into others.

    Args:
        settings_given: Whether the user changed settings; whatever else goes wrong while the
            configuration is built is then put down to them.
    """
    try:
        yield
    except MedvaeError:
        raise
    except Exception as error:
        chain = list(_causes(error))
        for each in chain:
            if isinstance(each, MedvaeError):
                raise each from None
        if settings_given:
            first = chain[-1]
            raise SettingError(
                f"the training cannot be set up with these settings: {type(first).__name__}: "
                f"{(str(first).splitlines() or [''])[0]}. Correct or leave out KEY=VALUE."
            ) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _fingerprint(datalist: DataList) -> str:
    """Hash of what is in a list: splits, and files relative to it with their sizes."""
    lines = [
        f"{case.split} {os.path.relpath(file, datalist.root)} {file.stat().st_size}"
        for case in datalist
        for file in case.files
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _circumstances(datalist: DataList) -> dict[str, Any]:
    """Versions and data that a run was begun with."""
    import monai

    return {
        "datalist": Path(str(datalist.path)).name,
        "cases": {split: len(datalist.split(split)) for split in SPLITS},
        "versions": {
            "medvae3d": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "monai": monai.__version__,
        },
    }
