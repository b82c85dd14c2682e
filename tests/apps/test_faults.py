"""Claims about what goes wrong around a command: a sentence, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import medvae3d
from medvae3d.apps import training
from medvae3d.data import nifti
from medvae3d.data.locks import held_folder
from medvae3d.data.staging import staged_folder
from medvae3d.data.stamps import require_unchanged, stamps_of
from medvae3d.errors import MemoryLimitError, OutputError, UnreadableFileError
from medvae3d.exhaustion import explained, is_out_of_memory
from medvae3d.synthesis import makers
from medvae3d.synthesis.sharing import held_range
from medvae3d.training.players import ModelPlayer

CPU_LACK = "[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory"


@contextmanager
def disk(folder, options):
    """A disk of its own at a folder; yields what changes its options. Skipped without the right."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
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


def train(trainable, cases, out, *words):
    return ("train", trainable, "--datalist", cases, "--out", out, "--recipe", "small", *words)


@pytest.fixture(scope="module")
def whole(cli, bundles, tmp_path_factory):
    out = tmp_path_factory.mktemp("faults") / "out"
    assert cli(*generate(bundles, out)).code == 0
    return files(out)


@pytest.fixture(scope="module")
def weights(cli, trainable, cases, tmp_path_factory):
    out = tmp_path_factory.mktemp("faults") / "run"
    assert cli(*train(trainable, cases, out)).code == 0
    return (out / "models" / "model.pt").read_bytes()


def weights_of(folder):
    return (folder / "models" / "model.pt").read_bytes()


# -- a full disk, a folder that is read-only -----------------------------------------------------


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


def test_no_half_line_is_appended_to_a_full_disk(tmp_path):
    from medvae3d.training.logs import append

    with disk(tmp_path / "disk", "size=8k"):
        path = tmp_path / "disk" / "history.csv"
        append(path, "step\n")
        with pytest.raises(OutputError, match="No space left"):
            append(path, "x" * 20000)
        assert path.read_text() == "step\n"


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
    fill = makers.JointMaker.fill

    def filled(self, drafts, size):
        fill(self, drafts, size)  # noise is drawn before memory runs out
        if size > most:
            raise RuntimeError(CPU_LACK)

    monkeypatch.setattr(makers.JointMaker, "fill", filled)


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


# -- what changes under a training ---------------------------------------------------------------


def stop_at_step_3(monkeypatch):
    update = ModelPlayer._update

    def broken(self, loss, turn):
        update(self, loss * float("nan") if turn.step == 3 else loss, turn)

    monkeypatch.setattr(ModelPlayer, "_update", broken)


def test_not_a_number_in_the_middle_keeps_the_last_state(
    cli, trainable, cases, weights, tmp_path, monkeypatch
):
    stop_at_step_3(monkeypatch)
    done = cli(*train(trainable, cases, tmp_path / "run"))
    assert done.code == 2 and "step 3: the gradient of model is not finite" in done.error
    assert "the last checkpoint is intact" in done.error
    monkeypatch.undo()
    assert cli(*train(trainable, cases, tmp_path / "run", "--resume")).code == 0
    assert weights_of(tmp_path / "run") == weights


def test_a_file_that_vanishes_after_it_was_checked_is_named(
    refused, trainable, cases, tmp_path, monkeypatch
):
    folder = shutil.copytree(cases.parent, tmp_path / "data")
    check, gone = training.require_trainable, folder / "labels" / "ball_001_gtv.nii.gz"

    def vanish(*words):
        found = check(*words)
        gone.unlink()
        return found

    monkeypatch.setattr(training, "require_trainable", vanish)
    out = tmp_path / "run"
    error = refused(*train(trainable, folder / "datalist.json", out), out=out)
    assert "ball_001_gtv.nii.gz" in error and "put the files there" in error
    assert not out.exists()


def test_a_file_that_changes_before_it_is_read_is_refused(
    refused, trainable, cases, tmp_path, monkeypatch
):
    folder = shutil.copytree(cases.parent, tmp_path / "data")
    check, changed = training.require_trainable, folder / "images" / "ball_001_ct.nii.gz"

    def change(*words):
        found = check(*words)
        shutil.copyfile(folder / "images" / "ball_002_ct.nii.gz", changed)
        return found

    monkeypatch.setattr(training, "require_trainable", change)
    out = tmp_path / "run"
    error = refused(*train(trainable, folder / "datalist.json", out), out=out)
    assert "ball_001_ct.nii.gz has changed since the training began" in error


