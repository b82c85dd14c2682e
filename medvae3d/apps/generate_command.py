"""The command ``medvae3d generate``: everything is checked, then samples are made and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvae3d.apps.bundle_commands import BundleName, Device
from medvae3d.apps.console import (
    AsJson,
    Stopwatch,
    duration,
    parse_number,
    parse_range,
    parse_triple,
    parse_whole,
    progress,
    say,
    say_json,
)
from medvae3d.apps.worker_options import Ray, RayAddress, Workers, chosen_engine
from medvae3d.errors import SettingError
from medvae3d.spreading import Engine, Here

if TYPE_CHECKING:
    from medvae3d.apps.bundle import Bundle

HOSTS, WISHES = "Lesions in a host", "What is wanted"
Paths = Annotated[
    list[Path] | None,
    typer.Option(
        "--host", metavar="H.nii.gz", rich_help_panel=HOSTS,
        help="Scan to put lesions into; once for each channel, then the next host.",
    ),
]  # fmt: skip


def generate(
    bundle: BundleName,
    count: Annotated[str, typer.Option(metavar="N", help="How many cases to make.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the data set.")],
    seed: Annotated[
        str, typer.Option(metavar="S", help="Same seed, bundle and device: same bytes.")
    ] = "0",
    start: Annotated[str, typer.Option(metavar="K", help="Index of the first case.")] = "0",
    volume_ml: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOW:HIGH", rich_help_panel=WISHES,
            help="Volume of the mask, or of each lesion; LABEL=LOW:HIGH for one label of several.",
        ),
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", rich_help_panel=WISHES,
                     help="Class of all cases, for bundles that are told classes."),
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(metavar="T", rich_help_panel=WISHES,
                     help="Below 1: nearer to the training set."),
    ] = None,
    extrapolate: Annotated[
        bool,
        typer.Option("--extrapolate", rich_help_panel=WISHES,
                     help="Allow volumes that the training set does not have."),
    ] = False,
    mask: Annotated[
        Path | None,
        typer.Option(metavar="M.nii.gz", rich_help_panel=WISHES,
                     help="Mask to fill, instead of drawing one."),
    ] = None,
    lesions: Annotated[
        str | None,
        typer.Option(metavar="LOW:HIGH", rich_help_panel=HOSTS, help="Fewest and most lesions."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="X,Y,Z", rich_help_panel=HOSTS,
                     help="Where to put one lesion, in mm, as viewers show it (RAS)."),
    ] = None,
    host: Paths = None,
    host_label: Annotated[
        list[Path] | None,
        typer.Option(metavar="L.nii.gz", rich_help_panel=HOSTS,
                     help="Lesions that a host has already; once for each host."),
    ] = None,
    host_brain: Annotated[
        list[Path] | None,
        typer.Option(metavar="B.nii.gz", rich_help_panel=HOSTS,
                     help="Mask of the brain, instead of finding it; once for each host."),
    ] = None,
    allow_overlap: Annotated[
        bool,
        typer.Option("--allow-overlap", rich_help_panel=HOSTS,
                     help="Allow new lesions to lie on others."),
    ] = False,
    device: Device = None,
    as_json: AsJson = False,
    workers: Workers = "1",
    ray: Ray = False,
    ray_address: RayAddress = None,
) -> None:  # fmt: skip
    """Make volumes with their masks, as a data set for nnU-Net and MONAI.

    Case i depends on seed and i alone: ranges made with --start on several machines go together,
    and with --workers, --ray or torchrun the folder is the same to the byte.

    Example: medvae3d generate sts_petct_hvae --count 20 --seed 1 --volume-ml 30:200 --out made

    Example: medvae3d generate brain_mri_ms_pavae --count 4 --host flair.nii.gz --out made
    """
    options: dict[str, Any] = {
        "start": parse_whole(start, "--start"),
        "volume_ml": _volumes(volume_ml or ()),
        "temperature": None
        if temperature is None
        else parse_number(temperature, "--temperature", example=0.8),
        "extrapolate": extrapolate,
        "mask": mask,
        "class_name": class_name,
        "hosts": tuple(host or ()),
        "host_labels": tuple(host_label or ()),
        "host_brains": tuple(host_brain or ()),
        "lesions": None if lesions is None else parse_range(lesions, "--lesions", int),
        "at_mm": None if at is None else parse_triple(at, "--at", float),
        "allow_overlap": allow_overlap,
    }
    number, root = parse_whole(count, "--count", least=1), parse_whole(seed, "--seed")
    engine, share = chosen_engine(workers, ray, ray_address)
    from medvae3d.apps.bundle import load_bundle
    from medvae3d.apps.demo import default_device

    loaded = load_bundle(bundle, device or default_device())
    require_usable(loaded, out, number, root, options)
    write(loaded, out, number, root, options, engine, share, as_json=as_json)


def require_usable(
    bundle: Bundle, out: Path, count: int, seed: int, options: Mapping[str, Any]
) -> None:
    """Checks a request, its output folder and every host, before anything is written.

    Raises:
        MedvaeError: If samples could not be made or written.
    """
    from medvae3d.data.volumes import read_mask
    from medvae3d.synthesis.hosts import read_host
    from medvae3d.synthesis.writing import require_own_folder

    samples = bundle.generate(count, seed, **options)
    require_own_folder(out, samples.run)
    hosts, labels = options["hosts"], options["host_labels"]
    brains = options.get("host_brains", ())
    channels = len(bundle.recipe.channels)
    drawn = None
    if hosts and options["mask"] is not None:
        drawn = read_mask(options["mask"], bundle.recipe.values, what="mask")
    for number in range(len(hosts) // channels):
        files = hosts[number * channels : (number + 1) * channels]
        label, brain = (each[number] if each else None for each in (labels, brains))
        scan = read_host(files, label, bundle.recipe, brain=brain)
        if drawn is not None:
            scan.grid.require_same(drawn.grid, this=str(files[0]), that=str(drawn.path))


def write(
    bundle: Bundle,
    out: Path,
    count: int,
    seed: int,
    options: Mapping[str, Any],
    engine: Engine | None = None,
    workers: int = 1,
    *,
    as_json: bool = False,
) -> None:
    """Makes samples and tells how many, how fast, how many draws were rejected, and where."""
    watch = Stopwatch()
    rejected: dict[str, int] = {}
    made = 0
    with progress("generating") as advance:

        def tell(done: int, wanted: int, reasons: Mapping[str, int]) -> None:
            nonlocal made
            made += 1
            rejected.clear()
            rejected.update(reasons)
            lost = sum(reasons.values())
            advance(done, wanted, f"{lost} rejected" if lost else "")

        if engine is None or isinstance(engine, Here):
            bundle.write(out, count, seed, progress=tell, **options)
        else:
            from medvae3d.apps.generate_ranges import write_ranges

            if not write_ranges(bundle, out, count, seed, options, engine, workers, tell):
                return
            made = count
    seconds = watch.seconds
    if as_json:
        summary = {
            "bundle": f"{bundle.name} {bundle.version}",
            "cases": count,
            "rejected": dict(sorted(rejected.items())),
            "seconds": round(seconds, 3),
            "dataset": str(out / "dataset.json"),
            "picture": str(out / "preview.png"),
        }
        say_json(summary)
        return
    say(
        f"{count} {'case' if count == 1 else 'cases'} from {bundle.name} {bundle.version} in "
        f"{duration(seconds)} ({made / seconds:.3g} a second)"
    )
    if made < count:
        say(f"{count - made} of them were there already, whole, and were not made again")
    say(rejections(made, rejected))
    say(f"data set: {out / 'dataset.json'}")
    say(f"picture: {out / 'preview.png'}")


def rejections(made: int, rejected: Mapping[str, int]) -> str:
    """How many draws were thrown away, and why, in a line."""
    lost = sum(rejected.values())
    share = 100 * lost / max(1, made + lost)
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(rejected.items()))
    return f"rejected {lost} of {made + lost} draws ({share:.1f} %){': ' + reasons if lost else ''}"


def _volumes(texts: Sequence[str]) -> Any:
    """Ranges of volume: one for all, or one for each label by name."""
    if not texts:
        return None
    named = dict(text.partition("=")[::2] for text in texts if "=" in text)
    if not named and len(texts) == 1:
        return parse_range(texts[0], "--volume-ml", float)
    if len(named) != len(texts):
        raise SettingError(
            f"--volume-ml was given {len(texts)} times ({', '.join(texts)}); allowed is one "
            f"LOW:HIGH, or one LABEL=LOW:HIGH for each label. Write it in one of these ways."
        )
    return {name: parse_range(text, "--volume-ml", float) for name, text in named.items()}
