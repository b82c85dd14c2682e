"""Synthetic cases against real ones: one report as a page, and every number in one file.

::

    medvae3d evaluate --real LIST --synthetic LIST --out DIR

What each section measures is in its own module under `medvae3d.evaluation`; here the cases are
read, the sections asked one after the other, and what they found is written down. A section that
cannot be computed says why and holds up none of the others.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medvae3d import __version__
from medvae3d.apps.console import Stopwatch
from medvae3d.apps.evaluate_cases import LEFT_OUT, Frame, Read
from medvae3d.apps.evaluate_lists import (
    CaseList,
    choose,
    first_channels,
    of_same_names,
    open_list,
    subset,
)
from medvae3d.apps.evaluate_model import BundleModel
from medvae3d.apps.evaluate_sections import Judged, chosen_sections, feature_names
from medvae3d.apps.evaluate_work import Bar, SectionWork, Tell, compute
from medvae3d.apps.report_files import FORMAT, Report, require_own_folder, write_report
from medvae3d.data.datalists import SPLITS, write_datalist
from medvae3d.data.locks import held_folder
from medvae3d.data.manifests import sha256_of
from medvae3d.errors import DataListError, SettingError
from medvae3d.evaluation.figures import plain
from medvae3d.evaluation.sections import Section
from medvae3d.spreading import Engine, Here

LIBRARIES = ("torch", "monai", "numpy", "scipy", "scikit-learn", "nibabel")


def evaluate(
    real: str | Path,
    synthetic: str | Path,
    reference: str | Path | None = None,
    out: str | Path | None = None,
    *,
    real_split: str = "training",
    synthetic_split: str = "all",
    sections: Sequence[str] | str | None = None,
    features: Sequence[str] | str = ("radiomics",),
    paired: bool = False,
    lpips: str | Path | None = None,
    bundle: str | Path | None = None,
    kept_list: str | Path | None = None,
    spacing_mm: Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    intensity: str | None = None,
    labels: Mapping[str, int] | None = None,
    channels: int | None = None,
    most: int | None = None,
    viewer_cases: int = 6,
    seed: int = 0,
    command: str | None = None,
    engine: Engine | None = None,
    progress: Tell | None = None,
) -> dict[str, Any]:
    """Judges synthetic cases against real ones; with ``out``, also writes the report there.

    Args:
        real: Data list of real cases, or a folder with ``dataset.json`` or ``datalist.json``.
        synthetic: The same of synthetic cases.
        reference: The same of real cases that no model was trained on; if not given, the
            validation and testing cases of the real list that ``real_split`` leaves.
        out: Folder of the report: new, empty, or with an earlier report.
        real_split: Splits of the real list, with commas, or ``all``.
        synthetic_split: The same of the synthetic list.
        sections: Which sections; all that apply by default.
        features: What cases are compared by: ``radiomics``, ``fixed-network``,
            ``fixed-network-2.5d``, ``medicalnet=FILE``, ``radimagenet=FILE``.
        paired: Whether each synthetic case is a reconstruction of the real one of its name.
        lpips: File with the weights of the learned perceptual distance, for pairs.
        bundle: Bundle that made the cases; its own grid and intensities are used, and its network
            in the section on privacy.
        kept_list: File to write the synthetic cases to whose image shows what the mask says.
        spacing_mm: Size of a voxel of all cases; the median of the real ones by default.
        shape: Voxels of all cases; the largest of the real ones by default.
        intensity: ``range`` or ``percentile``, see `read_sets`.
        labels: Names and values of the labels, in place of what the lists say.
        channels: Channel files of each case that are looked at, from the first on; those that the
            bundle makes if one is given, else all.
        most: Cases of each set at most, drawn by seed.
        viewer_cases: Cases in the viewer of the page; none for no pictures of cases at all.
        seed: Seed of everything that is random.
        command: The command line, to be recorded.
        engine: Who computes the sections; this process, one after the other, by default.
        progress: Told how far it is.

    Returns:
        What ``report.json`` holds.

    Raises:
        DataListError: If a list cannot be used.
        SettingError: If a setting is wrong, or memory does not suffice.
        OutputError: If the folder holds other files, or another process is writing it.
    """
    wanted = chosen_sections(sections, paired=paired, needs_agreement=kept_list is not None)
    names = feature_names(features)
    if lpips is not None and not paired:
        raise SettingError(
            "the learned perceptual distance compares pairs, and there are none. Add --paired if "
            "synthetic cases are reconstructions of real ones, or leave --lpips away."
        )
    folder = None if out is None else require_own_folder(out, kept_list)
    is_first = engine is None or engine.is_first
    with held_folder(folder) if folder is not None and is_first else nullcontext():
        model = None if bundle is None else BundleModel.load(bundle, seed)
        started, watch = datetime.now(timezone.utc), Stopwatch()
        bar = Bar(progress, wanted)
        lists = _lists(real, synthetic, reference, real_split, synthetic_split, paired)
        if channels is None and model is not None:
            channels = len(model.schemes)
        lists = {name: first_channels(each, channels) for name, each in lists.items()}
        lists = _drawn(lists, most, seed, paired)
        work = SectionWork(
            lists,
            {
                "spacing_mm": spacing_mm or (model.spacing_mm if model else None),
                "shape": shape or (model.shape if model else None),
                "intensity": intensity or "range",
                "schemes": model.schemes if model and intensity is None else None,
                "labels": labels or (model.labels if model else None),
            },
            names, seed, bundle, lpips,
        )  # fmt: skip
        read = work.read(bar.reading)
        _require_reference(read, reference)
        judged = work.judged(read, model)
        times = {"reading": watch.seconds}
        found = {}
        for name, (section, seconds) in compute(
            work, judged, wanted, engine or Here(), bar
        ).items():
            found[name], times[name] = section, seconds
        settings: dict[str, Any] = {"features": list(names), "paired": paired, "most": most}
        if lpips is not None:
            settings["lpips"] = str(lpips)
        if model is not None:
            settings |= {"bundle": model.name, "weights_sha256": model.weights_sha256}
        content = {
            "format": FORMAT,
            "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "versions": _versions(),
            "seed": seed,
            "settings": settings,
            "inputs": _inputs(read),
            "grid": _grid(read.frame),
            "warnings": read.warnings,
            "summary": _summary(found),
            "sections": {name: plain(section.to_dict()) for name, section in found.items()},
            "times": {
                "started": started.isoformat(timespec="seconds"),
                "seconds": {name: round(seconds, 2) for name, seconds in times.items()},
            },
        }
        if engine is not None and not engine.is_first:
            return content
        if folder is not None:
            write_report(Report(content, found, judged), folder, viewer_cases)
        if kept_list is not None:
            _write_kept(found["agreement"], judged, read.lists["synthetic"], Path(kept_list))
    return content


def _require_reference(read: Read, reference: str | Path | None) -> None:
    """Refuses a reference that was asked for and cannot be compared with the other cases.

    Raises:
        DataListError: If it was left out.
    """
    if reference is None or "reference" in read.sets:
        return
    why = [text.removeprefix(LEFT_OUT) for text in read.warnings if text.startswith(LEFT_OUT)]
    raise DataListError(
        f"--reference {reference} cannot be compared with the other cases: {' '.join(why)}. "
        f"Correct it, or leave out --reference."
    )


def _write_kept(section: Section, judged: Judged, listed: CaseList, path: Path) -> None:
    """Writes the synthetic cases whose image shows what the mask says, as a data list."""
    from medvae3d.evaluation.agreement import kept

    names = set(kept(section))
    pairs = zip(judged.synthetic.names, listed.cases, strict=True)
    cases = [case for name, case in pairs if name in names]
    if not cases:
        raise DataListError(
            f"{path} is not written: of {len(listed.cases)} synthetic cases, none shows in its "
            f"image what its mask says. See the section on agreement."
        )
    write_datalist(path, cases, listed.info)


def _lists(
    real: str | Path,
    synthetic: str | Path,
    reference: str | Path | None,
    real_split: str,
    synthetic_split: str,
    paired: bool,
) -> dict[str, CaseList]:
    opened = open_list(real)
    lists = {
        "real": choose(opened, real_split),
        "synthetic": choose(open_list(synthetic), synthetic_split),
    }
    if paired:
        lists["real"], lists["synthetic"] = of_same_names(lists["real"], lists["synthetic"])
    left = [split for split in SPLITS[1:] if split not in lists["real"].splits]
    left = [split for split in left if any(case.image for case in opened.split(split))]
    if reference is not None:
        # The same list again: the cases that are not among the real ones already.
        other = open_list(reference)
        lists["reference"] = choose(other, left if other.path == opened.path else "all")
    elif left:
        lists["reference"] = choose(opened, left)
    return lists


def _drawn(
    lists: Mapping[str, CaseList], most: int | None, seed: int, paired: bool
) -> dict[str, CaseList]:
    """At most so many cases of each set; of pairs, the same ones on both sides."""
    draws = {"synthetic": "real"} if paired else {}
    return {name: subset(each, most, seed, name, draws.get(name)) for name, each in lists.items()}


def _inputs(read: Read) -> dict[str, Any]:
    return {
        name: {
            "list": str(each.path),
            "sha256": sha256_of(each.path),
            "splits": list(each.splits),
            "cases": len(each.cases),
            "files_sha256": read.hashes[name],
        }
        for name, each in read.lists.items()
    }


def _grid(frame: Frame) -> dict[str, Any]:
    return {
        "spacing_mm": list(frame.spacing_mm),
        "shape": list(frame.shape),
        "channels": list(frame.channels),
        "labels": dict(zip(frame.labels, frame.label_values, strict=True)),
        "intensities": [dict(each) for each in frame.intensities],
    }


def _summary(found: Mapping[str, Section]) -> list[dict[str, Any]]:
    return [
        {"section": name, **verdict.to_dict()}
        for name, section in found.items()
        if not section.not_computed
        for verdict in section.verdicts
    ]


def _versions() -> dict[str, str]:
    found = {"medvae3d": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found | {"platform": platform.platform()}
