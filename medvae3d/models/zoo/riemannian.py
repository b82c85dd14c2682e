"""A VAE whose latent space has a learned metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medvae3d.flows.riemannian import RiemannianFlow
from medvae3d.models.latent import LatentModel
from medvae3d.models.volume_prior import VolumePrior
from medvae3d.models.zoo.joint import latent_model
from medvae3d.networks.metrics import FixedMetric, MetricNetwork


def rhvae(
    spatial_shape: Sequence[int],
    *,
    latent_channels: int = 10,
    channels: Sequence[int] = (32, 64, 128),
    num_steps: int = 3,
    step_size: float = 1e-3,
    initial_beta: float = 0.3,
    bandwidth: float = 1.5,
    floor: float = 0.01,
    learn_metric: bool = True,
    hidden: int = 400,
    queue: int = 256,
    colouring: str = "network",
    full_bound: bool = True,
    detach_features: bool = False,
    first_order: bool = False,
    reach: float = 2.5,
    chain_steps: int = 100,
    dropout: float = 0.0,
    **sizes: Any,
) -> LatentModel:
    """Riemannian VAE: a flow along a metric made of the cases, and samples by its volume element.

    The latent is a vector. At the end of training, `medvae3d.training.metrics.MetricFitter` makes
    the metric of all training cases, for the flow and for the prior.

    Args:
        spatial_shape: See `latent_model`.
        latent_channels: Length of the latent vector.
        channels: See `latent_model`.
        num_steps: See `RiemannianFlow`, as all up to ``first_order``.
        step_size: Step size.
        initial_beta: First inverse temperature of the momentum.
        bandwidth: Width of the kernels, of the order of the distance between cases.
        floor: What the inverse metric is far from all cases.
        learn_metric: Whether a network makes the matrix of each case; false for the identity, for
            comparison.
        hidden: Hidden units of the metric network.
        queue: Cases whose latest pair is kept while training.
        colouring: What colours the momentum while training.
        full_bound: Whether the determinant of that counts; false is no bound, for comparison.
        detach_features: Whether the metric leaves the encoder's trunk alone.
        first_order: Whether to stop gradients through the force, an approximation.
        reach: See `VolumePrior`, as ``chain_steps``.
        chain_steps: Metropolis steps of a sample.
        dropout: See `latent_model`.
        **sizes: See `latent_model`; ``components`` and ``rank`` have no meaning here.

    References:
        Chadebec et al., "Data augmentation in high dimensional low sample size setting using a
        geometry-based variational autoencoder", IEEE TPAMI 2022.
    """
    flow = RiemannianFlow(
        latent_channels,
        (
            MetricNetwork(channels[-1], latent_channels, hidden)
            if learn_metric
            else FixedMetric(latent_channels)
        ),
        num_steps=num_steps,
        step_size=step_size,
        initial_beta=initial_beta,
        bandwidth=bandwidth,
        floor=floor,
        queue=queue,
        colouring=colouring,
        full_bound=full_bound,
        detach_features=detach_features,
        first_order=first_order,
    )
    prior = VolumePrior(
        (latent_channels,), bandwidth=bandwidth, floor=floor, reach=reach, steps=chain_steps
    )
    return latent_model(
        spatial_shape,
        latent_channels=latent_channels,
        channels=channels,
        flow=flow,
        sampling_prior=prior,
        dropout=dropout,
        **{**sizes, "vector_latent": True},
    )
