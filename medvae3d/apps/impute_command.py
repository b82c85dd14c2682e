"""The command ``medvae3d impute``: channels that a scan lacks, made from those that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvae3d.apps.bundle_commands import BundleName, Device
from medvae3d.apps.console import AsJson, notice, parse_whole, progress, say_results
from medvae3d.errors import DataListError, SettingError

if TYPE_CHECKING:
    from medvae3d.apps.bundle import Bundle
    from medvae3d.data.datalists import Case, DataList
    from medvae3d.synthesis.imputing import Imputed, PartialScan
    from medvae3d.synthesis.preview import Panel
    from medvae3d.synthesis.recipe import Recipe

# Cases in the picture.
SHOWN = 4


@dataclass(frozen=True, eq=False)
class Wish:
    """What is asked of one run.

    Attributes:
        count: Imputations of each case.
        seed: Seed of all of them.
        draws: Draws from the posterior of which one is picked.
        likeliest: Whether to decode its mean.
        class_name: Class of all cases; that of the data list if not given.
        device: Where to compute.
    """

    count: int
    seed: int
    draws: int
    likeliest: bool
    class_name: str | None
    device: Any


def impute(
    bundle: BundleName,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the completed cases.")],
    datalist: Annotated[
        Path | None, typer.Option(metavar="LIST", help="Data list with null for missing channels.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=I.nii.gz", help="A channel of one scan; once for each."),
    ] = None,
    label: Annotated[
        Path | None, typer.Option(metavar="L.nii.gz", help="Mask of that scan, if it is known.")
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Its class, for weights that are told one."),
    ] = None,
    count: Annotated[str, typer.Option(metavar="N", help="Imputations of each case.")] = "1",
    draws: Annotated[
        str,
        typer.Option(metavar="K", help="Draws of which one is picked by how well it fits."),
    ] = "1",
    likeliest: Annotated[
        bool, typer.Option("--likeliest", help="The decoded mean, without noise and grain.")
    ] = False,
    seed: Annotated[str, typer.Option(metavar="S", help="Same seed, same bytes.")] = "0",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Make the channels that scans lack from those that they have; what there is stays, to the bit.

    Example: medvae3d impute my_vae --datalist cases.json --count 3 --draws 16 --out completed

    Example: medvae3d impute my_vae --image PET=pet.nii.gz --out completed
    """
    number, root = parse_whole(count, "--count", least=1), parse_whole(seed, "--seed")
    tries = parse_whole(draws, "--draws", least=1)
    if (datalist is None) == (not image):
        raise SettingError(
            "give either --datalist with null for the channels that cases lack, or --image "
            "NAME=FILE once for each channel that one scan has."
        )
    if datalist is not None and (label is not None or class_name is not None):
        raise SettingError(
            "--label and --class are of one scan, with --image; a data list has them in its "
            "entries. Leave them out."
        )
    if likeliest and (number > 1 or tries > 1):
        raise SettingError(
            "--likeliest makes one imputation, without noise. Leave out --count and --draws, or "
            "--likeliest."
        )
    from medvae3d.apps.bundle import load_bundle
    from medvae3d.apps.demo import default_device
    from medvae3d.data.datalists import DataList, read_datalist
    from medvae3d.data.staging import require_new_folder
    from medvae3d.synthesis.imputing import require_imputer

    require_new_folder(out)
    place = device or default_device()
    loaded = load_bundle(bundle, place)
    require_imputer(loaded.network, loaded.recipe)
    if datalist is not None:
        listed = read_datalist(datalist)
        cases = _of_list(listed, loaded)
    else:
        cases = [_of_files(image or [], label, loaded.recipe)]
        listed = DataList(tuple(cases), Path())
    for line in _warnings(loaded):
        notice(f"warning: {line}")
    wish = Wish(number, root, tries, likeliest, class_name, place)
    made = _write(loaded, listed, cases, out, wish)
    made_list, picture = out / "datalist.json", out / "preview.png"
    say_results(
        as_json,
        {"completed": made, "cases": len(cases), "datalist": made_list, "picture": picture},
        f"{made} completed cases of {len(cases)} in {out}",
        f"data list: {made_list}",
        f"picture: {picture}",
    )


# -- what is asked for ----------------------------------------------------------------------------


