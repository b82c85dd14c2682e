"""Kills training and generation again and again, lets them go on, and compares the bytes.

    PYTHONPATH=.:tests .venv/bin/python tests/soak/kills.py --kills 50

One process imports everything and forks each run, so that a run costs what it computes. A run is
killed (SIGKILL) at a random moment, or at a chosen place: half into a file, before or after it
takes its name, between two files of a case. After each kill every file that has its name is looked
at: NIfTI unpacks to its check sum and loads in nibabel, pictures and checkpoints load, JSON is
whole, a record agrees with its mask, and each case is byte for byte that of the run that was not
killed. Then the same command runs again, until it ends; its folder has to be that of the
undisturbed run.
Leaves with 1 if anything differs, and prints what was done as JSON.
"""

from __future__ import annotations

import argparse
import builtins
import csv
import gzip
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import small_bundles as small
import tiny_bundles as tiny
import torch
from PIL import Image

from medvae3d.apps import bundle, cli, generate_command, training  # noqa: F401, for the forks
from medvae3d.data import nifti
from medvae3d.data.volumes import write_volume
from medvae3d.geometry import Grid
from medvae3d.training import checkpoints

KILLED, DONE = -signal.SIGKILL, 0
# A run of a few seconds that does not end in a minute hangs.
LONGEST = 300.0
Aim = Callable[[], None]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# -- places to be killed at ----------------------------------------------------------------------


