"""What a round of generative active learning keeps, holds out, and has room for."""

from __future__ import annotations

import torch

from medvae3d.studies.active_learning import held_out, pick, room_for


def test_nearest_to_an_uncertain_scan_comes_first() -> None:
    real = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    candidates = torch.tensor([[5.0, 5.0], [19.0, 0.0], [22.0, 0.0]])
    assert pick(candidates, real, torch.tensor([[21.0, 0.0]]), 2).rows == [2, 1]
    assert pick(candidates, real, None, 2).rows == [0, 1]


def test_copies_are_dropped_however_near_they_are_to_what_is_wanted() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(40, 6, generator=generator)
    fresh = torch.randn(5, 6, generator=generator)
    candidates = torch.cat([real[:5] + 1e-4, fresh])
    found = pick(candidates, real, real[:1], 10)
    assert set(found.rows) <= set(range(5, 10)) and found.near_copies >= 0.5
    assert found.limit > 1e-4


def test_synthetic_cases_never_outnumber_real_ones() -> None:
    assert room_for(4, 0, 99) == 4
    assert room_for(4, 4, 99) == 0
    assert room_for(4, 9, 99) == 0
    assert room_for(9, 0, 99, most=0.25) == 3


def test_who_is_held_out_stays_held_out_as_cases_come() -> None:
    names = [f"case{number}" for number in range(40)]
    known: dict[str, str] = {}
    for count in range(1, 41):
        now = held_out(known, [name for name in names[:count] if name not in known])
        assert {name: now[name] for name in known} == known
        known = now
        held = sum(split == "validation" for split in known.values())
        assert held == max(round(count / 4), int(count > 2))
