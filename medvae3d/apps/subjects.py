"""Samples and cases as subjects of torchio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torchio as tio

from medvae3d.apps.export_cases import channel_names
from medvae3d.data.datalists import Case, require_all_channels

if TYPE_CHECKING:
    from medvae3d.apps.datasets import SampleItems

Transform = Callable[[tio.Subject], tio.Subject]


class LazySubjects(Sequence[tio.Subject]):
    """Subjects that are made when they are asked for; one image a channel, and ``label``."""

    def __init__(self, items: SampleItems) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        sample = self.items.sample(index + len(self) if index < 0 else index)
        affine = sample.grid.affine.copy()
        names = [channel.name.lower() for channel in self.items.bundle.recipe.channels]
        images = {
            name: tio.ScalarImage(tensor=image[None].clone(), affine=affine)
            for name, image in zip(names, sample.image, strict=True)
        }
        label = tio.LabelMap(tensor=sample.label.clone(), affine=affine)
        return tio.Subject(**images, label=label, case=sample.record["case"], synthetic=True)


class SampleSubjects(tio.SubjectsDataset):
    """A ``SubjectsDataset`` whose subjects are samples of a bundle.

    Args:
        items: The samples.
        transform: Applied to each subject.
    """

    def __init__(self, items: SampleItems, transform: Transform | None = None) -> None:
        super().__init__(LazySubjects(items), transform)

    @staticmethod
    def _parse_subjects_list(subjects_list: Iterable[Any]) -> None:
        """Does not look at each subject, which would make all samples at once."""


def subjects_of(
    cases: Sequence[Case], info: Mapping[str, Any], transform: Transform | None
) -> tio.SubjectsDataset:
    """Cases as subjects; channels are named as the list does, else ``image``, ``image_1``, ..."""
    named = channel_names(info)
    require_all_channels(cases, "a subject of torchio")
    subjects = []
    for case in cases:
        several = [f"image_{i}" if i else "image" for i in range(len(case.image))]
        names = named if len(named) == len(case.image) else several
        images: dict[str, Any] = {
            name: tio.ScalarImage(path) for name, path in zip(names, case.image, strict=True)
        }
        if case.label is not None:
            images["label"] = tio.LabelMap(case.label)
        said = {"case": case.name, "subject": case.subject, "split": case.split}
        subjects.append(tio.Subject({**images, **said}))
    return tio.SubjectsDataset(subjects, transform)
