"""What fitted priors share: checks of sizes and attributes, samples one by one."""

from __future__ import annotations

import pytest
import torch
from small_models import generators

from medvae3d.errors import SettingError
from medvae3d.probability.priors.base import one_by_one, require_attributes, require_sizes


def draw(row, more, generator):
    noise = torch.randn(2, generator=generator)
    return noise + (0 if row is None else row[0]) + (0 if more is None else more[0])


def test_each_sample_has_its_own_row_and_generator():
    rows, more = torch.tensor([[10.0], [20.0]]), torch.tensor([[100.0], [200.0]])
    both = one_by_one(2, (rows, more), generators(1, 2), draw, torch.zeros(0, 2))
    (second,) = one_by_one(1, (rows[1:], more[1:]), generators(2), draw, torch.zeros(0, 2))
    assert torch.equal(both[1], second)
    assert both[1].mean() > 200 > 150 > both[0].mean() > 100


def test_no_samples_are_an_empty_tensor():
    assert one_by_one(0, (None,), [], draw, torch.zeros(0, 7)).shape == (0, 7)


def test_counts_that_do_not_agree_are_refused():
    with pytest.raises(SettingError, match="2 samples asked for with 1 generators"):
        one_by_one(2, (None, None), generators(1), draw, torch.zeros(0, 2))
    with pytest.raises(SettingError, match="and 1 attribute rows"):
        one_by_one(2, (torch.zeros(1, 1), None), None, draw, torch.zeros(0, 2))


def test_sizes_below_the_least_are_told_with_all_that_is_allowed():
    require_sizes("P", rank=(1, 1), attributes=(0, 0))
    with pytest.raises(
        SettingError, match=r"P\(rank=0, attributes=2\): allowed are rank >= 1, att"
    ):
        require_sizes("P", rank=(0, 1), attributes=(2, 0))


def test_rows_of_another_length_are_refused():
    require_attributes(torch.zeros(5, 2), 2)
    with pytest.raises(SettingError, match="3 attributes given, this prior was made for 2"):
        require_attributes(torch.zeros(5, 3), 2)
