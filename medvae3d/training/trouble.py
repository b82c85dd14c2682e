"""What goes wrong in a training, said in words with what to do about it.

Each trouble is told once a player or model, as a warning of the engine's log or to whoever asked
to be told. Nothing is stopped: a value that is not finite is an error of the players already. The
limits are far from what sound trainings show. In the runs of the shipped bundles the accuracy of a
discriminator, mean of 50 steps, stayed below 0.86, and flows erred by at most 18 nats where the
latent carried thousands. Trained, they move a latent by 0.008 and 0.010 of its norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from ignite.engine import Engine, Events

from medvae3d.training.health import ACTIVE_NATS
from medvae3d.training.players import DiscriminatorPlayer, Player

Tell = Callable[[str], None]


class _Teller:
    """Says each thing once."""

    def __init__(self, tell: Tell | None) -> None:
        self.tell = tell
        self._told: set[tuple[str, str]] = set()
        self._streaks: dict[tuple[str, str], int] = {}

    def _say(self, engine: Engine, kind: str, name: str, text: str) -> None:
        if (kind, name) in self._told:
            return
        self._told.add((kind, name))
        (self.tell or engine.logger.warning)(f"warning: {text}")

    def _streak(self, kind: str, name: str, holds: bool) -> int:
        """How often in a row something has held."""
        self._streaks[kind, name] = self._streaks.get((kind, name), 0) + 1 if holds else 0
        return self._streaks[kind, name]


class TrainingWatch(_Teller):
    r"""Watches what the players of a trainer log, as medians over windows of steps.

    - *Divergence*: with :math:`f` and :math:`b` the first and the best median of the negative log
      likelihood, it is above :math:`b + 10 s`, where :math:`s` is the largest of :math:`f - b`,
      :math:`|b|`, the spread of the first window (a run may be resumed where the likelihood crosses
      0) and 1 nat. All that was learned is lost ten times over then.
    - *Energy*: the flow's energy error is ten times the first one, or more than the latent carries.
    - *Idle flow*: it moves latents by less than a thousandth of their norm, for two windows in a
      row. Such a model is a plain VAE at the price of a flow.
    - *Discriminator*: its accuracy stays at 0.97 or above, for ten windows in a row.
    - *Codes*: fewer than two codes are in use, for ten windows in a row.

    Args:
        players: The trainer's players; the discriminators among them are watched as such.
        every_steps: Steps of a window.
        tell: Told the warnings; the engine's log if not given.
    """

    orders = 10.0
    patience = 10
    accuracy = 0.97
    perplexity = 2.0
    moved = 1e-3

    def __init__(
        self, players: Sequence[Player] = (), every_steps: int = 50, tell: Tell | None = None
    ) -> None:
        super().__init__(tell)
        self.every_steps = every_steps
        self._judges = {p.name for p in players if isinstance(p, DiscriminatorPlayer)}
        self._values: dict[str, list[float]] = {}
        self._first: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._spread: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """Registers the watch with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)

    def _collect(self, engine: Any) -> None:
        for name, value in engine.state.output.items():
            self._values.setdefault(name, []).append(float(value))
        if engine.state.iteration % self.every_steps:
            return
        windows, self._values = self._values, {}
        middle = {name: median(values) for name, values in windows.items()}
        for name, values in windows.items():
            player, _, what = name.rpartition("/")
            if what == "nll":
                self._check_likelihood(engine, player, values)
            elif what == "energy_error":
                kl = middle.get(f"{player}/kl")
                self._check_energy(engine, player, middle[name], kl)
            elif what == "moved":
                self._check_movement(engine, player, middle[name])
            elif what == "perplexity":
                self._check_codes(engine, player, middle[name])
        for player in self._judges:
            self._check_discriminator(engine, player, middle.get(f"{player}/accuracy"))

    def _check_likelihood(self, engine: Any, player: str, values: Sequence[float]) -> None:
        value = median(values)
        if player not in self._first:
            low, _, high = quantiles(values, n=4) if len(values) > 1 else (0.0, 0.0, 0.0)
            self._first[player], self._spread[player] = value, high - low
        best = self._best[player] = min(value, self._best.get(player, value))
        scale = max(self._first[player] - best, abs(best), self._spread[player], 1.0)
        if value > best + self.orders * scale:
            text = (
                f"step {engine.state.iteration}: {player} diverges: its negative log likelihood "
                f"was {best:.3g} nats at best and is {value:.3g} now. Stop, and train again with a "
                f"lower learning_rate or clip_norm, or with precision=float32; if it happens in "
                f"the same step again, look at the cases with `medvae3d data check`."
            )
            self._say(engine, "divergence", player, text)

    def _check_energy(self, engine: Any, player: str, error: float, kl: float | None) -> None:
        first = self._first.setdefault(f"{player}/energy", error)
        carried = float("inf") if kl is None else max(kl, self.orders)
        if error <= self.orders * max(first, 1.0) and error <= carried:
            return
        beside = "" if kl is None else f", where the latent carries {kl:.3g}"
        text = (
            f"step {engine.state.iteration}: the flow of {player} loses its energy: it errs by "
            f"{error:.3g} nats, {first:.3g} at first{beside}. Train again with a smaller "
            f"network_def#step_size, or begin with the flow later (flow_start), when the decoder "
            f"changes less."
        )
        self._say(engine, "energy", player, text)

    def _check_movement(self, engine: Any, player: str, moved: float) -> None:
        if self._streak("idle", player, moved < self.moved) < 2:
            return
        text = (
            f"step {engine.state.iteration}: the flow of {player} does nothing: it moves a latent "
            f"by {moved:.2g} of its norm, so that the model is a plain VAE at the price of a flow. "
            f"Train again with a larger network_def#step_size, or take the system vae."
        )
        self._say(engine, "idle", player, text)

    def _check_discriminator(self, engine: Any, player: str, accuracy: float | None) -> None:
        # One that rests logs nothing: somebody keeps the balance then.
        is_sure = accuracy is not None and accuracy >= self.accuracy
        if self._streak("discriminator", player, is_sure) < self.patience:
            return
        text = (
            f"step {engine.state.iteration}: {player} is too strong: it has told real from made "
            f"with an accuracy of {accuracy:.2f} for {self.patience * self.every_steps} steps, and "
            f"what it says teaches little then. Lower its learning rate "
            f"(discriminator_optimizer#lr), let it begin later (adversarial_start), or give it "
            f"fewer channels (discriminator#channels)."
        )
        self._say(engine, "discriminator", player, text)

    def _check_codes(self, engine: Any, player: str, perplexity: float) -> None:
        is_narrow = perplexity < self.perplexity
        if self._streak("codes", player, is_narrow) < self.patience:
            return
        text = (
            f"step {engine.state.iteration}: the codes of {player} have collapsed: "
            f"{perplexity:.2f} of them are in use (perplexity), and every sample will look alike. "
            f"Train again with a lower learning_rate or a smaller book of codes."
        )
        self._say(engine, "codes", player, text)


