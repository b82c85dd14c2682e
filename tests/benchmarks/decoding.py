"""Decoding in tiles: against the whole volume, and where only a few windows are touched.

    python tests/benchmarks/decoding.py [--edge 256]

Two questions, each in processes of its own so that peak memory is that of one way alone. How much
longer does a volume take in tiles, and in how much less memory? And where a lesion touches 1 % of
the windows of a head, how much sooner are these decoded than everything by a dense sliding window
(MONAI's ``sliding_window_inference``), and are the voxels those of the whole?
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from monai.inferers import sliding_window_inference

from medvae3d.evaluation.speed import by_turns
from medvae3d.evaluation.throughput import peak_memory_mb
from medvae3d.models import zoo
from medvae3d.models.latent import Condition
from medvae3d.networks.blocks import channels_last
from medvae3d.synthesis.tiling import decode_pieces, decode_tiled, tiles_of, tiles_touching


def model_of(channels: list[int]) -> torch.nn.Module:
    torch.manual_seed(0)
    model = zoo.vae((48, 48, 48), channels=channels, latent_channels=8, image_channels=2)
    with torch.no_grad():
        for parameter in model.parameters():  # new blocks are the identity, and would see nothing
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return channels_last(model.eval())


def as_stored(heads: dict[str, Any]) -> dict[str, torch.Tensor]:
    """As much of a tile as goes to a file: as many bits as there, and the mask itself."""
    return {"image": heads["image"].mode().half(), "mask": heads["mask"].mode()}


def one_way(way: str, settings: argparse.Namespace) -> dict[str, float]:
    """Decodes once, in this process."""
    model = model_of(settings.channels)
    step = model.decoder.stride[0]
    z = torch.randn(1, 8, *(settings.edge // step,) * 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        model.decode(z[..., :4, :4, :4], Condition())
        before, clock, wall = peak_memory_mb(), time.process_time(), time.perf_counter()
        if way == "whole":
            made = model.decode(z, Condition())
            image = made["image"].mode()
        elif way == "tiles":
            image = decode_tiled(model, z, Condition(), settings.tile)["image"].mode()
        else:
            image = decode_tiled(model, z, Condition(), settings.tile, keep=as_stored)["image"]
        some = image[..., ::8, ::8, ::8].float()
    return {
        "processor_s": time.process_time() - clock,
        "wall_s": time.perf_counter() - wall,
        "memory_mb": peak_memory_mb() - before,
        "mean": float(some.mean()),
        "page_faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt,
    }


def tiles_against_whole(settings: argparse.Namespace) -> None:
    rows: dict[str, list[dict[str, float]]] = {"whole": [], "tiles": [], "tiles, 16 bits": []}
    for _ in range(settings.rounds):
        for way, found in rows.items():
            command = [sys.executable, *sys.argv, "--way", way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    print("| decoding | processor time | wall time | memory |")
    print("|---|---|---|---|")
    median = {}
    for way, found in rows.items():
        names = ("processor_s", "wall_s", "memory_mb")
        median[way] = [statistics.median(each[name] for each in found) for name in names]
        seconds, wall, memory = median[way]
        print(f"| {way} | {seconds:.2f} s | {wall:.2f} s | {memory:.0f} MB |")
    for way in list(rows)[1:]:
        ratios = [a / b for a, b in zip(median[way], median["whole"], strict=True)]
        print(f"| ratio of {way} | {ratios[0]:.2f} | {ratios[1]:.2f} | {ratios[2]:.2f} |")


def touched_against_dense(settings: argparse.Namespace) -> None:
    model = model_of(settings.texture_channels)
    step, tile = model.decoder.stride[0], settings.window
    shape = (settings.head,) * 3
    z = torch.randn(1, 8, *(n // step for n in shape), generator=torch.Generator().manual_seed(1))
    tiles = tiles_of(shape, (tile,) * 3)
    middle = settings.head // 2
    box = tuple(slice(middle + 1, middle + tile // 2) for _ in range(3))
    touched = tiles_touching(box, shape, (tile,) * 3)
    halo = -(-model.decoder.radius[0] // step)

    def some() -> torch.Tensor:
        made = torch.zeros(1, 2, *shape)
        for piece, heads in decode_pieces(model, z, Condition(), touched):
            made[(..., *piece.slices)] = heads["image"].mode()
        return made

    def dense() -> torch.Tensor:
        """MONAI's at its default overlap, with windows as large as a tile and its surroundings."""
        window = tile // step + 2 * halo
        return sliding_window_inference(
            z,
            (window,) * 3,
            1,
            lambda part: model.decode(part, Condition())["image"].mode(),
        )

    with torch.inference_mode():
        exact = model.decode(z, Condition())["image"].mode()
        difference = (some() - exact)[(..., *box)].abs().max()
        works = {"touched": some, "dense": dense}
        seconds = by_turns(works, rounds=1, warm_up=0, clock=time.process_time)
    share = len(touched) / len(tiles)
    few, monai = (statistics.median(seconds[name]) for name in works)
    print(
        f"{len(touched)} of {len(tiles)} windows touched ({share:.1%}): {few:.2f} s; a dense "
        f"sliding window {monai:.2f} s, {monai / few:.0f} times as long; largest difference of "
        f"the touched voxels from the whole {difference:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edge", type=int, default=256)
    parser.add_argument("--tile", type=int, nargs=3, default=(128, 128, 64))
    parser.add_argument("--head", type=int, default=160, help="edge of the volume for windows")
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--channels", type=int, nargs="*", default=[24, 48, 96])
    parser.add_argument("--texture-channels", type=int, nargs="*", default=[32, 64])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["tiles", "windows"])
    parser.add_argument(
        "--way", choices=["whole", "tiles", "tiles, 16 bits"], help="measure one way, here"
    )
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    if settings.way:
        print(json.dumps(one_way(settings.way, settings)))
        return
    if settings.only != "windows":
        tiles_against_whole(settings)
    if settings.only != "tiles":
        touched_against_dense(settings)


if __name__ == "__main__":
    main()
