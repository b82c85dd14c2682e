"""Workers of a Ray cluster."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medvae3d.errors import MedvaeError, SettingError, WorkerError
from medvae3d.spreading.base import Begin, Deaths, Done, Work, ignored, use_threads

# Seconds in which a worker on a cluster has to begin its work.
RAY_STARTS = 300.0
LOCAL = "local"
# Neither Ray nor what it brings reports its use.
QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


@dataclass
class OnRay:
    """Workers of a Ray cluster, on this machine or on others; needs ``medvae3d[ray]``.

    Attributes:
        workers: How many.
        address: Of a running cluster; ``local`` starts one on this machine and ends it.
        threads: Cores that each takes.
    """

    workers: int
    address: str = LOCAL
    threads: int = 1
    is_first: bool = True

    def run(self, begin: Begin, tasks: Sequence[Any], done: Done = ignored) -> list[Any]:
        """See `Engine.run`."""
        if not tasks:
            return []
        ray = _ray()
        self._connect(ray)
        try:
            return self._spread(ray, begin, tasks, done)
        finally:
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        os.environ.update({key: os.environ.get(key, value) for key, value in QUIET_RAY.items()})
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == LOCAL:
            cores = self.workers * self.threads
            options |= {"num_cpus": cores, "include_dashboard": False}
        try:
            ray.init(address=self.address, **options)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise SettingError(
                f"no Ray cluster answers at {self.address!r} ({type(error).__name__}). Start one "
                f"with `ray start --head`, or leave --ray-address out for one on this machine."
            ) from error

    def _spread(self, ray: Any, begin: Begin, tasks: Sequence[Any], done: Done) -> list[Any]:
        # Restarts are counted here rather than by Ray, so that a task that kills its workers ends.
        make = ray.remote(num_cpus=self.threads, max_restarts=0, max_task_retries=0)(_RayWorker)
        how = ray.put(begin)
        results: dict[int, Any] = {}
        left = list(range(len(tasks)))[::-1]
        flying: dict[Any, tuple[Any, int]] = {}
        deaths = Deaths()
        before = 0

        def send(worker: Any) -> None:
            if left:
                number = left.pop()
                flying[worker.do.remote(how, tasks[number])] = (worker, number)

        for _ in range(min(self.workers, len(tasks))):
            send(make.remote(self.threads))
        while flying:
            ready, _ = ray.wait(list(flying), num_returns=1, timeout=RAY_STARTS)
            if not ready and not results:
                raise WorkerError(
                    f"no worker on Ray has done anything in {RAY_STARTS:g} s. Compare "
                    f"`ray status` with {self.workers} workers of {self.threads} cores each, and "
                    f"ask for fewer."
                )
            for reference in ready:
                worker, number = flying.pop(reference)
                try:
                    results[number] = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, MedvaeError):
                        raise error.cause from None
                    raise
                except ray.exceptions.RayError:
                    deaths.count(has_done_some=len(results) > before)
                    before = len(results)
                    left.append(number)
                    send(make.remote(self.threads))
                    continue
                done(tasks[number], results[number])
                send(worker)
                del worker  # one without a task gives its cores to one that still waits for them
        return [results[number] for number in range(len(tasks))]


class _RayWorker:
    """An actor: begins its work with its first task, where what that raises is told."""

    def __init__(self, threads: int) -> None:
        use_threads(threads)
        self.work: Work | None = None

    def do(self, begin: Begin, task: Any) -> Any:
        if self.work is None:
            self.work = begin()
        return self.work(task)


def _ray() -> Any:
    os.environ.update({key: os.environ.get(key, value) for key, value in QUIET_RAY.items()})
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise SettingError(
            f"--ray needs Ray, which cannot be imported ({error}). Install it with "
            f"`pip install 'medvae3d[ray]'`, or use --workers on this machine."
        ) from error
