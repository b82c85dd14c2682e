"""A pair with random weights that puts lesions into hosts; no tests in here."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from medvae3d.models import zoo
from medvae3d.models.latent import Condition
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.probability.likelihoods import BernoulliMask, GaussianImage
from medvae3d.synthesis.hosts import HostScan
from medvae3d.synthesis.insertion import Inserted, insert_lesions
from medvae3d.synthesis.recipe import Recipe

SIDE = 16
VOLUMES_ML = (0.6, 4.0)


def network(channels: int = 1) -> TwoStageModel:
    """A PAVAE with random weights, whose first stage makes lumps in the middle of the patch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = zoo.pavae(
            mask_shape=(SIDE,) * 3,
            image_shape=(SIDE,) * 3,
            image_channels=channels,
            location_size=8,
            shape={"channels": (4, 8), "latent_channels": 8, "components": 0},
            texture={"channels": (8, 16), "latent_channels": 4, "components": 0},
        )
        for module in made.texture.modules():  # what starts at zero would hide a wrong halo
            if isinstance(module, nn.Conv3d) and not bool(module.weight.any()):
                nn.init.normal_(module.weight, std=0.05)
    made.shape.decode = _lump  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(1)
    values = torch.zeros(32, len(made.statistics.names))
    values[:, 0] = torch.empty(32).uniform_(*np.log(VOLUMES_ML), generator=generator)
    made.statistics.fit_attributes(values)
    return made.eval()


def _lump(z: torch.Tensor, condition: Condition) -> dict[str, Any]:
    places = torch.linspace(-1, 1, SIDE, device=z.device)
    grid = torch.stack(torch.meshgrid(places, places, places, indexing="ij"))
    axes = (0.3 * torch.tanh(z[0, :3])).exp().reshape(3, 1, 1, 1)
    distance = (grid / axes).square().sum(0).sqrt()
    rough = 0.1 * torch.sin(4 * grid[0] + z[0, 3]) * torch.sin(5 * grid[1] + z[0, 4])
    return {"mask": BernoulliMask(6 * (0.4 - distance + rough)[None, None])}


def sharing(model: TwoStageModel, brighter: float = 0.5) -> TwoStageModel:
    """Makes the second stage one that carries the surroundings on and adds a lesion."""

    def decode(z: torch.Tensor, condition: Condition) -> dict[str, Any]:
        mask, soft, _, context, known = condition.maps.unbind(1)  # type: ignore[union-attr]
        blur = [torch.from_numpy(ndimage.gaussian_filter(x.numpy(), 2)) for x in (context, known)]
        filled = known * context + (1 - known) * blur[0] / (blur[1] + 1e-3)
        return {"image": GaussianImage((filled + brighter * (mask + soft))[:, None], torch.ones(1))}

    model.texture.decode = decode  # type: ignore[method-assign]
    return model


def recipe(*names: str, **synthesis: Any) -> Recipe:
    return Recipe.from_config(
        {
            "channels": [
                {"name": name, "intensity": {"kind": "percentile"}, "slope": 0.1}
                for name in names or ("FLAIR",)
            ],
            "labels": {"background": 0, "lesion": 1},
            "spacing": [4.0] * 3,
            "spatial_shape": [SIDE] * 3,
            "synthesis": {
                "kind": "insertion",
                "phantom_shape": [44, 52, 42],
                "phantom_spacing": [4, 4, 4],
                **synthesis,
            },
        }
    )


def insert(host: HostScan, model: TwoStageModel | None = None, **options: Any) -> Inserted:
    told = recipe(*[volume.path.name.split("_")[-1][:-7] for volume in host.volumes])
    return insert_lesions(host, model or network(), told, **{"seed": 0, **options})
