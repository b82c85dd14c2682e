"""Claims about the registry: it is complete, and the page that is written from it is its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medvae3d.models.registry import PAGES, PRIORS, STATES, SYSTEMS
from medvae3d.models.registry_page import page
from medvae3d.models.systems.files import system_names

DOCS = Path(__file__).parents[2] / "docs"


def test_every_system_that_can_be_trained_is_registered():
    assert [name for name in system_names() if name not in SYSTEMS] == []


def test_entries_are_complete():
    assert set(PAGES) <= set(SYSTEMS)
    for name, system in SYSTEMS.items():
        assert name == system.name and system.papers and system.state in STATES
        assert system.tractable or system.density, name


def test_keys_of_papers_are_unique():
    papers = {paper for each in (*SYSTEMS.values(), *PRIORS.values()) for paper in each.papers}
    assert len({paper.key for paper in papers}) == len(papers)


@pytest.mark.parametrize("name", PAGES)
def test_a_system_has_its_page(name):
    file, _, anchor = PAGES[name].partition("#")
    text = (DOCS / file).read_text()
    titles = [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in
              re.findall(r"^#+ (.+)$", text, re.MULTILINE)]  # fmt: skip
    assert not anchor or anchor in titles


def test_the_page_of_systems_is_up_to_date():
    """Else: python -m medvae3d.models.registry_page > docs/reference/systems.md."""
    assert (DOCS / "reference" / "systems.md").read_text() == page()
