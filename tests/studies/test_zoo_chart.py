"""The picture of the comparison: every seed is drawn, in its own row."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from medvae3d.studies import zoo_chart
from medvae3d.studies.zoo import HVAE_STEPS, PCA, Entry, summarise
from medvae3d.studies.zoo_chart import log_ticks, plot_comparison


def result(**means):
    return {"means": means, "notes": []}


ROWS = (
    summarise(
        Entry("vae", "vae"),
        [result(nmse=0.1, frechet=150.0, frechet_floor=40.0), result(nmse=0.3, frechet=250.0)],
    ),
    summarise(Entry(PCA), [result(nmse=0.2)]),
    summarise(HVAE_STEPS[1], [result(nmse=0.12, frechet=None)]),
)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures in place of their files."""
    figures: list[Figure] = []
    monkeypatch.setattr(zoo_chart, "save_figure", lambda figure, png: figures.append(figure))
    return figures


def test_each_seed_is_a_dot_in_the_row_of_its_system(drawn):
    assert plot_comparison(ROWS, "unused.png")
    error, distance = drawn[0].axes
    dots = [line for line in error.lines if line.get_marker() == "."]
    assert [list(dot.get_xdata()) for dot in dots] == [[0.1, 0.3], [0.2], [0.12]]
    rows = [tick.get_text() for tick in error.get_yticklabels()]
    heights = [float(height) for height in error.get_yticks()]
    assert rows == ["vae", PCA, HVAE_STEPS[1].name]
    assert [set(dot.get_ydata()) for dot in dots] == [{height} for height in heights]
    (dot,) = (line for line in distance.lines if line.get_marker() == ".")
    assert list(dot.get_xdata()) == [150.0, 250.0]


def test_a_stroke_stands_at_the_mean_and_a_dashed_line_at_what_real_cases_get(drawn):
    plot_comparison(ROWS, "unused.png")
    error, distance = drawn[0].axes
    strokes = [line.get_xdata()[0] for line in error.lines if line.get_marker() != "."]
    assert strokes == pytest.approx([0.2, 0.2, 0.12])
    (floor,) = (line for line in distance.lines if line.get_linestyle() == "--")
    assert set(floor.get_xdata()) == {40.0}


def test_rows_without_any_measure_are_no_picture(tmp_path):
    assert not plot_comparison([summarise(Entry("dcgan", "dcgan"), [result()])], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        plot_comparison(ROWS, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (90, 600, [100, 200, 500]),
        (0.06, 0.24, [0.07, 0.1, 0.15, 0.2]),
        (0.9, 1100, [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]),
    ],
)
def test_a_logarithmic_axis_has_round_numbers(low, high, ticks):
    assert log_ticks(low, high) == pytest.approx(ticks)
