"""Samples of a bundle, and cases of a data list, as data sets of MONAI and of torchio.

A sample is made when it is asked for. Samples of a bundle are decoded in blocks; the last block is
kept, so that going through a data set in order costs no more than `Bundle.generate`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from medvae3d.data.datalists import Case, DataList, as_monai, read_datalist
from medvae3d.errors import DataListError, SettingError
from medvae3d.synthesis.generator import Sample

if TYPE_CHECKING:
    from medvae3d.apps.bundle import Bundle

KINDS = ("monai", "torchio")


class SampleItems(Sequence[dict[str, Any]]):
    """Samples as dictionaries with ``image``, ``label``, ``case`` and ``record``.

    Args:
        bundle: Makes them.
        count: How many.
        seed: Seed of all; item *i* depends on the seed and on *i* alone.
        **options: As for `Bundle.generate`.
    """

    def __init__(self, bundle: Bundle, count: int, seed: int = 0, **options: Any) -> None:
        bundle.generate(count, seed, **options)  # refuses what cannot be, at once
        self.bundle, self.length, self.seed, self.options = bundle, count, seed, options
        is_host = bundle.recipe.synthesis.kind == "insertion" or bool(options.get("hosts"))
        self.size = 1 if is_host else bundle.recipe.synthesis.block_size
        self._block: tuple[int, list[Sample]] | None = None

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int) -> Sample:
        """Makes a sample, or takes it from the last block."""
        if not 0 <= index < self.length:
            raise IndexError(f"there are {self.length} samples, 0 to {self.length - 1}: {index}")
        start = index // self.size * self.size
        if self._block is None or self._block[0] != start:
            size = min(self.size, self.length - start)
            made = self.bundle.generate(size, self.seed, start=start, **self.options)
            self._block = (start, list(made))
        return self._block[1][index - start]

    def __getitem__(self, index: Any) -> Any:
        from monai.data import MetaTensor

        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        sample = self.sample(index + self.length if index < 0 else index)
        affine = torch.as_tensor(sample.grid.affine.copy())
        return {
            "image": MetaTensor(sample.image.clone(), affine=affine),
            "label": MetaTensor(sample.label.clone(), affine=affine),
            "case": sample.record["case"],
            "synthetic": True,
        }


def samples_as_dataset(
    bundle: Bundle,
    count: int,
    seed: int = 0,
    *,
    kind: str = "monai",
    transform: Callable[[Any], Any] | None = None,
    **options: Any,
) -> Any:
    """See `Bundle.as_dataset`."""
    _require_kind(kind)
    items = SampleItems(bundle, count, seed, **options)
    if kind == "monai":
        from monai.data import Dataset

        return Dataset(items, transform)
    from medvae3d.apps.subjects import SampleSubjects

    return SampleSubjects(items, transform)


def list_as_dataset(
    datalist: str | os.PathLike[str] | DataList,
    *,
    kind: str = "monai",
    split: str | None = None,
    transform: Callable[[Any], Any] | None = None,
) -> Any:
    """Cases of a data list as a data set of MONAI or torchio; files are read when asked for.

    With MONAI, items are those of its data lists and ``transform`` has to read the files, as usual.
    With torchio, a subject has one image a channel, named as the list names it, ``label`` if there
    is a mask, and ``case``, ``subject`` and ``split``.

    Args:
        datalist: The list, or its file.
        kind: ``monai`` or ``torchio``.
        split: ``training``, ``validation`` or ``testing``; all cases if not given.
        transform: Applied to each item.

    Raises:
        SettingError: If the kind is unknown.
        DataListError: If there is no case.
    """
    _require_kind(kind)
    listed = datalist if isinstance(datalist, DataList) else read_datalist(datalist)
    cases: Sequence[Case] = listed.cases if split is None else listed.split(split)
    if not cases:
        raise DataListError(
            f"{listed.path or 'the list'} has no case{f' in {split}' if split else ''}. Name "
            f"another split."
        )
    if kind == "monai":
        from monai.data import Dataset

        return Dataset(as_monai(cases), transform)
    from medvae3d.apps.subjects import subjects_of

    return subjects_of(cases, listed.info, transform)


def _require_kind(kind: str) -> None:
    if kind not in KINDS:
        raise SettingError(f"kind is {kind!r}; allowed are {' and '.join(KINDS)}.")
