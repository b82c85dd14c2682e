"""Runs the code blocks of a page as they are written, made small where they would take minutes.

What makes a command small stands in `SMALLER` and is appended to its words, where the last value of
an option counts; so the line of the page is read by the command as it stands, and runs to its end.
"""

from __future__ import annotations

import logging
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from monai.utils import set_determinism
from page_blocks import ROOT, Block

COMMENT = re.compile(r"(^|\s)#.*")  # not the # within a nested name
NETWORK = (
    "spatial_shape=[16,16,16]", "network_def#channels=[4,8]", "network_def#latent_channels=2",
)  # fmt: skip
# In float32, so that what comes of a few steps is the same on every CPU.
STEPS = (
    "max_epochs=1", "epoch_length=2", "batch_size=2", "prior_passes=1", "val_interval=1",
    "precision=float32", "tensorboard=false",
)  # fmt: skip
STAGES = (
    "spatial_shape=[16,16,16]", "network_def#shape#channels=[4,8]",
    "network_def#texture#channels=[4,8]",
)  # fmt: skip


def as_options(settings: Sequence[str]) -> tuple[str, ...]:
    """Settings as MONAI takes them: ``--key value``."""
    return tuple(word for each in settings for word in ("--" + each.partition("=")[0],
                                                        each.partition("=")[2]))  # fmt: skip


def as_fitted(settings: Sequence[str]) -> tuple[str, ...]:
    """Settings of the trainings of a study."""
    return tuple(word for each in settings for word in ("--fit-setting", each))


# What is appended to a command that begins with these words; the longest beginning counts.
SMALLER: Mapping[str, Sequence[str]] = {
    "medvae3d train": (*STEPS, *NETWORK),
    "medvae3d train pavae": (*STEPS, *STAGES),
    "medvae3d evaluate": ("--sections", "masks", "--viewer-cases", "1"),
    "medvae3d figures": ("--quick", "--section", "control"),
    "medvae3d study segmentation": ("--steps", "2", "--seeds", "1"),
    "medvae3d study classification": (
        "--n", "3", "--seeds", "1", "--steps", "2", "--generator-steps", "2",
    ),
    "medvae3d study zoo": (
        "--seeds", "1", "--samples", "4", "--draws", "2", "--judged", "2", "--systems", "vae",
        *STEPS, *NETWORK,
    ),
}  # fmt: skip


def appended(words: Sequence[str], also: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """What is appended to a command; what a page says of its own goes before the rest."""
    table = {**SMALLER, **also}
    begun = [key for key in table if list(words[: len(key.split())]) == key.split()]
    return table[max(begun, key=len)] if begun else ()


def run_block(
    block: Block,
    known: dict[str, Any],
    smaller: Mapping[str, Sequence[str]],
    replaced: Mapping[str, str],
) -> None:
    """Runs a block.

    Args:
        block: The block.
        known: Names that the Python of this page has defined so far.
        smaller: What is appended on this page, see `SMALLER`.
        replaced: Words of the Python of this page, and what makes them small.
    """
    if block.language == "python":
        text = block.text
        for words, fewer in replaced.items():
            text = text.replace(words, fewer)
        exec(compile(text, f"{block.page}, block {block.number}", "exec"), known)
        return
    for line in lines_of(block):
        words = shlex.split(os.path.expandvars(line))
        if not assigned(words):
            run_words([*words, *appended(words, smaller)])


def lines_of(block: Block) -> list[str]:
    """The command lines of a block, without comments."""
    lines = [COMMENT.sub("", line) for line in block.text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip()]


def assigned(words: list[str]) -> bool:
    """Takes assignments off a line and does them; whether there is nothing else in it."""
    while words and words[0].partition("=")[0].isidentifier() and "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        os.environ[name] = value
    return not words


def run_words(words: Sequence[str]) -> None:
    """Runs a command in this process where it can, as importing torch takes longer than most."""
    runners: dict[str, Callable[[Sequence[str]], None]] = {
        "medvae3d": run_ours, "python": run_python,
    }  # fmt: skip
    runners.get(words[0], run_process)(words)


def run_ours(words: Sequence[str]) -> None:
    from typer.testing import CliRunner

    from medvae3d.apps.cli import app

    done = CliRunner().invoke(app, list(words[1:]))
    assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}\n{done.exception!r}"


def run_python(words: Sequence[str]) -> None:
    """``python FILE ...`` or ``python -m MODULE ...``, and leaves nothing of it behind."""
    is_module = words[1] == "-m"
    name, *rest = words[2:] if is_module else words[1:]
    path = None if is_module else ROOT / name
    with pytest.MonkeyPatch.context() as patch, logging_of_its_own():
        patch.setattr(sys, "argv", [name, *rest])
        patch.setattr(sys, "path", [str(path.parent) if path else os.getcwd(), *sys.path])
        try:
            if path:
                runpy.run_path(str(path), run_name="__main__")
            else:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, f"{shlex.join(words)} left with {end.code}"
        finally:
            set_determinism(None)


@contextmanager
def logging_of_its_own() -> Iterator[None]:
    """Has the handlers of the tests back afterwards, whatever a bundle logs to."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def run_process(words: Sequence[str]) -> None:
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
