"""Claims about malformed and hostile files: a sentence, never a traceback or half an output."""

from __future__ import annotations

import time

import pytest
from hostile import make_corpus
from typer.testing import CliRunner

LONGEST_S = 2.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus.make(tmp_path_factory.mktemp("hostile") / "corpus")


def refusal(words):
    """What is wrong with how a command ended that had to refuse its input; empty if nothing."""
    from medvae3d.apps.cli import app

    began = time.process_time()
    done = CliRunner().invoke(app, [str(word) for word in words])
    took = time.process_time() - began
    allowed = (1, 2) if "check" in words else (2,)
    faults = [f"{took:.1f} s"] if took > LONGEST_S else []
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        faults.append(repr(done.exception))
    if done.exit_code not in allowed:
        faults.append(f"exit code {done.exit_code}")
    if "error: " not in done.stderr and "]: " not in done.stdout:
        faults.append("no cause")
    return faults


def test_the_corpus_has_at_least_two_hundred_files(corpus):
    assert len(corpus) >= 200
    assert len({path.name for path in corpus}) == len(corpus)


@pytest.mark.slow
def test_every_hostile_file_is_refused_with_a_sentence(corpus, tmp_path):
    faults = {}
    out = tmp_path / "out"
    for path in corpus:
        for words in (["data", "check", path], ["data", "import", path, "--out", out]):
            if found := refusal(words):
                faults[f"{words[1]} {path.name}"] = found
            assert list(tmp_path.iterdir()) == [], path
    assert faults == {}
