"""The pages under docs/: each can be reached from the first one, and no link leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


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
