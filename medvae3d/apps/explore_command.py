"""The command ``medvae3d explore``: paths between cases, along a volume, and over classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvae3d.apps.bundle_commands import BundleName, Device
from medvae3d.apps.console import (
    AsJson,
    one_of,
    parse_range,
    parse_triple,
    parse_whole,
    progress,
    say_results,
)
from medvae3d.errors import SettingError

if TYPE_CHECKING:
    from medvae3d.apps.bundle import Bundle
    from medvae3d.geometry import Grid
    from medvae3d.models.latent import LatentModel
    from medvae3d.synthesis.exploring import Frame

WHAT = ("interpolation", "volume", "classes")
ONE, OTHER, THIRD = "Interpolation", "Volume", "Classes"


def explore(
    bundle: BundleName,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="interpolation, volume or classes.", autocompletion=one_of(*WHAT)
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of volumes and pictures.")],
    datalist: Annotated[
        Path | None,
        typer.Option(metavar="LIST", rich_help_panel=ONE,
                     help="Data list with the two cases; with the case, for classes."),
    ] = None,
    cases: Annotated[
        str | None,
        typer.Option(metavar="A,B", rich_help_panel=ONE,
                     help="Names of the two cases; for classes, one, or a draw if not given."),
    ] = None,
    way: Annotated[
        str,
        typer.Option(rich_help_panel=ONE, help="linear, spherical or geodesic.",
                     autocompletion=one_of("linear", "spherical", "geodesic")),
    ] = "linear",
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,B", rich_help_panel=THIRD,
                     help="Classes that one latent is decoded as; all if not given."),
    ] = None,
    volume_ml: Annotated[
        str | None,
        typer.Option(metavar="LOW:HIGH", rich_help_panel=OTHER, help="Smallest and largest."),
    ] = None,
    host: Annotated[
        list[Path] | None,
        typer.Option(metavar="H.nii.gz", rich_help_panel=OTHER,
                     help="Scan in which one lesion grows; once for each channel."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="X,Y,Z", rich_help_panel=OTHER, help="Where it grows, in mm (RAS)."),
    ] = None,
    extrapolate: Annotated[
        bool,
        typer.Option("--extrapolate", rich_help_panel=OTHER,
                     help="Allow volumes that the training set does not have."),
    ] = False,
    points: Annotated[str, typer.Option(metavar="N", help="Volumes on the path.")] = "9",
    seed: Annotated[str, typer.Option(metavar="S", help="Seed of what stays the same.")] = "0",
    device: Device = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Walk from one case to another, let a lesion grow, or change the class with all else fixed.

    Writes each volume with its mask as NIfTI, an animation and a contact sheet.

    Example: medvae3d explore sts_petct_hvae volume --volume-ml 30:500 --out growth

    Example: medvae3d explore sts_petct_hvae interpolation --datalist cases.json --cases A,B --out p

    Example: medvae3d explore my_cvae classes --datalist cases.json --cases A --out counterfactuals
    """
    if what not in WHAT:
        raise SettingError(f"WHAT is {what!r}; allowed are {', '.join(WHAT)}. Name one of them.")
    number, root = parse_whole(points, "--points", least=2), parse_whole(seed, "--seed")
    limits = None if volume_ml is None else parse_range(volume_ml, "--volume-ml", float)
    place = None if at is None else parse_triple(at, "--at", float)
    if what == "volume" and limits is None:
        raise SettingError("--volume-ml says from which volume to which. Write it like 30:500.")
    if what == "interpolation" and (datalist is None or cases is None or cases.count(",") != 1):
        raise SettingError(
            "an interpolation needs --datalist and two names in --cases, such as --cases A,B. Give "
            "both."
        )
    if what == "classes" and ((datalist is None) != (cases is None) or "," in str(cases)):
        raise SettingError(
            "--datalist and one name in --cases say which case is made as other classes. Give "
            "both, or neither for a draw."
        )
    from medvae3d.apps.bundle import load_bundle
    from medvae3d.apps.demo import default_device
    from medvae3d.data.staging import require_new_folder

    require_new_folder(out)
    loaded = load_bundle(bundle, device or default_device())
    with progress("exploring") as advance:

        def told(done: int, wanted: int) -> None:
            advance(done, wanted, "")

        if what == "volume":
            options: dict[str, Any] = {"extrapolate": extrapolate}
            if host:
                options |= {"hosts": tuple(host), "lesions": (1, 1), "at_mm": place}
            frames, grid = _grown(loaded, limits or (1.0, 1.0), number, root, options, told)
        elif what == "classes":
            frames, grid = _as_classes(loaded, classes, datalist, cases, root, told)
        else:
            names = [name.strip() for name in str(cases).split(",")]
            frames, grid = _between(loaded, Path(str(datalist)), names, number, way, told)
    facts = {"what": what, "points": number, "seed": root, "way": way, "volume_ml": limits}
    if what == "classes":
        from medvae3d.synthesis.exploring import changes

        facts = {"what": what, "seed": root, "case": cases, "changes": changes(frames)}
    _write(loaded, frames, grid, out, facts)
    animation, picture = out / "path.gif", out / "path.png"
    say_results(
        as_json,
        {"volumes": len(frames), "folder": out, "animation": animation, "picture": picture},
        f"{len(frames)} volumes in {out}",
        f"animation: {animation}",
        f"picture: {picture}",
    )


