"""Commands run on hostile input: what a refusal has to look like, and what it may cost."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

LONGEST_S = 2.0
MOST_BYTES = 1 << 30


class Ended(NamedTuple):
    """A command that has ended."""

    code: int | None
    raised: BaseException | None
    out: str
    error: str
    seconds: float


@contextlib.contextmanager
def limited_memory(most: int = MOST_BYTES) -> Iterator[None]:
    """Lets this process claim only so much more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Runner:
    """Runs commands in this process, each within bounds, and tells what is wrong with its end.

    Args:
        scratch: An empty folder for files in between; nothing may be left there.
    """

    def __init__(self, scratch: Path) -> None:
        import typer

        from medvae3d.apps.cli import app

        # Built once: it takes longer than most refusals.
        self.command = typer.main.get_command(app)
        self.scratch = scratch
        # torch keeps a cache for each user among the temporary files once anything was trained.
        self.caches = {"TORCHINDUCTOR_CACHE_DIR": f"{scratch}_torch"}

    def run(self, words: Sequence[object]) -> Ended:
        """Runs a command as the command line does."""
        code, raised = None, None
        streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in
                   ("strict", "backslashreplace")]  # fmt: skip
        began = time.process_time()
        with (
            mock.patch.dict(os.environ, {"TMPDIR": str(self.scratch), **self.caches}),
            mock.patch.object(tempfile, "tempdir", None),
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
            limited_memory(),
        ):
            try:
                self.command.main([str(word) for word in words], prog_name="medvae3d")
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0
            except Exception as error:  # whatever it is, it is what the test is about
                raised = error
        took = time.process_time() - began
        texts = []
        for stream in streams:
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())
        return Ended(code, raised, texts[0], texts[1], took)

    def faults(
        self, words: Sequence[object], out: Path, names: str = "", lines: bool = False
    ) -> list[str]:
        """What is wrong with how a command ended that had to refuse its input; empty if nothing.

        Args:
            words: The command line.
            out: Folder that the command would write into; the input lies elsewhere.
            names: What the cause has to name.
            lines: Whether the cause may go on in further lines, as a list of what is executed.
        """
        before = state(out)
        done = self.run(words)
        found = [f"{done.seconds:.1f} s"] if done.seconds > LONGEST_S else []
        if done.raised is not None:
            found.append(repr(done.raised)[:300])
        elif done.code != 2:
            found.append(f"exit code {done.code}: {done.out[-200:]}")
        causes = [line for line in done.error.splitlines() if line.startswith("error: ")]
        if len(causes) != 1 or not (lines or done.error.rstrip().endswith(causes[0].rstrip())):
            found.append(f"no one-line cause: {done.error[-300:]!r}")
        elif names not in causes[0]:
            found.append(f"cause without {names}: {causes[0][:300]}")
        if state(out) != before:
            found.append(f"wrote {sorted(set(state(out)) ^ set(before))[:5]}")
        del done
        gc.collect(0)
        if left := list(self.scratch.iterdir()):
            gc.collect()
            if left := list(self.scratch.iterdir()):
                found.append(f"left {left[0].name}")
        return found


def state(folder: Path) -> dict[str, int]:
    """Names and sizes of all that is in a folder."""
    return {str(path): path.lstat().st_size for path in sorted(folder.rglob("*"))}
