"""Claims about what changes under a training: numbers, files, the clock."""

from __future__ import annotations

import os
import shutil
import time

import pytest
from small_runs import train, weights_of

from medvae3d.apps import training
from medvae3d.data.stamps import require_unchanged, stamps_of
from medvae3d.errors import UnreadableFileError
from medvae3d.training.players import ModelPlayer


def stop_at_step_3(monkeypatch):
    update = ModelPlayer._update

    def broken(self, loss, turn):
        update(self, loss * float("nan") if turn.step == 3 else loss, turn)

    monkeypatch.setattr(ModelPlayer, "_update", broken)


def once_checked(monkeypatch, change):
    """Something happens to the files of the cases after they were checked."""
    check = training.require_trainable

    def checked(*words):
        found = check(*words)
        change()
        return found

    monkeypatch.setattr(training, "require_trainable", checked)


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
    once_checked(monkeypatch, (folder / "labels" / "ball_001_gtv.nii.gz").unlink)
    out = tmp_path / "run"
    error = refused(*train(trainable, folder / "datalist.json", out), out=out)
    assert "ball_001_gtv.nii.gz" in error and "put the files there" in error
    assert not out.exists()


def test_a_file_that_changes_before_it_is_read_is_refused(
    refused, trainable, cases, tmp_path, monkeypatch
):
    folder = shutil.copytree(cases.parent, tmp_path / "data")
    images = folder / "images"
    swap = lambda: shutil.copyfile(images / "ball_002_ct.nii.gz", images / "ball_001_ct.nii.gz")
    once_checked(monkeypatch, swap)
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