def _grown(
    bundle: Bundle,
    limits: tuple[float, float],
    points: int,
    seed: int,
    options: dict[str, Any],
    told: Any,
) -> tuple[list[Frame], Grid]:
    """One sample at volumes in even steps of their logarithm, with all else the same."""
    from medvae3d.models.latent import LatentModel
    from medvae3d.synthesis.exploring import Frame, grown

    low, high = limits
    volumes = [low * (high / low) ** (index / (points - 1)) for index in range(points)]
    model = bundle.network
    if isinstance(model, LatentModel) and "hosts" not in options:
        device = next(model.parameters()).device
        frames = grown(
            model, bundle.recipe, volumes, seed, extrapolate=options["extrapolate"], device=device,
            advance=told,
        )  # fmt: skip
        return frames, bundle.recipe.grid
    frames, grid = [], None
    for index, volume in enumerate(volumes):
        (sample,) = bundle.generate(1, seed, volume_ml=(volume, volume), **options)
        label = sample.label[0].numpy().astype("uint8")
        frames.append(Frame(f"{volume:.3g} ml", sample.image.numpy(), label))
        grid = sample.grid
        told(index + 1, points)
    if grid is None:
        raise SettingError("no volume was made; ask for two points or more.")
    return frames, grid


def _between(
    bundle: Bundle, datalist: Path, names: list[str], points: int, way: str, told: Any
) -> tuple[list[Frame], Grid]:
    from medvae3d.synthesis.exploring import between

    model, batch, _ = _read(bundle, datalist, names)
    return between(model, bundle.recipe, batch, points, way, told), bundle.recipe.grid


def _as_classes(
    bundle: Bundle,
    classes: str | None,
    datalist: Path | None,
    case: str | None,
    seed: int,
    told: Any,
) -> tuple[list[Frame], Grid]:
    """A case, or a draw, as each class."""
    from medvae3d.data.datalists import require_class
    from medvae3d.models.latent import LatentModel
    from medvae3d.synthesis.exploring import as_classes

    model, recipe = bundle.network, bundle.recipe
    known = bundle.statistics.classes
    if not isinstance(model, LatentModel) or not known:
        raise SettingError(
            f"{bundle.name} is told no class, so that nothing can be made as another one. Take a "
            f"bundle of the system cvae or icvae."
        )
    names = known if classes is None else tuple(name.strip() for name in classes.split(","))
    batch = None
    if datalist is not None and case is not None:
        model, batch, own = _read(bundle, datalist, [case.strip()])
        require_class(own[0], known, f"{datalist}: {case.strip()}")
    device = next(model.parameters()).device
    frames = as_classes(model.eval(), recipe, names, batch, seed, device=device, advance=told)
    return frames, recipe.grid


