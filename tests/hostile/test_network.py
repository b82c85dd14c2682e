"""Claims about what leaves the machine: nothing, and no library is left to report its use."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def test_commands_open_no_connection(runner, good, tmp_path, monkeypatch):
    tried = []

    def refuse(*given, **named):
        tried.append(given)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for words in (
        ["list"],
        ["cite", "hvae"],
        ["data", "manifests"],
        ["data", "check", good.datalist],
        ["data", "import", good.datalist, "--out", tmp_path / "imported"],
        ["generate", good.joint, "--count", 1, "--out", tmp_path / "made", "--extrapolate"],
        ["figures", good.joint, "--datalist", good.datalist, "--quick", "--section", "data"],
        ["evaluate", "--real", good.datalist, "--synthetic", good.datalist, "--sections", "masks",
         "--out", tmp_path / "report", "--viewer-cases", 0],
    ):  # fmt: skip
        done = runner.run(words)
        assert done.raised is None, done
    assert tried == []


def test_libraries_are_told_not_to_report_their_use():
    from medvae3d.apps import SILENT

    clean = {key: value for key, value in os.environ.items() if key not in SILENT}
    code = "import os; from medvae3d import apps; print(all(os.environ[k] == v for k, v in " \
        "apps.SILENT.items()))"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True)
    assert done.stdout == "True\n"


def test_what_the_user_has_set_stays():
    code = "import os; from medvae3d import apps; print(os.environ['DO_NOT_TRACK'])"
    env = {**os.environ, "DO_NOT_TRACK": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "0\n"
