"""Which tasks there are, and tasks from any data list whose cases have a class.

A task on real data that comes with masks makes its classes out of them; any other data list says
the class of each case under a key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from monai.transforms import Compose

from medvae3d.data.case_names import VOLUME_SUFFIXES
from medvae3d.data.datalists import Case, DataList, as_monai
from medvae3d.data.nifti import enough_memory, read_header, stored_shape
from medvae3d.data.preparation import case_transforms
from medvae3d.errors import DataListError
from medvae3d.studies.classification.patches import LESION, TUMOUR, patch_task
from medvae3d.studies.classification.scanpaths import scanpath_task
from medvae3d.studies.classification.tasks import Images, Task, task_of

PERCENTILES: Mapping[str, Any] = {"kind": "percentile", "low": 0.5, "high": 99.5}
HIPPOCAMPUS = {"background": 0, "anterior": 1, "posterior": 2}


@dataclass(frozen=True)
class TaskKind:
    """One task that has a name.

    Attributes:
        text: What is told from what, in a sentence.
        dataset: Name of the data set that it was made for; ``None`` for one that is simulated.
        make: Data list and seed to task.
    """

    text: str
    dataset: str | None
    make: Callable[[DataList, int], Task]


@dataclass(frozen=True)
class TableForm:
    """How the cases of a data list with classes are read.

    Attributes:
        label_key: Key of the class in each entry.
        spacing_mm: Size of a voxel.
        shape: Voxels, padded and cropped about the centre.
        intensity: Scheme of every channel.
        classes: The two classes, the one to be found last; in the order of the alphabet by default.
    """

    label_key: str = "class"
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    shape: tuple[int, int, int] = (32, 32, 32)
    intensity: Mapping[str, Any] = field(default_factory=lambda: dict(PERCENTILES))
    classes: tuple[str, str] | None = None


def table_task(datalist: DataList, form: TableForm, name: str = "table") -> Task:
    """A task from a data list whose cases have a class; those of other classes are left out.

    Args:
        datalist: Cases with an image and a class.
        form: How they are read.
        name: Name of the task.

    Raises:
        DataListError: If a case has no class, or there are not two.
    """
    cases = [case for case in datalist.cases if case.image]
    key = form.label_key
    where = datalist.path or "the data list"
    for case in cases:
        if not isinstance(case.extra.get(key), str | int):
            raise DataListError(
                f"{where}: case {case.name} has the keys {sorted(case.extra)}, and no class under "
                f"{key!r}. Write it into the entry, such as {key!r}: 'patient', or name the key "
                f"with --label-key."
            )
    known = sorted({str(case.extra[key]) for case in cases})
    classes = form.classes or tuple(known)
    if len(classes) != 2 or not set(classes) <= set(known):
        raise DataListError(
            f"{where} has the classes {', '.join(known) or 'none'} under {key!r}; a study compares "
            f"two of them. Name both with --classes, the one to be found last."
        )
    first, second = classes
    parts = []
    count = len(cases[0].image) if cases else 1
    odd = next((case for case in cases if len(case.image) != count), None)
    if odd is not None:
        raise DataListError(
            f"{where}: case {odd.name} has {len(odd.image)} files of images, {cases[0].name} has "
            f"{count}. List the same channels in the same order for every case."
        )
    for case in cases:
        _require_single(case)
    channels = [{"intensity": dict(form.intensity)}] * count
    transform = Compose(case_transforms(channels, form.spacing_mm, form.shape))
    for case in cases:
        if str(case.extra[key]) in (first, second):
            with enough_memory(f"case {case.name} ({case.image[0]})"):
                image = torch.as_tensor(transform(as_monai([case])[0])["image"])
            value = int(str(case.extra[key]) == second)
            parts.append((image, value, case.subject, case.split))
    facts = {
        "spacing_mm": list(form.spacing_mm),
        "shape": list(form.shape),
        "intensity": dict(form.intensity),
    }
    return task_of(name, parts, (first, second), facts)


def _require_single(case: Case) -> None:
    """Refuses files of several channels, of which the first alone would be read in silence.

    Raises:
        DataListError: If there is one.
    """
    for file in case.image:
        if not str(file).endswith(VOLUME_SUFFIXES):
            continue
        shape = stored_shape(read_header(file, f"image of {case.name} {file}"))
        if len(shape) > 3 and shape[3] > 1:
            raise DataListError(
                f"{file} of case {case.name} holds {shape[3]} channels; a study on classes reads "
                f"one file a channel. Split its fourth axis into one file a channel."
            )


def hippocampus_shape(
    datalist: DataList,
    seed: int = 0,
    shape: Sequence[int] = (20, 28, 20),
    spacing_mm: Sequence[float] = (2.0, 2.0, 2.0),
    threshold: float | None = None,
) -> Task:
    """Whether the anterior part of a hippocampus is large for its posterior part.

    The threshold is the median of the ratio of their volumes over training cases. The masks make
    the classes and are not shown. The ratio is taken and not the whole volume, since the crops
    of the files are the larger the larger the hippocampus is, and padding would tell it.

    Args:
        datalist: Cases with image and label 1 (anterior) and 2 (posterior).
        seed: Not used; every case is taken.
        shape: Voxels.
        spacing_mm: Size of a voxel.
        threshold: Of the ratio; over the training cases by default.

    Raises:
        DataListError: If a mask lacks a part, or there is no training case.
    """
    channels = [{"intensity": dict(PERCENTILES)}]
    transform = Compose(case_transforms(channels, spacing_mm, shape))
    # The ratio is of voxels as they were labelled, not resampled.
    native = Compose(
        case_transforms(channels, (1.0, 1.0, 1.0), None, HIPPOCAMPUS, allow_missing_images=True)
    )
    ratios, images, cases = [], [], []
    for case in datalist.cases:
        if not case.image or case.label is None:
            continue
        item = as_monai([case])[0]
        mask = torch.as_tensor(native({"label": item["label"]})["label"])
        front, back = (int((mask == value).sum()) for value in (1, 2))
        if not front or not back:
            raise DataListError(
                f"{case.label} has {front} voxels of label 1 and {back} of label 2; both parts of "
                f"the hippocampus are needed. Take the case out of the data list."
            )
        ratios.append(front / back)
        images.append(torch.as_tensor(transform(item)["image"]))
        cases.append(case)
    known = [r for r, case in zip(ratios, cases, strict=True) if case.split == "training"]
    if not known and threshold is None:
        raise DataListError(
            f"{datalist.path or 'the data list'} has no training case with image and mask, over "
            f"which the threshold is taken. Add some under training."
        )
    threshold = float(torch.tensor(known).median()) if threshold is None else threshold
    parts = [
        (image, int(ratio > threshold), case.subject, case.split)
        for image, ratio, case in zip(images, ratios, cases, strict=True)
    ]
    facts = {
        "threshold_of_ratio": threshold,
        "spacing_mm": list(spacing_mm),
        "shape": list(shape),
    }
    return task_of("hippocampus_shape", parts, ("posterior-heavy", "anterior-heavy"), facts)


TASKS: Mapping[str, TaskKind] = {
    "tumour_patch": TaskKind(
        "CT patches with a soft-tissue sarcoma against tumour-free ones of the same patient",
        "sts_petct",
        lambda datalist, seed: patch_task("tumour_patch", TUMOUR, datalist, seed),
    ),
    "lesion_patch": TaskKind(
        "FLAIR patches with a lesion of multiple sclerosis against normal-appearing ones",
        "open_ms",
        lambda datalist, seed: patch_task("lesion_patch", LESION, datalist, seed),
    ),
    "hippocampus_shape": TaskKind(
        "MR of hippocampi with a large against those with a small anterior part",
        "hippocampus",
        hippocampus_shape,
    ),
    "scanpath": TaskKind(
        "simulated paths of the eye of two groups, drawn as maps",
        None,
        lambda datalist, seed: scanpath_task(seed),
    ),
}


def sample_images(task: Task, datalist: DataList, form: TableForm, seed: int) -> Images:
    """Images of samples that have masks, such as a bundle writes, by the rule of a task.

    Patches are cut out of them and classes are made of their masks as of real cases. For a data
    list with classes, the samples say theirs under the same key.

    Args:
        task: What is told apart in real cases.
        datalist: Data list of the samples.
        form: How a data list with classes is read.
        seed: Seed of patches.

    Raises:
        DataListError: If the samples lack a class.
    """
    if task.name == "hippocampus_shape":
        made = hippocampus_shape(datalist, seed, threshold=task.facts["threshold_of_ratio"])
    elif task.name in TASKS and TASKS[task.name].dataset is not None:
        made = TASKS[task.name].make(datalist, seed)
    else:
        made = table_task(datalist, replace(form, classes=task.classes), task.name)
    missing = [name for v, name in enumerate(task.classes) if not bool((made.images.y == v).any())]
    if missing or made.images.x.shape[1:] != task.images.x.shape[1:]:
        raise DataListError(
            f"the samples of {datalist.path} have "
            f"{f'none of class {missing[0]}' if missing else 'other channels or another shape'}; "
            f"task {task.name} has {' and '.join(task.classes)}. Make more samples, of the "
            f"channels of the task."
        )
    return made.images
