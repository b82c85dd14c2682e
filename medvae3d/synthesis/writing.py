"""A folder of samples that nnU-Net, MONAI and a radiologist can read.

::

    imagesTr/CASE_0000.nii.gz   one file a channel
    labelsTr/CASE.nii.gz        uint8
    records/CASE.json           how the case was made
    dataset.json                valid for nnU-Net v2 and as a MONAI data list
    preview.png                 the first cases

A case's record is written last, so a case with a record is whole. Everything about the folder is
made from its records: ranges written apart, by several processes if need be, give the folder that
one run gives.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from medvae3d.data.nifti import read_stored
from medvae3d.data.volumes import read_mask, read_volume, write_bytes, write_volume
from medvae3d.errors import MedvaeError, OutputError, SettingError
from medvae3d.synthesis.generator import Sample
from medvae3d.synthesis.preview import Panel, contact_sheet, preview_insertion
from medvae3d.synthesis.recipe import Recipe
from medvae3d.synthesis.records import RUN_KEYS, plain, read_records, rejections, to_bytes
from medvae3d.synthesis.sharing import IMAGES, LABELS, RECORDS, clear, held_range, turn

DATASET = "dataset.json"
PREVIEW_CASES = 6


def require_own_folder(out: str | Path, run: Mapping[str, Any]) -> Path:
    """Checks, before anything is made, that a folder holds at most other cases of the same run.

    Args:
        out: The folder; it need not exist.
        run: What all cases of the run have in common; see `Provenance.run`.

    Raises:
        OutputError: If it holds the files of another run, or is no folder.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; samples need a folder. Choose another name.")
    records = read_records(folder)
    for record in records:
        differing = [key for key in RUN_KEYS if record.get(key) != run[key]]
        if differing:
            key = differing[0]
            raise OutputError(
                f"{folder} holds cases of another run: {record['case']} has {key} "
                f"{json.dumps(record.get(key))}, this run {json.dumps(run[key])}. Choose an empty "
                f"folder; only ranges of one run can be put together."
            )
    own = str(run["bundle"]).rsplit(" ", 1)[0] + f"_s{run['seed']}_"
    # Without its record, a case of this very run is one that another process is writing.
    name = re.compile(re.escape(own) + r"\d{6,}(_\d{4})?\.nii\.gz")
    for part in (IMAGES, LABELS):
        for path in sorted((folder / part).glob("*")):
            if not name.fullmatch(path.name) and not path.name.startswith("."):
                raise OutputError(
                    f"{folder} holds files of another run: {part}/{path.name} is no case of "
                    f"{own}*. Choose an empty folder."
                )
    if not records and (folder / DATASET).exists():
        raise OutputError(
            f"{folder} holds a dataset.json without the records of its cases, so it is of another "
            f"run. Choose an empty folder."
        )
    return folder


def write_cases(
    samples: Iterable[Sample],
    out: str | Path,
    recipe: Recipe,
    run: Mapping[str, Any],
    *,
    indices: range | None = None,
    threads: int = 2,
    preview: bool = True,
    finish: bool = True,
) -> Path:
    """Writes samples as they come, and the files about them at the end.

    Other processes may write other indices into the same folder meanwhile.

    Measured: compressing takes as long as decoding, and runs beside it in its own threads.

    Args:
        samples: Samples with complete records.
        out: Folder; made if needed.
        recipe: Says how channels are stored.
        run: What all cases have in common; see `Provenance.run`.
        indices: Those of the samples, which no other process may be writing; unknown by default.
        threads: Cases written at a time.
        preview: Whether to draw ``preview.png``.
        finish: Whether to check the folder first and to write the files about all cases at the
            end. If not, whoever spreads ranges over workers does both, once: `require_own_folder`
            and `finish_folder` read every record that is there.

    Returns:
        Path of ``dataset.json``.

    Raises:
        OutputError: If the folder holds the files of another run, or cannot be written, or another
            process is writing some of these cases.
    """
    if threads < 1:
        raise SettingError(f"threads is {threads}; allowed is 1 or more.")
    folder = require_own_folder(out, run) if finish else Path(out)
    with nullcontext() if indices is None else held_range(folder, indices):
        first = _write_all(samples, folder, recipe, threads, finish)
        if preview and (folder / RECORDS).is_dir():
            with turn(folder):
                _draw(first, folder, recipe, finish)
    return folder / DATASET


def _write_all(
    samples: Iterable[Sample], folder: Path, recipe: Recipe, threads: int, finish: bool
) -> Sample | None:
    """Writes cases and, if wanted, the data list; gives the first sample."""
    first: Sample | None = None
    waiting: deque[Future[None]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="medvae3d-write")
    try:
        for sample in samples:
            first = first or sample
            waiting.append(pool.submit(_write_case, sample, folder, recipe))
            # Only so many wait: a volume of a whole head is 100 MB.
            while len(waiting) > threads:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()
    finally:
        pool.shutdown(wait=True)
        # Also after an interruption: what is whole so far is a data set.
        if finish:
            finish_folder(folder, recipe, preview=False)
    return first


def _draw(first: Sample | None, folder: Path, recipe: Recipe, finish: bool) -> None:
    if first is not None and first.inserted is not None:
        # Of a host, only the first case is drawn, before and after: whoever makes it has both.
        earliest = min(path.stem for path in (folder / RECORDS).glob("*.json"))
        if first.record["case"] == earliest:
            _preview_host(first, folder, recipe)
    elif finish and any(each["kind"] != "insertion" for each in read_records(folder)):
        write_preview(folder, recipe)


