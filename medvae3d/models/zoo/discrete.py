"""Latents of codes: the VQ-VAE with a prior over its codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medvae3d.models.latent import LatentModel
from medvae3d.models.zoo.joint import latent_model
from medvae3d.networks.autoencoders import all_strides, total_stride
from medvae3d.probability.codebook import Codebooks
from medvae3d.probability.priors.codes import CodePrior


def vqvae(
    spatial_shape: Sequence[int],
    *,
    channels: Sequence[int] = (32, 64, 128),
    strides: Sequence[int | Sequence[int]] | None = None,
    codes: int = 256,
    latent_channels: int = 16,
    levels: int = 1,
    decay: float = 0.99,
    values: Sequence[int] = (0, 1),
    attributes: Sequence[str] = (),
    told_mask: bool = False,
    prior_width: int = 64,
    prior_depth: int = 3,
    prior_heads: int = 4,
    prior_steps: int = 1000,
    dropout: float = 0.0,
    **sizes: Any,
) -> LatentModel:
    """Joint VQ-VAE with an autoregressive prior: image and mask from one grid of codes.

    Args:
        spatial_shape: See `latent_model`.
        channels: See `latent_model`.
        strides: See `latent_model`.
        codes: Codes to choose from, at each level.
        latent_channels: Length of a code.
        levels: 1, or 2 for a second, coarser grid of codes.
        decay: Decay of the running means that the codes are.
        values: See `latent_model`.
        attributes: See `latent_model`; the prior is told them too.
        told_mask: Whether the prior is told a mask as well, so that volumes can be drawn for one.
        prior_width: Features of the transformer that the prior is.
        prior_depth: Blocks of it.
        prior_heads: Attention heads of it.
        prior_steps: Steps of its fit, after training.
        dropout: See `latent_model`.
        **sizes: See `latent_model`; those of other priors have no meaning here.

    References:
        van den Oord et al., "Neural discrete representation learning", 2017.
        Razavi et al., "Generating diverse high-fidelity images with VQ-VAE-2", 2019.
    """
    steps = total_stride(all_strides(channels, strides))
    grid = [n // s for n, s in zip(spatial_shape, steps, strict=True)]
    codebooks = Codebooks(grid, codes, latent_channels, levels, decay)
    prior = CodePrior(
        codebooks,
        len(attributes),
        prior_width,
        prior_depth,
        prior_heads,
        steps=prior_steps,
        values=values if told_mask else (),
    )
    return latent_model(
        spatial_shape,
        channels=channels,
        strides=strides,
        latent_channels=latent_channels * levels,
        values=values,
        attributes=attributes,
        codebooks=codebooks,
        sampling_prior=prior,
        dropout=dropout,
        **sizes,
    )
