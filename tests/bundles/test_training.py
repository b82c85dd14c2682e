"""What ``train.json`` and its overlays do, with small networks."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monai.bundle
import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader
from small_bundles import JOINT, NAMES, config, run, small_copy, workflow

import medvae3d
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.training.fitting import IntensityFitter, StatisticsFitter
from medvae3d.training.loading import BatchPreparation, StepLoader
from medvae3d.training.logs import ProgressLog, duration
from medvae3d.training.validation import EarlyStop

Trained = Callable[[str], Path]
Cases = Callable[[str], Path]


@pytest.mark.parametrize("name", NAMES)
def test_has_all_properties(name: str, cases: Cases, tmp_path: Path) -> None:
    bundle = small_copy(name, tmp_path / name)
    made = workflow(bundle / "configs" / "train.json", datalist=str(cases(name)))
    assert made.check_properties() == []
    made.finalize()


@pytest.mark.parametrize("name", NAMES)
def test_training_writes_flat_weights_and_curves(name: str, trained: Trained) -> None:
    bundle = trained(name)
    found = sorted(path.name for path in (bundle / "models").iterdir())
    assert found == ["model.pt", "train_state.pt"], "no other name as short as model.pt"
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert not any(key.startswith("module.") for key in state)
    assert state["statistics.example_count"] > 0
    with (bundle / "eval" / "validation.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    assert [row["epoch"] for row in rows] == [1, 2] and "score" in rows[0]
    with (bundle / "eval" / "history.csv").open() as file:
        assert "loss" in next(csv.reader(file))


@pytest.mark.filterwarnings("ignore:parsing config_file")  # MONAI says so of any configuration
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["train", "inference"])
def test_weights_load_from_any_folder(
    name: str, kind: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = trained(name)
    monkeypatch.chdir(tmp_path)
    network = monai.bundle.load(
        bundle.name, bundle_dir=str(bundle.parent), workflow_type=kind, source="local", device="cpu"
    )
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    own = network.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], value) for key, value in state.items())


def test_weights_load_with_monais_handler(trained: Trained) -> None:
    bundle = trained(JOINT[0])
    network = medvae3d.load_bundle(bundle).network
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    engine = Engine(lambda engine, batch: None)
    CheckpointLoader(str(bundle / "models" / "model.pt"), {"model": network}).attach(engine)
    engine.run([0])
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in state.items())


def test_trains_on_the_list_that_label_makes(cases: Cases, tmp_path: Path) -> None:
    """Plain items of one file each, as many as there are; the run itself is the check."""
    name = "hippocampus_mri_hvae"
    folder = cases(name).parent
    items = [
        {"image": str(folder / f"case{n}_0000.nii.gz"), "label": str(folder / f"case{n}.nii.gz")}
        for n in range(4)
    ]
    bundle = small_copy(name, tmp_path / name)
    changes = {"train#dataset#data": items[:3], "validate#dataset#data": items[3:]}
    changes["train#trainer#max_epochs"] = 1
    run(workflow(bundle / "configs" / "train.json", **changes))
    assert (bundle / "models" / "model.pt").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_loads_the_weights_and_prints_figures(
    name: str,
    trained: Trained,
    cases: Cases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {}

    def report(**options: Any) -> dict[str, Any]:
        asked.update(options)
        return {"bundle": name}

    monkeypatch.setattr("medvae3d.apps.figures.report", report)
    monkeypatch.setattr("medvae3d.evaluation.figures.markdown", lambda found: f"of {found}")
    bundle = trained(name)
    made = workflow(
        [bundle / "configs" / "train.json", bundle / "configs" / "evaluate.json"],
        datalist=str(cases(name)),
        output_dir=str(tmp_path),
    )
    run(made)
    assert asked["bundle_root"] == str(bundle) and asked["split"] == "validation"
    assert asked["datalist"] == str(cases(name)) and asked["out"] == str(tmp_path)
    assert f"of {{'bundle': '{name}'}}" in capsys.readouterr().out
    network = made.parser.get_parsed_content("network")
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in state.items())
    with (bundle / "eval" / "validation.jsonl").open() as file:
        last = [json.loads(line) for line in file][-1]["score"]
    evaluator = made.parser.get_parsed_content("validate#evaluator")
    assert evaluator.state.metrics["score"] == pytest.approx(last, abs=1e-4)


@pytest.mark.parametrize("name", JOINT)
def test_small_data_recipe_is_read_over_the_training(name: str, tmp_path: Path) -> None:
    bundle = small_copy(name, tmp_path / name)
    files = [bundle / "configs" / f"{file}.json" for file in ("train", "small")]
    made = workflow(files)
    small = config(name, "small")
    assert made.parser["max_epochs"] == small["max_epochs"]
    assert {"small", "what"} <= set(made.parser["_desc_"])


def test_native_units_of_the_training_set_are_remembered(trained: Trained) -> None:
    statistics = medvae3d.load_bundle(trained("hippocampus_mri_hvae")).statistics
    low, high = float(statistics.image_low[0]), float(statistics.image_high[0])
    assert 200 < low < 350 and 450 < high < 600


def test_native_units_that_are_known_are_kept() -> None:
    statistics = TrainingStatistics()
    statistics.image_low.fill_(5)
    image = SimpleNamespace(meta={"intensity_params": torch.tensor([[1.0, 2.0]])})
    IntensityFitter(statistics, [{"image": image}]).fit()
    assert statistics.image_low.tolist() == [5]


def test_statistics_do_not_depend_on_the_process() -> None:
    generator = torch.Generator().manual_seed(0)
    dataset = [
        {"label": (torch.rand(1, 8, 8, 8, generator=generator) > 0.1 * n).float()}
        for n in range(1, 8)
    ]
    found = []
    for rank in range(2):
        loader = StepLoader(dataset, batch_size=2, rank=rank, world_size=2)
        statistics = TrainingStatistics(("log_volume",))
        preparation = BatchPreparation(statistics, (1.0, 1.0, 1.0))
        StatisticsFitter(statistics, loader, preparation, passes=1).fit()
        found.append(statistics.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert found[0]["example_count"] == 8, "all cases, not those of one process"


# -- handlers -----------------------------------------------------------------------------------


def test_progress_tells_time_left_without_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    logging.disable(logging.NOTSET)
    clock = iter(range(0, 10_000, 10)).__next__
    engine = Engine(lambda engine, batch: {"loss": batch})
    ProgressLog(every_seconds=30, clock=lambda: float(clock())).attach(engine)
    with caplog.at_level(logging.INFO):
        engine.run([1.0, 2.0, 3.0, 4.0], max_epochs=2)
    lines = [line for line in caplog.messages if line.startswith("step")]
    assert lines[0] == "step 3 of 8 (37 %), loss 2, 10 s a step, 50 s left"
    assert [line.split(",")[0] for line in lines] == [
        "step 3 of 8 (37 %)",
        "step 6 of 8 (75 %)",
        "step 8 of 8 (100 %)",
    ]
    assert "training ended at step 8 after 2 min" in caplog.messages


@pytest.mark.parametrize(
    ("seconds", "words"), [(44.6, "45 s"), (725, "12 min"), (3540, "59 min"), (11100, "3 h 05 min")]
)
def test_durations_are_readable(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_early_stop_waits_for_its_patience() -> None:
    scores = iter([1.0, 2.0, 1.5, 1.9, 9.0])
    evaluator = Engine(lambda engine, batch: None)

    @evaluator.on(Events.EPOCH_COMPLETED)
    def score(engine: Engine) -> None:
        engine.state.metrics["score"] = next(scores)

    engine = Engine(lambda engine, batch: None)
    EarlyStop(evaluator, patience=2).attach(engine)  # type: ignore[arg-type]
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    ended = []
    engine.add_event_handler(Events.COMPLETED, lambda: ended.append(True))
    engine.run([0], max_epochs=5)
    assert engine.state.epoch == 4, "2.0 was not passed in two validations"
    assert ended == [True], "what is fitted at the end of a run is fitted all the same"


def test_early_stop_and_tensorboard_work_in_a_bundle(
    cases: Cases, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = JOINT[0]
    bundle = small_copy(name, tmp_path / name)
    changes = {"early_stop": 1, "tensorboard": True, "max_epochs": 6, "epoch_length": 2}
    changes |= {"learning_rate": 0.0, "progress_seconds": 0.0}
    made = workflow(bundle / "configs" / "train.json", datalist=str(cases(name)), **changes)
    logging.disable(logging.NOTSET)
    with caplog.at_level(logging.INFO):
        run(made)
    steps = made.parser.get_parsed_content("train#trainer").state.iteration
    assert steps < 12, "a model that does not learn is given up"
    assert list((bundle / "eval").glob("events.out.tfevents.*"))
    assert (bundle / "models" / "model.pt").is_file()
    assert any("left" in message for message in caplog.messages)
    assert not any("non-scalar" in message for message in caplog.messages)