def finish_folder(folder: Path, recipe: Recipe, *, preview: bool = True) -> None:
    """Writes the files about all cases of a folder, from their records.

    Args:
        folder: Folder of samples.
        recipe: Says how channels are stored.
        preview: Whether to draw ``preview.png``; of lesions put into hosts, whoever makes the first
            case draws it.
    """
    if not (folder / RECORDS).is_dir():
        return
    with turn(folder):
        clear(folder)
        records = read_records(folder)
        if records:
            write_bytes(folder / DATASET, to_bytes(describe(records, recipe)))
            if preview and records[0]["kind"] != "insertion":
                write_preview(folder, recipe)


def missing_cases(folder: Path, cases: Sequence[str]) -> list[str]:
    """Those of some cases that have no record in a folder, and so have to be made."""
    return [case for case in cases if not (folder / RECORDS / f"{case}.json").is_file()]


def is_whole(folder: Path, case: str, recipe: Recipe) -> bool:
    """Whether a case is in a folder with its record and readable files."""
    if missing_cases(folder, [case]):
        return False
    paths = [folder / IMAGES / image_name(case, c) for c in range(len(recipe.channels))]
    paths.append(folder / LABELS / f"{case}.nii.gz")
    try:
        for path in paths:
            read_stored(path, str(path))
    except MedvaeError:
        return False
    return True


def describe(records: Sequence[Mapping[str, Any]], recipe: Recipe) -> dict[str, Any]:
    """The content of ``dataset.json``: nnU-Net's fields, MONAI's list, and where it comes from."""
    first = records[0]
    cases = [str(record["case"]) for record in records]
    channels = range(len(recipe.channels))
    return {
        "name": str(first["bundle"]).rsplit(" ", 1)[0],
        "description": f"Synthetic cases, made by medvae3d {first['medvae3d']}; no patients",
        "synthetic": True,
        "channel_names": {str(index): each.name for index, each in enumerate(recipe.channels)},
        "labels": dict(recipe.labels),
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "licence": first.get("licence"),
        "reference": "; ".join(first.get("cite") or []),
        "run": {key: first.get(key) for key in RUN_KEYS},
        "generation": rejections(records),
        "training": [
            {
                "image": [f"{IMAGES}/{image_name(case, channel)}" for channel in channels],
                "label": f"{LABELS}/{case}.nii.gz",
            }
            for case in cases
        ],
    }


def image_name(case: str, channel: int) -> str:
    """The file name of one channel, as nnU-Net wants it."""
    return f"{case}_{channel:04d}.nii.gz"


def _write_case(sample: Sample, folder: Path, recipe: Recipe) -> None:
    case = str(sample.record["case"])
    label = folder / LABELS / f"{case}.nii.gz"
    images = [folder / IMAGES / image_name(case, c) for c in range(len(recipe.channels))]
    record = folder / RECORDS / f"{case}.json"
    content = to_bytes(plain(sample.record))
    try:
        _write_volumes(sample, images, label, recipe)
        write_bytes(record, content)
    except BaseException:
        # Nothing half-written stays, but a whole case of an earlier run does.
        if not record.exists():
            for path in (*images, label):
                path.unlink(missing_ok=True)
        raise


def _write_volumes(sample: Sample, images: Sequence[Path], label: Path, recipe: Recipe) -> None:
    arrays = sample.image.numpy()
    mask = sample.label[0].numpy()
    if sample.inserted is None:
        for path, channel, array in zip(images, recipe.channels, arrays, strict=True):
            write_volume(
                path, array, sample.grid, slope=channel.slope, dtype=channel.dtype, clip=True
            )
        write_volume(label, mask, sample.grid, dtype=np.uint8)
        return
    for index, path in enumerate(images):
        sample.inserted.write_image(index, path)
    # The host's header says where it lies in more ways than one; its brightness is not that of a
    # mask.
    header = sample.inserted.host.volumes[0].header.copy()
    header["cal_min"], header["cal_max"] = 0, 0
    write_volume(label, mask, sample.grid, header=header, dtype=np.uint8, slope=1.0)


def write_preview(folder: Path, recipe: Recipe, cases: int = PREVIEW_CASES) -> None:
    """Draws the first cases of a folder, as they were stored."""
    panels = []
    for record in read_records(folder)[:cases]:
        case = str(record["case"])
        label = read_mask(folder / LABELS / f"{case}.nii.gz")
        paths = [folder / IMAGES / image_name(case, c) for c in range(len(recipe.channels))]
        image = np.stack([read_volume(path).array for path in paths])
        volume = int((label.array > 0).sum()) * label.grid.voxel_volume_ml
        title = f"{record['index']:06d}   {volume:.3g} ml"
        panels.append(Panel(title, image, label.array, label.grid))
    contact_sheet(panels, recipe.channels, folder / "preview.png")


def _preview_host(sample: Sample, folder: Path, recipe: Recipe) -> None:
    if sample.inserted is None:
        return
    preview_insertion(
        sample.inserted.host.image,
        sample.inserted.image,
        sample.inserted.added.astype(np.uint8),
        sample.grid,
        recipe.channels,
        folder / "preview.png",
        title=f"{sample.record['index']:06d}",
    )
