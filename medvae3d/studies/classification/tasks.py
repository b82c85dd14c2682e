"""Tasks: images with a class each, split by subject, the same for every arm of a study.

Training cases are taken in a fixed order in which each number of cases holds all smaller ones, the
same number of each class, from as many subjects as there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from medvae3d.data.datalists import SPLITS
from medvae3d.errors import DataListError, SettingError
from medvae3d.seeding import derive_generator


@dataclass(frozen=True, eq=False)
class Images:
    """Images with the class of each.

    Attributes:
        x: Normalised, from -1 on, :math:`(N, C, I, J, K)`.
        y: Class, 0 or 1, :math:`(N,)`.
    """

    x: Tensor = field(repr=False)
    y: Tensor

    def __post_init__(self) -> None:
        # Read from files, images carry a grid along. What generators make of them would have it
        # too, which is wrong, and is not read back from a file of tensors alone.
        object.__setattr__(self, "x", self.x.as_subclass(Tensor))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Any) -> Images:
        index = torch.arange(len(self))[rows]
        return Images(self.x[index], self.y[index])

    def of_class(self, value: int) -> Tensor:
        """Images of one class."""
        return self.x[self.y == value]

    def joined(self, other: Images | None) -> Images:
        """These, then others."""
        if other is None:
            return self
        return Images(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))


@dataclass(frozen=True, eq=False)
class Task:
    """All cases of a task.

    Attributes:
        name: Name of the task.
        images: Images and classes of all splits.
        subjects: Patient of each case.
        splits: ``training``, ``validation`` or ``testing`` for each case.
        classes: Names of class 0 and class 1.
        facts: What else a reader has to know: threshold, size of a voxel, channels.

    Raises:
        DataListError: If a subject is in two splits.
    """

    name: str
    images: Images
    subjects: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        homes: dict[str, str] = {}
        for subject, split in zip(self.subjects, self.splits, strict=True):
            if homes.setdefault(subject, split) != split:
                raise DataListError(
                    f"task {self.name}: subject {subject} is in {homes[subject]} and in {split}; "
                    f"what is judged must be unseen. Move all cases of a subject into one split."
                )

    def rows(self, split: str) -> list[int]:
        """Cases of a split, in order."""
        return [row for row, each in enumerate(self.splits) if each == split]

    def part(self, split: str) -> Images:
        """Images of a split."""
        return self.images[self.rows(split)]

    def subjects_of(self, split: str) -> list[str]:
        """Patient of each case of a split."""
        return [self.subjects[row] for row in self.rows(split)]

    def counts(self, split: str) -> dict[str, int]:
        """Cases of a split by class."""
        y = self.part(split).y
        return {name: int((y == value).sum()) for value, name in enumerate(self.classes)}

    def require(self, split: str, least: int = 1) -> None:
        """Refuses a split that lacks a class.

        Raises:
            DataListError: If a class has fewer cases there.
        """
        for name, count in self.counts(split).items():
            if count < least:
                known = {each: self.counts(each) for each in SPLITS if self.rows(each)}
                raise DataListError(
                    f"task {self.name}: class {name} has {count} cases under {split}, and needs at "
                    f"least {least}. There are {_listed(known)}. Name another --split, or add "
                    f"cases to the data list."
                )

    def training(self, n: int, seed: int) -> Images:
        """The first ``n`` training cases of each class; see `training_rows`."""
        return self.images[self.training_rows(n, seed)]

    def training_rows(self, n: int, seed: int) -> list[int]:
        """Where the first ``n`` training cases of each class are.

        Args:
            n: Cases of each class.
            seed: Seed of the order; smaller numbers are part of larger ones.

        Raises:
            SettingError: If a class has fewer.
        """
        order = self.training_order(seed)
        for name, rows in zip(self.classes, order, strict=True):
            if len(rows) < n:
                raise SettingError(
                    f"--n asks for {n} training cases of each class; class {name} of task "
                    f"{self.name} has {len(rows)}. Ask for at most {min(map(len, order))}, or all."
                )
        return [row for rows in order for row in rows[:n]]

    def training_order(self, seed: int) -> list[list[int]]:
        """Training cases of each class: one of each subject, then the next of each."""
        rows = self.rows("training")
        names = sorted({self.subjects[row] for row in rows})
        shuffled = torch.randperm(len(names), generator=derive_generator(seed, "subjects"))
        rank = {names[int(index)]: place for place, index in enumerate(shuffled)}
        order = []
        for value in range(len(self.classes)):
            seen: dict[str, int] = {}
            keys = []
            for row in rows:
                if int(self.images.y[row]) == value:
                    subject = self.subjects[row]
                    keys.append((seen.setdefault(subject, 0), rank[subject], row))
                    seen[subject] += 1
            order.append([row for _, _, row in sorted(keys)])
        return order

    @property
    def most(self) -> int:
        """The largest number of training cases that each class has."""
        return min(self.counts("training").values())


def balanced(images: Images, n: int | None = None) -> Images:
    """The first ``n`` cases of each class; as many as the smaller class has by default."""
    count = min(int((images.y == value).sum()) for value in (0, 1)) if n is None else n
    return first_of_each(images, (count, count))


def first_of_each(images: Images, counts: Sequence[int]) -> Images:
    """The first cases of each class, as many as ``counts`` says."""
    rows = [torch.nonzero(images.y == value)[:n, 0] for value, n in enumerate(counts)]
    return images[torch.cat(rows)]


def simplest_rule(train: Images, unseen: Images) -> np.ndarray:
    """Probabilities of class 1 from the mean and deviation of each channel alone.

    Says how much of a task needs no network; where this is near 1, the task is trivial.
    """
    moments = [
        torch.cat([each.x.flatten(2).mean(2), each.x.flatten(2).std(2)], 1).double().numpy()
        for each in (train, unseen)
    ]
    rule = make_pipeline(StandardScaler(), LogisticRegression())
    rule.fit(moments[0], train.y.numpy())
    found: np.ndarray = rule.predict_proba(moments[1])[:, 1]
    return found


def shuffled(images: Images, seed: int) -> Images:
    """The same images with their classes dealt out anew: nothing is left to learn."""
    order = torch.randperm(len(images), generator=derive_generator(seed, "shuffled classes"))
    return Images(images.x, images.y[order])


def _listed(counts: Mapping[str, Mapping[str, int]]) -> str:
    return "; ".join(
        f"{split}: " + ", ".join(f"{count} of {name}" for name, count in each.items())
        for split, each in counts.items()
    )


def task_of(
    name: str,
    parts: Sequence[tuple[Tensor, int, str, str]],
    classes: tuple[str, str],
    facts: Mapping[str, Any] | None = None,
) -> Task:
    """Puts a task together.

    Args:
        name: Name of the task.
        parts: Image ``(C, I, J, K)``, class, subject and split of each case.
        classes: Names of class 0 and class 1.
        facts: See `Task`.

    Raises:
        DataListError: If there is no case.
    """
    if not parts:
        raise DataListError(f"task {name} has no case. Check the data list it is made from.")
    images = Images(
        torch.stack([part[0] for part in parts]).float(), torch.tensor([part[1] for part in parts])
    )
    subjects, splits = tuple(part[2] for part in parts), tuple(part[3] for part in parts)
    return Task(name, images, subjects, splits, classes, dict(facts or {}))
