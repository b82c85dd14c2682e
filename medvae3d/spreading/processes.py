"""Several processes of one machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from medvae3d.spreading.base import Begin, Deaths, Done, Work, ignored, use_threads
from medvae3d.spreading.lifeline import end_after


@dataclass
class Processes:
    """Several processes of this machine.

    Attributes:
        workers: How many.
        threads: Threads of each.
    """

    workers: int
    threads: int = 1
    is_first: bool = True

    def run(self, begin: Begin, tasks: Sequence[Any], done: Done = ignored) -> list[Any]:
        """See `Engine.run`."""
        results: dict[int, Any] = {}
        deaths = Deaths()
        while len(results) < len(tasks):
            before = len(results)
            left = [number for number in range(len(tasks)) if number not in results]
            try:
                self._round(begin, tasks, left, results, done)
            except BrokenProcessPool:
                deaths.count(has_done_some=len(results) > before)
        return [results[number] for number in range(len(tasks))]

    def _round(
        self,
        begin: Begin,
        tasks: Sequence[Any],
        left: Sequence[int],
        results: dict[int, Any],
        done: Done,
    ) -> None:
        # Forked processes inherit locks of torch's threads and may hang; spawned ones begin afresh.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(
            min(self.workers, len(left)),
            context,
            initializer=_begin,
            initargs=(begin, self.threads),
        )
        try:
            waiting: dict[Future[Any], int] = {
                pool.submit(_do_there, tasks[number]): number for number in left
            }
            while waiting:
                ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
                broken: BrokenProcessPool | None = None
                for future in ended:
                    number = waiting.pop(future)
                    try:
                        results[number] = future.result()
                    except BrokenProcessPool as error:
                        broken = error
                        continue
                    done(tasks[number], results[number])
                if broken is not None:
                    raise broken
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# What a worker process works with; set once when it begins.
_works: list[Work] = []


def _begin(begin: Begin, threads: int) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        end_after(parent.join)  # else workers of a killed process wait for tasks for ever
    use_threads(threads)
    _works[:] = [begin()]


def _do_there(task: Any) -> Any:
    return _works[0](task)
