"""What a study is given: numbers of real cases, their subsets, and generators fitted on them alone.

A generator that saw more than the real cases of a cell would bring in what the other arms are not
given. Every trained folder therefore says which cases it was trained on, and a study asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medvae3d.apps.bundle import RECIPE_IDS, Bundle, find_bundle, load_bundle
from medvae3d.apps.bundle_files import content, parser_of
from medvae3d.apps.data_for_training import require_clean
from medvae3d.apps.settings import changed, parse_changes, read_settings
from medvae3d.apps.trained import RUN_FILE, SHARED
from medvae3d.apps.training import train
from medvae3d.data.datalists import (
    Case,
    DataList,
    read_datalist,
    require_all_channels,
    write_datalist,
)
from medvae3d.data.integrity import check
from medvae3d.data.nifti import grid_of, read_header
from medvae3d.errors import BundleError, DataListError, SettingError
from medvae3d.files import load_json
from medvae3d.studies.segmentation import nested_order
from medvae3d.synthesis.recipe import Recipe

Say = Callable[[str], None]
# Stands for the number of real cases in the path of a bundle.
PLACE_OF_N = "{n}"


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """Reads numbers above 0 with commas between them, each once.

    Raises:
        SettingError: If one is not a number above 0.
    """
    numbers = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise SettingError(
                f"{option} is {text!r}; allowed are numbers above 0 with commas between them. "
                f"Write it like {option} 0.5,1,2."
            )
        numbers.append(number)
    return tuple(dict.fromkeys(numbers))


def parse_bundles(words: Sequence[str]) -> dict[str, str]:
    """Reads ``[NAME=]BUNDLE``; without a name, that of the folder.

    Raises:
        SettingError: If there is none, or two have one name.
    """
    found: dict[str, str] = {}
    for word in words:
        name, has_name, place = word.partition("=")
        if not has_name:
            name, place = Path(word).name, word
        if not name or not place or name in found or set(name) & set(":,/\\"):
            raise SettingError(
                f"--bundle is {word!r}; allowed is BUNDLE or NAME=BUNDLE, each name once and "
                f"without commas, colons and slashes. Write it like --bundle hvae=runs/hvae."
            )
        found[name] = place
    if not found:
        raise SettingError(
            "no --bundle was given; a study needs one at least, also where no arm is synthetic: it "
            "says how cases are prepared. Add --bundle NAME."
        )
    return found


@dataclass(frozen=True)
class RealCases:
    """The real cases of a study.

    Attributes:
        training: Training cases with image and label, in the order in which they are taken.
        unseen: Cases that are judged.
        datalist: The list they are from.
    """

    training: tuple[Case, ...]
    unseen: tuple[Case, ...]
    datalist: DataList

    def numbers(self, words: Sequence[str]) -> tuple[int, ...]:
        """Numbers of real training cases, of ``5`` and ``all``, in order.

        Raises:
            SettingError: If a word is neither a number from 1 on nor ``all``.
            DataListError: If there are fewer cases.
        """
        found = set()
        for word in words:
            if word != "all" and not (word.isdigit() and int(word) >= 1):
                raise SettingError(
                    f"--n has {word!r}; allowed are whole numbers from 1 on, and all, with commas "
                    f"between them. Write it like --n 5,10,all."
                )
            number = len(self.training) if word == "all" else int(word)
            if number > len(self.training):
                raise DataListError(
                    f"--n asks for {number} real training cases; {self.datalist.path} has "
                    f"{len(self.training)} with image and label under training. Ask for fewer, or "
                    f"add cases."
                )
            found.add(number)
        return tuple(sorted(found))

    def names(self, n: int) -> tuple[str, ...]:
        """Names of the first training cases."""
        return tuple(case.name for case in self.training[:n])


def read_real_cases(datalist: str | Path, split: str, seed: int) -> RealCases:
    """Reads the real cases of a study.

    Args:
        datalist: MONAI data list.
        split: Split that is judged: ``validation`` to choose settings, ``testing`` to report.
        seed: Seed of the order in which training cases are taken.

    Raises:
        DataListError: If a split has no case with image and label, a name stands for two cases, a
            patient is in both, or an image is the same everywhere.
        GridMismatchError: If a mask or a channel lies elsewhere than the first image.
        SettingError: If the split cannot be judged.
    """
    if split not in ("validation", "testing"):
        raise SettingError(
            f"--split is {split!r}; allowed are validation, to choose settings, and testing, to "
            f"report. Name one."
        )
    listed = read_datalist(datalist)
    parts: dict[str, tuple[Case, ...]] = {}
    for name in ("training", split):
        parts[name] = tuple(c for c in listed.split(name) if c.image and c.label is not None)
        require_all_channels(parts[name], f"a study on {datalist}")
        if not parts[name]:
            raise DataListError(
                f"{datalist} has no case with image and label under {name}; a study trains on "
                f"training and judges on {split}. Add cases there, or name another --split."
            )
        names = [case.name for case in parts[name]]
        twice = sorted({each for each in names if names.count(each) > 1})
        if twice:
            raise DataListError(
                f"{datalist}: {twice[0]} is the name of several cases under {name}. Give each "
                f"entry a `case` of its own."
            )
    shared = {c.subject for c in parts["training"]} & {c.subject for c in parts[split]}
    if shared:
        raise DataListError(
            f"{datalist}: {len(shared)} patients are both in training and in {split}, such as "
            f"{sorted(shared)[0]}; what is judged must be unseen. Move all cases of a patient into "
            f"one split."
        )
    training = parts["training"]
    cases = (*training, *parts[split])
    _require_on_images(cases)
    images = tuple(replace(case, label=None) for case in cases)
    # In an image without contrast nothing can be found, whatever a segmenter has learned.
    require_clean(check(replace(listed, cases=images)), ("training", split), ("constant", "nan"))
    order = nested_order(len(training), seed)
    return RealCases(tuple(training[row] for row in order), parts[split], listed)


def _require_on_images(cases: Sequence[Case]) -> None:
    """Refuses masks and further channels that do not lie on the first image; reads headers."""
    for case in cases:
        files = [*case.image, *([case.label] if case.label is not None else [])]
        grids = [grid_of(read_header(file, str(file)), str(file)) for file in files]
        for file, grid in zip(files[1:], grids[1:], strict=True):
            grids[0].require_same(grid, this=str(files[0]), that=str(file))


def read_recipe(
    place: str, n: int | None = None, fit: str | None = None, changes: Sequence[str] = ()
) -> Recipe:
    """What a bundle makes, without its weights.

    Args:
        place: Name of a shipped bundle, or a folder; ``{n}`` stands for the number of real cases.
        n: That number.
        fit: Recipe by which it will be fitted, ``full`` for the whole training; may be ``None``.
        changes: ``KEY=VALUE`` texts for that training.

    Raises:
        BundleError: If it is unknown.
        SettingError: If it cannot be fitted so.
    """
    root = find_bundle(_at(place, n))
    config = root / "configs" / "inference.json"
    found = content(parser_of(config, root), RECIPE_IDS, config)
    if fit is not None:
        settings = read_settings(root, None if fit == "full" else fit)
        settings = changed(settings, parse_changes(changes, settings))
        found |= {key: settings[key] for key in SHARED if key in found and key in settings}
    return Recipe.from_config(found, source=str(config))


def require_alike(recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe of all bundles, as far as it says how cases are prepared.

    Raises:
        BundleError: If channels, labels, voxel size or shape differ.
    """
    names = list(recipes)
    first = recipes[names[0]]
    for name in names[1:]:
        other = recipes[name]
        for what, a, b in (
            ("channels", _channels(first), _channels(other)),
            ("labels", dict(first.labels), dict(other.labels)),
            ("spacing", list(first.spacing), list(other.spacing)),
            ("spatial_shape", list(first.spatial_shape), list(other.spatial_shape)),
            ("kind", _is_insertion(first), _is_insertion(other)),
        ):
            if a != b:
                raise BundleError(
                    f"bundles {names[0]} and {name} differ in {what}: {a} and {b}. Compare in one "
                    f"study only bundles that make the same; study the others on their own."
                )
    return first


