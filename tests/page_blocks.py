"""The code blocks of README and of the pages, and what becomes of each; no tests in here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
    if not path.relative_to(ROOT)
    .as_posix()
    .startswith(("docs/_", "docs/tutorials/", "docs/reference/gallery"))
)  # tutorials are run by tests/test_docs.py, the gallery by tests/test_gallery.py
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CODE = ("sh", "bash", "console", "python")
COMMAND = re.compile(
    r"^(\w+=\S+ )*(medvae3d|python|torchrun|make|pip|curl|git|monailabel)\b", re.MULTILINE
)
USAGE = re.compile(r"^usage: ", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block, by its page and its number among all fences of the page."""

    page: str
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"

    @property
    def is_usage(self) -> bool:
        """Whether it says what may be written, with names in capitals, and is no command."""
        return self.language == "text" and bool(USAGE.search(self.text))


def blocks_of(page: str) -> list[Block]:
    """Blocks with code or with usage; listings of files and of what is printed are neither."""
    found = FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
    blocks = [Block(page, number, *each) for number, each in enumerate(found)]
    return [
        block
        for block in blocks
        if block.is_usage
        or block.language in CODE
        or (block.language in ("", "text") and COMMAND.search(block.text))
    ]


ALL = [block for page in PAGES for block in blocks_of(page)]


def usages(text: str) -> list[list[str]]:
    """The words after `medvae3d` of each usage line, with the lines that go on with it."""
    found: list[list[str]] = []
    for line in text.splitlines():
        words = [word.strip("()") for word in line.split()]
        if USAGE.match(line):
            found.append(words[words.index("medvae3d") + 1 :])
        elif line.startswith(" ") and found:
            found[-1] += words
    return found


def lacking(words: list[str]) -> str:
    """The first word of a mentioned command that there is not, or nothing."""
    from medvae3d.apps.cli import app

    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, *words = words
        if name in ("...", "COMMAND"):
            return ""
        if name not in command.commands:
            return name
        command = command.commands[name]
    options = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    options |= {"--help", "-h", "--install-completion", "--show-completion"}
    asked = [word.strip("[],").partition("=")[0] for word in words if word.startswith(("-", "["))]
    return next((each for each in asked if each[:2] == "--" and each not in options), "")
