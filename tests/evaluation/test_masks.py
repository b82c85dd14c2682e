"""Claims about divergences, and about the masks of two sets."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from medvae3d.errors import DataListError
from medvae3d.evaluation.cases import Cases
from medvae3d.evaluation.divergence import (
    bin_edges,
    compare_numbers,
    compare_rows,
    jsd_bits,
    kld_bits,
    rows_of,
)
from medvae3d.evaluation.mask_numbers import measure_masks
from medvae3d.evaluation.masks import masks_section
from medvae3d.evaluation.sections import Light

SPACING = (1.0, 1.0, 2.0)


def boxes(count, seed=0, size=(2, 5), at=(1, 6), prefix="case", value=1, side=12):
    """One box a case, brighter inside than round it."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(count, 1, side, side, side)
    for row in range(count):
        extent = torch.randint(*size, (3,), generator=generator).tolist()
        start = torch.randint(*at, (3,), generator=generator).tolist()
        i, j, k = (slice(s, s + e) for s, e in zip(start, extent, strict=True))
        mask[row, 0, i, j, k] = value
    noise = 0.1 * torch.randn(count, 2, side, side, side, generator=generator)
    image = (mask > 0) * torch.tensor([0.5, 0.2]).view(1, 2, 1, 1, 1) - 0.4 + noise
    ones = torch.ones_like(mask)
    return Cases(image, mask, ones, (mask > 0).float(), tuple(f"{prefix}{i}" for i in range(count)))


def section_of(real, made, labels=("lesion",)):
    return masks_section(
        real, made, labels=labels, channels=("t1", "t2"), spacing_mm=SPACING, seed=3
    )


# -- divergences ----------------------------------------------------------------------------------


def test_divergences_have_their_known_values():
    assert jsd_bits([1, 0], [0, 1]) == pytest.approx(1)
    assert jsd_bits([0.3, 0.7], [0.3, 0.7]) == pytest.approx(0, abs=1e-12)
    assert kld_bits([0.5, 0.5], [0.25, 0.75]) == pytest.approx(0.5 + 0.5 * math.log2(2 / 3))
    assert kld_bits([0.5, 0.5], [1, 0]) == math.inf


def test_bins_hold_equal_shares_of_the_real_numbers():
    values = np.random.default_rng(0).normal(size=100)
    shares = rows_of(values, bin_edges(values)).mean(0)
    assert shares == pytest.approx(np.full(10, 0.1))


def test_few_values_have_a_bin_each_and_what_is_beyond_has_its_own():
    edges = bin_edges([1, 1, 1, 2, 2, 3, 1, 1])
    index = rows_of([0, 1, 2, 3, 9], edges).argmax(1)
    assert index.tolist() == [0, 1, 2, 3, 4]


def test_added_cases_are_those_that_are_stated():
    """Two sets of 4, each in a bin of its own of 2: shares are (4 + 1/2) / 5 and (0 + 1/2) / 5."""
    rows = np.eye(2)
    found = compare_rows(rows[[0] * 4], rows[[1] * 4], 0).measures
    assert found["KLD"].value == pytest.approx(float(kld_bits([0.9, 0.1], [0.1, 0.9])))


def test_distances_without_bins_are_those_of_scipy():
    rng = np.random.default_rng(1)
    real, made = rng.normal(size=31), rng.normal(0.4, 2, size=17)
    found = compare_numbers(real, made, 0).measures
    assert found["KS"].value == pytest.approx(stats.ks_2samp(real, made).statistic)
    assert found["Wasserstein"].value == pytest.approx(stats.wasserstein_distance(real, made))


def test_sets_of_one_distribution_lie_at_the_floor():
    """Over 40 pairs: the mean of the values is that of the floors, and few pass their end."""
    rng = np.random.default_rng(2)
    found = []
    for seed in range(40):
        real, made = rng.normal(size=30), rng.normal(size=50)
        edges = bin_edges(real)
        pair = compare_rows(rows_of(real, edges), rows_of(made, edges), seed)
        found.append(pair.measures["JSD"])
    values, floors = ([getattr(m, name) for m in found] for name in ("value", "floor"))
    assert np.mean(values) == pytest.approx(np.mean(floors), rel=0.2)
    assert sum(m.value > m.floor_high for m in found) <= 5


def test_the_interval_holds_the_divergence_of_the_populations():
    """Two coins: the JSD is known, and 95 % intervals hold it in most of 60 pairs."""
    truth = float(jsd_bits([0.5, 0.5], [0.2, 0.8]))
    rng = np.random.default_rng(3)
    hits = 0
    for seed in range(60):
        real, made = (np.eye(2)[(rng.random(100) < p).astype(int)] for p in (0.5, 0.8))
        found = compare_rows(real, made, seed).measures["JSD"]
        hits += found.low <= truth <= found.high
    assert hits >= 51


# -- what is measured -----------------------------------------------------------------------------


