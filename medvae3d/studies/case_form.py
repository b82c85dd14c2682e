"""How the cases of a study are prepared: the same for real and for synthetic ones.

Of volumes that a model makes whole, a case is a volume. Where lesions are put into larger scans, a
case is a patch round one lesion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from monai.transforms import Compose

from medvae3d.data.datalists import as_monai, read_datalist
from medvae3d.data.preparation import case_transforms
from medvae3d.errors import DataListError, SettingError
from medvae3d.evaluation.cases import Cases, joined, lesion_cases, whole_cases
from medvae3d.geometry import TripleMM
from medvae3d.synthesis.recipe import Recipe

# Shift of lesions off the middle of a patch, and patches a training lesion: in the middle, the
# place alone would tell where the lesion is.
JITTER, REPEATS = 6, 3
# Label names that say that a mask shows lesions, of which a case may have one more, and not organs.
LESION_WORDS = re.compile(
    r"lesion|tumou?r|gtv|cancer|metasta|nodule|cyst|infarct|stroke|h(a)?emorrhage|plaque|mass",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class CaseForm:
    """How cases are prepared: the same for real and synthetic ones.

    Attributes:
        channels: For each channel its ``intensity`` scheme.
        names: Names of the channels.
        labels: Name and value of each label, background first.
        spacing_mm: Size of a voxel along right, anterior, superior.
        shape: Voxels of a case: a volume, or a patch round a lesion.
        is_insertion: Whether a case is a patch round one lesion of a larger scan.
    """

    channels: tuple[Mapping[str, Any], ...]
    names: tuple[str, ...]
    labels: Mapping[str, int]
    spacing_mm: TripleMM
    shape: tuple[int, ...]
    is_insertion: bool

    @classmethod
    def of(cls, recipe: Recipe) -> CaseForm:
        """That of a bundle.

        Raises:
            SettingError: If its labels are not 0, 1, 2 and so on.
        """
        values = list(recipe.labels.values())
        if values != list(range(len(values))):
            raise SettingError(
                f"the labels have the values {values}; a study needs 0, 1, 2 and so on. Map them "
                f"in the data and in the bundle's configuration."
            )
        return cls(
            tuple({"intensity": config} for config in recipe.intensities.to_config()),
            tuple(channel.name for channel in recipe.channels),
            dict(recipe.labels),
            cast(TripleMM, tuple(recipe.spacing)),
            tuple(recipe.spatial_shape),
            recipe.synthesis.kind == "insertion",
        )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, background left out."""
        return tuple(self.labels)[1:]

    @property
    def is_lesion(self) -> bool:
        """Whether the masks show lesions, judged by the names of the labels, and not organs."""
        return self.is_insertion or any(LESION_WORDS.search(name) for name in self.label_names)

    def prepared(self, item: Mapping[str, Any]) -> Any:
        """One case of a data list, read and brought into this form."""
        shape = None if self.is_insertion else self.shape
        steps = case_transforms(
            self.channels, self.spacing_mm, shape, self.labels, allow_missing_images=True
        )
        return Compose(steps)(item)

    def cases(self, items: Sequence[Mapping[str, Any]], seed: int, repeats: int = 1) -> Cases:
        """Cases of a data list with image and label.

        Args:
            items: As `medvae3d.data.datalists.as_monai` gives them.
            seed: Seed of the shifts of lesions off the middle of a patch.
            repeats: Patches a lesion.

        Raises:
            DataListError: If there is none.
        """
        found = [item for item in items if "image" in item and "label" in item]
        prepared = [self.prepared(item) for item in found]
        if not self.is_insertion:
            return whole_cases(prepared)
        options: dict[str, Any] = {"jitter": JITTER, "repeats": repeats, "seed": seed}
        return joined([lesion_cases(item, self.shape, **options) for item in prepared])

    def samples(
        self, datalist: Path, count: int, hosts: Sequence[Mapping[str, Any]], seed: int
    ) -> Cases:
        """Samples as a user reads them, from their files.

        Args:
            datalist: Data list of the samples.
            count: How many; of lesions put into hosts, how many lesions.
            hosts: What lesions were put into, in turn; their own lesions are left out.
            seed: Seed of the shifts of lesions off the middle of a patch.

        Raises:
            DataListError: If there are fewer.
        """
        items = as_monai(read_datalist(datalist).split("training"))
        if not self.is_insertion:
            found = whole_cases([self.prepared(item) for item in items[:count]])
        else:
            own = [self.prepared({"label": h["label"], "case": h["case"]})["label"] for h in hosts]
            found = joined(
                [
                    lesion_cases(
                        self.prepared(item), self.shape, ignore=own[index % len(own)],
                        jitter=JITTER, seed=seed + index,
                    )
                    for index, item in enumerate(items)
                ]
            )[:count]  # fmt: skip
        if len(found) < count:
            raise DataListError(
                f"{datalist} gives {len(found)} synthetic cases; {count} are needed. Remove its "
                f"folder, so that the samples are made anew."
            )
        return found