def _of_list(listed: DataList, bundle: Bundle) -> list[Case]:
    """The cases of a list that lack a channel.

    Raises:
        DataListError: If there is none, or channels are not those of the bundle.
    """
    from medvae3d.apps.export_cases import channel_names

    names = [channel.name for channel in bundle.recipe.channels]
    stated = channel_names(listed.info)
    if stated and [each.lower() for each in stated] != [each.lower() for each in names]:
        raise DataListError(
            f"{listed.path} has the channels {', '.join(stated)}; {bundle.name} has "
            f"{', '.join(names)}. Put the files of each case in this order, with null for a "
            f"channel that it lacks, and name them so."
        )
    lacking = [case for case in listed if case.missing]
    if not lacking:
        raise DataListError(
            f"no case of {listed.path} lacks a channel, so there is nothing to make. Write null in "
            f"the place of a file that is missing."
        )
    for case in lacking:
        if len(case.channels) != len(names):
            raise DataListError(
                f"{listed.path}: case {case.name} has {len(case.channels)} channels; "
                f"{bundle.name} has {len(names)}: {', '.join(names)}. List them all, with null "
                f"for one that is missing."
            )
    return lacking


def _of_files(texts: Sequence[str], label: Path | None, recipe: Recipe) -> Case:
    """The case of ``NAME=FILE`` texts.

    Raises:
        SettingError: If a text is not of that form, or a name is not that of a channel.
        UnreadableFileError: If a file does not exist.
    """
    from medvae3d.data.datalists import Case, require_files

    names = [channel.name for channel in recipe.channels]
    by_name = {name.lower(): name for name in names}
    files: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not path or name.lower() not in by_name or by_name[name.lower()] in files:
            raise SettingError(
                f"--image is {text!r}; allowed is NAME=FILE, each name once, with the channels of "
                f"these weights: {', '.join(names)}. Write it like --image {names[0]}=scan.nii.gz."
            )
        files[by_name[name.lower()]] = Path(path)
    missing = tuple(i for i, name in enumerate(names) if name not in files)
    if not missing:
        raise SettingError(
            f"all channels were given ({', '.join(names)}), so there is nothing to make. Leave out "
            f"those that are to be made."
        )
    images = tuple(files[name].absolute() for name in names if name in files)
    mask = None if label is None else label.absolute()
    case = Case(images, mask, "", "testing", {}, missing)
    require_files([case], Path("the command line"))
    return replace(case, subject=case.name)


def _warnings(bundle: Bundle) -> list[str]:
    """What speaks against trusting these weights with missing channels."""
    if _is_trained_for(bundle):
        return []
    return [
        f"{bundle.name} was not trained on cases that lack a channel, nor with channels hidden "
        f"from its encoder; what it makes of a part of the channels may be far off. Train with "
        f"network_def#channel_dropout=0.25."
    ]


def _is_trained_for(bundle: Bundle) -> bool:
    from medvae3d.apps.bundle_files import read_json
    from medvae3d.apps.trained import LACKING, RUN_FILE

    path = bundle.root / RUN_FILE
    run = read_json(path) if path.is_file() else {}
    return bool(getattr(bundle.network, "channel_dropout", 0.0) or run.get(LACKING))


# -- what is written ------------------------------------------------------------------------------


