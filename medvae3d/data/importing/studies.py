"""Which series of DICOM studies are the channels of one case.

Series of one study, such as PET and CT or T1 and FLAIR, lie in the same patient only if patient and
frame of reference are the same: this is checked here, as no image shows it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medvae3d.data.importing.common import require_channels, some
from medvae3d.data.importing.slices import Slice, sort_slices
from medvae3d.errors import DataListError, GridMismatchError

# What a modality is called besides.
ALIASES = {"PT": {"pt", "pet", "suv"}, "MR": {"mr", "mri"}}


@dataclass(frozen=True, eq=False)
class Series:
    """A series as it lies in a folder.

    Attributes:
        folder: Folder of its files.
        uid: Its UID.
        slices: Its files, in no order.
    """

    folder: Path
    uid: str
    slices: tuple[Slice, ...]

    def fact(self, name: str) -> str:
        """What the headers say; empty if they do not."""
        return self.slices[0].facts.get(name, "")

    @property
    def modality(self) -> str:
        """Its modality, as DICOM writes it."""
        return self.fact("modality") or "image"

    @property
    def title(self) -> str:
        """What to call it in a message."""
        description = self.fact("description")
        return f"{self.folder} ({self.modality}{', ' + repr(description) if description else ''})"

    def ordered(self) -> list[Slice]:
        """Its slices as they lie.

        Raises:
            GridError: If they make no volume.
        """
        return sort_slices(self.slices, f"series {self.uid or '(without UID)'} in {self.folder}")

    def nearness(self, name: str) -> int:
        """How well a name is that of this series: 0 not at all, 3 to the letter."""
        wanted, said = _words(name), _words(self.fact("description"))
        if wanted in (said, _words(self.folder.name)):
            return 3
        if name.lower() in ALIASES.get(self.modality, {self.modality.lower()}):
            return 2
        places = range(len(said) - len(wanted) + 1)
        return int(bool(wanted) and any(said[i : i + len(wanted)] == wanted for i in places))


@dataclass(frozen=True, eq=False)
class Chosen:
    """A case.

    Attributes:
        series: Its channels, in order.
        around: All series that a mask of it may be drawn on: itself, or those of its study.
    """

    series: tuple[Series, ...]
    around: tuple[Series, ...]


def choose(
    series: Sequence[Series], channels: Sequence[str] | None, source: Path
) -> tuple[list[Chosen], tuple[str, ...]]:
    """Cases and their channels.

    With one channel each series of that name is a case. With several, a study is a case, and has to
    have one series of each name: a modality (``PT`` or ``PET``, ``CT``), or words of its
    description (``FLAIR``), or the name of its folder.

    Args:
        series: All that there are.
        channels: Names of those to take, in order. If not given: all series if they are of one
            modality, else one of each modality, by name.
        source: Where they were found, for messages.

    Raises:
        DataListError: If a study lacks a channel, has several for it, or is of two patients.
        GridMismatchError: If the channels of a study have no common frame of reference.
    """
    modalities = tuple(sorted({each.modality for each in series}))
    names = modalities if channels is None else tuple(channels)
    if len(names) < 2:
        named = [each for each in series if channels is None or each.nearness(names[0])]
        if not named:
            require_channels(modalities, channels, source)
        return [Chosen((each,), (each,)) for each in named], names
    studies: dict[str, list[Series]] = defaultdict(list)
    for each in series:
        studies[each.fact("study") or each.fact("patient")].append(each)
    cases = []
    for parts in studies.values():
        taken = tuple(_named(name, parts, by_modality=channels is None) for name in names)
        _require_one_space(taken)
        cases.append(Chosen(taken, tuple(parts)))
    return cases, names


def _named(name: str, parts: Sequence[Series], *, by_modality: bool) -> Series:
    """The series of a study that has a name, or a modality."""
    near = {
        each: int(each.modality == name) if by_modality else each.nearness(name) for each in parts
    }
    best = max(near.values())
    found = [each for each in parts if best and near[each] == best]
    if len(found) == 1:
        return found[0]
    there = some(each.title for each in found or parts)
    if not found:
        raise DataListError(
            f"a study has no series {name}: it has {there}; each study needs one of each channel. "
            f"Add it to the folder, or name with --channels what to take. A series of another "
            f"study, also of the same patient, is no channel of this one."
        )
    raise DataListError(
        f"a study has {len(found)} series {name}: {there}; allowed is one for each channel. Name "
        f"with --channels words of the description of the one to take, or put the others elsewhere."
    )


def _require_one_space(series: tuple[Series, ...]) -> None:
    if twice := [each for each in series if series.count(each) > 1]:
        raise DataListError(
            f"{twice[0].title} has the names of two channels; allowed is one each. Name with "
            f"--channels words that only one series has in its description."
        )
    first = series[0]
    for other in series[1:]:
        if other.fact("patient") != first.fact("patient"):
            raise DataListError(
                f"{first.title} and {other.title} are of one study but of different patients; the "
                f"channels of a case are of one. Put each patient's series into a study of its own."
            )
        one, two = first.fact("frame of reference"), other.fact("frame of reference")
        if one != two or not one:
            raise GridMismatchError(
                f"{first.title} and {other.title} have the frames of reference {one or 'none'} and "
                f"{two or 'none'}; only series of one frame are known to lie in the same place. "
                f"Register one to the other, for example in 3D Slicer, and import the result."
            )


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