class LatentWatch(_Teller):
    """Watches the latents of a validation for collapse.

    A latent has collapsed when fewer than 1 in 100 of its elements carry more than 0.05 nat and
    the mean element carries less than 0.01, in two validations in a row. Both are asked for, as a
    large latent may carry much in few elements. Latents without a density carry exactly 0 and are
    not judged.

    Args:
        tell: Told the warnings; the engine's log if not given.
    """

    active_share = 0.01
    nats = 0.01
    patience = 2

    def __init__(self, tell: Tell | None = None) -> None:
        super().__init__(tell)

    def attach(self, engine: Engine) -> None:
        """Registers the watch with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self._check)

    def _check(self, engine: Any) -> None:
        metrics: Mapping[str, float] = engine.state.metrics
        for key in [key for key in metrics if key.endswith("/latent_kl_per_element")]:
            name = key.rpartition("/")[0]
            each, share = metrics[key], metrics[f"{name}/latent_active_share"]
            has_collapsed = 0 < each < self.nats and share < self.active_share
            if self._streak("collapse", name, has_collapsed) < self.patience:
                continue
            text = (
                f"epoch {engine.state.epoch}: the latent of {name} has collapsed: {share:.1%} of "
                f"its elements carry more than {ACTIVE_NATS} nat, {each:.2g} nat in the mean, and "
                f"samples will hardly differ. Train again with a lower beta, a longer "
                f"warm_up_steps, or free bits (free_nats of the objective) where it has them; a "
                f"latent with fewer channels is less likely to be left unused."
            )
            self._say(engine, "collapse", name, text)