def _write(bundle: Bundle, listed: DataList, cases: Sequence[Case], out: Path, wish: Wish) -> int:
    """Completed cases, records, list and picture, in a folder that appears whole."""
    from medvae3d.data.datalists import write_datalist
    from medvae3d.data.importing.common import safe
    from medvae3d.data.staging import staged_folder
    from medvae3d.seeding import derive_generator
    from medvae3d.synthesis.imputing import impute_channels, read_partial, require_imputer
    from medvae3d.synthesis.preview import contact_sheet

    completed: dict[int, list[Case]] = {}
    panels: list[Panel] = []
    # Wrong files are found before the first case is made.
    model = require_imputer(bundle.network, bundle.recipe)
    size = {"of_any_size": model.is_local}
    for case in cases:
        read_partial(case.channels, case.label, bundle.recipe, case.name, **size)
    names = [safe(case.name) for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataListError(
            f"{twice[0]} is the name of several cases that lack a channel, in letters, digits, "
            f"dots and lines. Give each entry a `case` of its own."
        )
    classed = bool(model.statistics.classes)
    with staged_folder(out) as folder, progress("imputing") as advance:
        for done, case in enumerate(cases):
            scan = read_partial(case.channels, case.label, bundle.recipe, case.name, **size)
            told = wish.class_name
            if told is None and classed and case.extra.get("class") is not None:
                told = str(case.extra["class"])
            completed[id(case)] = []
            for index in range(wish.count):
                generator = derive_generator(wish.seed, "impute", case.name, index)
                (made,) = impute_channels(
                    bundle.network, bundle.recipe, scan, [generator], draws=wish.draws,
                    likeliest=wish.likeliest, class_name=told, device=wish.device,
                )  # fmt: skip
                if index == 0 and len(panels) < SHOWN:
                    panels.append(_panel(scan, made, bundle.recipe))
                completed[id(case)].append(
                    _write_case(folder, bundle, case, scan, made, index, wish)
                )
            advance(done + 1, len(cases), case.name)
        # Cases that lack nothing stay in the list, with their files where they are.
        whole = [each for case in listed for each in completed.get(id(case), [case])]
        info = dict(listed.info)
        info["channels"] = [channel.name for channel in bundle.recipe.channels]
        write_datalist(folder / "datalist.json", whole, info)
        contact_sheet(panels, bundle.recipe.channels, folder / "preview.png")
    return sum(map(len, completed.values()))


def _write_case(
    folder: Path,
    bundle: Bundle,
    case: Case,
    scan: PartialScan,
    made: Imputed,
    index: int,
    wish: Wish,
) -> Case:
    """One completed case: files of what there was, as they are, and of what was made."""
    import shutil

    from medvae3d.data.importing.common import safe
    from medvae3d.data.volumes import write_bytes, write_volume
    from medvae3d.synthesis.records import describe_channels, describe_grid, to_bytes

    recipe = bundle.recipe
    name = f"{safe(case.name)}_s{wish.seed}_{index:03d}"  # it becomes that of files
    for part in ("images", "labels", "records"):
        (folder / part).mkdir(exist_ok=True)
    files = []
    for number, (path, channel) in enumerate(zip(case.channels, recipe.channels, strict=True)):
        place = folder / "images" / f"{name}_{number:04d}.nii.gz"
        if path is not None:
            place = place.with_suffix("") if not path.name.endswith(".gz") else place
            shutil.copyfile(path, place)
        else:
            header = scan.first.header.copy()  # its affine, codes and units, to the bit
            header.set_data_dtype(channel.dtype)
            header["scl_slope"], header["scl_inter"] = channel.slope or 1.0, 0
            header["cal_min"] = header["cal_max"] = 0
            header["descrip"] = b"synthetic, made by medvae3d impute"
            write_volume(place, made.channels[number], scan.grid, header=header, clip=True)
        files.append(place)
    label = None
    if case.label is not None:
        label = folder / "labels" / f"{name}{'.nii.gz' if case.label.suffix == '.gz' else '.nii'}"
        shutil.copyfile(case.label, label)
    imputed = [recipe.channels[number].name for number in scan.missing]
    record = bundle.provenance.complete(
        {
            "kind": "imputation",
            "seed": wish.seed,
            "index": index,
            "options": {"draws": wish.draws, "likeliest": wish.likeliest},
            "grid": describe_grid(scan.grid),
            "channels": describe_channels(recipe),
            "labels": dict(recipe.labels),
            "host": {"name": case.name},
            "imputed": imputed,
            "observed": [c.name for c in recipe.channels if c.name not in imputed],
            "checks": {
                "effective_draws": made.effective_draws,
                "mask_was_known": scan.label is not None,
                "trained_on_missing_channels": _is_trained_for(bundle),
                "voxels_beyond_the_weights": made.voxels_beyond,
            },
        }
    )
    write_bytes(folder / "records" / f"{name}.json", to_bytes(record | {"case": name}))
    extra = {**case.extra, "case": name, "imputed": imputed}
    return replace(case, image=tuple(files), label=label, extra=extra, missing=())


def _panel(scan: PartialScan, made: Imputed, recipe: Recipe) -> Panel:
    import numpy as np

    from medvae3d.synthesis.preview import Panel

    image = np.stack(
        [
            made.channels[number] if volume is None else volume.array
            for number, volume in enumerate(scan.volumes)
        ]
    )
    label = np.zeros(scan.grid.shape, np.uint8) if scan.label is None else scan.label
    names = ", ".join(recipe.channels[number].name for number in scan.missing)
    return Panel(f"{scan.name} ({names} made)", image, label, scan.grid)
