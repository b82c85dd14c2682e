"""The classifier of latents: it learns what they tell, in turns of its own."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch

from medvae3d.models.zoo import icvae
from medvae3d.networks.latent_classifier import LatentClassifier
from medvae3d.training.label_player import LabelPlayer
from medvae3d.training.players import Turn


def test_a_classifier_learns_what_latents_tell_and_rests_outside_of_its_turn():
    torch.manual_seed(0)
    sizes = {"channels": (4,), "latent_channels": 3, "vector_latent": True, "components": 0}
    model = icvae((4, 4, 4), classes=("a", "b"), **sizes)
    classes = torch.eye(2)[torch.arange(16) % 2]
    model.statistics.fit_attributes(classes)
    batch = {
        "image": torch.randn(16, 1, 4, 4, 4),
        "mask": torch.zeros(16, 1, 4, 4, 4),
        "attributes": model.statistics.standardise(classes),
    }
    trace = model.trace(batch, torch.Generator().manual_seed(0))
    noise = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    trace = replace(trace, first_z=noise + 4 * classes[:, :1])
    classifier = LatentClassifier(model.latent_shape, 2)
    player = LabelPlayer(classifier, torch.optim.Adam(classifier.parameters(), 3e-2), model)
    accuracy = []
    for step in range(30):
        turn = Turn(batch, step, torch.Generator().manual_seed(step))
        turn.traces["model"] = (trace, batch)
        player.play(turn, contextlib.nullcontext)
        accuracy.append(turn.log["classifier/accuracy"])
        assert not any(p.requires_grad for p in classifier.parameters())
    assert accuracy[0] < 0.9 and accuracy[-1] > 0.9
    assert all(p.grad is None for p in model.parameters())