def _read(
    bundle: Bundle, datalist: Path, names: list[str]
) -> tuple[LatentModel, dict[str, Any], list[str | None]]:
    """The model of a joint bundle, cases as it reads them, and their classes."""
    from monai.transforms import Compose

    from medvae3d.data.datalists import as_monai, read_datalist
    from medvae3d.data.preparation import case_transforms
    from medvae3d.errors import DataListError
    from medvae3d.evaluation.cases import whole_cases
    from medvae3d.models.latent import LatentModel

    model = bundle.network
    if not isinstance(model, LatentModel) or set(model.inputs) != {"image", "mask"}:
        raise SettingError(
            f"{bundle.name} has no single latent for image and mask, so that there is nothing to "
            f"walk through. Take a joint bundle."
        )
    listed = {case.name: case for case in read_datalist(datalist)}
    missing = [name for name in names if name not in listed]
    if missing:
        raise DataListError(
            f"{datalist} has no case {' and no case '.join(missing)}; it has "
            f"{', '.join(list(listed)[:8])}{' ...' if len(listed) > 8 else ''}. Name these."
        )
    recipe = bundle.recipe
    channels = [{"intensity": config} for config in recipe.intensities.to_config()]
    prepare = Compose(
        case_transforms(channels, recipe.spacing, recipe.spatial_shape, recipe.labels)
    )
    items = as_monai([listed[name] for name in names])
    cases = whole_cases([prepare(item) for item in items])
    batch = cases.batch(bundle.statistics, recipe.spacing)
    statistics = bundle.statistics
    classes = [listed[name].extra.get("class") for name in names]
    if statistics.classes and all(name is None or name in statistics.classes for name in classes):
        values = statistics.measure(cases.mask, recipe.spacing, classes)
        batch["attributes"] = statistics.standardise(values)
    device = next(model.parameters()).device
    batch = {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
    return model.eval(), batch, classes


def _write(
    bundle: Bundle, frames: list[Frame], grid: Grid, out: Path, facts: dict[str, Any]
) -> None:
    """Volumes, animation, sheet and record, in a folder that appears whole."""
    import numpy as np

    from medvae3d.data.staging import staged_folder
    from medvae3d.data.volumes import write_bytes, write_volume
    from medvae3d.synthesis.preview import Panel, animation, contact_sheet
    from medvae3d.synthesis.records import describe_channels, describe_grid, to_bytes
    from medvae3d.synthesis.writing import image_name

    recipe = bundle.recipe
    panels = [Panel(each.title, each.image, each.label, grid) for each in frames]
    with staged_folder(out) as folder:
        for index, each in enumerate(frames):
            for channel, spec in enumerate(recipe.channels):
                path = folder / "images" / image_name(f"{index:03d}", channel)
                write_volume(
                    path, each.image[channel], grid, slope=spec.slope, dtype=spec.dtype, clip=True
                )
            label = folder / "labels" / f"{index:03d}.nii.gz"
            write_volume(label, each.label, grid, dtype=np.uint8)
        contact_sheet(panels, recipe.channels, folder / "path.png", columns=3, same_planes=True)
        animation(panels, recipe.channels, folder / "path.gif")
        record = bundle.provenance.complete(
            {
                "kind": "path",
                "index": 0,
                **facts,
                "grid": describe_grid(grid),
                "channels": describe_channels(recipe),
                "labels": dict(recipe.labels),
                "steps": [each.title for each in frames],
            }
        )
        write_bytes(folder / "record.json", to_bytes(record))
