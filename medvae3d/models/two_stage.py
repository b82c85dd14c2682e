r"""Shape first, then intensity: two latent models applied one after the other.

.. math:: p(m \mid c)\, p(x \mid m, b), \qquad b = x \cdot (1 - \mathrm{dilate}(m))

This is a PAVAE-style design, not a reproduction: neither code nor layer sizes of the original
were published.

References:
    Huo et al., "Brain lesion synthesis via progressive adversarial variational auto-encoder",
    SASHIMI 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvae3d.models.latent import Condition, LatentModel
from medvae3d.models.statistics import TrainingStatistics


class TwoStageModel(nn.Module):
    """A model of masks and a model of images given a mask and their surroundings.

    Args:
        shape: Mask from attributes; its only head is ``mask``.
        texture: Image from mask and context; its only head is ``image``.
        mask_shape: Voxels of a mask that the first stage makes, along (I, J, K).
        statistics: What is remembered of the training set.
    """

    def __init__(
        self,
        shape: LatentModel,
        texture: LatentModel,
        mask_shape: tuple[int, ...],
        statistics: TrainingStatistics,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.texture = texture
        self.mask_shape = tuple(mask_shape)
        self.statistics = statistics

    @property
    def values(self) -> tuple[int, ...]:
        """Label values of the mask, background first."""
        return self.shape.values

    @property
    def image_channels(self) -> int:
        """Channels of the image."""
        return self.texture.image_channels

    def forward(self, image: Tensor) -> Tensor:
        """Puts the typical lesion into the middle of a volume, without noise.

        Shape:
            - ``image``: :math:`(B, C, I, J, K)`, each side at least that of a mask
            - output: :math:`(B, N + C, I, J, K)`, mask fields first, then the image
        """
        z = image.new_zeros(len(image), *self.shape.latent_shape)
        field = self.shape.decode(z, Condition())["mask"].field().float()
        spare = [n - m for n, m in zip(image.shape[2:], self.mask_shape, strict=True)]
        pads = [side for extra in reversed(spare) for side in (extra // 2, extra - extra // 2)]
        field = F.pad(field, pads, value=-20.0)  # a logit of -20: surely background
        batch = {"image": image, "mask": (field > 0).any(1, keepdim=True).float()}
        condition = self.texture.condition(batch)
        latent = self.texture.encode(batch, condition).mean
        made = self.texture.decode(latent, condition)["image"].mode()
        return torch.cat([field, made.float()], dim=1)
