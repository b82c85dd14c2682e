"""The commands on bundles: list, train, generate, figures and demo."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from medvae3d.apps import catalogue
from medvae3d.apps.console import (
    AsJson,
    Stopwatch,
    duration,
    notice,
    notices,
    one_of,
    output,
    parse_whole,
    progress,
    say,
    say_json,
    say_results,
    table,
)
from medvae3d.models.registry import PRIORS, SYSTEMS, Paper
from medvae3d.models.registry import facts as system_facts

BundleName = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE",
        help="Name of a shipped bundle, or the folder of any.",
        autocompletion=catalogue.bundle_names,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu or cuda; a GPU is used where there is one, if not given.",
        autocompletion=one_of("cpu", "cuda"),
    ),
]


def list_all(as_json: AsJson = False) -> None:
    """List systems that can be trained, priors, and the bundles that come with the package.

    Example: medvae3d list --json
    """
    found = catalogue.entries()
    if as_json:
        bundles = [
            {
                "name": entry.name, "version": entry.version, "title": entry.title,
                "licence": entry.licence, "path": str(entry.root), "weights": entry.has_weights,
            }
            for entry in found
        ]  # fmt: skip
        priors = [asdict(prior) for prior in PRIORS.values()]
        say_json({"bundles": bundles, "systems": system_facts(), "priors": priors})
        return
    rows = [
        (e.name, e.version, e.title, e.licence, "yes" if e.has_weights else "no") for e in found
    ]
    columns = ("name", "version", "makes", "licence", "weights")
    output().print(table("Bundles", columns, rows))
    systems = [
        (each.name, each.summary, _source(each.papers), each.needs, each.state)
        for each in SYSTEMS.values()
        if each.is_trainable
    ]
    columns = ("name", "what it does", "paper", "cases need", "state")
    output().print(table("Systems to train by name (code: Apache-2.0)", columns, systems))
    drawn = [(each.name, each.summary, _source(each.papers)) for each in PRIORS.values()]
    output().print(table("Priors", ("name", "what it is", "paper"), drawn))


def _source(papers: Sequence[Paper]) -> str:
    """First author and year of the first paper."""
    if not papers:
        return ""
    first = papers[0].authors.split(",")[0].split()[-1]
    return f"{first} {papers[0].year}"


def train(
    what: Annotated[
        str,
        typer.Argument(
            metavar="SYSTEM|BUNDLE",
            help="Name of a system or of a shipped bundle, or the folder of any bundle.",
            autocompletion=catalogue.trainable_names,
        ),
    ],
    datalist: Annotated[Path, typer.Option(metavar="LIST", help="MONAI data list (JSON).")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run; a bundle again.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of train.json to replace."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="BUNDLE",
            help="For a system: take channels, labels and voxels of a bundle, not of the cases.",
            autocompletion=catalogue.bundle_names,
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe of the bundle, such as small for ten cases.")
    ] = None,
    seed: Annotated[
        str | None, typer.Option(metavar="S", help="Seed of all noise; else the bundle's own.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in DIR, if there is one.")
    ] = False,
    device: Device = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what MONAI and ignite log.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a system or a bundle on your own cases; DIR is then a bundle for every command.

    Ctrl-C ends the step and saves the state; --resume goes on from there to the same weights.

    Example: medvae3d train hvae --datalist cases.json --out mine max_epochs=20
    """
    root = None if seed is None else parse_whole(seed, "--seed")
    with notices().status("loading") if notices().is_terminal else nullcontext():
        from medvae3d.apps.training import train as run

    def start(advance: Any) -> Any:
        return run(
            what, datalist, out, like=like, recipe=recipe, seed=root, resume=resume, device=device,
            changes=settings or (), verbose=verbose, say=notice, advance=advance,
        )  # fmt: skip

    if notices().is_terminal:
        with progress("training") as advance:
            outcome = start(advance)
    else:
        outcome = start(None)
    if outcome.signal is not None:
        notice(
            f"stopped after step {outcome.steps} of {outcome.of_steps}, state saved in {out}. "
            f"Add --resume to the same command to go on."
        )
        raise typer.Exit(128 + outcome.signal)
    facts = {
        "weights": out / "models" / "model.pt",
        "learning_curves": out / "eval",
        "card": out / "docs" / "README.md",
        "steps": outcome.steps,
    }
    say_results(
        as_json,
        facts,
        f"weights: {facts['weights']}",
        f"learning curves: {facts['learning_curves']} (curves.png to look at)",
        f"model card to fill in: {facts['card']}",
        f"next: medvae3d generate {out} --count 20 --seed 1 --out synthetic",
    )


def figures(
    bundle: BundleName,
    datalist: Annotated[Path, typer.Option(metavar="LIST", help="MONAI data list (JSON).")],
    split: Annotated[
        str, typer.Option(help="validation or testing, or both with a comma.")
    ] = "validation",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write figures and pictures there.")
    ] = None,
    seed: Annotated[str, typer.Option(metavar="S", help="Seed of all that is random.")] = "0",
    section: Annotated[
        list[str] | None, typer.Option(help="One section alone; may be given several times.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only show that everything runs: no true figures.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Other weights than the bundle's.")
    ] = None,
    twin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="Weights trained without the flow, to stand beside; may be given several times.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a bundle on held-out cases and print the figures of its model card.

    Example: medvae3d figures sts_petct_hvae --datalist cases.json --split testing
    """
    root = parse_whole(seed, "--seed")
    from medvae3d.apps.figure_twins import read_twins
    from medvae3d.apps.figures import report
    from medvae3d.evaluation.figures import markdown, plain

    watch = Stopwatch()
    found = report(
        bundle,
        datalist,
        split,
        out,
        seed=root,
        quick=quick,
        sections=section,
        progress=notice,
        weights=weights,
        twin=read_twins(twin or ()),
    )
    if as_json:
        say_json(plain(found))
    else:
        say(markdown(found))
    notice(f"measured in {duration(watch.seconds)}")
    if out is not None and not as_json:
        say(f"figures: {out}")


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything.")],
    seed: Annotated[str, typer.Option(metavar="S", help="Same seed, same bytes.")] = "20",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Make 4 volumes with masks from each shipped bundle and insert lesions into a phantom.

    Example: medvae3d demo --out demo
    """
    root = parse_whole(seed, "--seed")
    from medvae3d.apps.demo import run_demo

    watch = Stopwatch()
    made = run_demo(out, root, device, notice)
    if as_json:
        say_json({"parts": [asdict(part) for part in made], "seconds": round(watch.seconds, 3)})
        return
    for part in made:
        cases = "case " if part.cases == 1 else "cases"
        say(f"{part.cases} {cases} in {duration(part.seconds):>6}  {part.picture}  {part.what}")
    say(f"all in {duration(watch.seconds)}, in {out.resolve()}")
    say("Look at the pictures first; each case has its record in records/.")
