"""What surrounds a training run: progress, signals, silence, and errors brought to light."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from ignite.engine import Engine, Events

from medvae3d.apps.console import Advance, Stopwatch, duration
from medvae3d.errors import MedvaeError, SettingError, causes
from medvae3d.exhaustion import explanation

Say: TypeAlias = Callable[[str], None]


class Reporter:
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
def stopping(trainer: Any, say: Say) -> Iterator[list[int]]:
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
def quiet(verbose: bool) -> Iterator[None]:
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
def own_errors(
    is_blamed: Callable[[], bool] = lambda: False,
    explain: Callable[[BaseException], MedvaeError | None] = lambda error: None,
) -> Iterator[None]:
    """Brings an error of ours to light that MONAI has wrapped into others.

    Args:
        is_blamed: Whether anything else that goes wrong is put down to settings of the user.
        explain: Words for what is no error of ours, such as a lack of memory.
    """
    try:
        yield
    except MedvaeError:
        raise
    except Exception as error:
        chain = list(causes(error))
        for each in chain:
            if isinstance(each, MedvaeError):
                raise each from None
        explained = explain(error) or explanation(error)
        if explained is not None:
            raise explained from error
        if is_blamed():
            first = chain[-1]
            raise SettingError(
                f"the training cannot be set up with these settings: {type(first).__name__}: "
                f"{(str(first).splitlines() or [''])[0]}. Correct or leave out KEY=VALUE; "
                f"--verbose shows where it failed."
            ) from error
        raise
