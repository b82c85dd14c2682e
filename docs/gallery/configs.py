"""Writes ``docs/reference/configs.md`` from the configurations: ``python docs/gallery/configs.py``.

Names, defaults and, where a configuration explains itself (``_desc_``), meanings are read from
``medvae3d/models/systems``; a test compares the page with what this makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medvae3d.models.systems.files import BUNDLE, read_base, read_system, system_names

PAGE = Path(__file__).resolve().parents[1] / "reference" / "configs.md"
HEAD = """# Configurations

A bundle is run by the files in its `configs/`, which MONAI reads and `medvae3d` too. This page is
written from those of the systems by `python docs/gallery/configs.py`.

| File | What it is |
|---|---|
| `train.json` | a training; complete in itself |
| `inference.json` | samples, by seed or for hosts; what MONAI Label loads |
| `metadata.json` | version, inputs and outputs, licence, what else MONAI asks for |
| `small.json` | a recipe for about ten cases, laid over `train.json`: `--recipe small` |
| `gpu.json` | of the two-stage bundles, a recipe for a GPU: `--recipe gpu` |
| `evaluate.json` | figures of weights on unseen cases, laid over `train.json` |
| `multi_gpu_train.json` | several processes, laid over `train.json` |
| `logging.conf` | what MONAI's command line logs |

`@name` stands for the value of another entry, `$...` for a Python expression, `#` for what is below
a name. Values are changed without touching a file:

| Where | How |
|---|---|
| `medvae3d train` | `max_epochs=20 network_def#channels=[16,32]`, or [in a file](commands.md) |
| `python -m monai.bundle run` | `--max_epochs 20 --network_def#channels "[16,32]"` |
| from a study | `--fit-setting max_epochs=20` |

A name that is not there, or a value of another kind, is refused by `medvae3d train`; `monai.bundle`
takes anything.
"""
# What explains itself nowhere in the file.
PARTS = {
    "imports": "modules that expressions use",
    "bundle_root": "folder of the bundle; `--out`",
    "device": "where to compute; `--device`",
    "seed": "seed of all noise; `--seed`",
    "epoch_length": "steps of an epoch",
    "world_size": "processes; `multi_gpu_train.json` sets it",
    "network_def": "the network, see below",
    "network": "the network on its device",
    "discriminator": "the discriminator of those systems that have one",
    "ema": "the running mean of the weights, which is what is saved",
    "rate": "course of the learning rate",
    "optimizer": "optimiser of the model",
    "discriminator_optimizer": "optimiser of the discriminator",
    "preparation": "how a batch is brought to the network",
    "train": "data, augmentation, objective, players, handlers and the trainer",
    "validate": "data, handlers and the evaluator",
    "initialize": "run first",
    "run": "run then",
}
NETWORK = {
    "spatial_shape": "voxels of a training volume, multiples of the strides (2 a level)",
    "image_channels": "channels of the image",
    "values": "label values, background first",
    "attributes": "what the model is told of a mask",
    "channels": "feature channels of each level, from the finest to the coarsest",
    "latent_channels": "channels of the latent map, or length of the latent vector",
    "mask_dropout": "share of training cases whose mask the encoder does not see",
    "dropout": "share of channels that residual blocks drop while training",
    "likelihood": "of the image: gaussian or laplace, with a learned scale a channel",
    "image_scale": "first value of that scale, in normalised units",
    "components": "most components of the prior fitted at the end; 0 for the standard normal",
    "rank": "principal components of the latent that this prior models jointly",
    "grain_width": "voxels of the kernel of the grain; 0 for none",
}
SYNTHESIS = {
    "kind": "joint, two_stage or insertion",
    "temperature": "scales the deviation of latents",
    "volume_attribute": "attributes that say how large the mask is",
    "volume_range_percent": "percentiles of the training volumes between which volumes are drawn",
    "max_attempts": "draws of one sample before giving up",
    "max_components": "components that a mask keeps",
}
INFERENCE = {
    "output_dir": "folder of what is made",
    "ckpt_path": "the weights",
    "start": "index of the first volume",
}


def page() -> str:
    """The whole page.

    Raises:
        KeyError: If a configuration has an entry that is explained neither there nor here.
    """
    base, inference = read_base(), json.loads((BUNDLE / "inference.json").read_text("utf-8"))
    meanings = {**PARTS, **base["_desc_"]}
    names = [name for name in base if name != "_desc_"]
    blocks = [
        HEAD,
        "## train.json\n",
        table(("setting", "default", "meaning"), _rows(names, base, meanings)),
        "A shipped bundle has values of its own, and its `_desc_` explains them.\n",
        "### network_def\n",
        table(
            ("setting", "default", "meaning"),
            _rows([n for n in base["network_def"] if n[0] != "_"], base["network_def"], NETWORK),
        ),
        "Systems have further ones (`num_steps`, `step_size`, `codes`): the arguments of the\n"
        "function that `network_def#_target_` names, explained in its docstring.\n",
        "### What systems add, or set otherwise\n",
        table(("system", "setting", "default", "meaning"), _system_rows()),
        "## inference.json\n",
        table(
            ("setting", "default", "meaning"),
            _rows(
                [n for n in ("dataset_dir", "hosts", *INFERENCE, "count", "seed")],
                inference,
                {**INFERENCE, **inference["_desc_"]},
            ),
        ),
        "`displayable_configs` holds [what a user may wish for](../how-to/bundles.md). How\n"
        "samples are drawn stands below `synthesis`:\n",
        table(
            ("setting", "default", "meaning"),
            _rows(list(inference["synthesis"]), inference["synthesis"], SYNTHESIS),
        ),
        "Bundles that insert lesions have [more of them](../how-to/insert.md#settings).\n",
    ]
    return "\n".join(blocks)


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    names = list(columns)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(each) + " |" for each in lines) + "\n"


def _rows(
    names: Iterable[str], values: Mapping[str, Any], meanings: Mapping[str, str]
) -> Iterable[list[str]]:
    for name in names:
        yield [f"`{name}`", _shown(values[name]), meanings[name].replace("|", "\\|")]


def _system_rows() -> Iterable[list[str]]:
    for system in system_names():
        changes = read_system(system)
        for key, meaning in changes.items():
            name = key.removeprefix("_desc_#")
            if name != key and name != "what":
                yield [f"`{system}`", f"`{name}`", _shown(changes[name]), meaning]


def _shown(value: Any) -> str:
    """A value in a cell: long ones are left out, as the file shows them better."""
    if isinstance(value, dict):
        return ""
    text = json.dumps(value) if not isinstance(value, str) else value
    return f"`{text}`" if text and len(text) <= 60 else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
