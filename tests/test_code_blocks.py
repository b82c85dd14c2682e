"""The code blocks of README and of the pages: each is run by a test, or has a reason not to be.

What a page takes for granted, and what makes its commands small, is in `page_given`; tutorials are
run by ``test_docs.py``, notebooks by ``test_notebooks.py``.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Mapping
from unittest import mock

import pytest
from page_blocks import ALL, PAGES, ROOT, Block, lacking, usages
from page_given import GIVEN, Given, shelf
from page_runs import assigned, lines_of, run_block, run_python

MINUTES = "takes minutes whatever its options, so its own parser alone reads the words"
TRAINED = "judges trainings of the comparison, hours of them; its own parser alone reads the words"
PROCESSES = "measures each point in a process of its own; its own parser alone reads the words"
PEER = "measures pythae, which nothing here depends on; its own parser alone reads the words"
SERVER = "needs a MONAI Label server: tests/label/test_page.py has one, and compares the words"
INSTALLS = "is what `make test-label` installs: tests/label/test_page.py compares them"
MAKE = "is what .ci/run does: test_targets_of_make_are_there_and_called_by_ci"
SUITE = "is a part of the suite itself"
# Blocks that are not run here, by page and by words of them, and why not.
NOT_RUN: Mapping[tuple[str, str], str] = {
    ("CONTRIBUTING.md", "git clone"): MAKE,
    ("README.md", "make demo"): MAKE,
    ("docs/how-to/bundles.md", "pytest tests/bundles"): SUITE,
    ("docs/how-to/monai-label.md", "pip install"): INSTALLS,
    ("docs/how-to/monai-label.md", "apps --download"): SERVER,
    ("docs/how-to/monai-label.md", "--app my_app"): SERVER,
    ("docs/how-to/monai-label.md", "curl"): SERVER,
    ("docs/concepts/patches.md", "patch_queue.py"): PROCESSES,
    ("docs/concepts/riemannian.md", "learned_metric.py"): MINUTES,
    ("docs/concepts/zoo.md", "trained_systems.py"): MINUTES,
    ("docs/concepts/discrete.md", "returned_codes.py"): MINUTES,
    ("docs/concepts/discrete.md", "given_masks.py"): TRAINED,
    ("docs/concepts/models.md", "unseen_discriminator.py"): TRAINED,
    ("docs/reference/comparison.md", "perceptual_pairs.py"): TRAINED,
    ("docs/how-to/explore.md", "prior_network.py"): MINUTES,
    ("docs/reference/figures.md", "throughput.py"): PROCESSES,
    ("docs/reference/performance.md", "growth.py"): PROCESSES,
    ("docs/reference/performance.md", "peers.py"): PEER,
    ("docs/reference/performance.md", "training_rate.py"): MINUTES,
    ("docs/reference/reproducibility.md", "same_samples.py"): PROCESSES,
}


def named(block: Block, key: tuple[str, str]) -> bool:
    return block.page == key[0] and key[1] in block.text


def kept_back(block: Block) -> bool:
    return any(named(block, key) for key in NOT_RUN)


RUN = [block for block in ALL if not block.is_usage and not kept_back(block)]
READ_BY_PARSER = [
    block for block in ALL for key, why in NOT_RUN.items()
    if named(block, key) and why in (MINUTES, TRAINED, PROCESSES, PEER)
]  # fmt: skip


def test_few_blocks_are_not_run():
    """Nobody adds one in silence: this number has to be changed with it."""
    assert len(NOT_RUN) == 20
    for key in NOT_RUN:
        assert len([block for block in ALL if named(block, key)]) == 1, key
    assert len(RUN) + len(NOT_RUN) + sum(block.is_usage for block in ALL) == len(ALL)


def test_what_is_given_is_of_a_page_with_blocks():
    assert set(GIVEN) <= {block.page for block in RUN}


@pytest.mark.parametrize("page", GIVEN)
def test_what_makes_a_page_small_is_about_its_blocks(page: str) -> None:
    given, blocks = GIVEN[page], [block for block in RUN if block.page == page]
    assert {*given.before, *given.order} <= {block.number for block in blocks}
    python = "".join(block.text for block in blocks if block.language == "python")
    assert [words for words in given.replaced if words not in python] == []
    lines = [line.replace("$B", "bundles/sts_petct_hvae") for b in blocks for line in lines_of(b)]
    begun = [" ".join(shlex.split(line)) for line in lines]
    assert [key for key in given.smaller if not any(each.startswith(key) for each in begun)] == []


@pytest.mark.parametrize("block", [b for b in ALL if b.is_usage], ids=str)
def test_usage_names_what_there_is(block: Block) -> None:
    found = usages(block.text)
    assert found
    assert [(words, lack) for words in found if (lack := lacking(words))] == []


def test_a_usage_line_with_an_option_that_is_not_there_is_seen() -> None:
    (words,) = usages("usage: medvae3d data check LIST [--json OUT]\n    [--sed S]\n")
    assert lacking(words) == "--sed"


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_are_there_and_called_by_ci(page: str) -> None:
    """All but `make demo`, whose command is run by tests/apps/test_cli.py."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    called = re.findall(r"^make ([\w-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    for block in ALL:
        for target in re.findall(r"^make ([\w-]+)", block.text, re.MULTILINE):
            if block.page == page:
                assert re.search(rf"^{target}:", text, re.MULTILINE), target
                assert target in (*called, "demo"), target


class Parsed(Exception):
    """The words have been read."""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("block", READ_BY_PARSER, ids=lambda block: block.page)
def test_a_benchmark_reads_the_words_of_its_page(block: Block, monkeypatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_alone(self, *args, **options):
        parse(self, *args, **options)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_alone)
    with mock.patch.dict(os.environ):
        for line in lines_of(block):
            words = shlex.split(line)
            assert not assigned(words)
            with pytest.raises(Parsed):
                run_python(words)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute of processor time at most, more beside other work
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", sorted({block.page for block in RUN}))
def test_blocks_do_what_they_say(page, tmp_path, monkeypatch):
    given = GIVEN.get(page, Given())
    for needed in given.needs:
        pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medvae3d.apps.catalogue.SHIPPED", (shelf(tmp_path / "bundles"),))
    given.files(tmp_path)
    blocks = {block.number: block for block in RUN if block.page == page}
    known = {"__name__": "__main__"}
    folders = {"D": str(tmp_path), "MEDVAE3D_DATA": str(tmp_path)}
    with mock.patch.dict(os.environ, folders):
        for number in given.order or blocks:
            if number in given.before:
                given.before[number](tmp_path)
            run_block(blocks[number], known, given.smaller, given.replaced)
