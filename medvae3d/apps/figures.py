"""All figures of a bundle in one command: loads it, reads the cases, makes samples, judges them.

::

    medvae3d figures BUNDLE --datalist LIST --out DIR

What each figure is, and how it is computed, is in ``docs/reference/figures.md``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from medvae3d import __version__
from medvae3d.apps.bundle import load_bundle
from medvae3d.apps.figure_cases import CaseSource, Say
from medvae3d.apps.figure_sections import Effort, Sections
from medvae3d.apps.figure_speed import throughput
from medvae3d.apps.figure_twins import load_twins
from medvae3d.data.locks import held_folder
from medvae3d.errors import SettingError
from medvae3d.evaluation import figures as judge
from medvae3d.evaluation.curves import plot_run

SECTIONS = (
    "reconstruction",
    "shape",
    "texture",
    "evidence",
    "control",
    "agreement",
    "copying",
    "throughput",
)
QUICK = Effort(8, 8, 2, 2, 20, 0, 8)


def report(
    bundle_root: str | Path,
    datalist: str | Path,
    split: str = "validation",
    out: str | Path | None = None,
    *,
    seed: int = 0,
    quick: bool = False,
    progress: Say | None = None,
    twin: str | Path | Mapping[str, str | Path] | None = None,
    weights: str | Path | None = None,
    sections: Sequence[str] | str | None = None,
) -> dict[str, Any]:
    """Computes all figures of a bundle; plain numbers, nested by section.

    With ``out``, they are also written there, as ``figures.json`` and ``figures.md``, with
    pictures, the samples, and the segmenter, which a second run uses again.

    Args:
        bundle_root: Name of a shipped bundle, or the folder of any.
        datalist: Data list; its training cases are those the bundle was trained on.
        split: Unseen cases: ``validation``, ``testing``, or both with a comma.
        out: Folder to write to.
        seed: Seed of everything that is random.
        quick: Whether to draw and train so little that the figures only show that all runs.
        progress: Told what is being done.
        twin: Weights of the same network trained without its flow; several by what they share
            with this one, such as ``equal time``.
        weights: Other weights than the bundle's.
        sections: Which of the sections to compute; all that apply by default.

    Raises:
        BundleError: If the bundle cannot be loaded.
        DataListError: If the list has no case to judge.
        SettingError: If a section is unknown.
    """
    wanted = _sections(sections)
    bundle = load_bundle(bundle_root, weights=weights)
    effort = QUICK if quick else Effort()
    with _folder(out) as folder:
        cases = CaseSource(
            bundle, Path(datalist), split, folder, seed, effort.samples, progress or _silent
        )
        run = Sections(cases, effort)
        run.twins = load_twins(bundle, twin)
        found: dict[str, Any] = {
            "bundle": f"{bundle.name} {bundle.version}",
            "weights_sha256": bundle.weights_sha256,
            "medvae3d": __version__,
            "split": split,
            "seed": seed,
            "quick": quick,
        }
        for name in wanted:
            if name == "throughput":
                section = run.guarded(
                    name, lambda: throughput(bundle.root, effort.timed, seed, weights)
                )
            else:
                section = run.guarded(name, getattr(run, name))
            if section:
                found[name] = section
        if cases.generation:
            found["generation"] = cases.generation
        joint = bundle.recipe.synthesis.kind == "joint"
        found["targets"] = judge.targets(found, is_fast=joint)
        result = judge.plain(found)
        if out is not None:
            _draw_training(bundle.root, folder)
            judge.write_figures(result, folder)
    return cast("dict[str, Any]", result)


def _draw_training(root: Path, folder: Path) -> None:
    """Learning curves, from where a bundle or a training run keeps them."""
    for place in ("docs", "eval"):
        if plot_run(root / place, folder / "training.png"):
            return


def _sections(sections: Sequence[str] | str | None) -> tuple[str, ...]:
    if sections is None:
        return SECTIONS
    wanted = sections.split(",") if isinstance(sections, str) else list(sections)
    wanted = [name.strip() for name in wanted]
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown or not wanted:
        raise SettingError(
            f"sections are {', '.join(wanted) or 'none'}; allowed are {', '.join(SECTIONS)}. "
            f"Name some of them, or leave --section out for all."
        )
    return tuple(name for name in SECTIONS if name in wanted)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is None:
        with tempfile.TemporaryDirectory(prefix="medvae3d-figures-") as folder:
            yield Path(folder)
    else:
        with held_folder(Path(out)):
            yield Path(out)


def _silent(text: str) -> None:
    """Says nothing."""
