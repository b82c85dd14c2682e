"""Claims about several machines: ranks that share a folder and a network, and nothing else.

A machine is stood in for by an agent of `torchrun` of its own (``--nnodes 2``), on the loopback
device or in a network namespace of its own, where the other one is reached over a cable alone.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import small_bundles as small
import tiny_bundles as tiny
import torch

from medvae3d.apps.bundle import load_bundle

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
COUNT, SEED = 11, 5
ROOT = Path(__file__).parents[2]


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


@contextmanager
def one_network():
    """Both machines on the loopback device: what comes before their commands, and an address."""
    yield [[], []], "127.0.0.1", "lo"


@contextmanager
def two_networks():
    """A namespace for each machine, with a cable between them; skipped without the right."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (Debian: iproute2) to make network namespaces with")
    names = [f"medvae3d-{os.getpid()}-{node}" for node in "ab"]
    cable = f"m3d{os.getpid() % 100000}"
    with ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
            ip("link", "add", f"{cable}a", "type", "veth", "peer", "name", f"{cable}b")
            for node, name in zip("ab", names, strict=True):
                ip("link", "set", f"{cable}{node}", "netns", name, "name", "cable")
                address = f"10.213.7.{'ab'.index(node) + 1}/24"
                ip("-n", name, "addr", "add", address, "dev", "cable")
                for device in ("cable", "lo"):
                    ip("-n", name, "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespace may be made here: {error.stderr.strip()}")
        yield [["ip", "netns", "exec", name] for name in names], "10.213.7.1", "cable"


def on_two_machines(network, words, folder):
    """Runs a module with its words on two machines of one rank each; what the first says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with network() as (before, address, device), ExitStack() as stack:
        env = {
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "GLOO_SOCKET_IFNAME": device,
        }  # fmt: skip
        nodes = []
        for node in (0, 1):
            call = [
                *before[node], sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
                "--nproc-per-node=1", f"--node-rank={node}", f"--master-addr={address}",
                f"--master-port={port}", "-m", *words,
            ]  # fmt: skip
            log = stack.enter_context((folder / f"log{node}").open("w"))
            nodes.append(
                subprocess.Popen(
                    list(map(str, call)), env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT
                )
            )
        try:
            ends = [each.wait(timeout=300) for each in nodes]
        finally:
            for each in nodes:
                each.kill()
        said = [(folder / f"log{node}").read_text() for node in (0, 1)]
        assert ends == [0, 0], said
    return said


def test_machines_of_two_networks_make_the_bytes_of_one_process(tmp_path):
    bundle = tiny.write_bundle(tmp_path / "balls")
    whole = files(load_bundle(bundle).write(tmp_path / "whole", COUNT, SEED))
    words = ["medvae3d", "generate", bundle, "--count", COUNT, "--seed", SEED, "--device", "cpu"]
    said = on_two_machines(two_networks, [*words, "--out", tmp_path / "made"], tmp_path)
    assert [each.count("11 cases from balls") for each in said] == [1, 0], "one rank tells"
    assert files(tmp_path / "made") == whole


def test_two_machines_train_one_model(tmp_path):
    source = small.small_copy("hippocampus_mri_hvae", tmp_path / "bundle")
    small.quick_training(source)
    cases = small.write_cases(tmp_path / "cases", small.read(source / "configs" / "train.json"))
    configs = [str(source / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    words = [
        "monai.bundle", "run", "--config_file", str(configs), "--bundle_root", source,
        "--datalist", cases, "--device", "cpu",
    ]  # fmt: skip
    said = on_two_machines(one_network, words, tmp_path)
    assert ["training ended at step 4" in each for each in said] == [True, False]
    state = torch.load(source / "models" / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    assert len((source / "eval" / "validation.jsonl").read_text().splitlines()) == 2
