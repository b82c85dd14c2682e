"""Processes that end with the one that started them, however that one ends.

A process that is killed cannot end its children any more. So a child holds the reading end of a
pipe that nobody writes into: when its parent ends, the system closes the other end, and the child
sends itself SIGTERM. A training takes that as it takes it from a user, and saves its state.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

VARIABLE = "MEDVAE3D_LIFELINE"


@contextmanager
def lifeline() -> Iterator[dict[str, Any]]:
    """Options of `subprocess.Popen` for a child that calls `end_with_parent`.

    The child is told to end when the context is left, too, if it has not ended by then.
    """
    reading, writing = os.pipe()
    try:
        yield {"pass_fds": (reading,), "env": {**os.environ, VARIABLE: str(reading)}}
    finally:
        os.close(reading)
        os.close(writing)


def end_with_parent() -> None:
    """Ends this process, once it has a `lifeline`, when its parent ends or lets go of it.

    What a terminal sends to all processes of a command, as Ctrl-C does, goes to the parent alone
    from here on: told twice, a training would stop without saving.
    """
    number = os.environ.pop(VARIABLE, None)  # its own children are not held by it
    if number is None:
        return
    reading = int(number)
    os.set_inheritable(reading, False)
    os.setpgid(0, 0)
    end_after(lambda: os.read(reading, 1))


def end_after(wait: Callable[[], object]) -> None:
    """Sends SIGTERM to this process once a call has returned, which is made in a thread."""

    def watch() -> None:
        wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end_after", daemon=True).start()
