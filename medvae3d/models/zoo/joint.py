"""One latent for image and mask: the latent model from sizes, and the VAE and HVAE made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from medvae3d.flows.hamiltonian import HamiltonianFlow
from medvae3d.models.grain import Grain
from medvae3d.models.latent import LatentModel
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.models.volume_prior import VolumePrior
from medvae3d.networks.autoencoders import Decoder, Encoder, all_strides, total_stride
from medvae3d.networks.conditioning import AttributeEmbedding
from medvae3d.probability.codebook import Codebooks
from medvae3d.probability.likelihoods import BernoulliHead, GaussianHead, LabelHead, LaplaceHead
from medvae3d.probability.priors import FittedPrior, make_prior

IMAGE_HEADS = {"gaussian": GaussianHead, "laplace": LaplaceHead}


def latent_model(
    spatial_shape: Sequence[int],
    *,
    image_channels: int = 1,
    values: Sequence[int] = (0, 1),
    heads: Sequence[str] = ("image", "mask"),
    inputs: Sequence[str] = ("image", "mask"),
    likelihood: str = "gaussian",
    image_scale: float = 0.1,
    channels: Sequence[int] = (32, 64, 128),
    strides: Sequence[int | Sequence[int]] | None = None,
    blocks: int = 1,
    latent_channels: int = 8,
    vector_latent: bool = False,
    attributes: Sequence[str] = (),
    encode_attributes: bool = False,
    context: nn.Module | None = None,
    conditional_prior: nn.Module | None = None,
    label_dropout: float = 0.0,
    channel_dropout: float = 0.0,
    flow: nn.Module | None = None,
    flow_autocast: bool = False,
    prior: str = "mixture",
    components: int = 16,
    rank: int = 48,
    sampling_prior: FittedPrior | None = None,
    codebooks: Codebooks | None = None,
    mask_dropout: float = 0.0,
    dropout: float = 0.0,
    checkpointing: bool = False,
    grain_width: int = 0,
    coarse: int = 0,
    folded: bool = False,
    statistics: TrainingStatistics | None = None,
) -> LatentModel:
    """Builds a latent model from sizes; the other functions of this module only choose them.

    Args:
        spatial_shape: Voxels of a training volume along (I, J, K), multiples of the strides.
        image_channels: Channels of the image.
        values: Label values of the mask, background first.
        heads: Outputs, ``image``, ``mask`` or both.
        inputs: What the encoder reads; nothing for a model without an encoder.
        likelihood: Of the image, ``gaussian`` or ``laplace``, with a learned scale per channel.
        image_scale: First value of that scale, in normalised units.
        channels: Feature channels of each level, from the finest to the coarsest.
        strides: Stride of each level; 2 along each axis by default.
        blocks: Residual blocks a level.
        latent_channels: Channels of the latent map, or length of the latent vector.
        vector_latent: Whether the latent is a vector.
        attributes: Names of the scalar attributes that the model is told.
        encode_attributes: Whether the encoder sees them too.
        context: Builds condition maps, if the decoder is told them.
        conditional_prior: See `LatentModel`; a model with one draws from nothing else.
        label_dropout: See `LatentModel`.
        channel_dropout: See `LatentModel`.
        flow: Hamiltonian flow; none by default.
        flow_autocast: See `LatentModel`.
        prior: What new latents are drawn from, fitted after training: ``mixture``, ``gaussian``,
            ``vamp`` or ``flow``; ``geometric`` for the volume element of a metric made of
            posteriors, which is for vectors (`VolumePrior`); ``normal`` for the standard normal.
        components: Most components of that prior; 0 for the standard normal.
        rank: Principal components of the latent that the fitted prior models jointly.
        sampling_prior: Prior to draw new latents from, in the place of one by name.
        codebooks: Makes the latent one of codes, of ``latent_channels`` in all.
        mask_dropout: See `LatentModel`.
        dropout: Share of channels dropped in residual blocks while training.
        checkpointing: See `Decoder`.
        grain_width: Voxels of the kernel of the grain; 0 for none. See `Grain`.
        coarse: Outputs at lower resolution; see `Decoder`.
        folded: Whether not to compute on repeated voxels; see `Decoder`.
        statistics: What is remembered of the training set; made here by default.
    """
    steps = total_stride(all_strides(channels, strides))
    bottom = [n // s for n, s in zip(spatial_shape, steps, strict=True)]
    vector_from = bottom if vector_latent else None
    latent_shape = (latent_channels,) if vector_latent else (latent_channels, *bottom)
    made, *lower = [
        _heads(heads, values, likelihood, image_channels, image_scale) for _ in range(1 + coarse)
    ]
    embedding = AttributeEmbedding(len(attributes)) if attributes else None
    features = embedding.features if embedding else 0
    maps = int(getattr(context, "channels", 0))
    in_channels = maps
    in_channels += 2 * image_channels if "image" in inputs else 0
    in_channels += len(values) if "mask" in inputs else 0
    trunk: dict[str, Any] = {
        "channels": channels,
        "strides": strides,
        "blocks": blocks,
        "vector_from": vector_from,
        "dropout": dropout,
    }
    if sampling_prior is None and components and conditional_prior is None:
        sampling_prior = (
            VolumePrior(latent_shape, "posterior", decay=0.01)
            if prior == "geometric"
            else make_prior(
                prior, latent_shape, components=components, rank=rank, attributes=len(attributes)
            )
        )
    return LatentModel(
        Encoder(
            in_channels,
            latent_channels if codebooks else 2 * latent_channels,
            vector_features=features if encode_attributes else 0,
            **trunk,
        )
        if inputs
        else None,
        Decoder(
            latent_channels,
            sum(head.features for head in made.values()),
            vector_features=features,
            map_channels=maps,
            checkpointing=checkpointing,
            coarse=coarse,
            folded=folded,
            **trunk,
        ),
        made,
        latent_shape,
        inputs=inputs,
        values=values,
        image_channels=image_channels,
        flow=flow,
        posterior=codebooks,
        prior=codebooks,
        sampling_prior=sampling_prior,
        embedding=embedding,
        encode_attributes=encode_attributes,
        context=context,
        conditional_prior=conditional_prior,
        label_dropout=label_dropout,
        channel_dropout=channel_dropout,
        mask_dropout=mask_dropout,
        flow_autocast=flow_autocast,
        statistics=(
            statistics if statistics is not None else TrainingStatistics(attributes, image_channels)
        ),
        grain=Grain(image_channels, grain_width) if grain_width else None,
        coarse_heads=lower,
    )


def _heads(
    names: Sequence[str],
    values: Sequence[int],
    likelihood: str,
    image_channels: int,
    image_scale: float,
) -> dict[str, Any]:
    mask = BernoulliHead() if len(values) == 2 else LabelHead(tuple(values))
    image = IMAGE_HEADS[likelihood](image_channels, scale=image_scale)
    made = {"image": image, "mask": mask}
    return {name: made[name] for name in names}


def vae(spatial_shape: Sequence[int], dropout: float = 0.0, **sizes: Any) -> LatentModel:
    """Joint VAE: image and mask from one latent; see `latent_model` for the sizes."""
    return latent_model(spatial_shape, dropout=dropout, **sizes)


def hvae(
    spatial_shape: Sequence[int],
    *,
    num_steps: int = 3,
    step_size: float = 0.005,
    initial_beta: float = 0.3,
    first_order: bool = False,
    dropout: float = 0.0,
    **sizes: Any,
) -> LatentModel:
    """Joint HVAE: a joint VAE whose latent a Hamiltonian flow moves towards the posterior.

    Args:
        spatial_shape: See `latent_model`.
        num_steps: Leapfrog steps :math:`K`.
        step_size: First value of the step size, learned per latent channel.
        initial_beta: First inverse temperature of the momentum.
        first_order: Whether to stop gradients through the force, an approximation.
        dropout: See `latent_model`.
        **sizes: See `latent_model`.

    References:
        Kebaili et al., "End-to-end autoencoding architecture for the simultaneous generation of
        medical images and corresponding segmentation masks", 2023.
    """
    latents = sizes.get("latent_channels", 8)
    step_shape = (latents,) if sizes.get("vector_latent") else (latents, 1, 1, 1)
    flow = HamiltonianFlow(
        num_steps=num_steps,
        step_size=step_size,
        initial_beta=initial_beta,
        step_shape=step_shape,
        first_order=first_order,
    )
    return latent_model(spatial_shape, flow=flow, dropout=dropout, **sizes)
