"""Hostile files of options for ``--config``, and hostile contents for files of earlier runs."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

DEEP = 20_000


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def options(trace: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of files that hold no options of `generate`.

    Args:
        trace: Folder that some of them would make if they were executed.
    """
    laughs = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
    yaml = {
        "aliases": f"a0: &a0 [x]\n{laughs}",
        "merge": "base: &b {count: 3}\n<<: *b\n",
        "python": f"count: !!python/object/apply:os.mkdir ['{trace}']\n",
        "python_name": "count: !!python/name:os.system\n",
        "python_module": "!!python/module:os\n",
        "deep_flow": "count: " + "[" * DEEP + "]" * DEEP,
        "deep_block": "\n".join(" " * n + "a:" for n in range(500)),
        "deep_dashes": "- " * 2000 + "x",
        "twice": "count: 1\ncount: 2\n",
        "twice_inside": "volume-ml: {a: 1, a: 2}\n",
        "documents": "count: 1\n---\ncount: 2\n",
        "list": "- count\n",
        "text": "just words\n",
        "number": "5\n",
        "empty": "",
        "comment": "# nothing\n",
        "end": "---\n...\n",
        "tabs": "count:\t\t\n\t- 1\n",
        "open": "count: [1, 2\n",
        "quote": 'count: "1\n',
        "colon": "count: a: b\n",
        "unknown": "no-such-option: 1\n",
        "own": "config: other.yaml\n",
        "trust": "trust: true\n",
        "nul": "count: \0\n",
        "escape": 'out: "\x1b[2Ja"\n',
        "escaped": 'mask: "\\e[2Ja"\n',
        "surrogate": 'mask: "\\ud800"\n',
        "mapping": "count: {a: {b: c}}\n",
        "lists": "count: [[1], [2]]\n",
        "words": "count: many\n",
        "negative": "count: -1\n",
        "huge": f"count: {'9' * 5000}\n",
        "null_key": "? \n: 1\n",
        "list_key": "? [1, 2]\n: 3\n",
        "mapping_key": "? {a: b}\n: 3\n",
    }
    for name, text in yaml.items():
        yield f"{name}.yaml", text.encode("utf-8", "surrogatepass")
    yield "bytes.yaml", b"\xff\xfe\x00count"
    yield "latin.yaml", "out: \xe9\n".encode("latin-1")
    yield "wide.yaml", "count: 1\n".encode("utf-16")
    yield "zipped.yaml", b"\x1f\x8b\x08\x00"
    yield "large.yaml", b"# " + b"x" * (2 << 20)
    yield "many.yaml", b"".join(b"k%d: 1\n" % n for n in range(25_000))
    whole: list[Any] = [None, True, 1.5, "text", [], [{}], {"a": 1}, {"count": {"a": {}}}]
    whole += [{"options": [], "command": "x"}, {"options": {"x": 1}, "command": "x"}]
    whole += [{"mask": 1e400}, {"": 1}, {"-": 1}, {"--": 1}]
    for number, value in enumerate(whole):
        yield f"whole_{number}.json", json.dumps(value).encode()
    yield "deep.json", b'{"count": ' + b"[" * DEEP + b"]" * DEEP + b"}"
    yield "twice.json", b'{"count": 1, "count": 2}'
    yield "open.json", b'{"count": '
    yield "bignum.json", b'{"count": ' + b"9" * 5000 + b"}"


def make_options(folder: Path, trace: Path) -> list[Path]:
    """Writes them, and what is no file."""
    folder.mkdir(parents=True)
    made = []
    for name, content in options(trace):
        made.append(folder / name)
        made[-1].write_bytes(content)
    os.mkfifo(folder / "pipe.yaml")
    os.symlink("/dev/zero", folder / "endless.yaml")
    os.symlink("loop.yaml", folder / "loop.yaml")
    (folder / "folder.yaml").mkdir()
    absent = ("pipe", "endless", "loop", "folder", "absent")
    return made + [folder / f"{name}.yaml" for name in absent]


def no_json(trace: Path) -> Iterator[tuple[str, bytes]]:
    """What a JSON file of an earlier run may have become."""
    del trace
    yield "empty", b""
    yield "open", b"{"
    yield "zeros", bytes(300)
    yield "bytes", b"\xff\xfe\x00"
    yield "deep", b"[" * DEEP + b"]" * DEEP
    yield "twice", b'{"a": 1, "a": 2}'
    for number, value in enumerate([None, 3, "text", [], {}, {"means": 3}, [{}]]):
        yield f"whole_{number}", json.dumps(value).encode()


def states(content: bytes, trace: Path) -> Iterator[tuple[str, bytes]]:
    """What ``train_state.pt`` may have become.

    Args:
        content: A whole one.
        trace: Folder that some would make if they were unpickled.
    """
    for count in (0, 1, 100, len(content) // 2, len(content) - 1):
        yield f"cut_{count}", content[:count]
    for place in (len(content) // 3, len(content) // 2):
        yield f"flipped_{place}", content[:place] + b"\xa5" * 64 + content[place + 64 :]
    yield "zeros", bytes(len(content))
    yield "text", b"not a state"
    yield "pickle", pickle.dumps(Trap(trace))
    state = torch.load(io.BytesIO(content), weights_only=True)
    name = next(iter(state["players"]))
    player = state["players"][name]
    odd: dict[str, Any] = {
        "list": [1, 2], "number": 5, "nothing": {}, "trap": {**state, "seed": Trap(trace)},
        "no_players": {**state, "players": None},
        "players_list": {**state, "players": [1]},
        "player_number": {**state, "players": {name: 7}},
        "player_empty": {**state, "players": {name: {}}},
        "other_player": {**state, "players": {"x": player}},
        "no_network": {**state, "players": {name: {**player, "network": {}}}},
        "network_text": {**state, "players": {name: {**player, "network": "x"}}},
        "network_of_words": {
            **state, "players": {name: {**player, "network": dict.fromkeys(player["network"], "x")}}
        },
        "no_optimizer": {**state, "players": {name: {**player, "optimizer": {}}}},
        "optimizer_of_more": {
            **state, "players": {name: {**player, "optimizer": {"state": {}, "param_groups": [{}]}}}
        },
        "ema_empty": {**state, "ema": {}},
        "ema_text": {**state, "ema": "x"},
        "step_text": {**state, "iteration": "third"},
        "step_negative": {**state, "iteration": -3},
        "step_nothing": {**state, "iteration": None},
        "epoch_text": {**state, "epoch_length": "x"},
        "epoch_zero": {**state, "epoch_length": 0},
        "best_text": {**state, "best_metric": "x"},
        "early_stop_text": {**state, "early_stop": "x"},
    }  # fmt: skip
    for name, value in odd.items():
        buffer = io.BytesIO()
        torch.save(value, buffer)
        yield name, buffer.getvalue()