def _channels(recipe: Recipe) -> list[Any]:
    names = [channel.name for channel in recipe.channels]
    return list(zip(names, recipe.intensities.to_config(), strict=True))


def _is_insertion(recipe: Recipe) -> str:
    return "insertion" if recipe.synthesis.kind == "insertion" else "whole volumes"


def training_cases(root: Path) -> tuple[str, ...] | None:
    """Names of the cases that a bundle was trained on; ``None`` if it does not say."""
    for path in (root / RUN_FILE, root / "configs" / "metadata.json"):
        try:
            found = load_json(path).get("training_cases")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(found, list):
            return tuple(map(str, found))
    return None


def require_fitted_on(place: str, name: str, n: int, real: RealCases) -> Path:
    """The folder of a generator that has seen no other cases than the first ``n``.

    Raises:
        BundleError: If it has, or if it does not say what it has seen.
    """
    root = find_bundle(_at(place, n))
    known = training_cases(root)
    way_out = (
        f"Let the study fit it on the {n} cases with --fit, or train it on the data list "
        f"lists/n={n}.json of the study and give it as --bundle {name}=FOLDER; with several --n, "
        f"write {PLACE_OF_N} for the number in the path."
    )
    if known is None:
        raise BundleError(
            f"bundle {root} does not say which cases it was trained on (training_cases in "
            f"{RUN_FILE}), so it may have seen the cases that are judged. {way_out}"
        )
    unseen = sorted(set(known) & {case.name for case in real.unseen})
    if unseen:
        raise BundleError(
            f"bundle {root} was trained on {len(unseen)} of the cases that are judged, such as "
            f"{unseen[0]}. {way_out}"
        )
    others = sorted(set(known) - set(real.names(n)))
    if others:
        raise BundleError(
            f"bundle {root} was trained on {len(known)} cases, {len(others)} of them not among the "
            f"{n} real cases of this part of the study, such as {others[0]}. {way_out}"
        )
    return root


def write_list(path: Path, real: RealCases, n: int) -> Path:
    """Writes the data list of the first ``n`` training cases, with no other split."""
    cases = [replace(case, split="training") for case in real.training[:n]]
    write_datalist(path, cases, real.datalist.info)
    return path


def fit_generator(
    source: str,
    datalist: Path,
    out: Path,
    recipe: str,
    changes: Sequence[str],
    device: str | None,
    say: Say,
) -> Path:
    """Trains a generator on a data list, or goes on with it; the folder it is in.

    Raises:
        KeyboardInterrupt: If it was stopped; its state is kept.
    """
    outcome = train(
        source,
        datalist,
        out,
        recipe=None if recipe == "full" else recipe,
        resume=True,
        device=device,
        changes=changes,
        say=say,
    )
    if outcome.signal is not None:
        raise KeyboardInterrupt
    return out


def load_generator(root: Path, device: str | None) -> Bundle:
    """A bundle with its weights."""
    return load_bundle(root, device or "cpu")


def _at(place: str, n: int | None) -> str:
    return place if n is None else place.replace(PLACE_OF_N, str(n))