def half_of(name: str, count: int = 1) -> Aim:
    """Half into the ``count``-th file of this name, while it has another name still."""

    def aim() -> None:
        left = [count]

        class Torn:
            def __init__(self, file: Any) -> None:
                self.file = file

            def __enter__(self) -> Torn:
                return self

            def __exit__(self, *error: Any) -> None:
                self.file.close()

            def writelines(self, parts: Any) -> None:
                whole = b"".join(parts)
                self.file.write(whole[: len(whole) // 2])
                self.file.flush()
                die()

        def opening(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
            opened = builtins.open(file, mode, *more, **options)  # noqa: SIM115
            if mode == "wb" and name in Path(file).name:
                left[0] -= 1
                if not left[0]:
                    return Torn(opened)
            return opened

        nifti.open = opening  # type: ignore[attr-defined]

    return aim


def half_of_checkpoint(count: int) -> Aim:
    """Half into the ``count``-th file of weights or state."""

    def aim() -> None:
        left, save = [count], torch.save

        def torn(state: object, file: Any) -> None:
            left[0] -= 1
            save(state, file)
            if not left[0]:
                file.flush()
                os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size // 2)
                die()

        checkpoints.torch.save = torn  # type: ignore[assignment]

    return aim


def renaming(name: str, *, after: bool, count: int = 1) -> Aim:
    """Just before or after the ``count``-th file of this name takes it."""

    def aim() -> None:
        left, replace = [count], os.replace

        def rename(source: Any, target: Any) -> None:
            is_it = name in Path(target).name
            left[0] -= is_it
            if is_it and not left[0] and not after:
                die()
            replace(source, target)
            if is_it and not left[0]:
                die()

        os.replace = rename  # type: ignore[assignment]

    return aim


def beginning(part: str) -> Aim:
    """While the folder of a training is being laid out."""

    def aim() -> None:
        from medvae3d.apps import trained

        setattr(trained, part, lambda *words, **options: die())

    return aim


TRAINING_AIMS = {
    "half a checkpoint": half_of_checkpoint(1),
    "half the second checkpoint": half_of_checkpoint(2),
    "half the weights": half_of_checkpoint(3),
    "before a checkpoint takes its name": renaming("train_state.pt", after=False, count=2),
    "after a checkpoint took its name": renaming("train_state.pt", after=True),
    "after the weights took their name": renaming("model.pt", after=True),
    "while the folder is laid out": beginning("_code_licence"),
    "before the run is written down": beginning("write_run"),
    "half the history": half_of("history.csv"),
    "before the end is written down": renaming("run.json", after=False, count=2),
}
GENERATION_AIMS = {
    "half a volume": half_of("_0000.nii.gz", 3),
    "half a mask": half_of("2.nii.gz"),
    "half a record": half_of(".json", 3),
    "between volume and mask": renaming("_0000.nii.gz", after=True, count=2),
    "between mask and record": renaming("3.json", after=False),
    "half the data list": half_of("dataset.json"),
    "half the picture": half_of("preview.png"),
}


# -- runs ----------------------------------------------------------------------------------------


def run(words: list[str], folder: Path, wait: float | None = None, aim: Aim | None = None) -> int:
    """Forks a command in a folder; kills it after some seconds, if it still runs then."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.chdir(folder)
            log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if aim is not None:
                aim()
            cli.app(words)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + (LONGEST if wait is None else wait)
    while True:
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if wait is None:
                raise SystemExit(f"{' '.join(words)} hangs: see {folder / 'log.txt'}")
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)


def named(folder: Path) -> dict[str, bytes]:
    """Every file with its own name; hidden ones are on their way."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def faults_of_files(folder: Path) -> list[str]:
    """What is not whole among the files that have their names."""
    faults = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            if path.name.endswith(".nii.gz"):
                gzip.decompress(path.read_bytes())
                np.asarray(nib.load(path).dataobj)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                for line in path.read_text().splitlines(keepends=True):
                    json.loads(line)
                    assert line.endswith("\n"), "a line without its end"
            elif path.suffix == ".pt":
                torch.load(path, weights_only=True)
            elif path.suffix == ".csv":
                rows = list(csv.reader(path.read_text().splitlines()))
                assert len({len(row) for row in rows}) == 1, "rows of several lengths"
            elif path.suffix == ".png":
                Image.open(path).load()
        except Exception as error:
            faults.append(f"{path.name}: {type(error).__name__}: {error}")
    return faults


def same(one: Any, other: Any) -> bool:
    """Whether two nested states hold the same, to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if torch.is_tensor(one) else bool(one == other)


class Trials:
    """Kills of one command.

    Args:
        words: The command, relative to a folder.
        again: The command that goes on.
        root: Where its runs lie.
        seed: Seed of the moments.
    """

    def __init__(
        self, name: str, words: list[str], again: list[str], root: Path, seed: int
    ) -> None:
        self.name, self.words, self.again, self.root = name, words, again, root / name
        self.random = random.Random(seed)
        self.faults: list[str] = []
        self.kills = self.aimed = self.trials = self.too_late = 0
        whole = self.fresh("whole")
        begun = time.monotonic()
        if run(self.words, whole) != DONE:
            raise SystemExit((whole / "log.txt").read_text())
        self.seconds = time.monotonic() - begun
        self.whole = named(whole / "out")

    def fresh(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True)
        return folder

    def trial(self, aim: tuple[str, Aim] | None, most: int) -> None:
        """Kills a run some times, lets it go on to the end, and compares."""
        self.trials += 1
        folder, words, what = self.fresh(f"trial{self.trials}"), self.words, "random"
        if aim is not None:
            what = aim[0]
            if run(words, folder, aim=aim[1]) != KILLED:
                self.faults.append(f"{self.name}, {what}: was not killed")
            self.kills += 1
            self.aimed += 1
            self.look(folder, what)
            words = self.again
        while self.random.random() < 0.5 or aim is None and words is self.words:
            if self.kills >= most:
                break
            if run(words, folder, self.random.uniform(0, self.seconds)) != KILLED:
                self.too_late += 1
                break
            self.kills += 1
            self.look(folder, "at a random moment")
            words = self.again
        if run(self.again, folder) != DONE:
            log = (folder / "log.txt").read_text().strip().splitlines()
            self.faults.append(f"{self.name}, {what}: did not go on: {log[-1:]}")
            return
        self.compare(folder / "out", what)
        if not self.faults:
            shutil.rmtree(folder)

    def look(self, folder: Path, what: str) -> None:
        self.faults += [f"{self.name}, {what}: {each}" for each in faults_of_files(folder / "out")]

    def compare(self, out: Path, what: str) -> None:
        made = named(out)
        differing = [n for n in {*made, *self.whole} if made.get(n) != self.whole.get(n)]
        left = hidden(out) + [n for n in hidden(out.parent) if n.startswith(".out")]
        self.faults += [f"{self.name}, {what}: {name} differs" for name in sorted(differing)]
        self.faults += [f"{self.name}, {what}: {name} is left" for name in left]

    def report(self) -> dict[str, Any]:
        return {
            "kills": self.kills,
            "aimed": self.aimed,
            "runs that ended before the kill": self.too_late,
            "trials": self.trials,
            "seconds of an undisturbed run": round(self.seconds, 2),
            "faults": self.faults,
        }


class Training(Trials):
    """The curves of a run that was killed may lack what was averaged when it was killed."""

    def compare(self, out: Path, what: str) -> None:
        for name, own in ((n, f) for n, f in self.whole.items() if n.endswith("history.csv")):
            steps = [row.split(b",")[0] for row in own.splitlines()]
            found = (out / name).read_bytes().splitlines()
            if [row.split(b",")[0] for row in found] != steps:
                self.faults.append(f"{self.name}, {what}: {name} lacks steps")
            (out / name).write_bytes(own)
        for name, own in ((n, f) for n, f in self.whole.items() if n.endswith("curves.png")):
            if not (out / name).is_file():
                self.faults.append(f"{self.name}, {what}: {name} is missing")
            (out / name).write_bytes(own)  # drawn of the history
        for name, own in ((n, f) for n, f in self.whole.items() if n.endswith("train_state.pt")):
            # The same values: of equal words, a state that was loaded has a copy more.
            states = [torch.load(io.BytesIO(each)) for each in (own, (out / name).read_bytes())]
            if not same(*states):
                self.faults.append(f"{self.name}, {what}: {name} holds other values")
            (out / name).write_bytes(own)
        super().compare(out, what)


class Generation(Trials):
    """Each file of a case is that of the undisturbed run, and its record tells of its mask."""

    def look(self, folder: Path, what: str) -> None:
        super().look(folder, what)
        out = folder / "out"
        for name, content in named(out).items():
            is_of_case = name.split("/")[0] in ("imagesTr", "labelsTr", "records")
            if is_of_case and content != self.whole[name]:
                self.faults.append(f"{self.name}, {what}: {name} is another one")
        for path in (out / "records").glob("*.json"):
            record = json.loads(path.read_text())
            mask = nib.load(out / "labelsTr" / f"{record['case']}.nii.gz")
            volume = (np.asarray(mask.dataobj) > 0).sum() * np.prod(mask.header.get_zooms()) / 1000
            told = record["checks"].get("volume_ml", volume)
            if not np.isclose(told, volume, rtol=1e-4):
                self.faults.append(f"{self.name}, {what}: {path.name} tells of {told} ml")


# -- what is run ---------------------------------------------------------------------------------


def training_words(root: Path) -> tuple[list[str], list[str]]:
    source = small.small_copy("hippocampus_mri_hvae", root / "source")
    content = small.read(source / "configs" / "train.json")
    for handler in content["train"]["handlers"]:
        if handler["_target_"].endswith("TrainStateSaver"):
            handler["every_steps"] = 5
    (source / "configs" / "train.json").write_text(json.dumps(content))
    cases = small.write_cases(root / "cases", content)
    words = ["train", str(source), "--datalist", str(cases), "--out", "out"]
    return words, [*words, "--resume"]


def generation_words(root: Path, *, into_host: bool, count: int = 5) -> tuple[list[str], list[str]]:
    loose = {"max_attempts": 200, "max_components": 10**6, "allow_border": True, "block_size": 2}
    if not into_host:
        made = tiny.write_bundle(root / "balls", **loose)
        words = ["generate", str(made), "--count", str(count), "--seed", "3", "--out", "out"]
        return words, words
    made = tiny.write_bundle(root / "stages", tiny.TWO_STAGE, **loose)
    grid, rng = Grid.centred((28,) * 3, tiny.SPACING), np.random.default_rng(0)
    points = np.stack(np.meshgrid(*[np.arange(28) - 13.5] * 3, indexing="ij"))
    body = np.square(points).sum(0) < 12.5**2
    hosts: list[str] = []
    for name, array, step in (
        ("pet", np.abs(1 + 0.2 * rng.standard_normal(body.shape)) * body, 0.005),
        ("ct", np.where(body, 40 + 20 * rng.standard_normal(body.shape), -1000), 1.0),
    ):
        path = root / f"{name}.nii.gz"
        write_volume(path, array.astype(np.float32), grid, slope=step)
        hosts += ["--host", str(path)]
    words = ["generate", str(made), *hosts, "--count", str(count), "--lesions", "1:2"]
    words += ["--seed", "3", "--out", "out"]
    return words, words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kills of each command")
    parser.add_argument("--what", default="training,generation,insertion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the runs; temporary if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = options.keep or Path(tempfile.mkdtemp(prefix="medvae3d-kills-"))
    reports = {}
    for name in options.what.split(","):
        place = root / f"{name}_inputs"
        place.mkdir(parents=True)
        if name == "training":
            trials: Trials = Training(name, *training_words(place), root, options.seed)
            aims = TRAINING_AIMS
        else:
            words = generation_words(place, into_host=name == "insertion")
            trials = Generation(name, *words, root, options.seed)
            aims = GENERATION_AIMS
        # Aimed ones at most half of the time; all kinds, where there are enough kills.
        order = random.Random(options.seed).sample(list(aims.items()), len(aims))
        while trials.kills < options.kills:
            aimed = order.pop() if order and trials.trials % 2 == 0 else None
            trials.trial(aimed, options.kills)
        reports[name] = trials.report()
        print(json.dumps({name: reports[name]}), flush=True)
    if options.keep is None:
        shutil.rmtree(root)
    return int(any(report["faults"] for report in reports.values()))


if __name__ == "__main__":
    raise SystemExit(main())
