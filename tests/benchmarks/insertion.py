"""Time and memory of 20 lesions in a whole head; allowed: 20 s and 3 GB on two cores.

    python tests/benchmarks/insertion.py [--bundle brain_mri_ms_pavae] [--host FLAIR.nii.gz]

Without a bundle, a network of the same size as that bundle's with random weights is used, whose
first stage makes lumps. The host is made by a process of its own, so that its memory is not
counted. Exit code 1 if a limit is passed. Run it on a machine that does nothing else; on another
one, the processor time says what it would take.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPE = (182, 218, 182)
MASK_SIDE = 32
MOST_SECONDS, MOST_GB = 20.0, 3.0


def write_host(path: str) -> None:
    from medvae3d.data.phantom import phantom_case
    from medvae3d.data.volumes import write_volume

    case = phantom_case(0, SHAPE, (1.0, 1.0, 1.0), lesions=(0, 0))
    write_volume(path, case.image[0] * case.brain, case.grid, slope=0.1)


def random_network() -> tuple[Any, Any]:
    import torch

    from medvae3d.models import zoo
    from medvae3d.probability.likelihoods import BernoulliMask
    from medvae3d.synthesis.recipe import Recipe

    torch.manual_seed(0)
    network = zoo.pavae(
        mask_shape=(MASK_SIDE,) * 3,
        image_shape=(MASK_SIDE,) * 3,
        location_size=24,
        shape={"channels": (16, 32, 64), "latent_channels": 32, "components": 0},
        texture={"channels": (32, 64), "latent_channels": 8, "components": 0},
    )
    values = torch.zeros(64, len(network.statistics.names))
    values[:, 0] = torch.linspace(-3.5, 1.2, 64)
    network.statistics.fit_attributes(values)
    places = torch.linspace(-1, 1, MASK_SIDE)
    grid = torch.stack(torch.meshgrid(places, places, places, indexing="ij"))

    def lump(z: Any, condition: Any) -> dict[str, Any]:
        axes = (0.3 * torch.tanh(z[0, :3])).exp().reshape(3, 1, 1, 1)
        rough = 0.1 * torch.sin(6 * grid[0] + z[0, 3]) * torch.sin(7 * grid[1] + z[0, 4])
        field = 6 * (0.4 - (grid / axes).square().sum(0).sqrt() + rough)
        return {"mask": BernoulliMask(field[None, None])}

    decode = network.shape.decode
    # The true decoder runs too, so that its time is counted.
    network.shape.decode = lambda z, told: (decode(z, told), lump(z, told))[1]
    recipe = Recipe.from_config(
        {
            "channels": [{"name": "FLAIR", "intensity": {"kind": "percentile"}}],
            "labels": {"background": 0, "lesion": 1},
            "spacing": [1.0] * 3,
            "spatial_shape": [MASK_SIDE] * 3,
            "synthesis": {"kind": "insertion", "brain_extracted": True},
        }
    )
    return network, recipe


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle")
    parser.add_argument("--host", type=Path)
    parser.add_argument("--lesions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        host_path = options.host or Path(folder) / "host.nii.gz"
        if options.host is None:
            maker = multiprocessing.get_context("spawn").Process(
                target=write_host, args=(str(host_path),)
            )
            maker.start()
            maker.join()
        import torch

        from medvae3d.synthesis.hosts import read_host
        from medvae3d.synthesis.insertion import insert_lesions

        torch.set_num_threads(options.threads)
        if options.bundle:
            import medvae3d

            bundle = medvae3d.load_bundle(options.bundle)
            network, recipe = bundle.network, bundle.recipe
        else:
            network, recipe = random_network()
        print(f"network loaded: {peak_gb():.2f} GB at most")
        load, processor = os.getloadavg()[0], time.process_time()
        clock = [time.perf_counter()]
        host = read_host([host_path], None, recipe)
        clock.append(time.perf_counter())
        count = (options.lesions, options.lesions)
        made = insert_lesions(host, network, recipe, seed=options.seed, lesions=count)
        clock.append(time.perf_counter())
        made.write_image(0, Path(folder) / "made.nii.gz")
        clock.append(time.perf_counter())
        processor = time.process_time() - processor
    steps = [b - a for a, b in zip(clock, clock[1:], strict=False)]
    print(
        f"{len(made.lesions)} lesions in {host.grid.shape}: {sum(steps):.1f} s (read and find the "
        f"brain {steps[0]:.1f}, insert {steps[1]:.1f}, write {steps[2]:.1f}), processor time "
        f"{processor:.1f} s on {options.threads} threads, load of the machine before {load:.1f}, "
        f"at most {peak_gb():.2f} GB; {made.zone.sum()} voxels changed"
    )
    return int(sum(steps) > MOST_SECONDS or peak_gb() > MOST_GB)


if __name__ == "__main__":
    sys.exit(main())
