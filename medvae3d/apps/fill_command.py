"""The command ``medvae3d fill``: a region of a scan made anew, or a lesion taken out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvae3d.apps.bundle_commands import BundleName, Device
from medvae3d.apps.console import AsJson, parse_number, parse_whole, progress, say_results
from medvae3d.errors import SettingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medvae3d.apps.bundle import Bundle
    from medvae3d.synthesis.filling import Filled
    from medvae3d.synthesis.hosts import HostScan


def fill(
    bundle: BundleName,
    image: Annotated[
        list[Path], typer.Option(metavar="I.nii.gz", help="The scan; once for each channel.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the filled scans.")],
    region: Annotated[
        Path | None, typer.Option(metavar="R.nii.gz", help="What is made anew: 1 there, else 0.")
    ] = None,
    label: Annotated[
        Path | None, typer.Option(metavar="L.nii.gz", help="Labels that the scan has.")
    ] = None,
    healthy: Annotated[
        bool, typer.Option("--healthy", help="Take the lesions of --label out.")
    ] = False,
    margin: Annotated[
        str, typer.Option(metavar="V", help="Voxels around lesions that are made anew with them.")
    ] = "2",
    count: Annotated[str, typer.Option(metavar="N", help="How many different fillings.")] = "1",
    seed: Annotated[str, typer.Option(metavar="S", help="Same seed, same bytes.")] = "0",
    temperature: Annotated[
        str,
        typer.Option(
            metavar="T", help="0: the likeliest filling; 1: as varied as the training set."
        ),
    ] = "1",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Make a region of a scan anew from its surroundings; everything else stays, to the bit.

    Example: medvae3d fill my_filler --image flair.nii.gz --label lesions.nii.gz --healthy --out out
    """
    number, root = parse_whole(count, "--count", least=1), parse_whole(seed, "--seed")
    around = parse_whole(margin, "--margin")
    if (region is None) == (not healthy):
        raise SettingError(
            "give either --region with the voxels to make anew, or --healthy with --label to take "
            "lesions out."
        )
    if healthy and label is None:
        raise SettingError("--healthy takes lesions out, and --label says where they are. Give it.")
    warmth = parse_number(temperature, "--temperature")
    from medvae3d.apps.bundle import load_bundle
    from medvae3d.apps.demo import default_device
    from medvae3d.data.staging import require_new_folder
    from medvae3d.seeding import derive_generator
    from medvae3d.synthesis.filling import fill_region
    from medvae3d.synthesis.hosts import read_host

    require_new_folder(out)
    place = device or default_device()
    loaded = load_bundle(bundle, place)
    host = read_host(image, label, loaded.recipe)
    hole = _region(host, region, around)
    wanted = host.label * 0 if healthy else None
    generators = [derive_generator(root, "fill", index) for index in range(number)]
    with progress("filling") as advance:
        made = []
        for index, generator in enumerate(generators):
            made += fill_region(
                loaded.network, loaded.recipe, host, hole, [generator], wanted=wanted,
                temperature=warmth, device=place,
            )  # fmt: skip
            advance(index + 1, number, "")
    options = {"temperature": warmth, "healthy": healthy, "margin": around}
    _write(loaded, host, made, out, root, options)
    voxels, picture = int(hole.sum()), out / "preview.png"
    say_results(
        as_json,
        {
            "fillings": number,
            "voxels": voxels,
            "folder": out,
            "picture": picture,
            "animation": out / "path.gif",
        },
        f"{number} fillings of {voxels} voxels in {out}",
        f"picture: {picture}",
    )


def _region(host: HostScan, path: Path | None, margin: int) -> NDArray[np.bool_]:
    from scipy import ndimage

    from medvae3d.data.volumes import read_mask
    from medvae3d.errors import LabelError
    from medvae3d.synthesis.blending import CUBE

    if path is not None:
        given = read_mask(path, what="region")
        host.grid.require_same(given.grid, this="the scan", that=str(path))
        return given.array > 0
    lesions = host.label > 0
    if not lesions.any():
        raise LabelError("--label has no lesion to take out. Check the file.")
    grown: NDArray[np.bool_] = ndimage.binary_dilation(lesions, CUBE, margin) if margin else lesions
    return grown


def _write(
    bundle: Bundle,
    host: HostScan,
    made: list[Filled],
    out: Path,
    seed: int,
    options: dict[str, Any],
) -> None:
    """Volumes, records and picture, in a folder that appears whole."""
    import numpy as np

    from medvae3d.data.staging import staged_folder
    from medvae3d.data.volumes import write_bytes, write_volume
    from medvae3d.synthesis.preview import Panel, animation, contact_sheet, preview_insertion
    from medvae3d.synthesis.records import describe_channels, describe_grid, to_bytes
    from medvae3d.synthesis.writing import image_name

    with staged_folder(out) as folder:
        for index, each in enumerate(made):
            case = f"{host.name}_s{seed}_{index:03d}"
            for channel in range(len(bundle.recipe.channels)):
                path = folder / "images" / image_name(case, channel)
                host.write_channel(channel, path, each.image[channel], each.region)
            write_volume(
                folder / "labels" / f"{case}.nii.gz", each.label, host.grid, dtype=np.uint8
            )
            record = bundle.provenance.complete(
                {
                    "kind": "filling",
                    "seed": seed,
                    "index": index,
                    "options": options,
                    "grid": describe_grid(host.grid),
                    "channels": describe_channels(bundle.recipe),
                    "labels": dict(bundle.recipe.labels),
                    "host": {"name": host.name},
                    "checks": {"voxels_made": int(each.region.sum())},
                }
            )
            write_bytes(folder / "records" / f"{case}.json", to_bytes(record | {"case": case}))
        first = made[0]
        preview_insertion(
            host.image, first.image, first.region.astype(np.uint8), host.grid,
            bundle.recipe.channels, folder / "preview.png", title=host.name,
        )  # fmt: skip
        # Where nothing is labelled, the region says which sections to show.
        labels = [host.label, *(each.label for each in made)]
        if not any(label.any() for label in labels):
            labels = [first.region.astype(np.uint8)] * len(labels)
        images = [host.image, *(each.image for each in made)]
        titles = [host.name, *(f"filling {number}" for number in range(1, len(made) + 1))]
        panels = [
            Panel(title, image, label, host.grid)
            for title, image, label in zip(titles, images, labels, strict=True)
        ]
        channels = bundle.recipe.channels
        contact_sheet(panels, channels, folder / "path.png", columns=3, same_planes=True)
        animation(panels, channels, folder / "path.gif")
