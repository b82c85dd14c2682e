"""A slow copy of a network, whose parameters follow those in training."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    r"""Averages parameters over steps, :math:`\bar\theta \leftarrow d\bar\theta + (1-d)\theta`.

    The decay grows from 0 with the number of steps, so that short runs are not held back by the
    first weights. Buffers are copied.

    Args:
        network: The network in training.
        decay: Final decay per step, in :math:`[0, 1)`.

    Attributes:
        module: The averaged network.
        steps: Updates so far.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.network = network
        self.decay = decay
        self.steps = 0
        self.module = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self) -> None:
        """Follows the network by one step."""
        if self.steps == 0:  # weights may have been loaded since the copy was made
            self.module.load_state_dict(self.network.state_dict())
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        slow: list[torch.Tensor] = [p for p in self.module.parameters() if p.is_floating_point()]
        fast: list[torch.Tensor] = [p for p in self.network.parameters() if p.is_floating_point()]
        torch._foreach_lerp_(slow, fast, 1 - decay)
        for mine, theirs in zip(self.module.buffers(), self.network.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, object]:
        """Averaged weights and the number of updates."""
        return {"module": self.module.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores what `state_dict` gave."""
        self.module.load_state_dict(state["module"])  # type: ignore[arg-type]
        self.steps = int(state["steps"])  # type: ignore[call-overload]