def test_a_mask_is_measured_in_ml_lesions_and_axes():
    cases = boxes(1)
    mask = torch.zeros_like(cases.mask)
    mask[0, 0, 1:9, 1:5, 1:2] = 1  # 8 x 4 x 2 mm
    mask[0, 0, 11, 11, 11] = 1
    found = measure_masks(
        replace(cases, mask=mask), labels=("a",), channels=("t1", "t2"), spacing_mm=SPACING
    )
    numbers = {name: float(values[0]) for name, values in found.shapes.items()}
    assert numbers["volume (ml)"] == pytest.approx(33 * 2 / 1000)
    assert numbers["lesions"] == 2
    assert numbers["median lesion (ml)"] == pytest.approx((64 + 2) / 2 / 1000)
    assert numbers["elongation (longest / second axis)"] == pytest.approx(2, rel=1e-4)
    assert numbers["flatness (second / shortest axis)"] == pytest.approx(2, rel=1e-4)
    # Cells are 3 voxels wide: 5 and 3 and 1.5 voxels from the corner is in cell (1, 1, 0).
    assert found.centres[0].reshape(4, 4, 4)[1, 1, 0] == 0.5
    assert found.centres[0].reshape(4, 4, 4)[3, 3, 3] == 0.5
    assert found.occupancy[0].reshape(4, 4, 4)[3, 3, 3] == pytest.approx(1 / 33)


def test_the_rim_is_as_wide_in_mm_along_every_axis():
    cases = boxes(1, side=16)
    mask, image = torch.zeros_like(cases.mask), torch.full_like(cases.image, -1.0)
    mask[0, 0, 8, 8, 8] = 1
    image[0, 0, 5:12, 8, 8] = 0.0  # 3 mm to either side
    image[0, 0, 8, 8, 7:10] = 0.0  # 2 mm
    found = measure_masks(
        replace(cases, mask=mask, image=image), labels=("a",), channels=("t1", "t2"),
        spacing_mm=SPACING,
    )  # fmt: skip
    grid = np.stack(np.meshgrid(*[np.arange(16) - 8] * 3, indexing="ij")) * np.reshape(
        SPACING, (3, 1, 1, 1)
    )
    near = np.linalg.norm(grid, axis=0)
    rim = (near > 0) & (near <= 3)
    assert len(found.voxels["t1, voxels of rim"][0]) == rim.sum()
    assert (found.voxels["t1, voxels of rim"][0] == 0).sum() == 8
    assert found.intensities["t1, mask less rim"][0] == pytest.approx(1 - 8 / rim.sum())


def test_voxels_that_were_not_observed_have_no_intensity():
    cases = boxes(3)
    hidden = replace(cases, valid=torch.zeros_like(cases.valid))
    found = measure_masks(hidden, labels=("a",), channels=("t1", "t2"), spacing_mm=SPACING)
    assert all(np.isnan(values).all() for values in found.intensities.values())


# -- the section ----------------------------------------------------------------------------------


def test_a_set_like_the_real_one_is_green():
    section = section_of(boxes(40, 0), boxes(40, 1))
    assert {verdict.light for verdict in section.verdicts} == {Light.GREEN}
    json.dumps(section.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "red"),
    [({"size": (4, 7)}, 0), ({"at": (4, 6)}, 1), ({}, 2)],
    ids=["size", "place", "brightness"],
)
def test_what_differs_is_red(change, red):
    made = boxes(40, 1, **change)
    if not change:
        made = replace(made, image=made.image + 0.3 * (made.mask > 0))
    section = section_of(boxes(40, 0), made)
    assert section.verdicts[red].light is Light.RED
    if red == 2:
        assert section.verdicts[0].light is Light.GREEN


def test_each_label_has_its_volume():
    real = boxes(4)
    both = real.mask.clone()
    both[:, :, 11] = 2
    real = replace(real, mask=both)
    section = section_of(real, real, ("core", "rim"))
    assert section.cases["real"]["case0"]["volume of rim (ml)"] == pytest.approx(144 * 2 / 1000)
    assert section.tables["Sizes and shapes"]["volume of core (ml)"]["JSD"].value == 0


def test_empty_masks_and_constant_images_leave_rows_with_a_note():
    real = boxes(4)
    empty = replace(real, mask=0 * real.mask, image=0 * real.image)
    section = section_of(empty, empty)
    row = section.tables["Sizes and shapes"]["sphericity"]["JSD"]
    assert row.value is None and "0 real and 0 synthetic" in row.note
    assert section.tables["Sizes and shapes"]["volume (ml)"]["JSD"].value == 0
    assert section.tables["Empty masks"]["real"]["share"].value == 1
    assert section.to_dict()["cases"]["real"]["case0"]["sphericity"] is None
    assert all(verdict.light is Light.GREY for verdict in section.verdicts)
    assert section.warnings
    json.dumps(section.to_dict(), allow_nan=False)


def test_a_single_case_is_not_compared_and_none_is_no_section():
    assert section_of(boxes(1), boxes(1)).tables["Places"]["lesion centres"]["JSD"].value is None
    assert section_of(boxes(2), boxes(2)[[]]).not_computed


def test_the_same_seed_gives_the_same_section():
    first, again = (section_of(boxes(5), boxes(5, 1)).to_dict() for _ in "ab")
    assert first == again


def test_two_cases_of_one_name_are_refused():
    real = boxes(3)
    with pytest.raises(DataListError, match="case0"):
        section_of(replace(real, names=("case0", "case0", "b")), real)
