"""Claims about two processes that want one folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medvae3d.data.locks import sole_writer
from medvae3d.errors import OutputError

HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_has_one_writer_and_a_killed_one_lets_go(tmp_path):
    call = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another process"), sole_writer(tmp_path):
            pass
        other.kill()
        other.wait()
    with sole_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_training_does_not_begin_in_a_folder_that_is_held(tmp_path):
    from medvae3d.apps.training import _Job

    job = object.__new__(_Job)
    job.folder = tmp_path
    with sole_writer(tmp_path):
        for parts in (None, ("never", "reached")):
            with pytest.raises(OutputError, match="another process"), job.folder_for(parts):
                pass
    assert list(tmp_path.iterdir()) == []