def test_a_file_that_changes_after_it_was_read_is_told_at_the_end(
    cli, trainable, cases, weights, tmp_path, monkeypatch
):
    folder = shutil.copytree(cases.parent, tmp_path / "data")
    update, changed = ModelPlayer._update, folder / "labels" / "ball_003_gtv.nii.gz"

    def change(self, loss, turn):
        update(self, loss, turn)
        shutil.copyfile(folder / "labels" / "ball_002_gtv.nii.gz", changed)

    monkeypatch.setattr(ModelPlayer, "_update", change)
    done = cli(*train(trainable, folder / "datalist.json", tmp_path / "run"))
    assert done.code == 0
    assert f"note: {changed} has changed or gone since the training began" in done.error
    assert weights_of(tmp_path / "run") == weights, "what was read is what was learned"


def test_a_file_that_changes_between_two_parts_of_a_run_is_named(
    cli, refused, trainable, cases, weights, tmp_path, monkeypatch
):
    """Of the same size, so that its content alone tells; touched and copied files pass."""
    folder, out = shutil.copytree(cases.parent, tmp_path / "data"), tmp_path / "run"
    words = train(trainable, folder / "datalist.json", out)
    stop_at_step_3(monkeypatch)
    assert cli(*words).code == 2
    monkeypatch.undo()
    file = folder / "images" / "ball_001_ct.nii.gz"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    error = refused(*words, "--resume", out=out)
    assert f"{file} is not what it was when the run began" in error and "Put the old file" in error
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert cli(*words, "--resume").code == 0
    assert weights_of(out) == weights


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_files_that_change_or_vanish_while_patches_are_drawn_are_refused(cases, tmp_path, workers):
    from medvae3d.data.datalists import read_datalist
    from medvae3d.data.patches import patch_loader

    folder = shutil.copytree(cases.parent, tmp_path / "data")
    listed = read_datalist(folder / "datalist.json").split("training")
    label = listed[0].label
    for change, told in (
        (lambda: os.utime(label, ns=(1, 1)), "has changed since the training began"),
        (label.unlink, "was there when the training began, and is gone"),
    ):
        loader = patch_loader(
            listed, patch_shape=(8, 8, 8), batch_size=2, seed=0, samples_per_case=1,
            num_workers=workers, max_length=4, cache_mb=0, prefetch=False,
        )  # fmt: skip
        for _ in loader:
            pass
        change()
        with pytest.raises(UnreadableFileError, match=told):
            for _ in range(4):
                list(loader)
        loader.close()


def test_a_stamp_sees_size_and_time_and_nothing_else(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"1")
    before = stamps_of({"image": [str(path)], "label": None, "case": "a"})
    assert list(before) == [path]
    path.read_bytes()
    require_unchanged(before)
    path.write_bytes(b"12")
    with pytest.raises(UnreadableFileError, match="it had 1 bytes and has 2"):
        require_unchanged(before)


def test_a_clock_that_jumps_changes_nothing(cli, trainable, cases, weights, tmp_path, monkeypatch):
    days = iter([*range(0, -500, -1), *range(10**6)])
    monkeypatch.setattr(time, "time", lambda: 1e9 + 86400.0 * next(days))
    done = cli(*train(trainable, cases, tmp_path / "run"))
    assert done.code == 0 and ", -" not in done.error
    assert weights_of(tmp_path / "run") == weights


def test_what_early_stopping_has_waited_for_counts_after_a_resume():
    from types import SimpleNamespace

    from ignite.engine import Engine, Events

    from medvae3d.training.validation import EarlyStop

    def trained(scores, begun=None, epochs=9):
        left, evaluator = iter(scores), Engine(lambda engine, batch: None)
        evaluator.add_event_handler(
            Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(score=next(left))
        )
        engine = Engine(lambda engine, batch: None)
        if begun is not None:
            engine.add_event_handler(
                Events.STARTED, lambda e: setattr(e.state, "early_stop", begun)
            )
        EarlyStop(evaluator, patience=2).attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
        engine.run([0], max_epochs=epochs)
        return SimpleNamespace(epochs=engine.state.epoch, state=engine.state.early_stop)

    first = trained([1.0, 2.0, 1.5], epochs=3)
    assert trained([1.9, 9.0], begun=first.state).epochs == 1, "the second one without progress"
    ended = trained([2.0, 1.0, 1.0])
    assert ended.epochs == 3
    assert trained([], begun=ended.state).epochs == 0, "it had ended"


def test_a_validation_that_is_done_again_is_written_once(tmp_path):
    from types import SimpleNamespace

    from medvae3d.training.logs import ValidationWriter

    writer = ValidationWriter(str(tmp_path / "validation.jsonl"))
    for epoch, score in ((1, 0.5), (2, 0.7), (3, 0.1), (2, 0.75)):
        writer._append(SimpleNamespace(state=SimpleNamespace(epoch=epoch, metrics={"s": score})))
    lines = (tmp_path / "validation.jsonl").read_text().splitlines()
    assert lines == ['{"epoch": 1.0, "s": 0.5}', '{"epoch": 2.0, "s": 0.75}']


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
