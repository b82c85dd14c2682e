"""The table of all systems: what stands in it, and what is printed bold."""

from __future__ import annotations

import pytest

from medvae3d.apps.settings import parse_changes
from medvae3d.apps.systems import system_settings
from medvae3d.errors import SettingError
from medvae3d.models.registry import SYSTEMS
from medvae3d.studies.zoo import (
    COLUMNS,
    GROUPS,
    Column,
    Entry,
    entries,
    floor,
    markdown,
    measures,
    summarise,
    texts_for,
)


def result(**means):
    return {"means": means, "notes": []}


def test_every_system_that_can_be_trained_is_an_entry_beside_the_two_without_a_model():
    names = [entry.name for entry in entries()]
    assert {name for name, each in SYSTEMS.items() if each.is_trainable} <= {*names}
    assert [entry.name for entry in entries() if not entry.system] == names[-2:]


def test_groups_and_single_entries_can_be_asked_for():
    assert [entry.name for entry in entries(["leapfrog steps"])] == [
        "hvae, K = 0", "hvae, K = 1", "hvae, K = 3", "hvae, K = 5",
    ]  # fmt: skip
    assert [entry.name for entry in entries(["vae", "vae"])] == ["vae"]
    with pytest.raises(SettingError, match="vea"):
        entries(["vea"])


def test_seeds_are_averaged_and_their_spread_is_told():
    found = summarise(Entry("vae", "vae"), [result(dice=0.8, frechet=None), result(dice=0.9)])
    assert found.seeds == 2
    assert found.mean == pytest.approx({"dice": 0.85})
    assert found.spread["dice"] == pytest.approx(0.0707, abs=1e-4)


def test_the_best_is_bold_only_if_it_is_clear_of_the_others():
    column = Column("dice", "Dice", 2, "high")
    values = (("a", 0.5), ("b", 0.8))
    clear = [summarise(Entry(n, n), [result(dice=v), result(dice=v)]) for n, v in values]
    assert "**0.80 ± 0.00**" in markdown(clear, [column])
    once = [summarise(Entry(n, n), [result(dice=v)]) for n, v in values]
    assert "**" not in markdown(once, [column])
    close = [
        summarise(Entry("a", "a"), [result(dice=0.7), result(dice=0.9)]),
        summarise(Entry("b", "b"), [result(dice=0.81), result(dice=0.81)]),
    ]
    assert "**" not in markdown(close, [column])
    partly = [clear[0], summarise(Entry("b", "b"), [result(dice=0.8), result()])]
    assert "| 0.80 |" in markdown(partly, [column])


def test_a_row_without_a_model_is_never_the_best_and_empty_columns_are_left_out():
    rows = [
        summarise(Entry("principal components"), [result(psnr=30.0)]),
        summarise(Entry("a", "a"), [result(psnr=10.0)] * 2),
        summarise(Entry("b", "b"), [result(psnr=20.0)] * 2),
    ]
    table = markdown(rows, COLUMNS)
    assert "**20.0" in table
    assert "Dice" not in table


@pytest.mark.parametrize(
    "entry", [each for group in GROUPS for each in group], ids=lambda each: each.name
)
def test_ablations_name_settings_that_their_systems_have(entry):
    changes = parse_changes(entry.settings, system_settings(entry.system))
    assert bool(changes) != bool(entry.masks)  # other masks need no other training
    assert entry.trained == (entry.system if entry.masks else entry.name)


def test_sizes_go_to_both_stages_of_a_pair():
    network = {"shape": {"channels": [1]}, "texture": {"channels": [2], "rank": 3}}
    texts = ["network_def#channels=[4,8]", "network_def#rank=2", "max_epochs=1"]
    assert texts_for(network, texts) == [
        "network_def#shape#channels=[4,8]", "network_def#texture#channels=[4,8]",
        "network_def#texture#rank=2", "max_epochs=1",
    ]  # fmt: skip
    assert texts_for({"channels": [1]}, texts[:1]) == texts[:1]


def test_one_seed_is_told_with_its_interval_over_cases_and_the_floor_has_a_row():
    cell = result(
        frechet=138.06, frechet_low=120.4, frechet_high=160.2, frechet_floor=43.8,
        log_likelihood=-0.25, log_likelihood_error=0.012,
    )  # fmt: skip
    rows = [summarise(Entry("vae", "vae"), [cell])]
    table = markdown([*rows, floor(rows)], COLUMNS)
    assert "138.1 (120.4 to 160.2)" in table and "-0.250 (se 0.012)" in table
    assert "| unseen cases against each other |" in table and "43.8" in table
    assert {"frechet", "frechet_low", "frechet_floor", "log_likelihood_error"} <= set(measures())
