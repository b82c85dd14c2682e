"""Generators of GANs: without an encoder, and with the latents of a VAE as their noise."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from medvae3d.models.latent import LatentModel
from medvae3d.models.zoo.joint import latent_model


def dcgan(spatial_shape: Sequence[int], *, dropout: float = 0.0, **sizes: Any) -> LatentModel:
    """Joint DCGAN generator: image and mask from noise, by the decoder of the VAE.

    The control that VAEs are compared with. There is no encoder, so nothing can be rebuilt, and new
    volumes are decoded from the standard normal.

    Args:
        spatial_shape: See `latent_model`.
        dropout: See `latent_model`.
        **sizes: See `latent_model`.

    References:
        Radford et al., "Unsupervised representation learning with deep convolutional generative
        adversarial networks", 2016. Strided and sub-pixel layers with a norm within each voxel are
        in the place of its transposed convolutions with batch norm.
    """
    return latent_model(spatial_shape, inputs=(), dropout=dropout, **(sizes | {"components": 0}))


def vae_noise_gan(
    spatial_shape: Sequence[int], *, dropout: float = 0.0, **sizes: Any
) -> LatentModel:
    """Joint generator whose noise is the latent of a VAE.

    First `autoencoder_of` this model is trained. Then its encoder stays as it is, and the decoder
    of this one is trained as the generator of a GAN, from posteriors of cases, from a prior fitted
    on them, or from the standard normal.

    Args:
        spatial_shape: See `latent_model`.
        dropout: See `latent_model`.
        **sizes: See `latent_model`.

    References:
        Ahmad et al., "Brain tumor classification using a combination of variational autoencoders
        and generative adversarial networks", 2022. The stages are this library's reading of it.
    """
    return latent_model(spatial_shape, dropout=dropout, **sizes)


def autoencoder_of(model: LatentModel) -> LatentModel:
    """A VAE that shares the encoder of a model and has a decoder of its own."""
    twin = copy.deepcopy(model)
    twin.encoder = model.encoder
    twin.statistics = model.statistics
    twin.sampling_prior = None
    return twin
