from __future__ import annotations

import pytest

from medvae3d.errors import SettingError
from medvae3d.objectives.schedules import as_schedule, constant, cyclic, delayed, warm_up


def test_warm_up_rises_and_stays():
    weights = [warm_up(4, top=2.0)(step) for step in (0, 1, 2, 4, 100)]
    assert weights == [0, 0.5, 1, 2, 2]
    assert warm_up(10, top=1.0, start=0.2)(0) == 0.2


def test_a_warm_up_of_no_steps_is_at_the_top():
    assert warm_up(0, top=0.3)(0) == 0.3


def test_cycles_start_again():
    weight = cyclic(10, rise=0.5, top=2.0)
    assert [weight(step) for step in (0, 1, 5, 9, 10, 11)] == [0, 0.4, 2, 2, 0, 0.4]


def test_a_delay_shifts_what_follows():
    weight = delayed(5, warm_up(10))
    assert [weight(step) for step in (0, 4, 5, 10, 15, 99)] == [0, 0, 0, 0.5, 1, 1]
    assert [delayed(3, 0.1)(step) for step in (2, 3)] == [0, 0.1]


def test_a_number_is_a_schedule():
    assert as_schedule(3)(17) == constant(3)(0) == 3


@pytest.mark.parametrize(("period", "rise"), [(0, 0.5), (10, 0.0), (10, 1.5)])
def test_cycles_without_meaning_are_refused(period, rise):
    with pytest.raises(SettingError, match="allowed"):
        cyclic(period, rise)
