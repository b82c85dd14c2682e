"""The command ``medvae3d doctor``: is this installation as it should be, and what to do if not."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from medvae3d.apps import catalogue
from medvae3d.apps.console import AsJson, output, say_json, table

GOOD, NOTE, BAD = "ok", "note", "wrong"
LEAST_DISK_GB, LEAST_MEMORY_GB = 5.0, 4.0
GB = 1024**3
# bfloat16 has to be clearly faster than float32 before training in it is worth anything.
WORTHWHILE = 1.3


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was looked at.
        state: ``ok``, ``note`` (works, could be better) or ``wrong``.
        found: What is there.
        advice: What to do, if anything.
    """

    name: str
    state: str
    found: str
    advice: str = ""


def doctor(
    as_json: AsJson = False,
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder whose disk is looked at.")
    ] = Path("."),
) -> None:
    """Check this installation: packages, device, bfloat16, readers, disk, bundles.

    Leaves with 1 if something is wrong, with 0 otherwise.

    Example: medvae3d doctor
    """
    findings = [finding for check in CHECKS for finding in check(folder)]
    if as_json:
        say_json([asdict(finding) for finding in findings])
    else:
        rows = [(each.state, each.name, each.found, each.advice) for each in findings]
        output().print(table("This installation", ("", "what", "found", "what to do"), rows))
    if any(finding.state == BAD for finding in findings):
        raise typer.Exit(1)


def _python(folder: Path) -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    fits = (3, 10) <= sys.version_info[:2] < (3, 14)
    advice = "" if fits else "install Python 3.10 to 3.13 and make a new environment with it"
    yield Finding("Python", GOOD if fits else BAD, found, advice)


def _packages(folder: Path) -> Iterator[Finding]:
    """Each declared dependency, with the range that is allowed."""
    from packaging.requirements import Requirement

    try:
        declared = metadata.requires("medvae3d") or []
    except metadata.PackageNotFoundError:
        advice = "install it: pip install . in the source folder"
        yield Finding("medvae3d", NOTE, "a source folder, not installed", advice)
        return
    yield Finding("medvae3d", GOOD, metadata.version("medvae3d"))
    for text in declared:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield Finding(wanted.name, BAD, "missing", f"pip install '{wanted}'")
            continue
        fits = wanted.specifier.contains(version, prereleases=True)
        advice = "" if fits else f"pip install '{wanted}'"
        yield Finding(wanted.name, GOOD if fits else BAD, version, advice)


def _device(folder: Path) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found = f"{card.name}, {card.total_memory / GB:.0f} GB"
        yield Finding("GPU", GOOD, found)
    else:
        advice = "" if torch.version.cuda is None else "the driver does not fit this torch"
        built = "without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
        yield Finding("GPU", NOTE, f"none; torch is built {built}", advice)
    yield Finding("CPU threads", GOOD, f"{torch.get_num_threads()} of {os.cpu_count()} processors")
    gain = _bfloat16_gain(torch)
    if gain is None:
        yield Finding("bfloat16", NOTE, "not supported here", "train with precision=float32")
    else:
        slow = gain < WORTHWHILE
        advice = "train with precision=float32, which is no slower here" if slow else ""
        found = f"a convolution is {gain:.1f} times as fast as in float32"
        yield Finding("bfloat16", NOTE if slow else GOOD, found, advice)


def _bfloat16_gain(torch: Any) -> float | None:
    """How much faster a convolution of the size of ours is, in the layout that is used."""
    from time import perf_counter

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def seconds(dtype: Any) -> float:
        layer = torch.nn.Conv3d(32, 32, 3, padding=1).to(device, dtype)
        layer = layer.to(memory_format=torch.channels_last_3d)
        x = torch.ones(1, 32, 24, 24, 24, device=device, dtype=dtype)
        x = x.to(memory_format=torch.channels_last_3d)
        taken = []
        for _ in range(5):
            begin = perf_counter()
            layer(x).sum().item()
            taken.append(perf_counter() - begin)
        return sorted(taken)[2]

    try:
        with torch.inference_mode():
            return seconds(torch.float32) / seconds(torch.bfloat16)
    except RuntimeError:
        return None


def _readers(folder: Path) -> Iterator[Finding]:
    """Writes a small volume and reads it back with each reader that is used."""
    import nibabel as nib
    import numpy as np
    import SimpleITK as sitk

    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)

    def with_nibabel(path: Path) -> Any:
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
        loaded: Any = nib.load(path)
        return loaded.get_fdata()

    def with_simpleitk(path: Path) -> Any:
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))

    readers: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "NIfTI by nibabel": ("a.nii.gz", with_nibabel),
        "NRRD by SimpleITK": ("a.nrrd", with_simpleitk),
    }
    for name, (file, read) in readers.items():
        with tempfile.TemporaryDirectory() as temporary:
            try:
                same = np.array_equal(read(Path(temporary) / file), voxels)
            except Exception as error:  # whatever a reader may come up with is the finding
                yield Finding(name, BAD, f"{type(error).__name__}: {error}", "reinstall the reader")
                continue
        found = "reads what it writes" if same else "reads other voxels than it wrote"
        yield Finding(name, GOOD if same else BAD, found, "" if same else "reinstall the reader")


def _room(folder: Path) -> Iterator[Finding]:
    place = next(each for each in (folder.resolve(), *folder.resolve().parents) if each.exists())
    if place != folder.resolve():
        yield Finding("folder", NOTE, f"{folder} is not there; looked at {place}", "make it first")
    free = shutil.disk_usage(place).free / GB
    low = free < LEAST_DISK_GB
    advice = "choose a folder on another disk for --out" if low else ""
    yield Finding("disk", NOTE if low else GOOD, f"{free:.1f} GB free at {place}", advice)
    if not os.access(place, os.W_OK):
        yield Finding("folder", BAD, f"{place} cannot be written", "choose another for --out")
    with_pages = hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names
    if with_pages:
        memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
        tight = memory < LEAST_MEMORY_GB
        advice = "close other programs, or train with batch_size=1" if tight else ""
        yield Finding("memory", NOTE if tight else GOOD, f"{memory:.1f} GB free", advice)


def _bundles(folder: Path) -> Iterator[Finding]:
    for entry in catalogue.entries():
        state = GOOD if entry.has_weights else BAD
        found = f"version {entry.version}" if entry.has_weights else "without weights"
        advice = "" if entry.has_weights else "get models/model.pt again, or train it"
        yield Finding(entry.name, state, found, advice)
    if not catalogue.shipped_bundles():
        yield Finding("bundles", NOTE, "none came with this package", "name folders of your own")


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (
    _python, _packages, _device, _readers, _room, _bundles,
)  # fmt: skip
