"""Tiny networks taught to draw balls in a few seconds, and bundles of them; no tests in here."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medvae3d.data.attributes import mask_attributes
from medvae3d.models import zoo
from medvae3d.models.latent import LatentModel
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.synthesis.recipe import Recipe

SIDE = 16
SPACING = (4.0, 4.0, 4.0)
CHANNELS = [
    {
        "name": "PET",
        "unit": "SUV",
        "intensity": {"kind": "power", "scale": 10.0},
        "slope": 0.005,
        "dtype": "int16",
    },
    {
        "name": "CT",
        "unit": "HU",
        "intensity": {"kind": "window", "low": -200, "high": 300},
        "dtype": "int16",
    },
]
SIZES: dict[str, Any] = {"channels": [4, 8], "latent_channels": 4, "components": 0}
JOINT: dict[str, Any] = {
    "_target_": "medvae3d.models.zoo.hvae",
    "num_steps": 1,
    "spatial_shape": [SIDE] * 3,
    "image_channels": 2,
    "vector_latent": True,
    "attributes": ["log_volume"],
    **SIZES,
}
TWO_STAGE: dict[str, Any] = {
    "_target_": "medvae3d.models.zoo.pavae",
    "mask_shape": [SIDE] * 3,
    "image_shape": [SIDE] * 3,
    "image_channels": 2,
    "shape": SIZES,
    "texture": SIZES,
}
TWO_LABELS: dict[str, Any] = {
    **JOINT,
    "image_channels": 1,
    "values": [0, 1, 2],
    "attributes": ["log_volume:1", "log_volume:2"],
}


def config(network: dict[str, Any] = JOINT, **synthesis: Any) -> dict[str, Any]:
    """The identifiers of an ``inference.json``."""
    is_labelled = network is TWO_LABELS
    volumes = network.get("attributes", "log_volume")
    return {
        "imports": ["$import math"],
        "bundle_root": ".",
        "channels": CHANNELS[1:] if is_labelled else CHANNELS,
        "labels": {"background": 0, "front": 1, "back": 2}
        if is_labelled
        else {"background": 0, "tumour": 1},
        "spacing": list(SPACING),
        "spatial_shape": [SIDE] * 3,
        "synthesis": {
            "kind": "two_stage" if network is TWO_STAGE else "joint",
            "volume_attribute": volumes,
            **synthesis,
        },
        "network_def": network,
    }


def recipe(network: dict[str, Any] = JOINT, **synthesis: Any) -> Recipe:
    return Recipe.from_config(config(network, **synthesis))


def balls(count: int, generator: torch.Generator) -> Tensor:
    """Ellipsoids of many sizes near the middle, ``(B, 1, 16, 16, 16)``; label 2 behind label 1."""
    places = torch.arange(SIDE) - (SIDE - 1) / 2
    grid = torch.stack(torch.meshgrid(places, places, places, indexing="ij"))[None]
    radius = 2.2 + 2.8 * torch.rand(count, 1, 1, 1, 1, generator=generator)
    stretch = 1 + 0.2 * torch.rand(count, 3, 1, 1, 1, generator=generator)
    shift = torch.randn(count, 3, 1, 1, 1, generator=generator) * 0.4
    distance = ((grid - shift) / stretch).square().sum(1, keepdim=True).sqrt()
    inside = (distance < radius).float()
    return inside * (1 + (grid[:, 1:2] < 0).float())


def built(network: dict[str, Any], seed: int = 0) -> Any:
    """The network of a definition, with random weights."""
    arguments = dict(network)
    make = getattr(zoo, arguments.pop("_target_").rsplit(".", 1)[1])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(**arguments)


@lru_cache(maxsize=8)
def _weights(name: str) -> dict[str, Tensor]:
    """Decoders taught balls: bright where the mask is, whatever the latent says."""
    definition = {"joint": JOINT, "two_stage": TWO_STAGE, "two_labels": TWO_LABELS}[name]
    network = built(definition)
    generator = torch.Generator().manual_seed(1)
    names = network.statistics.names
    values = mask_attributes(_mask(balls(256, generator), name), SPACING, names)
    network.statistics.fit_attributes(values)
    first = network.shape if isinstance(network, TwoStageModel) else network
    _teach(network, first, name, generator)
    if isinstance(network, TwoStageModel):
        _teach(network, network.texture, name, generator, steps=15)
    return {key: value.clone() for key, value in network.state_dict().items()}


def _mask(labels: Tensor, name: str) -> Tensor:
    return labels if name == "two_labels" else (labels > 0).float()


def _teach(
    network: Any, model: LatentModel, name: str, generator: torch.Generator, steps: int = 140
) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        mask = _mask(balls(4, generator), name)
        told = mask_attributes(mask, SPACING, network.statistics.names)
        batch = {"mask": mask, "attributes": network.statistics.standardise(told)}
        condition = model.condition(batch)
        z = torch.randn(4, *model.latent_shape, generator=generator)
        heads = model.decode(z, condition)
        image = (0.8 * mask.clamp_max(1) - 0.5).expand(-1, model.image_channels, -1, -1, -1)
        fit = model.log_likelihood(heads, {"mask": mask, "image": image})
        optimizer.zero_grad()
        (-fit.mean()).backward()
        optimizer.step()


def taught(network: dict[str, Any] = JOINT) -> Any:
    """A fresh copy of a taught network."""
    name = next(
        key
        for key, known in (("joint", JOINT), ("two_stage", TWO_STAGE), ("two_labels", TWO_LABELS))
        if known is network
    )
    made = built(network)
    made.load_state_dict(_weights(name))
    return made.eval()


def write_bundle(
    folder: Path, network: dict[str, Any] = JOINT, metadata: Any = None, **synthesis: Any
) -> Path:
    """A bundle as it stands on disk, as small as it can be."""
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    facts = {"version": "1.2.0", "references": ["A. Author, 2020"], **(metadata or {})}
    (folder / "configs" / "metadata.json").write_text(json.dumps(facts))
    (folder / "configs" / "inference.json").write_text(json.dumps(config(network, **synthesis)))
    (folder / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    (folder / "docs" / "data_license.txt").write_text("1. Balls: public domain\n   more\n")
    torch.save(taught(network).state_dict(), folder / "models" / "model.pt")
    return folder
