"""One training iteration over one or more players, as a MONAI trainer.

MONAI's handlers (checkpoints, statistics, TensorBoard, MLflow, early stopping, learning-rate
schedules, validation), MONAI Label and ``torchrun`` work with it as with ``SupervisedTrainer``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import Trainer

from medvae3d.networks.blocks import channels_last
from medvae3d.seeding import derive_seed
from medvae3d.training.ema import ExponentialMovingAverage
from medvae3d.training.holding import HeldFolders, folders_of
from medvae3d.training.players import Player, Turn
from medvae3d.training.precision import autocast_dtype, keep_thin_in_float32


class PlayerTrainer(HeldFolders, Trainer):  # type: ignore[misc]
    """Gives every player its turn in each step.

    All noise of a step comes from a generator that is seeded by the run's seed, the step and the
    process, so that a run that was interrupted after any step continues to the same weights. The
    folders that its handlers write are held while it runs.

    Args:
        device: Where to train.
        max_epochs: Epochs to run.
        train_data_loader: Batches, addressed by step when it has ``start_at``.
        players: In the order of their turns.
        prepare_batch: Moves a batch to the device and completes it.
        epoch_length: Steps an epoch; the length of the loader by default.
        seed: Seed of all noise in training.
        precision: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        accumulation_steps: Batches whose gradients are added up before an update.
        ema: Slow copies to update after each step.
        postprocessing: See MONAI's ``Workflow``.
        key_train_metric: See MONAI's ``Workflow``.
        additional_metrics: See MONAI's ``Workflow``.
        train_handlers: See MONAI's ``Workflow``.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable[Any],
        players: Sequence[Player],
        prepare_batch: Callable[..., Any],
        epoch_length: int | None = None,
        seed: int = 0,
        precision: str = "auto",
        accumulation_steps: int = 1,
        ema: ExponentialMovingAverage | None = None,
        postprocessing: Callable[..., Any] | None = None,
        key_train_metric: dict[str, Any] | None = None,
        additional_metrics: dict[str, Any] | None = None,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        self.players = tuple(players)
        self.seed = seed
        self.accumulation_steps = accumulation_steps
        self.ema = ema
        self.folders = folders_of(train_handlers or ())
        device = torch.device(device)
        dtype = autocast_dtype(device, precision)
        self.autocast: Callable[[], Any] = (
            partial(torch.autocast, device.type, dtype=dtype) if dtype else contextlib.nullcontext
        )
        self.grad_scaler = torch.amp.GradScaler(device.type) if dtype is torch.float16 else None
        # Before any handler: a state that is restored goes where the weights are.
        for player in self.players:
            player.network.to(device)
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            non_blocking=True,
            prepare_batch=prepare_batch,
            postprocessing=postprocessing,
            key_metric=key_train_metric,
            additional_metrics=additional_metrics,
            handlers=train_handlers,
            decollate=False,
        )
        self.add_event_handler(Events.STARTED, self._start)

    def _start(self, engine: Engine) -> None:
        """Brings data, layout and processes in line with the step that the run starts at."""
        if hasattr(self.data_loader, "start_at"):
            self.data_loader.start_at(self.state.iteration)
        for player in self.players:
            keep_thin_in_float32(channels_last(player.network))
            _share_from_first(player.network)

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        step = self.state.iteration - 1
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        seed = derive_seed(self.seed, "noise", step, rank)
        generator = torch.Generator(self.state.device).manual_seed(seed)
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking)
        turn = Turn(batch, step, generator, self.accumulation_steps, self.grad_scaler)
        with torch.random.fork_rng(devices=[]):  # layers such as dropout draw from the global state
            torch.manual_seed(seed)
            for player in self.players:
                if player.is_active(step):
                    player.network.train()
                    player.play(turn, self.autocast)
        if self.grad_scaler is not None and turn.is_last:
            self.grad_scaler.update()
        if self.ema is not None and turn.is_last:
            self.ema.update()
        loss = sum(v for k, v in turn.log.items() if k.endswith("/loss"))
        return {"loss": loss, **turn.log}


def _share_from_first(network: torch.nn.Module) -> None:
    """Gives every process the weights of the first."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in [*network.parameters(), *network.buffers()]:
            dist.broadcast(tensor.data, 0)
