"""The page of claims: each row has a state, and what it names is there; every system has a table.

Files are read and not imported, so that this takes no time.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from medvae3d.models.registry import PAGES, SYSTEMS
from medvae3d.models.systems.files import read_base, read_system, system_names

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "evidence.md"
HOLDS = ("holds", "holds on phantoms")
NOT_MET = "measured, not met: "
NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Row:
    """A claim of a table, under the heading of the table."""

    heading: str
    claim: str
    held: str
    state: str

    def __str__(self) -> str:
        return f"{self.heading}: {self.claim}"

    @property
    def nodes(self) -> list[tuple[Path, str]]:
        found = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", self.held)
        return [(ROOT / path, name) for path, name in found]

    @property
    def links(self) -> list[tuple[Path, str]]:
        found = [link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", self.held)]
        return [
            ((PAGE.parent / path).resolve() if path else PAGE, anchor) for path, _, anchor in found
        ]


def rows_of(text: str) -> list[Row]:
    found, heading, is_of_claims = [], "", False
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
            is_of_claims = False
        elif line == "| claim | held by | state |":
            is_of_claims = True
        elif is_of_claims and line.startswith("| "):
            _, claim, held, state, _ = (cell.strip() for cell in line.split("|"))
            found.append(Row(heading, claim, held, state))
    return found


TEXT = PAGE.read_text(encoding="utf-8")
ROWS = rows_of(TEXT)


@cache
def names_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(each.name for each in tree.body if isinstance(each, ast.FunctionDef))


@cache
def anchors_of(path: Path) -> frozenset[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in titles)


def what_is_wrong(row: Row) -> list[str]:
    """What a row lacks, in words."""
    wrong = [f"no test {name}" for path, name in row.nodes if name not in known_tests(path)]
    for path, anchor in row.links:
        if not path.is_file():
            wrong.append(f"no file {path}")
        elif anchor and anchor not in anchors_of(path):
            wrong.append(f"no heading {anchor} in {path.name}")
    if not row.nodes and not row.links:
        wrong.append("names neither a test nor a page")
    if row.state.startswith(NOT_MET):
        wrong += missing_figures(row)
    elif row.state not in HOLDS:
        wrong.append(f"state {row.state!r}")
    return wrong


def known_tests(path: Path) -> frozenset[str]:
    return names_in(path) if path.is_file() else frozenset()


@cache
def figures_in(path: Path) -> frozenset[str]:
    """Numbers of a file; those of this page's claims do not hold themselves."""
    text = path.read_text(encoding="utf-8")
    if path == PAGE:
        text = "\n".join(line for line in text.splitlines() if line.count(" | ") != 2)
    return frozenset(NUMBER.findall(text))


def missing_figures(row: Row) -> list[str]:
    """Figures of a state that stand in none of the files that are named."""
    files = [path for path, _ in (*row.nodes, *row.links) if path.is_file()]
    there = set().union(*(figures_in(path) for path in files))
    figures = NUMBER.findall(row.state)
    if not figures:
        return ["no figure"]
    return [f"figure {each} stands nowhere" for each in figures if each not in there]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_has_a_state_and_what_it_names_is_there(row: Row) -> None:
    assert what_is_wrong(row) == []


def test_pages_with_figures_have_their_commands() -> None:
    pages = {path for row in ROWS for path, _ in row.links if path.suffix == ".md"}
    assert len(pages) > 8
    for path in pages:
        text = path.read_text(encoding="utf-8")
        commands = r"^```(sh|text)\n([^`]*\n)?(usage: )?(\w+=\S+ )*(medvae3d|python) "
        assert re.search(commands, text, re.MULTILINE), path


def test_no_claim_comes_twice_and_there_are_many() -> None:
    claims = [(row.heading, row.claim) for row in ROWS if not row.claim.startswith("The same")]
    assert len(claims) == len(set(claims))
    assert len(ROWS) > 200


def function_of(name: str) -> str:
    """The function that makes the network of a system, as its training names it."""
    changes = read_system(name)
    own = changes.get("network_def", read_base()["network_def"])
    return str(changes.get("network_def#_target_", own["_target_"]))


def test_every_system_has_composition_training_page_and_table() -> None:
    tables = {row.heading.strip("`") for row in ROWS}
    zoo = {
        each.name
        for path in (ROOT / "medvae3d" / "models" / "zoo").glob("*.py")
        for each in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(each, ast.FunctionDef)
    }
    assert set(SYSTEMS) == set(system_names()) == set(PAGES)
    for name in SYSTEMS:
        package, _, function = function_of(name).rpartition(".")
        assert package == "medvae3d.models.zoo" and function in zoo, name
        assert (ROOT / "docs" / PAGES[name].partition("#")[0]).is_file(), name
        assert name in tables, f"{PAGE.name} has no table of {name}"
        mine = [row for row in ROWS if row.heading == f"`{name}`"]
        assert any(row.state in HOLDS and row.nodes for row in mine), name


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("| It is | `tests/test_docs.py::test_links_lead_to_file` | holds |", "no test"),
        ("| It is | `tests/test_doc.py::test_links_lead_to_files` | holds |", "no test"),
        ("| It is | [there](nowhere.md) | holds |", "no file"),
        ("| It is | [there](comparison.md#nowhere) | holds |", "no heading"),
        ("| It is | | holds |", "names neither a test nor a page"),
        ("| It is | somewhere | holds |", "names neither"),
        ("| It is | `tests/test_docs.py::test_links_lead_to_files` | |", "state ''"),
        ("| It is | [there](comparison.md) | being measured |", "state 'being"),
        ("| It is | [there](comparison.md) | measured, not met: badly |", "no figure"),
        ("| It is | [there](comparison.md) | measured, not met: 987.65 |", "987.65 stands nowhere"),
    ],
)
def test_a_row_that_lacks_something_is_seen(line: str, wrong: str) -> None:
    (row,) = rows_of(f"### `vae`\n\n| claim | held by | state |\n|---|---|---|\n{line}\n")
    assert any(wrong in each for each in what_is_wrong(row))
