"""Stopping after any step and going on as if nothing had happened.

One file holds everything that a later step depends on: weights, optimisers, slow copies, the
gradient scaler, the position in the run and the best score so far. Noise and data order are
functions of seed and step (see `medvae3d.training.trainer` and `medvae3d.training.loading`), so no
state of a random generator needs to be kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from medvae3d.errors import BundleError, MedvaeError, OutputError, SettingError, causes
from medvae3d.exhaustion import first_line
from medvae3d.models.weights import read_tensors
from medvae3d.training.ema import ExponentialMovingAverage
from medvae3d.training.players import Player


def save_atomically(state: object, path: str | os.PathLike[str]) -> None:
    """Writes a file that is either the old one or the new one, never half of either.

    What a killed process left of it is written over by the next: one process at a time has the
    folder of a run.

    Raises:
        OutputError: If it cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        # torch closes its archive while the error passes by, and raises a second one.
        cause = next((each for each in causes(error) if isinstance(each, OSError)), None)
        if cause is None:
            raise
        raise OutputError(
            f"{path} cannot be written: {cause.strerror or cause}. What stood there is intact. "
            f"Make room, or choose a folder that you may write to."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file of tensors and plain values, and refuses anything that could run code.

    Raises:
        BundleError: If the file is missing, damaged, or holds more than plain data.
    """
    try:
        state = read_tensors(path)
    except FileNotFoundError:
        raise BundleError(
            f"{path} does not exist. Train the bundle first, or check the path."
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BundleError(
            f"{path} cannot be read as weights ({reason}). Expected: a file of tensors written by "
            f"torch.save. Copy it again from its source, or train anew."
        ) from error
    if not isinstance(state, dict):
        raise BundleError(
            f"{path} holds a {type(state).__name__}; expected a dictionary of tensors."
        )
    return state


class TrainStateSaver:
    """Saves and restores the whole state of a run; attach it before other handlers.

    Args:
        path: The file; its name is longer than ``model.pt`` so that no viewer takes it for weights.
        players: The players of the trainer.
        ema: Slow copies, if there are any.
        every_steps: Steps between two saves, besides one at each end of an epoch, after its
            validation; 0 for none.
        resume: Whether to start from the file if it exists.
    """

    def __init__(
        self,
        path: str,
        players: Sequence[Player],
        ema: ExponentialMovingAverage | None = None,
        every_steps: int = 0,
        resume: bool = False,
    ) -> None:
        self.path = Path(path)
        self.players = tuple(players)
        self.ema = ema
        self.every_steps = every_steps
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Registers saving and restoring with a trainer."""
        engine.add_event_handler(Events.STARTED, self.restore)
        if self.every_steps:
            every = Events.ITERATION_COMPLETED(every=self.every_steps)
            engine.add_event_handler(every, self._save_within)
        engine.add_event_handler(Events.STARTED, self._come_last)
        engine.add_event_handler(Events.TERMINATE, self.save)

    def _save_within(self, engine: Any) -> None:
        # A run that goes on after the last step of an epoch would leave out its validation.
        if engine.state.iteration % engine.state.epoch_length:
            self.save(engine)

    def _come_last(self, engine: Engine) -> None:
        """Registers the save at the end of an epoch after all that others do there."""
        if not engine.has_event_handler(self.save, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, engine: Any) -> None:
        """Writes the state, from the first process only."""
        if dist.is_available() and dist.is_initialized() and dist.get_rank():
            return
        state = {
            "iteration": engine.state.iteration,
            "epoch_length": engine.state.epoch_length,
            "seed": engine.seed,
            "best_metric": float(engine.state.best_metric),
            "best_metric_epoch": int(engine.state.best_metric_epoch),
            "early_stop": getattr(engine.state, "early_stop", None),
            "players": {
                player.name: {
                    "network": player.network.state_dict(),
                    "optimizer": player.optimizer.state_dict(),
                }
                for player in self.players
            },
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": engine.grad_scaler.state_dict() if engine.grad_scaler else None,
        }
        save_atomically(state, self.path)

    def restore(self, engine: Any) -> None:
        """Puts a trainer where the file left it, if resuming and there is a file.

        Raises:
            SettingError: If the file is of another run.
            BundleError: If it is damaged.
        """
        if not (self.resume and self.path.exists()):
            return
        state = load_state(self.path)
        try:
            self._take(state, engine)
        except MedvaeError:
            raise
        except Exception as error:  # torch, too, raises many types for what is not a state
            raise BundleError(
                f"{self.path} is no whole state of a training ({type(error).__name__}: "
                f"{first_line(error)}). Restore the file, or train anew in another folder."
            ) from error
        engine.logger.info(f"resumed after step {engine.state.iteration} from {self.path}")

    def _take(self, state: dict[str, Any], engine: Any) -> None:
        found, wanted = set(state["players"]), {player.name for player in self.players}
        if found != wanted or state["epoch_length"] != engine.state.epoch_length:
            raise SettingError(
                f"{self.path} is of another run: players {sorted(found)} and "
                f"{state['epoch_length']} steps an epoch; this run has {sorted(wanted)} and "
                f"{engine.state.epoch_length}. Use the settings of that run, or another folder."
            )
        iteration, best = int(state["iteration"]), float(state["best_metric"])
        if iteration < 0:
            raise ValueError(f"it was saved after step {iteration}")
        early = state.get("early_stop")
        if early is not None:
            early = {**early, "counter": int(early["counter"])}
        for player in self.players:
            saved = state["players"][player.name]
            try:
                player.network.load_state_dict(saved["network"])
            except RuntimeError as error:  # other tensors, or others in size
                first = " ".join(str(error).split())[:200]
                raise SettingError(
                    f"{self.path} holds another network than this run trains, for the player "
                    f"{player.name} ({first}...). Resume with the settings that the run began "
                    f"with, which stand in its configs/train.json, or begin in another folder."
                ) from None
            player.optimizer.load_state_dict(saved["optimizer"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        if engine.grad_scaler is not None and state["scaler"] is not None:
            engine.grad_scaler.load_state_dict(state["scaler"])
        engine.state.iteration = iteration
        engine.state.epoch = iteration // engine.state.epoch_length
        engine.state.best_metric = best
        engine.state.best_metric_epoch = int(state["best_metric_epoch"])
        engine.state.early_stop = early


class WeightsSaver:
    """Writes the weights that a bundle ships, at the end of a run.

    Args:
        path: The file, ``model.pt``.
        network: What to write: a flat state dictionary of it.
    """

    def __init__(self, path: str, network: torch.nn.Module) -> None:
        self.path = Path(path)
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Registers the saver with a trainer; attach it after whatever is fitted at the end."""
        engine.add_event_handler(Events.COMPLETED, self.save)

    def save(self, engine: Engine | None = None) -> None:
        """Writes the file."""
        state = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.network.state_dict().items()
        }
        save_atomically(state, self.path)
