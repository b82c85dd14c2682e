"""Optimisers and learning-rate schedules of the bundles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn


def adamw(
    network: nn.Module,
    learning_rate: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.99),
    weight_decay: float = 1e-4,
    fast: Sequence[str] = ("log_scale", "log_step_size"),
    fast_factor: float = 5.0,
) -> torch.optim.AdamW:
    """AdamW in which a few scalars learn faster and do not decay.

    The scales of likelihoods and the steps of a flow live in log space and have far to go; at the
    rate of the weights they would lag behind by hundreds of steps.

    Args:
        network: Whose parameters to update.
        learning_rate: Rate of the weights.
        betas: See `torch.optim.AdamW`.
        weight_decay: See `torch.optim.AdamW`.
        fast: Parameters whose name ends in one of these take the faster rate.
        fast_factor: Faster by this.
    """
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    quick = [p for name, p in named if name.split(".")[-1] in fast]
    others = [p for name, p in named if name.split(".")[-1] not in fast]
    groups = [{"params": others, "lr": learning_rate, "weight_decay": weight_decay}]
    if quick:
        groups.append({"params": quick, "lr": learning_rate * fast_factor, "weight_decay": 0.0})
    # Not fused: that would save 2 % of a step, and round otherwise than the optimiser of the runs
    # that shipped weights came from, so that their seeds would no longer give them.
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]))


def running_norm(optimizer: torch.optim.Optimizer) -> float:
    r"""The norm that gradients have had of late, as Adam remembers it.

    Adam keeps a running mean :math:`v` of each squared derivative. Their sum is one of the squared
    norm :math:`\|g\|^2`, so after :math:`t` steps

    .. math:: \bar n = \sqrt{\textstyle\sum_i v_i / (1 - \beta_2^t)}

    is a root mean square over about :math:`1 / (1 - \beta_2)` steps. It is on the scale of the
    loss, needs no memory of its own, and is there again when a run is resumed.

    Args:
        optimizer: One that keeps second moments, such as Adam and AdamW.

    Returns:
        :math:`\bar n`; infinity before the first step and for optimisers without second moments.
    """
    squares = [
        state["exp_avg_sq"].sum() / (1 - group["betas"][1] ** float(state["step"]))
        for group in optimizer.param_groups
        for state in (optimizer.state.get(p, {}) for p in group["params"])
        if "exp_avg_sq" in state
    ]
    return float(torch.stack(squares).sum().sqrt()) if squares else math.inf


def cosine(steps: int, warm_up: int = 50, end: float = 0.05) -> Callable[[int], float]:
    """A factor of the learning rate: rises linearly, then falls along half a cosine.

    It is a function of the step alone, so that a resumed run needs no state of a scheduler.

    Args:
        steps: Steps of the whole run.
        warm_up: Steps of the rise.
        end: Factor at the end.
    """

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / max(1, warm_up))
        share = min(1.0, step / max(1, steps))
        return rise * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * share)))

    return factor
