"""The final metric of a Riemannian VAE, and priors that are made of one: all training cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events

from medvae3d.errors import MetricError
from medvae3d.flows.riemannian import RiemannianFlow
from medvae3d.models.latent import LatentModel
from medvae3d.models.volume_prior import VolumePrior
from medvae3d.training.loading import BatchPreparation, CaseLoader


class MetricFitter:
    """Makes metrics of all training cases, in one pass without augmentation at the end of a run.

    Args:
        models: Models with a `RiemannianFlow` or a `VolumePrior`; others are left as they are.
        dataset: Prepared training cases.
        preparation: As in training.
        seed: Seed of the sampler's tuning.
    """

    def __init__(
        self,
        models: Mapping[str, LatentModel],
        dataset: Sequence[Mapping[str, Any]],
        preparation: BatchPreparation,
        seed: int = 0,
    ) -> None:
        self.models = dict(models)
        self.dataset = dataset
        self.preparation = preparation
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Registers the fit with a trainer, at the end of the run."""
        engine.add_event_handler(Events.COMPLETED, self.fit)

    def fit(self, engine: Engine | None = None) -> None:
        """Reads the cases and fits the metrics."""
        for model in self.models.values():
            if has_metric(model):
                fit_metric(model, self.dataset, self.preparation, self.seed)


def has_metric(model: LatentModel) -> bool:
    """Whether a model has a metric of its training cases to be fitted."""
    return isinstance(model.flow, RiemannianFlow) or isinstance(model.sampling_prior, VolumePrior)


@torch.no_grad()
def fit_metric(
    model: LatentModel,
    dataset: Sequence[Mapping[str, Any]],
    preparation: BatchPreparation,
    seed: int = 0,
    batch_size: int = 2,
) -> None:
    """Fits the metric of a flow and of a prior on one pair for each case.

    Args:
        model: A model with either.
        dataset: Prepared training cases.
        preparation: As in training.
        seed: Seed of the sampler's tuning.
        batch_size: Cases that are read at a time.

    Raises:
        MetricError: If the prior wants a learned metric and the model has none, or posteriors have
            no spread.
    """
    model.eval()
    device = next(model.parameters()).device
    flow = model.flow if isinstance(model.flow, RiemannianFlow) else None
    prior = model.sampling_prior if isinstance(model.sampling_prior, VolumePrior) else None
    if prior is not None and prior.geometry == "metric" and flow is None:
        raise MetricError(
            "the prior wants the metric of a Riemannian flow and the model has none; set "
            '`geometry` to "posterior", or take `medvae3d.models.zoo.rhvae`.'
        )
    means: list[torch.Tensor] = []
    learned: list[torch.Tensor] = []
    shaped: list[torch.Tensor] = []
    names: list[str] = []
    for each in CaseLoader(dataset, batch_size):
        batch = preparation(each, device)
        features, posterior = model.read(batch, model.condition(batch))
        means.append(posterior.mean.flatten(1).double())
        names += batch["case"]
        if flow is not None and flow.network is not None:
            learned.append(flow.factor_of(features))
        if prior is not None and prior.geometry == "posterior":
            scale = posterior.scale.flatten(1).double()
            if not bool((scale > 0).all()):
                raise MetricError(
                    "posteriors have no spread, so there is no covariance to make a metric of; "
                    "this prior is for models with a Gaussian posterior."
                )
            shaped.append(torch.diag_embed(1 / scale))
    centroids = torch.cat(means) if means else torch.zeros(0, 1)
    if flow is not None and learned:
        flow.pairs.fit(centroids, torch.cat(learned), names)
    if prior is not None:
        factors = torch.cat(shaped if prior.geometry == "posterior" else learned)
        prior.fit_cases(centroids, factors, names, seed=seed)
