"""Twins of a bundle's network: the same layers, trained without the flow, for its figures."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from medvae3d.apps.bundle import Bundle
from medvae3d.errors import SettingError
from medvae3d.models.latent import LatentModel
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.training.checkpoints import load_state


def read_twins(texts: Sequence[str]) -> dict[str, str]:
    """Reads ``NAME=FILE`` or ``FILE`` of each twin, as the command line takes them."""
    pairs = (text.rpartition("=") for text in texts)
    return {name: path for name, _, path in pairs}


def load_twins(
    bundle: Bundle, twin: str | Path | Mapping[str, str | Path] | None
) -> dict[str, LatentModel]:
    """Networks of the same layers with other weights; their flow is not used."""
    if not twin:
        return {}
    if isinstance(bundle.network, TwoStageModel):
        raise SettingError(f"{bundle.name} has no flow, so it has no twin without one.")
    files = dict(twin) if isinstance(twin, Mapping) else {"": twin}
    found = {}
    for shared, path in files.items():
        network = copy.deepcopy(cast(LatentModel, bundle.network))
        state = {k: v for k, v in load_state(path).items() if not k.startswith("flow.")}
        own = {k: v for k, v in network.state_dict().items() if k.startswith("flow.")}
        try:
            network.load_state_dict({**state, **own})
        except RuntimeError as error:
            raise SettingError(
                f"{path} holds the weights of another network than {bundle.name}: "
                f"{str(error).splitlines()[-1].strip()}. A twin has the same layers, trained with "
                f"flow_start after the last step or num_steps 0."
            ) from error
        name = "twin without the flow" + (f", {shared}" if shared else "")
        found[name] = network.eval()
    return found
