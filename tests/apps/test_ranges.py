"""Claims about generation and evaluation by several workers: the bytes of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_bundles as tiny

from medvae3d.apps.bundle import load_bundle
from medvae3d.apps.evaluate import evaluate
from medvae3d.apps.generate_ranges import MOST_CASES, RangeWork, spans, write_ranges
from medvae3d.data.phantom import write_phantoms
from medvae3d.errors import OutputError
from medvae3d.spreading import Here, OnRay, Processes

COUNT, SEED, START = 11, 5, 3


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "balls": tiny.write_bundle(folder / "balls"),
        "stages": tiny.write_bundle(folder / "stages", tiny.TWO_STAGE),
    }


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("start", [0, 3, 64])
@pytest.mark.parametrize("count", [1, 7, 200])
@pytest.mark.parametrize("block", [1, 4, 8])
@pytest.mark.parametrize("workers", [1, 3])
def test_ranges_hold_every_case_once_and_are_cut_between_blocks(start, count, block, workers):
    found = spans(start, count, block, workers)
    cases = [index for first, size in found for index in range(first, first + size)]
    assert cases == list(range(start, start + count))
    assert all(first % block == 0 for first, _ in found[1:])
    assert max(size for _, size in found) <= MOST_CASES


def test_there_are_ranges_for_all_workers():
    assert len(spans(0, 400, 8, 4)) >= 4 * 3


@dataclass
class Backwards:
    """An engine that does the last range first, as a fast worker may."""

    is_first: bool = True

    def run(self, begin, tasks, done):
        for task in reversed(tasks):
            done(task, begin()(task))


@pytest.mark.parametrize("kind", ["balls", "stages"])
@pytest.mark.parametrize("engine", [Here(), Backwards()], ids=["in order", "backwards"])
def test_ranges_in_any_order_give_the_bytes_of_one_run(kind, engine, roots, tmp_path):
    bundle = load_bundle(roots[kind])
    whole = bundle.write(tmp_path / "whole", COUNT, SEED, start=START)
    out = tmp_path / "ranges"
    assert write_ranges(bundle, out, COUNT, SEED, {"start": START}, engine, 2)
    assert files(out) == files(whole)


def test_cases_that_are_there_are_not_made_again(roots, tmp_path, monkeypatch):
    bundle = load_bundle(roots["balls"])
    whole = bundle.write(tmp_path / "whole", COUNT, SEED)
    bundle.write(tmp_path / "part", 8, SEED)
    made = []
    write = type(bundle).write

    def counted(self, out, count, seed, **options):
        made.append((options["start"], count))
        return write(self, out, count, seed, **options)

    monkeypatch.setattr(type(bundle), "write", counted)
    write_ranges(bundle, tmp_path / "part", COUNT, SEED, {}, Here(), 1)
    assert sum(count for _, count in made) < COUNT
    assert min(start for start, _ in made) >= 4, made
    assert files(tmp_path / "part") == files(whole)


def test_a_folder_of_another_run_is_refused_before_any_worker_begins(roots, tmp_path):
    bundle = load_bundle(roots["balls"])
    bundle.write(tmp_path / "out", 1, SEED + 1)
    before = files(tmp_path / "out")
    with pytest.raises(OutputError, match="another run"):
        write_ranges(bundle, tmp_path / "out", COUNT, SEED, {}, Here(), 1)
    assert files(tmp_path / "out") == before


@dataclass(frozen=True)
class KilledOnce:
    """Work whose first worker is killed in the middle of a range."""

    work: RangeWork
    mark: Path

    def __call__(self):
        make = self.work()

        def killed(span):
            if span[0] > 0 and not self.mark.exists():
                self.mark.touch()
                self.work_half(make, span)
                os.kill(os.getpid(), signal.SIGKILL)
            return make(span)

        return killed

    def work_half(self, make, span):
        make((span[0], max(1, span[1] // 2)))


@pytest.mark.integration
@pytest.mark.parametrize("engine", [Processes(2), OnRay(2)], ids=["processes", "ray"])
def test_a_killed_worker_changes_no_byte(engine, roots, tmp_path, monkeypatch):
    if isinstance(engine, OnRay):
        pytest.importorskip("ray")
        # Workers of Ray import this module by themselves.
        places = [Path(__file__).parent.parent, *os.environ.get("PYTHONPATH", "").split(":")]
        monkeypatch.setenv("PYTHONPATH", ":".join(map(str, places)))
    bundle = load_bundle(roots["balls"])
    whole = bundle.write(tmp_path / "whole", 24, SEED)
    run = type(engine).run

    def with_a_death(self, begin, tasks, done):
        return run(self, KilledOnce(begin, tmp_path / "killed"), tasks, done)

    monkeypatch.setattr(type(engine), "run", with_a_death)
    write_ranges(bundle, tmp_path / "spread", 24, SEED, {}, engine, 2)
    assert (tmp_path / "killed").exists(), "no worker was killed"
    assert files(tmp_path / "spread") == files(whole)


@pytest.mark.integration
def test_ranks_of_torchrun_give_the_bytes_of_one_process(roots, tmp_path):
    whole = load_bundle(roots["balls"]).write(tmp_path / "whole", COUNT, SEED)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3",
        "-m", "medvae3d", "generate", roots["balls"], "--count", COUNT, "--seed", SEED,
        "--out", tmp_path / "ranks", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("11 cases from balls") == 1, "one rank tells"
    assert files(tmp_path / "ranks") == files(whole)


@pytest.mark.integration
def test_sections_by_workers_say_what_one_process_says(tmp_path):
    size = {"shape": (16, 18, 16), "spacing": (11.0, 11.0, 11.0), "lesions": (1, 2)}
    real = write_phantoms(tmp_path / "real", 10, 1, **size)
    made = write_phantoms(tmp_path / "made", 6, 2, **size)
    found = []
    for engine in (Here(1), Processes(2)):
        content = evaluate(
            real, made, sections="realism,diversity,masks", command="", engine=engine
        )
        del content["times"]
        found.append(json.dumps(content, sort_keys=True))
    assert found[0] == found[1]
