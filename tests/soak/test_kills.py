"""Claims about commands that are killed: nothing is lost, and nothing half-written is seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.integration
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", ["training", "generation", "insertion"])
def test_a_command_that_was_killed_goes_on_to_the_same_bytes(command, tmp_path):
    """Five kills here; ``kills.py --kills 50`` is the same with more."""
    words = ("--kills", "5", "--what", command, "--keep", tmp_path)
    done = subprocess.run(
        [sys.executable, TESTS / "soak" / "kills.py", *words],
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "" and done.stdout, done.stderr[-2000:]
    report = json.loads(done.stdout)[command]
    assert report["faults"] == []
    assert report["kills"] == 5 and report["aimed"] >= 1
    assert done.returncode == 0
