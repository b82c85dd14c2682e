"""What holds for the source tree as a whole: floors, docstrings, the lists kept in the docs."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "medvae3d"
CONCEPTS = ROOT / "docs" / "concepts"

# A module may import its own package and any lower floor; the packages of one floor stand beside
# each other. `errors` lies under everything.
FLOORS = [
    {"errors", "exhaustion", "files", "numerics", "geometry", "seeding", "spreading"},
    {"probability", "flows", "networks", "data"},
    {"models"},
    {"objectives"},
    {"training", "synthesis", "evaluation"},
    {"studies"},
    {"apps"},
    {"transforms"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# These names of the package itself stand for what lies behind them.
TOP_LEVEL = {"load_bundle": "apps", "__version__": None}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> tuple[str, ...]:
    """``medvae3d/data/volumes.py`` as ``("medvae3d", "data", "volumes")``."""
    return path.relative_to(ROOT).with_suffix("").parts


def imported(tree: ast.AST, here: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every name that a module imports, in full; also under TYPE_CHECKING and by string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else ()
            base += tuple((node.module or "").split(".")) if node.module else ()
            yield from ((*base, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            argument = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(argument, ast.Constant):
                yield tuple(str(argument.value).split("."))


def faults(source: str, here: tuple[str, ...]) -> list[str]:
    """The imports of a module that point sideways or upwards."""
    own, found = here[1], []
    for name in imported(ast.parse(source), here):
        if name[0] != "medvae3d":
            continue
        there = TOP_LEVEL.get(name[1], name[1]) if len(name) > 1 else "medvae3d"
        if there in {None, own, "errors"}:
            continue
        if there not in FLOOR or FLOOR[there] >= FLOOR[own]:
            found.append(".".join(name))
    return found


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from medvae3d.models.latent import Trace", True),
        ("import medvae3d.models.latent", True),
        ("import torch, medvae3d.models as models", True),
        ("from medvae3d import models", True),
        ("from medvae3d import load_bundle", True),
        ("import medvae3d", True),
        ("from ..models import latent", True),
        ("from .. import models", True),
        ("from medvae3d.flows.integrators import leapfrog", True),
        ("if TYPE_CHECKING:\n    from medvae3d.models.latent import Trace", True),
        ("def late():\n    from medvae3d.apps.cli import main", True),
        ("importlib.import_module('medvae3d.models.zoo')", True),
        ("from medvae3d.errors import GridError", False),
        ("from medvae3d import __version__, errors", False),
        ("from . import volumes", False),
        ("from .volumes import read_volume", False),
        ("from ..geometry import Grid", False),
        ("from medvae3d.data.manifests import Case", False),
        ("import monai.data, torch", False),
    ],
)
def test_a_wrong_import_is_seen_in_every_form(source: str, wrong: bool) -> None:
    assert bool(faults(source, ("medvae3d", "data", "transforms"))) is wrong


def test_imports_point_downwards() -> None:
    found = {}
    for path in modules():
        here = dotted(path)
        if len(here) == 2 and here[1] in {"__init__", "__main__"}:
            continue  # the front door, above all floors
        assert here[1] in FLOOR, f"{path.relative_to(ROOT)}: give it a floor in FLOORS"
        if wrong := faults(path.read_text(encoding="utf-8"), here):
            found["/".join(here)] = wrong
    assert not found


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in modules()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_every_package_can_be_found_by_an_installer() -> None:
    folders = {path.parent for path in modules()}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_the_library_does_not_print() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        if "apps" not in dotted(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert not found


@pytest.mark.parametrize("statement", ["import medvae3d", "from medvae3d import __version__"])
def test_import_is_light(statement: str) -> None:
    heavy = {"torch", "monai", "numpy", "nibabel", "torchio", "sklearn"}
    code = f"{statement}\nimport sys\nprint(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its two head lines."""
    text = page.read_text(encoding="utf-8")
    _, found, section = text.partition(f"\n## {heading}\n")
    assert found, f"{page.name} has no section '{heading}'"
    section = section.partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_module_map_is_the_tree() -> None:
    there = {
        path.relative_to(PACKAGE).as_posix() for path in modules() if path.name != "__init__.py"
    } - {"__main__.py"}
    table = rows(CONCEPTS / "architecture.md", "Module map")
    listed = {name.strip("`"): int(floor) for floor, name, _ in table}
    assert len(listed) == len(table), "a module stands twice in the map"
    assert sorted(listed) == sorted(there)
    wrong = {name for name, floor in listed.items() if FLOOR[re.split(r"[/.]", name)[0]] != floor}
    assert not wrong, "these stand on another floor"


def declared() -> dict[str, set[str]]:
    """The names of what is needed to run (key ""), and of what each extra adds."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        extra: {re.split(r"[<>=!~;\[ ]", line)[0] for line in text.split("\n") if line.strip()}
        for extra, text in lists.items()
    }


def test_each_dependency_is_accounted_for() -> None:
    table = rows(CONCEPTS / "dependencies.md", "Needed to run")
    assert sorted(row[0].strip("`") for row in table) == sorted(declared()[""])
    assert all(len(row[2]) > 20 for row in table), "each has a reason"


def test_each_package_of_an_extra_is_accounted_for() -> None:
    table = rows(CONCEPTS / "dependencies.md", "Extras")
    listed = [(row[0].strip("`"), row[1].strip("`")) for row in table]
    extras = {extra: names for extra, names in declared().items() if extra}
    assert sorted(listed) == sorted((e, name) for e, names in extras.items() for name in names)


def test_what_make_installs_is_pinned() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([\w.-]+)==", text, flags=re.MULTILINE))
    needs = declared()
    assert needs[""] | needs["test"] | needs["dev"] | needs["docs"] == pinned
