"""The command ``medvae3d study classification``, and where its data come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvae3d.apps.console import (
    AsJson,
    Stopwatch,
    duration,
    in_lines,
    listed,
    notice,
    one_of,
    parse_triple,
    parse_whole,
    progress,
    say,
    say_document,
)
from medvae3d.apps.worker_options import Ray, RayAddress, Workers, address_of

if TYPE_CHECKING:
    from medvae3d.studies.classification.tasks import Images, Task

DATA_VARIABLE = "MEDVAE3D_DATA"
# Known without importing the studies, for help and completion; a test compares them.
TASK_NAMES = ("tumour_patch", "lesion_patch", "hippocampus_shape", "scanpath")
PRESET_NAMES = (
    *("endovae", "generative_active_learning", "self_learning", "scanpath", "disc_vae"),
    *("vae_noise_gan", "icvae", "rhvae_small_sample", "adni"),
)
SPLIT_NAMES = one_of("validation", "testing")


def read_task(
    name: str | None, datalist: Path | None, table: Mapping[str, Any], preset: str | None, seed: int
) -> Task:
    """The task of a command: one that has a name, or that of a data list with classes.

    Args:
        name: Name of a task.
        datalist: Data list.
        table: Changes of how a data list with classes is read.
        preset: Name of a preset, which may have a task and a way to read.
        seed: Seed of patches.

    Raises:
        MedvaeError: If there is no such task, or no data for it.
    """
    from medvae3d.data.datalists import DataList, read_datalist
    from medvae3d.errors import SettingError
    from medvae3d.studies.classification.presets import preset_of
    from medvae3d.studies.classification.sources import TASKS, table_task

    chosen = preset_of(preset)
    name = name or (None if datalist is not None else chosen.task)
    if name is None:
        if datalist is None:
            raise SettingError(
                f"there is nothing to tell apart; give --task with one of {', '.join(TASKS)}, or "
                f"--datalist with a data list whose cases have a class."
            )
        return table_task(read_datalist(datalist), replace(chosen.table, **table), datalist.stem)
    if name not in TASKS:
        raise SettingError(
            f"there is no task {name!r}; there are {', '.join(TASKS)}. Name one of them with "
            f"--task, or give --datalist alone."
        )
    kind = TASKS[name]
    if kind.dataset is None:
        return kind.make(DataList((), Path()), seed)
    return kind.make(read_datalist(datalist or _found(name, kind.dataset)), seed)


def read_samples(
    task: Task, datalist: Path, table: Mapping[str, Any], preset: str | None, seed: int
) -> Images:
    """Images of samples, by the rule of the task.

    Args:
        task: What is told apart.
        datalist: Data list of the samples.
        table: See `read_task`.
        preset: See `read_task`.
        seed: Seed of patches.
    """
    from medvae3d.data.datalists import read_datalist
    from medvae3d.studies.classification.presets import preset_of
    from medvae3d.studies.classification.sources import sample_images

    form = replace(preset_of(preset).table, **table)
    return sample_images(task, read_datalist(datalist), form, seed)


def require_headers(datalist: Path) -> None:
    """Looks at the headers of all files of a data list.

    Raises:
        MedvaeError: If the list or a header cannot be used.
    """
    from medvae3d.data.datalists import read_datalist
    from medvae3d.data.nifti import grid_of, read_header

    for case in read_datalist(datalist):
        for file in case.files:
            name = f"{file} of case {case.name}"
            grid_of(read_header(file, name), name)


def _found(name: str, dataset: str) -> Path:
    """The data list of a data set that has been put into the folder named by a variable."""
    from medvae3d.errors import DataListError

    root = os.environ.get(DATA_VARIABLE)
    path = Path(root or "") / dataset / "datalist.json"
    if root is None or not path.is_file():
        raise DataListError(
            f"task {name} is made from the data set {dataset}, of which "
            f"{'no place is known' if root is None else f'{path} is not there'}. Name its data "
            f"list with --datalist, or the folder that holds {dataset}/datalist.json with the "
            f"variable {DATA_VARIABLE}."
        )
    return path


def classification(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the study; finished cells are kept.")
    ],
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"{listed(TASK_NAMES)}.", autocompletion=one_of(*TASK_NAMES)
        ),
    ] = None,
    datalist: Annotated[
        Path | None,
        typer.Option(metavar="LIST", help="Data of the task, or any list with a class a case."),
    ] = None,
    label_key: Annotated[
        str, typer.Option(metavar="KEY", help="Key of the class in a data list.")
    ] = "class",
    samples: Annotated[
        Path | None,
        typer.Option(metavar="LIST", help="Samples with masks, as `generate` writes them."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="The two classes of a data list, B the one to find."),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="I,J,K", help="Voxels that cases of a data list get.")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(metavar="I,J,K", help="Size of these voxels in mm.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"{listed(PRESET_NAMES)}.", autocompletion=one_of(*PRESET_NAMES)
        ),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="real, classical, copies, noise, shuffled, synthetic, only, adaptive, selected, "
            "random, self_learning, retrained, slices_shuffled, synthetic_shuffled, samples; with "
            "the generators of a preset also synthetic-NAME.",
        ),
    ] = None,
    n: Annotated[
        str | None,
        typer.Option("--n", metavar="10,all", help="Real training cases of each class."),
    ] = None,
    ratio: Annotated[
        str | None, typer.Option(metavar="0.5,1,2", help="Extra cases for each real one.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="K", help="Repeats of every cell.")] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="K", help="Optimiser steps of each classifier.")
    ] = None,
    generator_steps: Annotated[
        str | None, typer.Option(metavar="K", help="Optimiser steps of each generator.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="validation to choose settings, testing to report.", autocompletion=SPLIT_NAMES
        ),
    ] = "testing",
    seed: Annotated[
        str, typer.Option(metavar="S", help="Seed of patches and of the choice of cases.")
    ] = "0",
    workers: Workers = "1",
    ray: Ray = False,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Compare classifiers trained with and without synthetic images on real, unseen cases.

    Every arm has the same classifier, steps, seeds and balance of classes. Run the same command
    again to go on.

    Example: medvae3d study classification --task tumour_patch --datalist sts_petct/datalist.json
    --preset endovae --n 20,all --out study
    """
    given = {"--seeds": seeds, "--steps": steps, "--generator-steps": generator_steps}
    counts = {
        name: None if text is None else parse_whole(text, name, least=1)
        for name, text in given.items()
    }
    from medvae3d.apps.study_inputs import parse_numbers
    from medvae3d.studies.classification.study import ClassificationOptions, classification_study

    table: dict[str, Any] = {"label_key": label_key}
    if classes is not None:
        table["classes"] = tuple(classes.split(","))
    if shape is not None:
        table["shape"] = parse_triple(shape, "--shape", int, above=0)
    if spacing is not None:
        table["spacing_mm"] = parse_triple(spacing, "--spacing", float, above=0)
    options = ClassificationOptions(
        preset=preset,
        arms=None if arms is None else tuple(arms.split(",")),
        n=None if n is None else tuple(n.split(",")),
        ratios=None if ratio is None else parse_numbers(ratio, "--ratio"),
        seeds=counts["--seeds"],
        steps=counts["--steps"],
        generator_steps=counts["--generator-steps"],
        split=split,
        seed=parse_whole(seed, "--seed"),
    )
    processes = parse_whole(workers, "--workers", least=1)
    watch = Stopwatch()
    if samples is not None:
        require_headers(samples)  # before real cases are read, which may take long
    made = read_task(task, datalist, table, preset, options.seed)
    extra = None if samples is None else read_samples(made, samples, table, preset, options.seed)
    notice(f"task {made.name}: {made.counts('training')} in training, in {duration(watch.seconds)}")
    with progress("cells") as advance:
        found = classification_study(
            made, out, options, workers=processes, ray_address=address_of(ray, ray_address),
            report=in_lines(advance, "cell"), samples=extra,
        )  # fmt: skip
    if as_json:
        say_document((out / "study.json").read_text().rstrip())
    else:
        say(found.table)
        say(found.shown)
    for note in found.notes:
        notice(f"note: {note}")
    notice(f"{found.done} of {found.wanted} cells done, in {duration(watch.seconds)}")
    if not as_json:
        say(f"table of all measures: {out / 'table.md'}; curves and numbers beside it")
