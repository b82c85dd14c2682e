"""Claims about the realism of samples, on features whose distributions are known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from small_evaluations import smooth_cases

from medvae3d.evaluation.comparison import ALL, DISTANCES, SAME, SCORE, SHARES, compare, prepare
from medvae3d.evaluation.features import included_features
from medvae3d.evaluation.realism import light_of, realism_section
from medvae3d.evaluation.sections import Light, Measure


class Given:
    """Features that a test hands in, by the name of the first case."""

    name, licence = "given", "none"

    def __init__(self, real, made):
        self.rows = {"real": real, "made": made}

    def describe(self):
        return {}

    def feature_names(self, channels):
        return ()

    def __call__(self, cases, spacing_mm):
        return self.rows["made" if cases.names[0].startswith("made") else "real"]


def section_of(real, made, seed=0):
    """The section for features alone; the volumes behind them do not matter."""
    sets = [
        replace(
            smooth_cases(len(rows), side=4), names=tuple(f"{name} {i}" for i in range(len(rows)))
        )
        for name, rows in (("real", real), ("made", made))
    ]
    return realism_section(*sets, [Given(real, made)], spacing_mm=(1, 1, 1), seed=seed)


def draws(count, dims=6, seed=0, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).normal(size=(count, dims))


def lights(section):
    return [verdict.light for verdict in section.verdicts]


def test_samples_of_the_same_distribution_are_green():
    section = section_of(draws(120), draws(120, seed=1))
    assert lights(section) == [Light.GREEN] * 4


def test_every_measure_has_sizes_an_interval_and_a_floor():
    section = section_of(draws(80), draws(60, seed=1))
    table = section.tables["given"]
    assert set(table) == {*DISTANCES, *SHARES, SCORE}
    for name, row in table.items():
        assert row[ALL].n == (80, 60) and row[SAME].n == (40, 40), name
        for measure in row.values():
            assert measure.low <= measure.value <= measure.high, name
        assert row[SAME].floor_low <= row[SAME].floor <= row[SAME].floor_high, name


@pytest.mark.parametrize(
    ("made", "green"),
    [
        (draws(120, seed=1, mean=2), [False, False, False, False]),
        # All alike and all plausible: precision cannot see it, the others do.
        (0.02 * draws(120, seed=1), [False, False, True, False]),
        (draws(120, seed=1, scale=3), [False, False, False, False]),
    ],
    ids=["elsewhere", "collapsed", "too varied"],
)
def test_planted_faults_are_found(made, green):
    found = lights(section_of(draws(120), made))
    assert found[0] is Light.RED
    assert [light is Light.GREEN for light in found] == green


def test_values_beside_a_floor_are_of_its_sizes():
    """At 40 cases a set, the distance of equal distributions is far larger than at 400."""
    found = section_of(draws(80), draws(800, seed=1))
    row = found.tables["given"]["Fréchet distance"]
    assert row[ALL].value < 0.75 * row[SAME].value
    assert row[SAME].value == pytest.approx(row[SAME].floor, rel=0.4)
    assert any("the floor has 40 and 40 real cases" in said for said in found.warnings)


@pytest.mark.slow
def test_the_interval_of_a_kernel_distance_holds_the_truth_about_as_often_as_it_says():
    """Equal distributions: the truth is 0."""
    hits = 0
    for trial in range(20):
        x, y = draws(40, 3, seed=2 * trial), draws(40, 3, seed=2 * trial + 1)
        measure = compare(prepare(x, y), trial).table["kernel distance, Gaussian"][ALL]
        hits += measure.low <= 0 <= measure.high
    assert hits >= 16


def test_the_same_seed_gives_the_same_section():
    one, two, other = (section_of(draws(40), draws(40, seed=1), seed) for seed in (3, 3, 4))
    assert one.to_dict() == two.to_dict()
    assert one.to_dict() != other.to_dict()


def test_few_cases_are_said_to_be_too_few_and_give_no_verdict():
    section = section_of(draws(16), draws(30, seed=1))
    assert "too few to rank models" in section.warnings[0] and "Rule: 50" in section.warnings[0]
    assert set(lights(section)) == {Light.GREY}


def test_fewer_cases_than_features_shrink_the_covariances_and_say_so():
    found = compare(prepare(draws(30, 40), draws(30, 40, seed=1)), 0)
    assert found.facts["shrunk covariances"]
    assert any("Ledoit and Wolf" in said for said in found.warnings)
    assert not compare(prepare(draws(60), draws(60, seed=1)), 0).facts["shrunk covariances"]


def test_three_real_cases_have_no_floor_but_values():
    found = compare(prepare(draws(3), draws(3, seed=1)), 0)
    assert "no floor" in found.warnings[0]
    assert all(set(row) == {ALL} for row in found.table.values())
    assert found.table["Fréchet distance"][ALL].value is not None


def test_what_is_not_finite_is_left_out_and_counted():
    x, y = draws(40), draws(40, seed=1)
    x[3], y[:2, 1] = np.nan, np.inf
    x = np.concatenate([x, np.full((40, 1), np.nan)], axis=1)
    y = np.concatenate([y, np.zeros((40, 1))], axis=1)
    x[0, -1] = 0
    prepared = prepare(x[1:], y[:38])
    assert prepared.facts["features left out"] == 1
    assert prepared.facts["real cases left out"] == 1
    assert prepared.facts["synthetic cases left out"] == 2
    assert len(prepared.real) == 38 and len(prepared.made) == 36


@pytest.mark.parametrize(
    ("real", "why"),
    [
        (np.concatenate([draws(1), np.full((19, 6), np.nan)]), "only 1 real"),
        (np.full((20, 6), 2.0), "no feature varies among the real cases"),
        (draws(1), "1 real and 20 synthetic cases; 2 of each"),
    ],
    ids=["not finite", "constant", "one case"],
)
def test_a_section_that_cannot_be_computed_says_why(real, why):
    section = section_of(real, draws(20, seed=1))
    assert why in section.not_computed
    assert "not_computed" in section.to_dict()


def test_one_kind_of_features_that_fails_leaves_the_others():
    cases = smooth_cases(6), smooth_cases(6, seed=1)
    broken = Given(np.full((6, 2), np.nan), draws(6, 2))
    section = realism_section(
        *cases, [broken, *included_features(["fixed network"])], spacing_mm=(1, 1, 1), seed=0
    )
    assert not section.not_computed
    assert section.tables["given"]["precision"][ALL].note.startswith(
        "not computed: no feature could"
    )
    assert section.tables["fixed network"]["precision"][ALL].value is not None
    json.dumps(section.to_dict(), allow_nan=False)


def test_volumes_that_are_brighter_than_real_ones_are_found_and_progress_is_told():
    steps = []
    section = realism_section(
        smooth_cases(44, side=8),
        smooth_cases(44, side=8, seed=1, shift=0.3),
        included_features(),
        spacing_mm=(1, 1, 1),
        seed=0,
        progress=lambda done, wanted: steps.append((done, wanted)),
    )
    assert steps == [(1, 2), (2, 2)]
    kernel = [v for v in section.verdicts if "kernel distance" in v.claim]
    assert [v.light for v in kernel] == [Light.RED, Light.RED]
    assert section.facts["radiomics"]["licence"] == "Apache-2.0"


def test_lights_follow_their_rules():
    def measure(value, low, high, n=(50, 50)):
        return Measure(value, low, high, n, 1.0, 0.8, 1.2)

    assert light_of(measure(2, 1.1, 3), is_distance=True) is Light.GREEN
    assert light_of(measure(3, 2, 4), is_distance=True) is Light.AMBER
    assert light_of(measure(5, 4, 6), is_distance=True) is Light.RED
    assert light_of(measure(0.6, 0.5, 0.7), is_distance=False) is Light.AMBER
    assert light_of(measure(0.4, 0.3, 0.5), is_distance=False) is Light.RED
    assert light_of(measure(5, 4, 6, (50, 19)), is_distance=True) is Light.GREY
