"""Who owns which parameters and minimises which objective.

One player is a VAE, two are a GAN, three and four are two adversarial models that train side by
side. The trainer does not know: in each step it hands every player its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from medvae3d.errors import NonFiniteTermError
from medvae3d.models.latent import Batch, LatentModel, Trace
from medvae3d.objectives.adversarial import discriminator_loss, pair
from medvae3d.objectives.schedules import Schedule
from medvae3d.objectives.terms import Objective
from medvae3d.training.optimizers import running_norm

Select = Callable[[Batch], Mapping[str, Any]]


@dataclass
class Turn:
    """What the players of one step share.

    Attributes:
        batch: The prepared batch.
        step: Number of the step, from 0.
        generator: Source of all noise of this step.
        accumulate: Number of batches whose gradients are added up before an update.
        scaler: Gradient scaler, where float16 needs one.
        traces: What each model made of the batch, by the player's name.
        log: Values for the log, by name.
    """

    batch: Batch
    step: int
    generator: torch.Generator
    accumulate: int = 1
    scaler: torch.amp.GradScaler | None = None
    traces: dict[str, tuple[Trace, Batch]] = field(default_factory=dict)
    log: dict[str, float] = field(default_factory=dict)

    @property
    def is_first(self) -> bool:
        """Whether gradients start from nothing in this step."""
        return self.step % self.accumulate == 0

    @property
    def is_last(self) -> bool:
        """Whether parameters are updated in this step."""
        return (self.step + 1) % self.accumulate == 0


class Player:
    """Parameters, an objective and an optimiser; subclasses say what a turn is.

    Args:
        name: Names the player in logs and checkpoints.
        network: The module whose parameters the optimiser holds.
        optimizer: Updates them.
        start: First step of the player.
        stop: Step from which the player rests; never by default.
        clip_norm: Largest norm of the gradient; 0 for no limit.
        clip_ratio: Largest norm of the gradient as a multiple of its running mean, see
            `medvae3d.training.optimizers.running_norm`; 0 for no limit. Outliers alone are cut
            then, whatever the units of the loss are.
        rate: Factor of the optimiser's learning rates by step; constant by default.
        watch: Parts of the network whose own gradient norm is logged, by name.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        optimizer: Optimizer,
        start: int = 0,
        stop: int | None = None,
        clip_norm: float = 0.0,
        clip_ratio: float = 0.0,
        rate: Schedule | None = None,
        watch: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.name = name
        self.network = network
        self.optimizer = optimizer
        self.start = start
        self.stop = stop
        self.clip_norm = clip_norm
        self.clip_ratio = clip_ratio
        self.rate = rate
        self.watch = dict(watch or {})
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]

    def is_active(self, step: int) -> bool:
        """Whether the player has a turn in this step."""
        return self.start <= step and (self.stop is None or step < self.stop)

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def play(self, turn: Turn, autocast: Any) -> None:
        """Runs one step of the player."""
        raise TypeError(f"{type(self).__name__} does not say what its turn is")

    def _update(self, loss: Tensor | None, turn: Turn) -> None:
        """Adds the gradient of a loss, averages over processes, and steps when it is time.

        ``None`` stands for a batch with nothing to learn from. Other processes may have something,
        so this one takes its part in the average all the same; they would wait for it forever.
        """
        if turn.is_first:
            self.optimizer.zero_grad(set_to_none=True)
        if loss is not None:
            loss = loss / turn.accumulate
            (turn.scaler.scale(loss) if turn.scaler else loss).backward()
        if not turn.is_last:
            return
        parameters = average_gradients(self.parameters())
        if not parameters:
            return
        if self.rate is not None:
            for group, first in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = first * self.rate(turn.step)
        if turn.scaler:
            turn.scaler.unscale_(self.optimizer)
        for part, module in self.watch.items():
            known = [p.grad for p in module.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm(known) if known else torch.zeros(())
            turn.log[f"{self.name}/{part}_gradient_norm"] = float(norm)
        limit = self.clip_norm or float("inf")
        if self.clip_ratio:
            limit = min(limit, self.clip_ratio * running_norm(self.optimizer))
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        turn.log[f"{self.name}/gradient_norm"] = float(norm)
        if turn.scaler:
            turn.scaler.step(self.optimizer)  # skips the step by itself when not finite
            return
        if not torch.isfinite(norm):
            cases = ", ".join(turn.batch.get("case", [])) or "unnamed cases"
            raise NonFiniteTermError(
                f"step {turn.step}: the gradient of {self.name} is not finite ({cases}). "
                f"Lower its learning rate or the flow's step size, or train in float32; "
                f"the last checkpoint is intact."
            )
        self.optimizer.step()


def average_gradients(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Averages gradients over the processes that have any, and returns what has a gradient then.

    The flow differentiates inside of its forward pass and several losses share one network, which
    the hooks of ``DistributedDataParallel`` do not expect; one flat reduction after the backward
    pass does the same work. All parameters take part in it, whatever a process has learned in this
    step, as reductions of different sizes would not meet.
    """
    known = [p for p in parameters if p.grad is not None]
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return known
    facts = torch.tensor([bool(known), *(p.grad is not None for p in parameters)])
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([facts.to(grads[0]), *(grad.reshape(-1) for grad in grads)])
    dist.all_reduce(flat)
    (learned, *counts), flat = flat[: len(facts)].tolist(), flat[len(facts) :]
    flat /= max(learned, 1.0)
    averaged = []
    pieces = flat.split([grad.numel() for grad in grads])
    for p, grad, count, piece in zip(parameters, grads, counts, pieces, strict=True):
        if count:
            p.grad = grad.copy_(piece.reshape(grad.shape))
            averaged.append(p)
    return averaged


class ModelPlayer(Player):
    """Trains a latent model on its objective.

    Args:
        network: The model.
        objective: Weighted terms of trace and batch.
        optimizer: Updates the model.
        name: See `Player`.
        select: Picks what of a batch this model sees, such as the cases that have an image.
        flow_start: First step that runs the flow; before, the model trains as a VAE.
        **options: See `Player`.
    """

    def __init__(
        self,
        network: LatentModel,
        objective: Objective,
        optimizer: Optimizer,
        name: str = "model",
        select: Select | None = None,
        flow_start: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(name, network, optimizer, **options)
        self.model = network
        self.objective = objective
        self.select = select
        self.flow_start = flow_start

    def play(self, turn: Turn, autocast: Any) -> None:
        batch = self.select(turn.batch) if self.select else turn.batch
        if not len(batch["mask"]):
            self._update(None, turn)
            return
        with autocast():
            trace = self._pass(batch, turn)
            loss, values = self.objective(trace, batch, turn.step)
        self._update(loss, turn)
        turn.traces[self.name] = (trace, batch)
        turn.log.update({f"{self.name}/{key}": float(value) for key, value in values.items()})
        turn.log[f"{self.name}/loss"] = float(loss.detach())
        reported = trace.flowed.report()
        turn.log.update({f"{self.name}/{key}": value for key, value in reported.items()})

    def _pass(self, batch: Batch, turn: Turn) -> Trace:
        """What the objective judges."""
        return self.model.trace(batch, turn.generator, with_flow=turn.step >= self.flow_start)


class DiscriminatorPlayer(Player):
    """Trains a discriminator to tell real volumes from what a model made of them.

    Its parameters take gradients in its own turn only, so that a model may be judged by it
    without filling its gradients.

    Args:
        network: The discriminator.
        optimizer: Updates it.
        source: Name of the model player whose volumes are the fakes.
        kind: ``hinge`` or ``least_squares``.
        mask_smoothing: See `medvae3d.objectives.adversarial.pair`.
        name: See `Player`.
        **options: See `Player`.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        source: str = "model",
        kind: str = "hinge",
        mask_smoothing: float = 0.0,
        name: str = "discriminator",
        **options: Any,
    ) -> None:
        super().__init__(name, network, optimizer, **options)
        self.mask_smoothing = mask_smoothing
        self.source = source
        self.kind = kind
        network.requires_grad_(False)

    def play(self, turn: Turn, autocast: Any) -> None:
        if self.source not in turn.traces:
            self._update(None, turn)
            return
        trace, batch = turn.traces[self.source]
        self.network.requires_grad_(True)
        with autocast():
            smoothing = self.mask_smoothing
            real = pair(batch, trace=trace, real=True, mask_smoothing=smoothing)
            fake = pair(batch, trace=trace, real=False, mask_smoothing=smoothing).detach()
            loss, accuracy = discriminator_loss(self.network, real, fake, self.kind)
        self._update(loss, turn)
        self.network.requires_grad_(False)
        turn.log[f"{self.name}/loss"] = float(loss.detach())
        turn.log[f"{self.name}/accuracy"] = float(accuracy)


def with_image(batch: Batch) -> dict[str, Any]:
    """The part of a batch whose cases have an image; a `select` for the second stage.

    Padding counts as observed then, since it is the air that a sample has there too; a channel that
    a case lacks does not: ``valid`` is left in as :math:`(B, C, 1, 1, 1)` where there is one.
    """
    valid = batch.get("valid")
    if valid is None:
        return dict(batch)
    keep = valid.reshape(len(valid), -1).amax(1) > 0
    names = [case for case, kept in zip(batch["case"], keep.tolist(), strict=True) if kept]
    picked = {k: v[keep] if isinstance(v, Tensor) else v for k, v in batch.items()}
    if "class" in batch:
        pairs = zip(batch["class"], keep.tolist(), strict=True)
        picked["class"] = [name for name, kept in pairs if kept]
    channels = (picked.pop("valid").flatten(2).amax(2) > 0).float()[..., None, None, None]
    if not bool(channels.all()):
        picked["valid"] = channels
    return {**picked, "case": names}
