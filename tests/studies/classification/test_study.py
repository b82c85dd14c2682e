"""Studies as a whole: what each preset has to show, on images that take no time to learn."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, roc_auc_score
from typer.testing import CliRunner

from medvae3d.apps.cli import app
from medvae3d.errors import DataListError, SettingError
from medvae3d.studies.cells import Cell
from medvae3d.studies.classification import generators, work
from medvae3d.studies.classification.classifiers import ClassifierSettings
from medvae3d.studies.classification.presets import DEFAULT, PRESETS, parts_of, preset_of
from medvae3d.studies.classification.results import mean_roc
from medvae3d.studies.classification.self_learning import SelfLearningSettings
from medvae3d.studies.classification.shown import SHOWS
from medvae3d.studies.classification.study import ClassificationOptions, classification_study
from medvae3d.studies.classification.work import ARMS, Design, Work

SIZES = {"channels": (4, 8), "latent_channels": 3}


def small(settings):
    """A generator with next to no size and steps; what makes it what it is stays."""
    kept = {k: v for k, v in settings.sizes.items() if k in ("components", "prior", "grain_width")}
    extra = {"hidden": 8} if settings.function == "rhvae" else {}
    return replace(settings, sizes={**kept, **SIZES, **extra}, steps=4, batch_size=4)


def tiny(preset, steps=2):
    """A preset with next to no steps."""
    return replace(
        preset,
        classifier=replace(preset.classifier, channels=(4, 8), steps=steps, batch_size=4),
        generator=small(preset.generator),
        generators={name: small(each) for name, each in preset.generators.items()},
        selection=replace(preset.selection, cycles=2, growth=0.5, tolerance=1.0),
        self_learning=SelfLearningSettings(threshold=0.500001, rounds=2),
    )


@pytest.fixture
def task(make_balls):
    return make_balls(training=5, unseen=4)


def run(task, folder, preset, **options):
    options = {"n": ("4",), "seeds": 1, **options}
    found = classification_study(
        task, folder, ClassificationOptions(**options), preset=tiny(preset)
    )
    return found, json.loads((folder / "study.json").read_text(encoding="utf-8"))


def cell_of(folder, name):
    return json.loads((folder / "cells" / f"{name}.json").read_text(encoding="utf-8"))


def test_every_preset_names_arms_and_claims_that_exist():
    for preset in (DEFAULT, *PRESETS.values()):
        assert {parts_of(arm)[0] for arm in preset.arms} <= set(ARMS)
        assert {parts_of(arm)[1] for arm in preset.arms} <= {"", *preset.generators}
        assert set(preset.shows) <= set(SHOWS)
        assert preset.seeds >= (3 if preset is DEFAULT else 5)
        json.dumps(preset.to_dict())
    assert {"endovae", "generative_active_learning", "self_learning", "scanpath"} <= set(PRESETS)


def test_an_unknown_preset_is_answered_with_those_that_exist():
    with pytest.raises(SettingError, match="endovae, generative_active_learning"):
        preset_of("endo")


def test_endovae_shows_three_arms_with_balanced_counts_and_a_copy_rate(task, tmp_path):
    found, study = run(task, tmp_path / "s", PRESETS["endovae"], seeds=2)
    assert (found.done, found.wanted) == (6, 6)
    claims = " ".join(verdict["claim"] for verdict in study["shown"]["verdicts"])
    for words in ("alone teach", "alone do better", "synthetic images do better", "no copies"):
        assert words in claims
    counts = study["shown"]["tables"]["Training cases by class"]
    expected = {"classical (n = 4)": (4, 0), "only (n = 4, ratio 1)": (0, 4)}
    for row, (real, extra) in expected.items():
        values = {name: measure["value"] for name, measure in counts[row].items()}
        assert values == {
            "real, dark": real, "real, bright": real, "extra, dark": extra, "extra, bright": extra,
        }  # fmt: skip
    assert set(cell_of(tmp_path / "s", "n4_r1_only_s0")["copies"]) == {"samples", "unseen"}
    assert len(study["shown"]["tables"]["AUC by seed"]["only (n = 4, ratio 1)"]) == 2
    assert study["seconds_per_100_synthetic"] > 0
    assert 100 < study["peak_memory_mb_of_generators"] < 20_000
    for name in ("cells.csv", "table.md", "roc.png"):
        assert (tmp_path / "s" / name).is_file()


def test_every_arm_takes_as_many_steps_from_the_same_weights(task, tmp_path, monkeypatch):
    seen = []
    train = work.train_classifier

    def watched(mixture, settings, seed=0, change=None):
        seen.append((settings.steps, seed))
        return train(mixture, settings, seed, change)

    monkeypatch.setattr(work, "train_classifier", watched)
    run(task, tmp_path / "s", DEFAULT)
    assert len(seen) == len(DEFAULT.arms)
    assert set(seen) == {(2, 0)}


def test_generators_see_the_training_cases_of_the_cell_and_nothing_else(
    task, tmp_path, monkeypatch
):
    seen = []
    fit = generators.fit_generator

    def watched(x, settings, seed):
        seen.append(x)
        return fit(x, settings, seed)

    monkeypatch.setattr(generators, "fit_generator", watched)
    run(task, tmp_path / "s", DEFAULT, arms=("synthetic", "only"), n=("3",))
    allowed = task.training(3, 0)
    # Both arms share one pair of generators.
    assert [len(x) for x in seen] == [3, 3]
    for value, x in enumerate(seen):
        assert torch.equal(x, allowed.of_class(value))


def test_no_validation_image_is_ever_encoded_for_selection(task, tmp_path, monkeypatch):
    encoded = []
    encode = generators.Generator.encode

    def watched(self, x):
        encoded.append(x)
        return encode(self, x)

    monkeypatch.setattr(generators.Generator, "encode", watched)
    preset = PRESETS["generative_active_learning"]
    _, study = run(task, tmp_path / "s", preset)
    hidden = torch.cat([task.part(split).x for split in ("validation", "testing")]).flatten(1)
    seen = torch.cat(encoded).flatten(1)
    assert len(seen) > len(task.training(4, 0))
    assert float(torch.cdist(seen, hidden).min()) > 0.1
    cell = cell_of(tmp_path / "s", "n4_r1_selected_s0")
    control = cell_of(tmp_path / "s", "n4_r1_random_s0")
    assert [c["kept"] for c in cell["cycles"]] == [c["kept"] for c in control["cycles"]] == [4, 4]
    assert sum(cell["extra_cases"]) <= sum(cell["real_cases"])
    columns = study["shown"]["tables"]["Cycles"]["selected (n = 4), cycle 1"]
    assert {"frechet", "recall", "near_copies", "brier"} <= set(columns)
    claims = {v["claim"]: v["light"] for v in study["shown"]["verdicts"]}
    assert claims["at most half of the images are synthetic"] == "green"


def test_selection_does_not_judge_what_it_decides_by(task, tmp_path):
    options = ClassificationOptions("generative_active_learning", split="validation")
    with pytest.raises(SettingError, match="decides by validation"):
        classification_study(task, tmp_path / "s", options)
    assert not (tmp_path / "s").exists()


def test_selection_interrupted_in_a_cell_comes_to_the_same_probabilities(task, tmp_path):
    preset = tiny(PRESETS["generative_active_learning"])
    cell = Cell(4, 1.0, "selected", 0)
    whole = Work(Design(task, "testing", preset, tmp_path / "a", 1.0))(cell)
    # The second cycle is lost, as if the power had gone.
    state = tmp_path / "a" / "cycles" / cell.name
    (state / "cycle_2.pt").unlink()
    again = Work(Design(task, "testing", preset, tmp_path / "a", 1.0))(cell)
    assert again["p"] == whole["p"]
    assert again["cycles"] == whole["cycles"]


def test_self_learning_shows_rounds_noise_of_labels_and_slice_order(task, tmp_path):
    _, study = run(task, tmp_path / "s", PRESETS["self_learning"])
    rounds = study["shown"]["tables"]["Rounds of self-learning"]
    for number in range(3):
        for words, ratio in (("with", ", ratio 1"), ("without", "")):
            row = rounds[f"{words} VAE images (n = 4{ratio}), round {number}"]
            assert 0 <= row["accuracy"]["value"] <= 1
    noise = study["shown"]["tables"]["Noise of labels on validation cases"]
    assert len(noise) == 2
    claims = [verdict["claim"] for verdict in study["shown"]["verdicts"]]
    assert "the order of slices does not matter (n = 4)" in claims
    # Round 0 of both has seen the same.
    first = [
        cell_of(tmp_path / "s", name)["rounds"][0]
        for name in ("n4_r1_self_learning_s0", "n4_r0_retrained_s0")
    ]
    assert first[0] == first[1]


@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("disc_vae", ("sharper", "decoders of one size", "images of dcgan do better")),
        ("vae_noise_gan", ("dealt out anew do not help", "two draws", "images of normal do")),
        ("rhvae_small_sample", ("images of geometric do better", "images of the system do")),
    ],
)
def test_presets_of_generators_show_what_they_have_to(task, tmp_path, name, claims):
    preset = PRESETS[name]
    _, study = run(task, tmp_path / "s", preset, ratios=(1.0,))
    said = {verdict["claim"]: verdict["light"] for verdict in study["shown"]["verdicts"]}
    for words in claims:
        assert any(words in claim for claim in said), words
    arms = [arm for arm in preset.arms if arm != "classical"]
    table = study["shown"]["tables"]["Images of the generators"]
    assert len(table) == len(arms)
    kinds = len({arm.replace("synthetic_shuffled", "") for arm in arms})
    copies = [claim for claim in said if "no copies" in claim]
    assert len(copies) == kinds - (name == "vae_noise_gan")
    assert said["all generators have decoders of one size"] == "green"
    assert len(list((tmp_path / "s" / "synthetic").iterdir())) == len(arms)


def test_one_unseen_subject_gives_no_light_but_grey_on_what_needs_an_interval(make_balls, tmp_path):
    alone = make_balls(training=5, unseen=1, cases=4)
    preset = replace(
        DEFAULT,
        arms=("classical", "shuffled", "noise", "only", "slices_shuffled"),
        shows=("controls", "only_above_chance", "slice_order"),
    )
    _, study = run(alone, tmp_path / "s", preset)
    verdicts = study["shown"]["verdicts"]
    assert len(verdicts) == 4
    assert {verdict["light"] for verdict in verdicts} == {"grey"}


def test_an_arm_of_a_generator_that_the_preset_lacks_is_refused(task, tmp_path):
    options = ClassificationOptions(arms=("synthetic-dcgan",), n=("4",))
    with pytest.raises(SettingError, match="--arms has 'synthetic-dcgan'"):
        classification_study(task, tmp_path / "s", options)
    options = ClassificationOptions("disc_vae", arms=("copies-vae",), n=("4",))
    with pytest.raises(SettingError, match="allowed are .*synthetic-vae, synthetic-dcgan"):
        classification_study(task, tmp_path / "s", options)


def test_selection_is_compared_with_its_control_over_subjects(task, tmp_path):
    _, study = run(task, tmp_path / "s", PRESETS["generative_active_learning"])
    verdicts = {v["claim"]: v for v in study["shown"]["verdicts"]}
    found = verdicts["selection does better than random images of the same number (n = 4)"]
    assert re.fullmatch(r"AUC [+-].*\([+-].* to [+-].*\)", found["found"])
    assert "95 % interval of the difference" in found["rule"]


def test_what_cells_share_can_be_sent_to_other_processes(task, tmp_path):
    design = Design(task, "testing", tiny(DEFAULT), tmp_path, 1.0)
    cell = Cell(4, 0.0, "classical", 0)
    there = pickle.loads(pickle.dumps(design.begin))()
    assert there(cell)["p"] == design.begin()(cell)["p"]


def test_a_study_goes_on_where_it_was_and_refuses_other_settings(task, tmp_path):
    arms = ("classical", "noise")
    _, study = run(task, tmp_path / "s", DEFAULT, arms=arms)
    before = (tmp_path / "s" / "cells" / "n4_r1_noise_s0.json").read_bytes()
    found, again = run(task, tmp_path / "s", DEFAULT, arms=(*arms, "real"))
    assert found.done == 3
    assert (tmp_path / "s" / "cells" / "n4_r1_noise_s0.json").read_bytes() == before
    kept = [row for row in again["rows"] if row["arm"] == "noise" and row["measure"] == "brier"]
    assert kept[0]["mean"] == next(
        row["mean"] for row in study["rows"] if row["arm"] == "noise" and row["measure"] == "brier"
    )
    preset = tiny(DEFAULT, steps=3)
    with pytest.raises(SettingError, match="holds a study with classifier"):
        classification_study(task, tmp_path / "s", ClassificationOptions(n=("4",)), preset=preset)


def test_samples_from_elsewhere_are_an_arm_and_must_be_enough(task, make_balls, tmp_path):
    samples = make_balls(training=4, unseen=0, seed=9).part("training")
    options = ClassificationOptions(arms=("classical",), n=("4",), seeds=1)
    preset = tiny(DEFAULT)
    classification_study(task, tmp_path / "s", options, preset=preset, samples=samples)
    assert cell_of(tmp_path / "s", "n4_r1_samples_s0")["extra_cases"] == [4, 4]
    few = replace(options, arms=("samples",))
    with pytest.raises(SettingError, match="needs 4 images of each class; --samples gives 3"):
        few_samples = samples[[0, 2, 4, 6, 1, 3, 5]]
        classification_study(task, tmp_path / "t", few, preset=preset, samples=few_samples)
    with pytest.raises(SettingError, match="--samples gives 0"):
        classification_study(task, tmp_path / "t", few, preset=preset)


def test_what_cannot_be_studied_is_refused_before_a_folder_is_made(task, make_balls, tmp_path):
    for options, message in (
        ({"arms": ("gan",)}, "--arms has 'gan'"),
        ({"n": ("9",)}, "asks for 9 training cases of each class"),
        ({"n": ("few",)}, "--n has 'few'"),
    ):
        with pytest.raises(SettingError, match=message):
            classification_study(task, tmp_path / "s", ClassificationOptions(**options))
    bare = make_balls(training=5, unseen=0)
    with pytest.raises(DataListError, match="class dark has 0 cases under testing"):
        classification_study(bare, tmp_path / "s", ClassificationOptions(n=("4",)))
    assert not (tmp_path / "s").exists()


def test_shuffled_classes_and_noise_are_made_and_judged_as_controls(task, tmp_path):
    _, study = run(task, tmp_path / "s", DEFAULT)
    claims = {v["claim"].split(" (")[0] for v in study["shown"]["verdicts"]}
    assert "nothing is learned from classes dealt out anew" in claims
    assert "noise with a class does better than none" in claims
    assert study["simplest_rule_auc"]["value"] > 0.9


def test_a_mean_roc_holds_the_mean_of_the_aucs():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    runs = rng.normal(size=(3, 60)) + y
    x, height = mean_roc(y, runs)
    mean = np.mean([roc_auc_score(y, p) for p in runs])
    assert auc(x, height) == pytest.approx(mean, abs=0.015)


def test_the_command_says_what_it_needs(tmp_path):
    out = ["--out", str(tmp_path / "s")]
    for words, message in (
        ([], "there is nothing to tell apart"),
        (["--task", "nodule"], "there is no task 'nodule'; there are tumour_patch"),
        (["--preset", "endo"], "there is no preset 'endo'; there are endovae"),
        (["--task", "tumour_patch"], "Name its data list with --datalist"),
        (["--task", "scanpath", "--seeds", "0"], "--seeds is '0'"),
    ):
        result = CliRunner().invoke(
            app, ["study", "classification", *words, *out], env={"MEDVAE3D_DATA": None}
        )
        assert result.exit_code == 2, result.output
        assert message in result.output
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_synthetic_images_alone_teach_a_classifier(make_balls, tmp_path):
    task = make_balls(training=12, unseen=30)
    preset = replace(
        DEFAULT,
        classifier=ClassifierSettings(channels=(4, 8), steps=40, batch_size=8, learning_rate=1e-2),
        generator=replace(DEFAULT.generator, sizes=SIZES, steps=150, learning_rate=5e-3),
    )
    options = ClassificationOptions(arms=("classical", "only", "shuffled"), n=("12",), seeds=3)
    classification_study(task, tmp_path / "s", options, preset=preset)
    study = json.loads((tmp_path / "s" / "study.json").read_text(encoding="utf-8"))
    found = {r["arm"]: r["mean"]["mean"] for r in study["rows"] if r["measure"] == "auc"}
    assert found["classical"] > 0.9
    assert found["only"] > 0.9
    assert 0.2 < found["shuffled"] < 0.8


@pytest.mark.integration
def test_the_command_studies_scanpaths(tmp_path):
    words = "--task scanpath --preset scanpath --arms real,classical,synthetic --n 6 --seeds 1"
    words += f" --steps 2 --generator-steps 2 --out {tmp_path / 's'}"
    result = CliRunner().invoke(app, ["study", "classification", *words.split()])
    assert result.exit_code == 0, result.output
    assert "| 6 | 0 | classical |" in result.output
    assert "3 of 3 cells done" in result.output
