"""Eight clients at once on our MONAI Label application, for minutes: faults, mix-ups, memory.

    make test-label   # once, for its environment
    PYTHONPATH=.:tests .venv-label/bin/python tests/benchmarks/label_soak.py --seconds 120

Each client asks for its own seed on one of four hosts, compares every answer with the one that it
got alone, and publishes a pair every third time. Leaves with 1 if an answer was wrong.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from label_server import Server
from label_studies import POSES, write_host

from medvae3d.apps.label_folder import write_app

CLIENTS = 8


def voxels(body: bytes) -> bytes:
    image = nib.Nifti1Image.from_bytes(gzip.decompress(body))
    return np.asarray(image.dataobj).tobytes()


class Found:
    """What the clients find."""

    def __init__(self, server: Server, model: str, end: float) -> None:
        self.server, self.model, self.end = server, model, end
        self.faults: list[str] = []
        self.times: list[float] = []
        self.published: set[str] = set()

    def client(self, number: int, image: str, seed: int, alone: bytes) -> None:
        turn = 0
        while time.monotonic() < self.end:
            turn += 1
            begun = time.monotonic()
            wish = {"seed": seed, "publish": True} if turn % 3 == 0 else {"seed": seed}
            kind = "json" if "publish" in wish else "image"
            answer = self.server.infer(self.model, image, kind, **wish)
            if answer.status != 200:
                self.faults.append(f"client {number}: {answer.status} {answer.body[:200]!r}")
            elif kind == "json":
                self.published.add(answer.json["synthetic_image"])
            elif voxels(answer.body) != alone:
                self.faults.append(f"client {number}: the mask of another request")
            self.times.append(time.monotonic() - begun)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--bundle", default="hippocampus_mri_hvae")
    options = parser.parse_args()
    name = options.bundle
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for pose in POSES:
            write_host(root / "studies", name, pose)
        app = write_app(root / "app", [name])
        with Server(app, root / "studies", root / "server.log") as server:
            wishes = [(f"{name}_{POSES[n % 4]}0", 10 + n) for n in range(CLIENTS)]
            alone = [voxels(server.infer(name, i, seed=s).require().body) for i, s in wishes]
            found = Found(server, name, time.monotonic() + options.seconds)
            jobs = [(n, *wish, alone[n]) for n, wish in enumerate(wishes)]
            threads = [threading.Thread(target=found.client, args=job) for job in jobs]
            for thread in threads:
                thread.start()
            memory = []
            while time.monotonic() < found.end:
                time.sleep(min(10, options.seconds / 6))
                memory.append(server.memory_mb)
            for thread in threads:
                thread.join()
            stored = set(server.get("/datastore/", output="all").require().json["objects"])
            lost = found.published - stored
        print(f"{len(found.times)} requests in {options.seconds:g} s by {CLIENTS} clients")
        print(
            f"seconds a request: median {np.median(found.times):.2f}, most {max(found.times):.2f}"
        )
        print("memory in MB: " + " ".join(f"{each:.0f}" for each in memory))
        print(f"published pairs: {len(found.published)} names, {len(lost)} lost")
        print(f"faults: {len(found.faults)}")
        for fault in sorted(set(found.faults))[:10]:
            print(f"  {fault}")
    return int(bool(found.faults or lost))


if __name__ == "__main__":
    raise SystemExit(main())
