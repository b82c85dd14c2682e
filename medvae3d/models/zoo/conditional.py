"""Models that are told something: a class, what is left of a volume, a label apart from its latent.

Each is `latent_model` with other settings; see there for the sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medvae3d.data.attributes import CLASS
from medvae3d.errors import DataListError
from medvae3d.models.conditional import MapPrior
from medvae3d.models.latent import LatentModel
from medvae3d.models.zoo.joint import latent_model
from medvae3d.networks.autoencoders import Encoder, all_strides, total_stride
from medvae3d.networks.regions import RegionContext


def cvae(
    spatial_shape: Sequence[int],
    *,
    classes: Sequence[str] = (),
    attributes: Sequence[str] = (),
    label_dropout: float = 0.1,
    dropout: float = 0.0,
    **sizes: Any,
) -> LatentModel:
    """Conditional VAE: image and mask of a class, and of other attributes if there are any.

    Encoder and decoder are told; the latent's prior is the standard normal.

    Args:
        spatial_shape: See `latent_model`.
        classes: Names of the classes, as the cases of the data list carry them.
        attributes: Further attributes of the mask.
        label_dropout: Share of training cases that are told no class.
        dropout: See `latent_model`.
        **sizes: See `latent_model`.

    Raises:
        DataListError: If there is no class.

    References:
        Sohn, Lee and Yan, "Learning structured output representation using deep conditional
        generative models", NeurIPS 2015.
    """
    return latent_model(
        spatial_shape,
        attributes=told(attributes, classes, "cvae"),
        encode_attributes=True,
        label_dropout=label_dropout,
        dropout=dropout,
        **sizes,
    )


def cvae_multiscale(
    spatial_shape: Sequence[int],
    *,
    classes: Sequence[str] = (),
    attributes: Sequence[str] = (),
    coarse: int = 2,
    label_dropout: float = 0.1,
    dropout: float = 0.0,
    **sizes: Any,
) -> LatentModel:
    """Conditional VAE with outputs at 1/4, 1/2 and 1 of the resolution, each fed to the next.

    Args:
        spatial_shape: See `latent_model`.
        classes: Names of the classes; here they may be left out.
        attributes: Further attributes of the mask.
        coarse: Outputs below full resolution.
        label_dropout: Share of training cases that are told no class.
        dropout: See `latent_model`.
        **sizes: See `latent_model`.
    """
    names = (*attributes, *(CLASS + name for name in classes))
    return latent_model(
        spatial_shape,
        attributes=names,
        encode_attributes=bool(names),
        label_dropout=label_dropout if classes else 0.0,
        coarse=coarse,
        dropout=dropout,
        **sizes,
    )


def cvae_fill(
    spatial_shape: Sequence[int],
    *,
    image_channels: int = 1,
    values: Sequence[int] = (0, 1),
    whole: float = 0.1,
    told: float = 0.5,
    channels: Sequence[int] = (32, 64, 128),
    strides: Sequence[int | Sequence[int]] | None = None,
    latent_channels: int = 8,
    dropout: float = 0.0,
    **sizes: Any,
) -> LatentModel:
    r"""Conditional VAE that makes a region of a volume from what surrounds it.

    The encoder :math:`q(z \mid x, m, c)` sees the whole volume, a network of its own gives
    :math:`p(z \mid c)` from what is left; labels that are wanted may be told. With nothing left it
    makes whole volumes.

    Args:
        spatial_shape: See `latent_model`.
        image_channels: Channels of the image.
        values: Label values, background first.
        whole: Share of training regions that are the whole volume.
        told: Share of training cases that are told their labels.
        channels: See `latent_model`.
        strides: See `latent_model`.
        latent_channels: See `latent_model`.
        dropout: See `latent_model`.
        **sizes: See `latent_model`.

    References:
        Sohn, Lee and Yan, NeurIPS 2015, for the prior network and the hybrid objective.
    """
    sizes.pop("attributes", None)  # all that it is told are maps
    context = RegionContext(image_channels, values, whole=whole, told=told)
    bottom = total_stride(all_strides(channels, strides))
    at = [n // s for n, s in zip(spatial_shape, bottom, strict=True)]
    prior = Encoder(
        context.channels,
        2 * latent_channels,
        channels,
        strides,
        vector_from=at if sizes.get("vector_latent") else None,
        dropout=dropout,
    )
    return latent_model(
        spatial_shape,
        image_channels=image_channels,
        values=values,
        channels=channels,
        strides=strides,
        latent_channels=latent_channels,
        context=context,
        conditional_prior=MapPrior(prior),
        dropout=dropout,
        **sizes,
    )


def icvae(
    spatial_shape: Sequence[int],
    *,
    classes: Sequence[str] = (),
    attributes: Sequence[str] = (),
    dropout: float = 0.0,
    **sizes: Any,
) -> LatentModel:
    """Independently conditional VAE: the encoder is not told the class, the decoder is.

    That the latent says nothing of the class is up to the objective, see
    `medvae3d.objectives.independence`: one latent can then be drawn as any class.

    Args:
        spatial_shape: See `latent_model`.
        classes: Names of the classes, as the cases of the data list carry them.
        attributes: Further attributes of the mask.
        dropout: See `latent_model`.
        **sizes: See `latent_model`.

    Raises:
        DataListError: If there is no class.

    References:
        Pesteie, Abolmaesumi and Rohling, "Adaptive augmentation of medical data using
        independently conditional variational auto-encoders", IEEE TMI 2019.
    """
    names = told(attributes, classes, "icvae")
    return latent_model(spatial_shape, attributes=names, dropout=dropout, **sizes)


def told(attributes: Sequence[str], classes: Sequence[str], name: str) -> tuple[str, ...]:
    """Names of all attributes of a model that is told a class.

    Raises:
        DataListError: If there is no class, or one alone.
    """
    if len(classes) < 2:
        raise DataListError(
            f"{name} is told the class of a case, and {len(classes)} classes are known; it needs "
            f"two or more. Give every case of the data list a 'class', or train a model without "
            f"classes, such as vae."
        )
    return (*attributes, *(CLASS + each for each in classes))
