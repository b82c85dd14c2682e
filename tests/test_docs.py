"""The pages under docs/: no link leads nowhere, and what they say to type works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from page_blocks import lacking

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path.relative_to(DOCS).as_posix()
    for path in DOCS.rglob("*.md")
    if not path.relative_to(DOCS).parts[0].startswith("_")  # made while the site is built
)
TUTORIALS = sorted(path.name for path in (DOCS / "tutorials").glob("*.md"))
CARDS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("bundles/*/docs/README.md"))


def linked(page: Path) -> list[Path]:
    """The files of this repository that a page links to, whether or not they are there."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    return [(page.parent / t).resolve() for t in targets if t and "://" not in t]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    assert [str(path) for path in linked(DOCS / page) if not path.exists()] == []


def test_every_page_is_linked_from_the_first() -> None:
    listed = linked(DOCS / "index.md")
    assert [page for page in PAGES if page != "index.md" and DOCS / page not in listed] == []


def test_a_page_that_nothing_links_to_is_seen(tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text("[a](a.md#top) [b](https://b.md)\n```\n[c](c.md)\n```\n")
    assert linked(tmp_path / "index.md") == [tmp_path / "a.md"]


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """Language and content of the code blocks of a page."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [(language, body) for language, body in found if language in languages]


def commands(text: str) -> Iterator[list[str]]:
    """The ``medvae3d`` command lines of a page, as words; not those that show what is possible."""
    for _, body in blocks(text, "sh", "bash", "console"):
        for line in body.replace("\\\n", " ").splitlines():
            line = line.strip().removesuffix("&").partition(" #")[0]
            if line.startswith("medvae3d ") and "[" not in line.split("'")[0] and "..." not in line:
                yield shlex.split(line)[1:]


def parse(words: list[str]) -> None:
    """Has the command line understand the words, and does not run the command."""
    from medvae3d.apps.cli import app

    command = typer.main.get_command(app)
    context = None
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            return
        name, *words = words
        context = command.make_context("medvae3d", [name, *words], parent=context)
        command = command.commands[name]
    command.make_context(name, words, parent=context)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page}" for page in PAGES), *CARDS])
def test_commands_are_understood(page: str) -> None:
    for words in commands((ROOT / page).read_text(encoding="utf-8")):
        try:
            parse(list(words))
        except Exception as error:
            told = error.format_message() if hasattr(error, "format_message") else repr(error)
            pytest.fail(f"{page}: medvae3d {shlex.join(words)}: {told}")


def mentioned(text: str) -> Iterator[list[str]]:
    """Words of the commands that stand in the running text of a page."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", text):
        words = code.split()
        if words[:1] == ["medvae3d"] and len(words) > 1:
            yield words[1:]


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page}" for page in PAGES), *CARDS])
def test_commands_that_are_mentioned_are_there(page: str) -> None:
    found = mentioned((ROOT / page).read_text(encoding="utf-8"))
    assert [(words, word) for words in found if (word := lacking(words))] == []


def test_a_command_that_is_mentioned_and_not_there_is_seen() -> None:
    texts = "`medvae3d info BUNDLE`, `medvae3d list --jsn`, `medvae3d data check LIST`"
    assert [lacking(words) for words in mentioned(texts)] == ["info", "--jsn", ""]


def test_a_command_with_an_option_that_is_not_there_is_seen() -> None:
    (words,) = commands("```sh\nmedvae3d data phantom --count 2 --out a --sed 3\n```\n")
    with pytest.raises(Exception, match="--sed"):
        parse(words)


@pytest.mark.integration
@pytest.mark.timeout(1200)  # two minutes of processor time, more beside other work
@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_a_tutorial_runs_from_top_to_bottom(tutorial: str, tmp_path: Path) -> None:
    text = (DOCS / "tutorials" / tutorial).read_text(encoding="utf-8")
    found = blocks(text, "sh", "python")
    assert found
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(ROOT)
    for language, body in found:
        shell = ["bash", "-euo", "pipefail", "-c", body]
        call = shell if language == "sh" else [sys.executable, "-c", body]
        done = subprocess.run(
            call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{body}\n{done.stdout}\n{done.stderr}"
