"""Coverage-guided fuzzing of readers: lists, manifests, records, options, bundles, tars, headers.

``make fuzz`` runs it for ten minutes. Each input is written to a file and read as that kind of file
is read by the commands; anything but an error of ours is a crash, whose input is kept. Half of the
inputs are made into JSON of the right words first, since few random bytes get past a parser.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import atheris

with atheris.instrument_imports(include=["medvae3d"]):
    from medvae3d.apps.cite import references
    from medvae3d.apps.evaluate_lists import choose, open_list
    from medvae3d.apps.run_options import read_config
    from medvae3d.apps.trust import foreign
    from medvae3d.data.datalists import as_monai, read_datalist
    from medvae3d.data.importing.common import read_itk
    from medvae3d.data.importing.layouts import find_layout
    from medvae3d.data.importing.slices import is_dicom, read_header, sort_slices
    from medvae3d.data.manifests import read_manifest
    from medvae3d.studies.cells import Cell, cell_file, read_cell
    from medvae3d.synthesis.records import read_records, rejections
    from medvae3d.training.logs import ValidationWriter, read_history

from medvae3d.errors import MedvaeError

# Memory files where there are some: a disk would be the slowest part.
HOME = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
WORDS = [
    "training", "validation", "testing", "test", "image", "label", "subject", "case", "class",
    "split", "labels", "channels", "0", "1", "channel_names", "modality", "name", "licence",
    "url", "note", "source", "title", "citations", "label_values", "spacing", "values", "size",
    "cases", "how_to_get", "limitations", "layouts", "archives", "notes", "path", "sha256",
    "shares", "extra", "rejected", "attempts", "bundle", "cite", "medvae3d", "options", "kind",
    "seed", "weights_sha256", "index", "file_ending", "numTraining", "imports", "network_def",
    "_target_", "_mode_", "references", "command", "host", "count", "a.nii", "b.nii.gz",
    "{subject}/{visit}.nii.gz", "fuzz", "../x", "/etc/passwd", "$1", "%a", "._x",
]  # fmt: skip
COUNTS: Counter[str] = Counter()


def value(data: atheris.FuzzedDataProvider, depth: int = 0) -> Any:
    """Something that JSON can hold, of words that readers know."""
    kind = data.ConsumeIntInRange(0, 8 if depth < 5 else 5)
    if kind == 0:
        return data.PickValueInList([None, True, False])
    if kind == 1:
        return data.ConsumeInt(4)
    if kind == 2:
        return data.ConsumeRegularFloat()
    if kind == 3:
        return data.ConsumeUnicode(8)
    if kind in (4, 5):
        return data.PickValueInList(WORDS)
    count = data.ConsumeIntInRange(0, 4)
    if kind == 6:
        return [value(data, depth + 1) for _ in range(count)]
    return {data.PickValueInList(WORDS): value(data, depth + 1) for _ in range(3 * count)}


def as_list(path: Path) -> None:
    listed = read_datalist(path, check_files=False)
    as_monai(listed.cases)
    choose(listed, "all")


def as_opened(path: Path) -> None:
    open_list(path)


def as_manifest(path: Path) -> None:
    found = read_manifest(path)
    found.verify(path.parent)
    found.to_datalist(path.parent)


def as_record(path: Path) -> None:
    (HOME / "records").mkdir(exist_ok=True)
    path = path.replace(HOME / "records" / "fuzz.json")
    try:
        rejections(read_records(HOME))
        references(str(path))
    finally:
        path.unlink()


def as_bundle(path: Path) -> None:
    configs = HOME / "bundle" / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    path = path.replace(configs / "metadata.json")
    foreign(configs.parent)
    references(str(configs.parent))


def as_options(path: Path) -> None:
    option = SimpleNamespace(name="count", opts=["--count"], nargs=1)
    read_config(path, SimpleNamespace(name="generate", params=[option]))


def as_yaml(path: Path) -> None:
    as_options(path.replace(path.with_suffix(".yaml")))


def as_dataset(path: Path) -> None:
    find_layout(path.replace(HOME / "dataset.json"))


def as_tar(path: Path) -> None:
    find_layout(path.replace(path.with_suffix(".tar")))


def as_nrrd(path: Path) -> None:
    read_itk(path.replace(HOME / "itk" / "fuzz.nrrd"))


def as_mha(path: Path) -> None:
    read_itk(path.replace(HOME / "itk" / "fuzz.mha"))


def as_slice(path: Path) -> None:
    path = path.replace(HOME / "itk" / "fuzz.dcm")
    if is_dicom(path):
        sort_slices([read_header(path)] * 2, "fuzz")


def as_cell(path: Path) -> None:
    cell = Cell(1, 1.0, "fuzz", 0)
    path.replace(cell_file(HOME, cell))
    read_cell(HOME, cell)


def as_curve(path: Path) -> None:
    read_history(path)


def as_validation(path: Path) -> None:
    ValidationWriter(str(path))._lines()


TARGETS: tuple[Callable[[Path], None], ...] = (
    as_list, as_opened, as_manifest, as_record, as_bundle, as_options, as_yaml, as_dataset, as_tar,
    as_nrrd, as_mha, as_slice, as_cell, as_curve, as_validation,
)  # fmt: skip
BYTES = (as_tar, as_nrrd, as_mha, as_slice)


def one_input(content: bytes) -> None:
    """Reads one input as one kind of file."""
    if len(content) < 2:
        return
    target = TARGETS[content[0] % len(TARGETS)]
    text = content[2:]
    if content[1] % 2 and target not in BYTES:
        made = value(atheris.FuzzedDataProvider(text))
        text = json.dumps(made).encode()
    path = HOME / "fuzz.json"
    path.write_bytes(text)
    COUNTS[target.__name__] += 1
    try:
        target(path)
    except MedvaeError as error:
        COUNTS["refused"] += 1
        str(error).encode("utf-8", "backslashreplace")


if __name__ == "__main__":
    import atexit

    for name in ("itk", "cells"):
        (HOME / name).mkdir()
    atexit.register(lambda: print(dict(COUNTS), file=sys.stderr))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
