"""Claims about engines: the same results from all of them, and nothing lost with a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from medvae3d import spreading
from medvae3d.errors import LabelError, SettingError, WorkerError
from medvae3d.spreading import Here, OnRanks, OnRay, Processes, engine

TASKS = list(range(7))


@dataclass(frozen=True)
class Squares:
    """Work that leaves a line a task; a task may kill its worker, once or always, or raise."""

    log: Path
    kills: int = -1
    for_ever: bool = False
    raises: int = -1

    def __call__(self):
        return self.square

    def square(self, task):
        killed = self.log.with_suffix(".killed")
        if task == self.kills and (self.for_ever or not killed.exists()):
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task == self.raises:
            raise LabelError(f"task {task} has no label.")
        with self.log.open("a") as file:
            file.write(f"{task} {os.getpid()}\n")
        return task * task


def lines(path):
    """Tasks that were done, and the processes that did them."""
    rows = [line.split() for line in path.read_text().splitlines()]
    return sorted(int(task) for task, _ in rows), {pid for _, pid in rows}


def engines():
    return [
        pytest.param(Processes(2), marks=pytest.mark.integration, id="processes"),
        pytest.param(OnRay(2), marks=pytest.mark.integration, id="ray"),
    ]


def test_one_process_does_the_tasks_in_their_order(tmp_path):
    told = []
    found = Here().run(Squares(tmp_path / "log"), TASKS, lambda *each: told.append(each))
    assert found == [task * task for task in TASKS]
    assert told == list(zip(TASKS, found, strict=True))


def test_without_tasks_nothing_is_begun():
    def begin():
        raise AssertionError("begun for nothing")

    assert [where.run(begin, []) for where in (Here(), Processes(2), OnRay(2))] == [[], [], []]


@pytest.mark.parametrize("where", engines())
def test_a_killed_worker_s_task_is_done_again_and_none_twice(where, tmp_path):
    if isinstance(where, OnRay):
        pytest.importorskip("ray")
    found = where.run(Squares(tmp_path / "log", kills=3), TASKS)
    assert found == [task * task for task in TASKS]
    assert (tmp_path / "log.killed").exists(), "no worker was killed"
    done, processes = lines(tmp_path / "log")
    assert done == TASKS
    assert str(os.getpid()) not in processes


@pytest.mark.parametrize("where", engines())
def test_a_task_that_always_kills_its_worker_ends_the_run(where, tmp_path):
    if isinstance(where, OnRay):
        pytest.importorskip("ray")
    with pytest.raises(WorkerError, match="fewer workers"):
        where.run(Squares(tmp_path / "log", kills=0, for_ever=True), [0])


@pytest.mark.parametrize("where", [pytest.param(Here(), id="here"), *engines()])
def test_what_a_task_raises_reaches_the_caller(where, tmp_path):
    if isinstance(where, OnRay):
        pytest.importorskip("ray")
    with pytest.raises(LabelError, match="task 2 has no label"):
        where.run(Squares(tmp_path / "log", raises=2), TASKS)


@pytest.mark.integration
@pytest.mark.parametrize("state", ["works", "waits"])
def test_workers_of_a_killed_process_end(state, tmp_path):
    """Whether they are at a task or without one."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import sys, time\n"
        "from medvae3d.spreading import Processes\n"
        "class Long:\n"
        "    def __call__(self):\n"
        "        return self.work\n"
        "    def work(self, task):\n"
        "        print('begun', flush=True)\n"
        "        time.sleep(task)\n"
        "def done(task, result):\n"
        "    time.sleep(300)\n"
        "if __name__ == '__main__':\n"
        f"    Processes(1).run(Long(), [{300 if state == 'works' else 0}], done)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    call = [sys.executable, str(script)]
    with subprocess.Popen(call, env=env, stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout.readline() == b"begun\n"
            parent.kill()
            # Their standard output is that of the worker as well, so it ends with the last of them.
            assert parent.communicate(timeout=120)[0] == b""
        finally:
            parent.kill()


@pytest.mark.integration
def test_ranks_share_the_tasks_and_all_get_all_results(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_spreading import TASKS, Squares\n"
        "from medvae3d.spreading import engine\n"
        "where = engine()\n"
        "here = Path(sys.argv[1])\n"
        "found = where.run(Squares(here / f'log{where.rank}'), TASKS)\n"
        "(here / f'found{where.rank}').write_text(f'{found} {where.is_first}')\n"
    )
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*run, script, tmp_path], check=True, timeout=240, capture_output=True)
    squares = [task * task for task in TASKS]
    assert (tmp_path / "found0").read_text() == f"{squares} True"
    assert (tmp_path / "found1").read_text() == f"{squares} False"
    assert lines(tmp_path / "log0")[0] == TASKS[0::2]
    assert lines(tmp_path / "log1")[0] == TASKS[1::2]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, Here()),
        ({"workers": 3}, Processes(3)),
        ({"workers": 3, "ray_address": "local"}, OnRay(3)),
    ],
)
def test_engines_by_what_was_asked_for(settings, found):
    assert engine(**settings) == found


def test_under_torchrun_its_ranks_are_the_workers(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert engine() == OnRanks(2, 4)
    assert not engine().is_first
    for more in ({"workers": 2}, {"ray_address": "local"}):
        with pytest.raises(SettingError, match="Use one of them"):
            engine(**more)


def test_without_ray_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingError, match=r"medvae3d\[ray\]"):
        OnRay(1).run(Here, [1])


def test_ray_is_told_not_to_report_its_use(monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingError):
        OnRay(1).run(Here, [1])
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert spreading.LOCAL == "local"


@pytest.mark.integration
def test_more_workers_than_a_cluster_has_room_for_do_all_tasks(tmp_path):
    """The first has to give way to the second, whose task waits for a core."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        found = OnRay(2, cluster.address).run(Squares(tmp_path / "log"), TASKS)
        assert found == [task * task for task in TASKS]
        assert len(lines(tmp_path / "log")[1]) == 2
    finally:
        cluster.shutdown()


@pytest.mark.integration
def test_tasks_of_a_lost_machine_are_done_on_another(tmp_path):
    """Two nodes of a cluster, one of which goes while it works."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    quiet = {"include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **quiet})
    try:
        lost = cluster.add_node(num_cpus=1)
        gone = []

        def done(task, result):
            if not gone:
                gone.append(lost)
                cluster.remove_node(lost, allow_graceful=False)

        found = OnRay(2, cluster.address).run(Squares(tmp_path / "log"), TASKS, done)
        assert gone
        assert found == [task * task for task in TASKS]
    finally:
        cluster.shutdown()
