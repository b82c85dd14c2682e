"""The commands under ``medvae3d data``: import, checking a list, phantoms, public data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvae3d.apps import catalogue
from medvae3d.apps.console import (
    AsJson,
    output,
    parse_range,
    parse_triple,
    parse_whole,
    progress,
    refuse,
    say,
    say_document,
    say_json,
    say_results,
    table,
    text_of,
    times,
)
from medvae3d.apps.data_import_command import align_data, export_data, import_data
from medvae3d.errors import SettingError

if TYPE_CHECKING:
    from medvae3d.data.integrity import CaseReport, IntegrityReport

app = typer.Typer(
    no_args_is_help=True,
    help="Import and check data, draw phantoms, list public sets.",
    epilog="Example: medvae3d data check cases.json",
)
app.command("import")(import_data)
app.command("align")(align_data)
app.command("export")(export_data)


@app.command()
def check(
    context: typer.Context,
    datalist: Annotated[Path, typer.Argument(metavar="LIST", help="MONAI data list (JSON).")],
    report: Annotated[
        str | None,
        typer.Option("--json", metavar="OUT", help="Write the whole report there; - for here."),
    ] = None,
) -> None:
    """Read every case of a data list once and report what is wrong with it.

    Leaves with 0 if all is well, 1 if there are findings, 2 if a file cannot be read.

    Example: medvae3d data check cases.json --json report.json
    """
    from medvae3d.data.datalists import read_datalist
    from medvae3d.data.integrity import check as examine
    from medvae3d.data.nifti import write_bytes

    listed = read_datalist(datalist, check_files=False)
    with progress("checking") as advance:
        found = examine(listed, progress=advance)
    if report == "-":
        say_document(found.to_json())
    else:
        print_report(found)
    if report not in (None, "-"):
        write_bytes(report, found.to_json().encode() + b"\n")
        say(f"report: {report}")
    if found.unreadable:
        refuse(f"{len(found.unreadable)} files cannot be read: {found.unreadable[0].text}")
    context.exit(found.exit_code)


def print_report(report: IntegrityReport) -> None:
    """Prints what a check found, as tables and a line for each finding."""
    console = output()
    columns = ("case", "split", "shape", "spacing mm", "axes", ">channels", "labels ml",
               ">lesions", "their volumes ml", ">offset mm")  # fmt: skip
    console.print(table("Cases", columns, [_case_row(case) for case in report.cases]))
    splits = report.summary["splits"]
    keys = list(dict.fromkeys(key for statistics in splits.values() for key in statistics))
    rows = [
        (key.replace("_", " "), *(_cell(splits[split].get(key)) for split in splits))
        for key in keys
    ]
    console.print(table("Summary", ("", *splits), rows))
    for finding in (*report.unreadable, *report.findings):
        say(f"{finding.case} [{finding.kind}]: {finding.text}")
    counts = report.summary["findings"]
    if report.unreadable or report.findings:
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        say(
            f"{len(report.unreadable)} unreadable files, {len(report.findings)} findings"
            f"{f' ({kinds})' if kinds else ''} in {len(report.cases)} cases"
        )
    else:
        say(f"{len(report.cases)} cases, no findings")


def _case_row(case: CaseReport) -> tuple[Any, ...]:
    # Many lesions say little one by one: the three largest, and how many there are besides.
    lesions = [text_of(volume) for volume in case.lesions_ml[:3]]
    more = len(case.lesions_ml) - len(lesions)
    count, lacking = len(case.channels), case.channels.count(None)
    return (
        case.case,
        case.split,
        times(case.shape),
        times(case.spacing_mm),
        case.axcodes,
        f"{count - lacking} of {count}" if lacking else count,
        "none" if case.labels is None else case.labels,
        case.lesion_count,
        ", ".join(lesions) + (f" and {more} more" if more > 0 else ""),
        case.mismatch_mm,
    )


def _cell(value: Any) -> str:
    """A statistic in a cell: a range as ``low to high``, anything else as it is."""
    if isinstance(value, dict) and set(value) == {"low", "high"}:
        if value["low"] == value["high"]:
            return times(value["low"])
        return f"{times(value['low'])} to {times(value['high'])}"
    if isinstance(value, dict) and "median" in value:
        return f"{value['low']:.4g} to {value['high']:.4g}, median {value['median']:.4g}"
    return text_of(value)


@app.command()
def phantom(
    count: Annotated[str, typer.Option(metavar="N", help="Number of cases.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must be empty or absent.")],
    seed: Annotated[str, typer.Option(metavar="S", help="Same seed, same bytes.")] = "0",
    shape: Annotated[
        str, typer.Option(metavar="I,J,K", help="Voxels along right, anterior, superior.")
    ] = "64,64,64",
    spacing: Annotated[str, typer.Option(metavar="X,Y,Z", help="Voxel size in mm.")] = "3,3,3",
    lesions: Annotated[
        str, typer.Option(metavar="LOW:HIGH", help="Fewest and most lesions in a case.")
    ] = "1:6",
    as_json: AsJson = False,
) -> None:
    """Draw heads with lesions and write them with their data list: no download needed.

    Example: medvae3d data phantom --count 10 --out phantoms --lesions 2:5
    """
    number, root = parse_whole(count, "--count", least=1), parse_whole(seed, "--seed")
    sizes = parse_triple(shape, "--shape", int, above=0)
    voxel = parse_triple(spacing, "--spacing", float, above=0)
    range_of_lesions = parse_range(lesions, "--lesions", int)
    from medvae3d.data.phantom import write_phantoms

    with progress("drawing") as advance:
        path = write_phantoms(out, number, root, sizes, voxel, range_of_lesions, progress=advance)
    facts = {"cases": number, "datalist": path}
    say_results(as_json, facts, f"{number} phantoms with their masks; data list: {path}")


@app.command()
def manifests(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="One data set, to show all that is known of it.",
            autocompletion=catalogue.manifest_names,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the public data sets that come with a manifest: source, licence, how to get them.

    Example: medvae3d data manifests hecktor_2022
    """
    from medvae3d.data.manifests import read_manifest

    files = catalogue.manifest_files()
    if name is not None and name not in files:
        raise SettingError(
            f"there is no manifest {name!r}; there are {', '.join(files) or 'none'}. "
            f"Name one of them, or none to list all."
        )
    found = [read_manifest(path) for key, path in files.items() if name in (None, key)]
    if as_json:
        facts = [
            {
                "name": m.name, "title": m.title, "source": m.source, "licence": dict(m.licence),
                "citations": m.citations, "labels": m.label_values, "channels": m.channels,
                "spacing": m.spacing, "size": m.size, "how_to_get": m.how_to_get,
                "limitations": m.limitations, "file": str(files[m.name]),
            }
            for m in found
        ]  # fmt: skip
        say_json(facts if name is None else facts[0])
    elif name is None:
        rows = [
            (m.name, m.size["cases"], [c["name"] for c in m.channels], m.licence["name"], m.title)
            for m in found
        ]
        output().print(table("Data sets", ("name", ">cases", "channels", "licence", "title"), rows))
    else:
        _print_manifest(found[0], files[name])


def _print_manifest(manifest: Any, path: Path) -> None:
    licence = manifest.licence
    facts = {
        "title": manifest.title,
        "source": manifest.source,
        "licence": f"{licence['name']}, {licence['url']}. {licence.get('note', '')}".strip(),
        "labels": manifest.label_values,
        "channels": [f"{c['name']} ({c['unit']})" for c in manifest.channels],
        "spacing": manifest.spacing.get("note", ""),
        "size": manifest.size,
        "how to get it": manifest.how_to_get,
        "limitations": "\n".join(manifest.limitations),
        "to cite": "\n".join(manifest.citations),
        "manifest": path,
    }
    output().print(table(manifest.name, ("", ""), list(facts.items())))
