"""The command ``medvae3d cite``: what a publication has to name, as BibTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from medvae3d import __version__
from medvae3d.apps import catalogue
from medvae3d.apps.console import AsJson, say_results
from medvae3d.errors import BundleError, SettingError, UnreadableFileError
from medvae3d.files import load_json
from medvae3d.models.registry import SYSTEMS, Paper

DOI = re.compile(r"\b10\.\d{4,}/[^\s,;]+")
ARXIV = re.compile(r"\barXiv:(\d{4}\.\d{4,5})")
YEAR = re.compile(r"\b(19|20)\d{2}\b")
MONAI = Paper(
    "M. Jorge Cardoso, others", "MONAI: an open-source framework for deep learning in healthcare",
    "arXiv preprint", 2022, "arXiv:2211.02701",
)  # fmt: skip


def cite(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="A bundle, a system, a folder of samples, or the record of one.",
            autocompletion=catalogue.trainable_names,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Print BibTeX of what a bundle, a system or a folder of samples stands on.

    Example: medvae3d cite sts_petct_hvae > medvae3d.bib
    """
    papers, texts = references(what)
    known = {paper.key: paper.bibtex for paper in (*papers, MONAI)}
    for text in texts:
        key, entry = from_text(text)
        if not any(paper.title.casefold() in text.casefold() for paper in papers):
            while key in known and known[key] != entry:
                key += "a"
                entry = re.sub(r"^@misc\{[^,]*", f"@misc{{{key}", entry)
            known[key] = entry
    entries = [software(), *known.values()]
    say_results(as_json, entries, "\n\n".join(entries))


def references(what: str) -> tuple[tuple[Paper, ...], list[str]]:
    """The papers behind a name or a folder, and what else has to be cited, as text.

    Raises:
        SettingError: If it is the name of nothing.
        UnreadableFileError: If a file that it stands for cannot be read.
    """
    if what in SYSTEMS:
        return SYSTEMS[what].papers, []
    path = Path(what)
    shipped = catalogue.shipped_bundles()
    if what in shipped or (path / "configs" / "metadata.json").is_file():
        return _of_bundle(shipped.get(what, path))
    if path.is_dir() and (path / "records").is_dir():
        files = sorted((path / "records").glob("*.json"))
        return _of_records(files)
    if path.is_file():
        return _of_records([path])
    raise SettingError(
        f"there is no bundle, system, folder of samples or record {what!r}; there are "
        f"{', '.join([*shipped, *SYSTEMS])}. Name one of these, or a path."
    )


def _of_bundle(root: Path) -> tuple[tuple[Paper, ...], list[str]]:
    metadata = _read(root / "configs" / "metadata.json")
    texts = metadata.get("cite") or metadata.get("references") or []
    config = root / "configs" / "inference.json"
    network = _read(config).get("network_def") if config.is_file() else None
    target = network.get("_target_", "") if isinstance(network, dict) else ""
    system = SYSTEMS.get(str(target).rpartition(".")[2])
    return (system.papers if system else ()), _texts(texts, root)


def _of_records(files: Sequence[Path]) -> tuple[tuple[Paper, ...], list[str]]:
    texts: dict[str, None] = {}
    papers: dict[Paper, None] = {}
    for file in files:
        record = _read(file)
        if "bundle" not in record:
            raise UnreadableFileError(
                f"{file} is no record of a sample: it names no bundle. Give a file of `records/`."
            )
        name = str(record["bundle"]).rsplit(" ", 1)[0]
        if name in catalogue.shipped_bundles():
            papers.update(dict.fromkeys(_of_bundle(catalogue.shipped_bundles()[name])[0]))
        texts.update(dict.fromkeys(_texts(record.get("cite") or [], file)))
    return tuple(papers), list(texts)


def _texts(found: Any, where: Path) -> list[str]:
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BundleError(f"{where}: references are {found!r}; allowed is a list of texts.")
    return texts


def _read(path: Path) -> dict[str, Any]:
    try:
        content = load_json(path)
    except (OSError, ValueError) as error:
        raise UnreadableFileError(f"{path} cannot be read as JSON: {error}. Restore it.") from error
    if not isinstance(content, dict):
        raise UnreadableFileError(f"{path} holds no JSON object. Restore it.")
    return content


def software() -> str:
    """The entry of this software."""
    return _entry(
        "software",
        "medvae3d",
        {
            "author": "{The authors of medvae3d}",
            "title": "medvae3d: synthetic 3D medical volumes with their lesion masks",
            "version": __version__,
            "license": "Apache-2.0",
        }.items(),
    )


def from_text(text: str) -> tuple[str, str]:
    """Key and entry for a reference that is known as a line of text.

    Everything in the line is kept: authors as far as they can be told, what follows as the title.
    """
    identifier = DOI.search(text)
    preprint = ARXIV.search(text)
    years = [match.group() for match in YEAR.finditer(DOI.sub("", text))]
    kept = re.sub(r",?\s*(DOI:?\s*)?$", "", DOI.sub("", text).strip().rstrip(".,; ")).strip()
    authors, has_more, rest = kept.partition(" et al., ")
    if has_more:
        names = f"{authors} and others"
    else:  # "Family AB, Family C, Title": initials end a name
        match = re.match(r"((?:[A-Z][\w'-]+(?: [A-Z]{1,3}), )+)(.*)", kept)
        names, rest = (match[1].strip(", "), match[2]) if match else ("", kept)
        names = names.replace(", ", " and ")
    fields = {"author": names, "title": f"{{{rest}}}", "year": years[-1] if years else ""}
    if identifier:
        fields["doi"] = identifier.group().rstrip(".")
    if preprint:
        fields |= {"eprint": preprint[1], "archiveprefix": "arXiv"}
    first = re.match(r"\w+", kept)
    word = next((w for w in re.findall(r"[A-Za-z]+", rest) if len(w) > 3), "")
    key = f"{first.group() if first else 'data'}{fields['year']}{word}".lower()
    return key, _entry("misc", key, ((k, v) for k, v in fields.items() if v))


def _entry(kind: str, key: str, fields: Iterable[tuple[str, str]]) -> str:
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields)
    return f"@{kind}{{{key},\n{lines}\n}}"
