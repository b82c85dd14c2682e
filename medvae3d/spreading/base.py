"""What an engine promises, and the simplest one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from medvae3d.errors import WorkerError

Work = Callable[[Any], Any]
"""A task to its result; both picklable."""

Begin = Callable[[], Work]
"""Called once in each worker; picklable where there are several."""

Done = Callable[[Any, Any], None]
"""Told a task and its result, as each is done; in the order in which they end."""

# Deaths of workers in a row, without a task done in between, after which it is no accident.
MOST_DEATHS = 3


def ignored(task: Any, result: Any) -> None:
    """Is told a task and its result, and does nothing."""


class Engine(Protocol):
    """Does tasks, somewhere."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that puts together what all have made."""
        ...

    def run(self, begin: Begin, tasks: Sequence[Any], done: Done = ignored) -> list[Any]:
        """Does all tasks; results in the order of the tasks.

        Raises:
            MedvaeError: What a task raised; a `WorkerError` if workers die again and again.
        """
        ...


@dataclass
class Here:
    """One task after the other, in this process.

    Attributes:
        threads: Threads while they are done; as many as there are now by default.
    """

    threads: int | None = None
    is_first: bool = True

    def run(self, begin: Begin, tasks: Sequence[Any], done: Done = ignored) -> list[Any]:
        """See `Engine.run`."""
        if not tasks:
            return []
        with threads_of(self.threads):
            work = begin()
            results = []
            for task in tasks:
                results.append(work(task))
                done(task, results[-1])
        return results


@dataclass
class Deaths:
    """Counts workers that died in a row without a task done in between."""

    in_a_row: int = field(default=0)

    def count(self, *, has_done_some: bool) -> None:
        """Counts one more.

        Raises:
            WorkerError: If that is too many.
        """
        self.in_a_row = 1 if has_done_some else self.in_a_row + 1
        if self.in_a_row >= MOST_DEATHS:
            raise WorkerError(
                f"worker processes were killed {self.in_a_row} times in a row, and no task was "
                f"done in between. Most often memory does not suffice: ask for fewer workers. What "
                f"was done is kept; the same command goes on from there."
            )


def use_threads(threads: int) -> None:
    """Sets the threads of this process."""
    import torch

    torch.set_num_threads(threads)


@contextmanager
def threads_of(threads: int | None) -> Iterator[None]:
    """Sets the threads of this process for a while; leaves them be for ``None``."""
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
