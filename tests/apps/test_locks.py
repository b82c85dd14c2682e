"""Claims about two processes that want one folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import small_bundles as small

from medvae3d.apps.segmenter_bundle import write_segmenter
from medvae3d.data.locks import sole_writer
from medvae3d.errors import OutputError

HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_has_one_writer_and_a_killed_one_lets_go(tmp_path):
    call = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another process"), sole_writer(tmp_path):
            pass
        other.kill()
        other.wait()
    with sole_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_training_does_not_begin_in_a_folder_that_is_held(tmp_path):
    from medvae3d.apps.training import _Job

    job = object.__new__(_Job)
    job.folder = tmp_path
    with sole_writer(tmp_path):
        for parts in (None, ("never", "reached")):
            with pytest.raises(OutputError, match="another process"), job.folder_for(parts):
                pass
    assert list(tmp_path.iterdir()) == []


@contextmanager
def held(folder):
    """A folder that another process holds."""
    call = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            other.kill()


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """A bundle, its data list, and a segmenter for it as the MONAI Label application has one."""
    root = tmp_path_factory.mktemp("generator")
    bundle = small.small_copy("hippocampus_mri_hvae", root / "bundle")
    small.quick_training(bundle)
    cases = small.write_cases(root / "cases", small.read(bundle / "configs" / "train.json"))
    return bundle, write_segmenter(bundle, root / "segmenter"), cases


@pytest.mark.parametrize(
    ("kind", "part"),
    # A segmenter writes its weights alone.
    [("generator", "models"), ("generator", "eval"), ("segmenter", "models")],
)
def test_monai_trains_no_bundle_whose_folder_another_process_writes(generator, kind, part):
    """What `monai.bundle run` and MONAI Label call, whichever of the folders is shared."""
    root = generator[("generator", "segmenter").index(kind)]
    (root / part).mkdir(exist_ok=True)
    made = small.workflow(root / "configs" / "train.json", datalist=str(generator[2]))
    made.parser["train#trainer#max_epochs"] = 1
    trainer = made.parser.get_parsed_content("train#trainer")
    with held(root / part), pytest.raises(OutputError, match="another process") as caught:
        trainer.run()
    made.finalize()
    assert f"{root / part} is being written" in str(caught.value)
    assert "ckpt_dir and output_dir" in str(caught.value)
    assert trainer.state.iteration == 0
    assert list((root / part).iterdir()) == []


@pytest.mark.integration
def test_two_processes_of_monai_bundle_do_not_share_a_folder(generator, tmp_path):
    bundle, _, cases = generator
    root = shutil.copytree(bundle, tmp_path / "bundle")
    call = [
        sys.executable, "-m", "monai.bundle", "run", "--config_file",
        root / "configs" / "train.json", "--bundle_root", root, "--datalist", cases,
        "--device", "cpu", "--max_epochs",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env}
    with subprocess.Popen([*map(str, call), "100000"], **quiet) as first:
        try:
            end = time.monotonic() + 120
            while not (root / "models" / "train_state.pt").exists():
                assert first.poll() is None and time.monotonic() < end
                time.sleep(0.2)
            made = small.workflow(root / "configs" / "train.json", datalist=str(cases))
            with pytest.raises(OutputError, match="another process"):
                made.parser.get_parsed_content("train#trainer").run()
            assert first.poll() is None, "the first one goes on"
        finally:
            first.kill()
    made = small.workflow(root / "configs" / "train.json", datalist=str(cases), max_epochs=1)
    made.run()  # a killed one holds nothing
    made.finalize()
    assert (root / "models" / "model.pt").is_file()
