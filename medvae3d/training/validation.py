"""Validation: the evidence bound, reconstructions and the state of the latent on unseen cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from ignite.metrics import Average
from monai.engines import Evaluator
from monai.handlers import stopping_fn_from_metric
from torch import Tensor

from medvae3d.models.latent import Batch, LatentModel, Trace
from medvae3d.objectives.codes import returned
from medvae3d.objectives.terms import elbo
from medvae3d.probability.codebook import Codes
from medvae3d.seeding import derive_seed
from medvae3d.training.health import latent_health
from medvae3d.training.players import Select


def squared_error(trace: Trace, batch: Batch) -> tuple[Tensor, Tensor]:
    """Squared error and squared norm of the image, ``(B,)`` each, for NMSE."""
    made = trace.heads["image"].mode().float()
    real = batch["image"].float() + 1  # normalised images start at -1: background counts as 0
    valid = batch.get("valid")
    error, norm = (made + 1 - real).square(), real.square()
    if valid is not None:  # not by a product: what was not observed may be NaN
        error, norm = (torch.where(valid > 0, each, 0.0) for each in (error, norm))
    return error.flatten(1).sum(1), norm.flatten(1).sum(1)


def mask_dice(trace: Trace, batch: Batch) -> Tensor:
    """Dice of the whole foreground, ``(B,)``; 1 when both masks are empty."""
    made = (trace.heads["mask"].mode() > 0).flatten(1).float()
    real = (batch["mask"] > 0).flatten(1).float()
    both = (made * real).sum(1)
    return (2 * both + 1e-6) / (made.sum(1) + real.sum(1) + 1e-6)


class LatentEvaluator(Evaluator):
    """Scores latent models on unseen cases, with fixed noise.

    Each model adds to the metrics ``<name>/elbo_per_voxel``, and, as far as it has the heads,
    ``<name>/nmse`` and ``<name>/dice``; one of codes adds ``<name>/codes_returned``, the share that
    comes back when what was decoded is encoded again. The key metric ``score`` is the sum of the
    bounds per voxel. After each pass the state of the latent is added as ``<name>/latent_*``.

    Args:
        device: Where to evaluate.
        val_data_loader: Batches, as the trainer's loader makes them; a fixed number of them.
        models: Models by the name of their player.
        prepare_batch: As in training.
        selects: What of a batch each model sees, by name, as in training.
        seed: Seed of the posterior noise.
        epoch_length: Batches of one evaluation; the length of the loader by default.
        postprocessing: See MONAI's ``Workflow``.
        val_handlers: See MONAI's ``Workflow``.
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: Iterable[Any],
        models: Mapping[str, LatentModel],
        prepare_batch: Callable[..., Any],
        selects: Mapping[str, Select] | None = None,
        seed: int = 0,
        epoch_length: int | None = None,
        postprocessing: Any = None,
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        self.models = dict(models)
        self.selects = dict(selects or {})
        self.seed = seed
        self._posteriors: dict[str, list[Any]] = {}
        super().__init__(
            device=torch.device(device),
            val_data_loader=val_data_loader,
            epoch_length=epoch_length,
            prepare_batch=prepare_batch,
            postprocessing=postprocessing,
            key_val_metric={"score": Average(output_transform=lambda out: out["score"])},
            val_handlers=val_handlers or (),
            decollate=False,
        )

    def _register_handlers(self, handlers: Sequence[Any]) -> None:
        # Before the handlers that print and write what the report adds to the metrics.
        self.add_event_handler(Events.EPOCH_STARTED, self._clear)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._report)
        super()._register_handlers(handlers)

    def _clear(self, engine: Engine) -> None:
        self._posteriors = {name: [] for name in self.models}
        self._sums: dict[str, list[float]] = {}

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking)
        seed = derive_seed(self.seed, "validation", self.state.iteration)
        generator = torch.Generator(self.state.device).manual_seed(seed)
        output = {"score": 0.0}
        for name, model in self.models.items():
            seen = self.selects[name](batch) if name in self.selects else batch
            if not len(seen["mask"]):
                continue
            model.to(self.state.device).eval()
            with torch.no_grad():
                trace = model.trace(seen, generator, with_flow=False)
                values = self._values(trace, seen)
                if isinstance(trace.posterior, Codes):
                    values["codes_returned"] = float(returned(model, trace, seen).mean())
            self._posteriors[name].append(trace.posterior)
            output["score"] += values["elbo_per_voxel"]
            for key, value in values.items():
                self._sums.setdefault(f"{name}/{key}", []).append(value)
        return output

    def _values(self, trace: Trace, batch: Batch) -> dict[str, float]:
        voxels = sum(batch[name][0].numel() for name in trace.heads)
        values = {"elbo_per_voxel": float(elbo(trace, batch).mean()) / voxels}
        if "image" in trace.heads:
            error, norm = squared_error(trace, batch)
            values["nmse"] = float((error / norm).mean())
        if "mask" in trace.heads:
            values["dice"] = float(mask_dice(trace, batch).mean())
        return values

    def _report(self, engine: Engine) -> None:
        metrics = engine.state.metrics
        for key, values in self._sums.items():
            metrics[key] = sum(values) / len(values)
        for name, posteriors in self._posteriors.items():
            if posteriors:
                for key, value in latent_health(posteriors).to_dict().items():
                    metrics[f"{name}/latent_{key}"] = value


class EarlyStop:
    """Ends a training when a metric of its validation has not grown for a while.

    MONAI's handler needs the trainer before there is one; this one is among the trainer's handlers
    and attaches ignite's rule to the evaluator. What happens at the end of a run, such as fitting
    a prior, happens after an early end as well.

    Args:
        evaluator: The evaluator of the validation.
        patience: Validations without progress after which to stop.
        metric: The metric; larger is better.
    """

    def __init__(self, evaluator: Evaluator, patience: int, metric: str = "score") -> None:
        self.evaluator = evaluator
        self.patience = patience
        self.metric = metric

    def attach(self, engine: Engine) -> None:
        """Registers the rule with a trainer."""
        score = stopping_fn_from_metric(self.metric)
        rule = EarlyStopping(self.patience, score, engine)

        def go_on(engine: Any) -> None:
            if getattr(engine.state, "early_stop", None):
                rule.load_state_dict(engine.state.early_stop)
                if rule.counter >= self.patience:  # it had ended, but for what follows the end
                    engine.terminate()

        def keep(evaluator: Engine) -> None:
            # The state of a run is saved with it: what has been waited for counts after a resume.
            engine.state.early_stop = dict(rule.state_dict())  # type: ignore[attr-defined]

        engine.add_event_handler(Events.STARTED, go_on)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, rule)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, keep)
