"""A MONAI Label server as a process, and requests to it; no tests in here."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

STAND_INS = Path(__file__).parent / "label" / "stand_ins"
DOWNLOAD = ["-m", "monailabel.main", "apps", "--download", "--name", "monaibundle", "--output"]
REPOSITORY = Path(__file__).parents[1]


class Answer:
    """Status and body of an answer."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def require(self, status: int = 200) -> Answer:
        assert self.status == status, f"{self.status}: {self.body[:600]!r}"
        return self


def environment() -> dict[str, str]:
    """Stand-ins for what cannot be imported, one thread, no scoring of its own accord."""
    lacking = [name for name in ("torchvision", "pydicom_seg") if not _imports(name)]
    paths = [str(REPOSITORY), *([str(STAND_INS)] if lacking else []), os.environ.get("PYTHONPATH")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "NO_PROXY": "127.0.0.1",
    }


def _imports(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


class Server:
    """A server on a free port; a context manager.

    Args:
        app: Folder of the application.
        studies: Folder of the studies.
        log: File that it writes to.
        conf: What ``--conf`` gets.
    """

    def __init__(self, app: Path, studies: Path, log: Path, **conf: str) -> None:
        self.app, self.studies, self.log, self.conf = app, studies, log, conf
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *unused: Any) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def words(self) -> list[str]:
        """What the interpreter is told to start it, but for the port."""
        words = ["-m", "monailabel.main", "start_server"]
        words += ["--app", str(self.app), "--studies", str(self.studies)]
        for key, value in self.conf.items():
            words += ["--conf", key, value]
        return [*words, "--host", "127.0.0.1"]

    def start(self, seconds: float = 400) -> dict[str, Any]:
        """Starts it and waits for its first answer."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        command = [sys.executable, *self.words, "--port", str(port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.app, env=environment(), stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the server ended:\n{self.tail()}"
            try:
                return self.get("/info/").require().json
            except OSError:
                time.sleep(0.3)
        raise AssertionError(f"no answer within {seconds} s:\n{self.tail()}")

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends it as a power cut would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def memory_mb(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    # -- requests ---------------------------------------------------------------------------

    def get(self, path: str, **query: Any) -> Answer:
        return self._call("GET", path, query)

    def post(self, path: str, body: Any = None, **query: Any) -> Answer:
        data = json.dumps({} if body is None else body).encode()
        return self._call("POST", path, query, data, "application/json")

    def delete(self, path: str, **query: Any) -> Answer:
        return self._call("DELETE", path, query)

    def infer(self, model: str, image: str, output: str = "image", **params: Any) -> Answer:
        fields = {"params": json.dumps(params).encode()}
        data, kind = _multipart(fields, {})
        return self._call("POST", f"/infer/{model}", {"image": image, "output": output}, data, kind)

    def add_image(self, name: str, file: Path) -> Answer:
        data, kind = _multipart({"params": b"{}"}, {"file": file})
        return self._call("PUT", "/datastore/image", {"image": name}, data, kind)

    def add_label(self, image: str, file: Path, tag: str = "final") -> Answer:
        data, kind = _multipart({"params": b"{}"}, {"label": file})
        return self._call("PUT", "/datastore/label", {"image": image, "tag": tag}, data, kind)

    def _call(
        self,
        method: str,
        path: str,
        query: dict[str, Any],
        data: bytes | None = None,
        kind: str | None = None,
    ) -> Answer:
        url = f"{self.base}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        headers = {"Content-Type": kind} if kind else {}
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=800) as answer:
                return Answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read())


def _multipart(fields: dict[str, bytes], files: dict[str, Path]) -> tuple[bytes, str]:
    mark = uuid.uuid4().hex
    parts = b""
    for name, value in fields.items():
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        parts += head.encode() + value + b"\r\n"
    for name, path in files.items():
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{name}"; filename="{path.name}"'
        parts += f"{head}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()
        parts += path.read_bytes() + b"\r\n"
    return parts + f"--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"
