"""Claims about what goes wrong around a command: a sentence, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small_runs import train, weights_of

import medvae3d
from medvae3d.data import nifti
from medvae3d.data.locks import held_folder
from medvae3d.data.staging import staged_folder
from medvae3d.errors import MemoryLimitError, OutputError
from medvae3d.exhaustion import explained, is_out_of_memory
from medvae3d.synthesis import kinds
from medvae3d.synthesis.sharing import held_range
from medvae3d.training.players import ModelPlayer

CPU_LACK = "[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory"


def mounted(folder, options):
    """Whether a disk of its own is at a folder now."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return shutil.which("mount") and not subprocess.run(mount, capture_output=True).returncode


def may_mount():
    """Whether this user has the right to."""
    with tempfile.TemporaryDirectory() as folder:
        if found := mounted(folder, "size=8k"):
            subprocess.run(["umount", folder], check=True, capture_output=True)
        return found


# What a full disk comes to is also told by an error that is made, in the tests below without it.
needs_mount = pytest.mark.skipif(not may_mount(), reason="nothing may be mounted here")


@contextmanager
def disk(folder, options):
    """A disk of its own at a folder; yields what changes its options."""
    folder.mkdir()
    assert mounted(folder, options)
    try:
        yield lambda wish: subprocess.run(
            ["mount", "-o", f"remount,{wish}", str(folder)], check=True, capture_output=True
        )
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def files(folder):
    """Bytes of all files, also of those on their way; without what names the folder itself."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != "options.json"
    }


def generate(bundles, out, *words, bundle="balls", count=4):
    return ("generate", bundles / bundle, "--count", count, "--seed", 3, "--out", out, *words)


@pytest.fixture(scope="module")
def whole(cli, bundles, tmp_path_factory):
    out = tmp_path_factory.mktemp("faults") / "out"
    assert cli(*generate(bundles, out), "--device", "cpu").code == 0  # as in the tests below
    return files(out)


# -- a full disk, a folder that is read-only -----------------------------------------------------


@needs_mount
def test_generation_on_a_full_disk_goes_on_when_there_is_room(cli, bundles, whole, tmp_path):
    with disk(tmp_path / "disk", "size=52k") as changed:
        out = tmp_path / "disk" / "out"
        done = cli(*generate(bundles, out))
        assert done.code == 2 and "No space left on device" in done.error
        assert "room" in done.error and "Traceback" not in done.error
        for name, content in files(out).items():
            assert name == "dataset.json" or content == whole[name]
        changed("size=8m")
        assert cli(*generate(bundles, out)).code == 0
        assert files(out) == whole


@needs_mount
def test_training_on_a_full_disk_leaves_nothing_of_a_run_without_a_state(
    cli, trainable, cases, tmp_path
):
    with disk(tmp_path / "disk", "size=120k"):
        done = cli(*train(trainable, cases, tmp_path / "disk" / "run"))
        assert done.code == 2 and "train_state.pt cannot be written: No space left" in done.error
        assert list((tmp_path / "disk").iterdir()) == []


def test_a_disk_that_fills_up_in_training_keeps_the_last_state(
    cli, trainable, cases, weights, tmp_path, monkeypatch
):
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    done = cli(*train(trainable, cases, tmp_path / "run"))
    assert done.code == 2 and "What stood there is intact. Make room" in done.error
    monkeypatch.undo()
    assert not list((tmp_path / "run").rglob(".*"))
    done = cli(*train(trainable, cases, tmp_path / "run", "--resume"))
    assert done.code == 0 and "going on after step 2 of 4" in done.error
    assert weights_of(tmp_path / "run") == weights


@needs_mount
def test_no_half_line_is_appended_to_a_full_disk(tmp_path):
    from medvae3d.training.logs import append

    with disk(tmp_path / "disk", "size=8k"):
        path = tmp_path / "disk" / "history.csv"
        append(path, "step\n")
        with pytest.raises(OutputError, match="No space left"):
            append(path, "x" * 20000)
        assert path.read_text() == "step\n"


@needs_mount
def test_a_read_only_disk_is_refused_by_every_command_that_writes(
    cli, refused, bundles, trainable, cases, tmp_path
):
    with disk(tmp_path / "disk", "ro"):
        out = tmp_path / "disk" / "out"
        for words in (
            generate(bundles, out),
            train(trainable, cases, out),
            ("data", "import", cases, "--out", out),
            ("data", "phantom", "--count", 1, "--shape", "24,28,24", "--out", out),
            ("evaluate", "--real", cases, "--synthetic", cases, "--out", out),
            ("study", "segmentation", "--datalist", cases, "--arms", "real", "--out", out,
             "--bundle", bundles / "balls", "--split", "validation", "--steps", 1),
        ):  # fmt: skip
            done = cli(*words)
            assert done.code == 2, (words, done.error)
            assert "Read-only file system" in done.error, (words, done.error)
            assert not out.exists()


# -- too little memory ---------------------------------------------------------------------------


def small_memory(monkeypatch, most):
    fill = kinds.JointMaker.fill

    def filled(self, drafts, size):
        fill(self, drafts, size)  # noise is drawn before memory runs out
        if size > most:
            raise RuntimeError(CPU_LACK)

    monkeypatch.setattr(kinds.JointMaker, "fill", filled)


def test_smaller_batches_are_tried_where_memory_does_not_suffice(bundles, monkeypatch):
    """Masks are the same, and images to less than half a step of what is stored."""
    bundle = medvae3d.load_bundle(bundles / "balls")
    assert bundle.recipe.synthesis.block_size > 1
    enough = list(bundle.generate(3, 5))
    small_memory(monkeypatch, 1)
    for little, sample in zip(bundle.generate(3, 5), enough, strict=True):
        assert little.record["decoded_in_batches_of"] == 1
        assert "decoded_in_batches_of" not in sample.record
        assert torch.equal(little.label, sample.label)
        for channel, one, other in zip(
            bundle.recipe.channels, little.image, sample.image, strict=True
        ):
            assert float((one - other).abs().max()) < 0.5 * (channel.slope or 1)


def test_memory_for_not_even_one_sample_is_a_sentence(refused, bundles, tmp_path, monkeypatch):
    small_memory(monkeypatch, 0)
    error = refused(*generate(bundles, tmp_path / "out"), out=tmp_path / "out")
    assert "memory does not suffice to decode a single volume of 16 x 16 x 16" in error
    assert "--device" in error


def test_a_training_says_what_takes_half_of_the_memory(
    refused, trainable, cases, tmp_path, monkeypatch
):
    def play(self, turn, autocast):
        raise RuntimeError(CPU_LACK)

    monkeypatch.setattr(ModelPlayer, "play", play)
    error = refused(*train(trainable, cases, tmp_path / "run"), out=tmp_path / "run")
    assert "batches of 2 of 16 x 16 x 16 voxels" in error
    assert "batch_size=1 accumulation_steps=2" in error


def test_lack_of_memory_is_known_from_other_faults():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(OSError(errno.ENOMEM, ""))
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    with pytest.raises(MemoryLimitError, match="Ask for less at a time"), explained():
        raise RuntimeError(CPU_LACK)
    with pytest.raises(OutputError, match=r"a\.png cannot be written: No space"), explained():
        raise OSError(errno.ENOSPC, "No space left on device", "a.png")
    with pytest.raises(ZeroDivisionError), explained():
        raise ZeroDivisionError


# -- two processes on one folder -----------------------------------------------------------------


def test_indices_have_one_writer_and_others_may_share_the_folder(
    cli, refused, bundles, whole, tmp_path
):
    out = tmp_path / "out"
    with held_range(out, range(3, 9)):
        error = refused(*generate(bundles, out))
        assert "cases 3 to 8 are being written by another process" in error
        assert "asked for are 0 to 3" in error
        assert cli(*generate(bundles, out, count=3)).code == 0
    assert cli(*generate(bundles, out)).code == 0
    assert files(out) == whole


def test_what_a_killed_process_left_is_cleared_by_the_next(cli, bundles, whole, tmp_path):
    out = tmp_path / "out"
    names = (
        ".writing/0-7.lock",
        "records/.balls_s3_000005.json.1-1.tmp",
        "imagesTr/.balls_s3_000001_0000.nii.gz.1-1.tmp",
        ".dataset.json.1-1.tmp",
    )
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"half")
    assert cli(*generate(bundles, out)).code == 0
    assert files(out) == whole


def test_cases_that_are_whole_are_kept_and_damaged_ones_made_again(
    cli, bundles, whole, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    assert cli(*generate(bundles, out, count=3)).code == 0
    damaged = out / "imagesTr" / "balls_s3_000001_0000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    written, write = [], nifti.write_bytes
    monkeypatch.setattr(nifti, "write_bytes", lambda p, *c: (written.append(p.name), write(p, *c)))
    done = cli(*generate(bundles, out))
    assert "2 of them were there already, whole, and were not made again" in done.out
    assert {name.split("_s3_")[1][:6] for name in written if "_s3_" in name} == {"000001", "000003"}
    assert files(out) == whole


def test_ranges_that_are_written_at_the_same_time_give_the_whole(bundles, whole, tmp_path):
    bundle = medvae3d.load_bundle(bundles / "balls")
    faults = []

    def part(start):
        try:
            bundle.write(tmp_path / "out", 1, 3, start=start)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=part, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert files(tmp_path / "out") == whole


def test_reports_and_studies_have_one_writer(refused, bundles, cases, tmp_path):
    out = tmp_path / "out"
    with held_folder(out):
        for words in (
            ("evaluate", "--real", cases, "--synthetic", cases, "--out", out),
            ("study", "segmentation", "--datalist", cases, "--arms", "real", "--out", out,
             "--bundle", bundles / "balls", "--split", "validation"),
        ):  # fmt: skip
            assert "is being written by another process" in refused(*words, out=out)


def test_an_import_has_one_writer_and_leaves_nothing_of_killed_ones(refused, cli, cases, tmp_path):
    out = tmp_path / "out"
    words = ("data", "import", cases, "--out", out)
    left = tmp_path / ".out.999999999.tmp"
    left.mkdir()
    (left / "half").write_text("")
    with staged_folder(out) as folder:
        assert not left.exists()
        assert "is being written by another process" in refused(*words, out=out)
        assert folder.is_dir()
    out.rmdir()
    assert cli(*words).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
