"""Players who own a part of a model and leave the rest of it as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from medvae3d.models.latent import LatentModel
from medvae3d.training.players import Player


def decoder_side(model: LatentModel) -> nn.ModuleList:
    """All of a model but its encoder, for the optimiser of the decoder's player."""
    own = {id(model.encoder)}
    return nn.ModuleList(child for child in model.children() if id(child) not in own)


class PartPlayer(Player):
    """A player whose optimiser holds a part of its network; the network is the whole model.

    Every player over one model is given the same network, so a checkpoint holds the whole of it.
    """

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Lets gradients fill the player's own parameters and no others of the network.

        They still pass through the others to what the player made.
        """
        own = {id(parameter) for parameter in self.parameters()}
        others = [
            each for each in self.network.parameters() if each.requires_grad and id(each) not in own
        ]
        for each in others:
            each.requires_grad_(False)
        try:
            yield
        finally:
            for each in others:
                each.requires_grad_(True)
