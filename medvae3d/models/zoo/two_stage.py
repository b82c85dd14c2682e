"""A mask from its attributes, then an image from the mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medvae3d.models.statistics import TrainingStatistics
from medvae3d.models.two_stage import TwoStageModel
from medvae3d.models.zoo.joint import latent_model
from medvae3d.networks.conditioning import LesionContext

MASK_ATTRIBUTES = (
    "log_volume",
    "log_extent_i",
    "log_extent_j",
    "log_extent_k",
    "sphericity",
    "axis_ratio_2",
    "axis_ratio_3",
)


def pavae(
    mask_shape: Sequence[int],
    image_shape: Sequence[int],
    *,
    image_channels: int = 1,
    attributes: Sequence[str] = MASK_ATTRIBUTES,
    location_size: int = 0,
    shape: dict[str, Any] | None = None,
    texture: dict[str, Any] | None = None,
    context_dilation: int = 2,
    context_dropout: float = 0.0,
    with_mask: bool = True,
    dropout: float = 0.0,
) -> TwoStageModel:
    """PAVAE-style pair of models: mask from attributes, then image from mask and context.

    Args:
        mask_shape: Voxels of a mask along (I, J, K).
        image_shape: Voxels of an image patch along (I, J, K).
        image_channels: Channels of the image.
        attributes: Names of the attributes of a mask.
        location_size: Voxels along each axis of the lesion location map; 0 for none.
        shape: Sizes of the first stage, see `latent_model`.
        texture: Sizes of the second stage, see `latent_model`.
        context_dilation: Voxels by which a mask is grown before the image is cut out.
        context_dropout: Share of training samples without context.
        with_mask: Whether the second stage is told the mask; see `LesionContext`.
        dropout: See `latent_model`.
    """
    first = latent_model(
        mask_shape,
        heads=("mask",),
        inputs=("mask",),
        attributes=attributes,
        encode_attributes=True,
        dropout=dropout,
        statistics=TrainingStatistics(),  # the pair keeps one for both
        **{"vector_latent": True, "latent_channels": 64, "channels": (16, 32, 64), **(shape or {})},
    )
    second = latent_model(
        image_shape,
        image_channels=image_channels,
        heads=("image",),
        inputs=("image",),
        context=LesionContext(
            image_channels, context_dilation, dropout=context_dropout, with_mask=with_mask
        ),
        dropout=dropout,
        statistics=TrainingStatistics(),
        **{"likelihood": "laplace", **(texture or {})},
    )
    statistics = TrainingStatistics(attributes, image_channels, location_size=location_size)
    return TwoStageModel(first, second, tuple(mask_shape), statistics)
