"""Share of this machine's bfloat16 matrix rate in the training of a bundle, and what holds it back.

    python tests/benchmarks/training_rate.py [--bundle sts_petct_hvae] [--profile]

Steps of each phase of the training (before the discriminator, with it, with the flow) take turns
with products of large matrices. The share of a whole training weighs the phases by their steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch

from medvae3d.apps.bench import TrainingStep
from medvae3d.apps.bundle import find_bundle
from medvae3d.apps.settings import read_settings
from medvae3d.evaluation.speed import by_turns, operations, product


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="sts_petct_hvae")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true", help="on a busy machine")
    parser.add_argument("--folded", action="store_true", help="do not compute on repeated voxels")
    parser.add_argument("--profile", action="store_true", help="of the longest phase")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    clock = time.process_time if settings.processor_time else time.perf_counter
    root = find_bundle(settings.bundle)
    given = read_settings(root)
    ends = (given["adversarial_start"], given["flow_start"])
    total = given["max_epochs"] * given["epoch_length"]
    steps = {"VAE": 0, "VAE, discriminator": ends[0], "HVAE, discriminator": ends[1]}
    lengths = dict(zip(steps, (ends[0], ends[1] - ends[0], total - ends[1]), strict=True))
    changes = {"network_def#folded": True} if settings.folded else {}
    step = TrainingStep(root, torch.device("cpu"), batch_size=settings.batch, changes=changes)
    work, count = product(torch.bfloat16)
    works = {name: partial(step, number) for name, number in steps.items()}
    found = by_turns({"product": work, **works}, settings.rounds, clock=clock)
    seconds = {name: statistics.median(each) for name, each in found.items()}
    rate = count / seconds["product"]
    print(f"{root.name}, batch {len(step.batch['image'])}, {settings.threads} threads: matrix "
          f"products in bfloat16 {rate / 1e9:.0f} GFLOP/s")  # fmt: skip
    print("| phase | steps | a step | GFLOP | share of the matrix rate |")
    print("|---|---|---|---|---|")
    flop_all = seconds_all = 0.0
    for name in works:
        flop = operations(works[name])
        share = flop / seconds[name] / rate
        flop_all += flop * lengths[name]
        seconds_all += seconds[name] * lengths[name]
        ms = 1e3 * seconds[name]
        print(f"| {name} | {lengths[name]} | {ms:.0f} ms | {flop / 1e9:.1f} | {share:.0%} |")
    whole = flop_all / seconds_all / rate
    print(f"| whole training | {total} | {1e3 * seconds_all / total:.0f} ms "
          f"| {flop_all / total / 1e9:.1f} | {whole:.0%} |")  # fmt: skip
    if settings.profile:
        for name in list(works)[1:]:
            with torch.profiler.profile(record_shapes=True) as profile:
                works[name]()
            rows = profile.key_averages(group_by_input_shape=True)
            print(name, rows.table(sort_by="self_cpu_time_total", row_limit=24), sep="\n")


if __name__ == "__main__":
    main()
