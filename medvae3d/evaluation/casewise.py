"""What is said of single cases: numbers by name, and cases that stand in two sets at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from torch import Tensor

from medvae3d.errors import DataListError
from medvae3d.evaluation.cases import Cases

Numbers = dict[str, dict[str, float | None]]
NAMED_IN_MESSAGE = 5


def by_case(names: Sequence[str], columns: Mapping[str, Sequence[float | None]]) -> Numbers:
    """Numbers by case and measure, as `Section.cases` holds them for one set.

    Args:
        names: One a case.
        columns: Numbers by measure, one a case.

    Raises:
        DataListError: If two cases have the same name.
    """
    twice = sorted({name for name in names if names.count(name) > 1}) if _repeats(names) else []
    if twice:
        raise DataListError(
            f"{_listed(twice)}: more than one case of a set has this name, and numbers by case "
            f"need one name each. Rename the cases in the data list."
        )
    rows = zip(*columns.values(), strict=True)
    return {
        name: dict(zip(columns, row, strict=True)) for name, row in zip(names, rows, strict=True)
    }


def require_apart(train: Cases, other: Cases, *, what: str) -> None:
    """Checks that no case of another set is a training case, by name or by its voxels.

    Args:
        train: Training cases.
        other: Cases that must not be among them.
        what: What the other cases are, for the message.

    Raises:
        DataListError: If one is, and which.
    """
    names = set(train.names)
    same = [f"{name} (same name)" for name in other.names if name in names]
    known = {key: name for key, name in zip(_keys(train), train.names, strict=True) if key}
    for key, name in zip(_keys(other), other.names, strict=True):
        if key in known and name not in names:
            same.append(f"{name} (same voxels as {known[key]})")
    if same:
        raise DataListError(
            f"{len(same)} of {len(other)} {what} cases are training cases: {_listed(same)}. None "
            f"may be, for the scores to mean anything. Take them out of one of the two splits of "
            f"the data list, or rename them if they only share a name."
        )


def _repeats(names: Sequence[str]) -> bool:
    return len(set(names)) < len(names)


def _listed(found: Sequence[str]) -> str:
    rest = len(found) - NAMED_IN_MESSAGE
    return ", ".join(found[:NAMED_IN_MESSAGE]) + (f" and {rest} more" if rest > 0 else "")


def _keys(cases: Cases) -> list[str]:
    """What only the same voxels have; empty for a case that shows nothing."""
    return [_key(cases.image[row]) or _key(cases.mask[row]) for row in range(len(cases))]


def _key(x: Tensor) -> str:
    if not x.numel() or bool((x == x.flatten()[0]).all()):
        return ""
    data = x.detach().cpu().float().contiguous().numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()
