r"""A prior that a network makes of the condition: :math:`p(z \mid c)`."""

from __future__ import annotations

from torch import nn

from medvae3d.errors import SettingError
from medvae3d.models.latent import Condition
from medvae3d.networks.autoencoders import Encoder
from medvae3d.probability.posteriors import DiagonalGaussian


class MapPrior(nn.Module):
    r"""A Gaussian over the latent, read off the condition maps.

    .. math:: p(z \mid c) = \mathcal N(\mu(c), \mathrm{diag}\,\sigma^2(c))

    Args:
        encoder: Condition maps to twice the channels of the latent. It starts near the standard
            normal, with a scale of about 0.7.

    References:
        Sohn, Lee and Yan, "Learning structured output representation using deep conditional
        generative models", NeurIPS 2015.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        head = list(encoder.head.modules())[-1]
        if isinstance(head, nn.Conv3d | nn.Linear):
            head.weight.data.mul_(0.1)

    def forward(self, condition: Condition) -> DiagonalGaussian:
        if condition.maps is None:
            raise SettingError(
                "this model draws its latent from condition maps, and none were given. Make them "
                "with `LatentModel.condition`, or with `LatentModel.blank` for nothing at all."
            )
        return DiagonalGaussian.from_features(self.encoder(condition.maps))
