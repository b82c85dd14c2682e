"""How many patches of unseen cases the discriminator of a trained pair tells right.

    PYTHONPATH=. python tests/benchmarks/unseen_discriminator.py FOLDER ... --datalist LIST

Each FOLDER is one that `medvae3d train pavae` wrote, with its ``train_state.pt``. Judged are real
cases and what the second stage makes of them, one draw of the latent each, as in a training step,
as many patches of either. Training cases, without augmentation, stand beside unseen ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from medvae3d.data.preparation import read_items
from medvae3d.objectives.adversarial import discriminator_loss, pair
from medvae3d.training.checkpoints import load_state
from medvae3d.training.loading import CaseLoader


@torch.no_grad()
def told_right(folder: Path, datalist: str, split: str, count: int) -> float:
    """Share of patches, mean over the cases of a split."""
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "train.json")
    parser["datalist"], parser["device"] = datalist, "$torch.device('cpu')"
    network = parser.get_parsed_content("network")
    discriminator = parser.get_parsed_content("discriminator")
    state = load_state(folder / "models" / "train_state.pt")
    network.load_state_dict(state["ema"]["module"])
    discriminator.load_state_dict(state["players"]["discriminator"]["network"])
    network.eval(), discriminator.eval()
    preparation = parser.get_parsed_content("preparation")
    items = read_items(datalist, split)
    transform = parser.get_parsed_content("train#preprocessing")
    chosen = items[:: max(1, len(items) // count)][:count]
    generator = torch.Generator().manual_seed(0)
    found = []
    for batch in CaseLoader([transform(item) for item in chosen], 2):
        ready = preparation(batch, "cpu")
        trace = network.texture.trace(ready, generator)
        views = [pair(ready, trace=trace, real=real) for real in (True, False)]
        found.append(float(discriminator_loss(discriminator, *views)[1]))
    return sum(found) / len(found)


def main() -> None:
    """Prints a line a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--datalist", required=True)
    parser.add_argument("--cases", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for folder in given.folders:
        splits = ("training", "validation", "testing")
        found = {each: told_right(folder, given.datalist, each, given.cases) for each in splits}
        print(f"{folder.name}: " + ", ".join(f"{k} {v:.1%}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    main()
