r"""A classifier that reads a volume slice by slice: a small network, then an LSTM along the axis.

Slices that hold nothing but fill are padding. They are left out before the LSTM reads, so that a
volume says the same however much it was padded, and volumes may have different numbers of slices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from medvae3d.data.preparation import FILL


def observed_slices(x: Tensor) -> Tensor:
    """Which axial slices of images ``(N, C, I, J, K)`` hold anything, ``(N, K)``.

    Of a volume without any, the first counts.
    """
    seen = (x > FILL + 1e-6).amax((1, 2, 3))
    first = torch.zeros_like(seen)
    first[:, 0] = True
    return torch.where(seen.any(1, keepdim=True), seen, first)


class SliceLSTM(nn.Module):
    """Slices to features, features along the axis to two logits by the last state.

    Args:
        in_channels: Channels of an image.
        channels: Features of each level of the network for slices.
        hidden: Width of the LSTM.
        dropout: Share of the last state dropped while training.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (8, 16, 32),
        hidden: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in channels:
            norm = ("group", {"num_groups": 4, "num_channels": width})
            layers.append(Convolution(2, in_channels, width, strides=2, act="relu", norm=norm))
            in_channels = width
        self.slices = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.along = nn.LSTM(in_channels, hidden, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, 2))

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Logits of images.

        Args:
            x: Images.
            seen: Slices to read; those that hold anything by default.

        Shape:
            - ``x``: :math:`(N, C, I, J, K)`; ``seen``: :math:`(N, K)`
            - output: :math:`(N, 2)`
        """
        seen = observed_slices(x) if seen is None else seen
        count, depth = seen.shape
        slices = x.movedim(4, 1).flatten(0, 1)
        features = self.slices(slices).view(count, depth, -1)
        # Slices to read come first, in their order.
        order = torch.argsort((~seen).to(torch.uint8), dim=1, stable=True)
        features = features.gather(1, order[..., None].expand_as(features))
        packed = nn.utils.rnn.pack_padded_sequence(
            features, seen.sum(1).cpu(), batch_first=True, enforce_sorted=False
        )
        _, (last, _) = self.along(packed)
        logits: Tensor = self.head(last[-1])
        return logits


def shuffle_slices(x: Tensor, generator: torch.Generator) -> Tensor:
    """Deals out the observed slices of each image anew; padding stays where it is.

    Shape:
        - ``x`` and output: :math:`(N, C, I, J, K)`
    """
    made = x.clone()
    for row, seen in enumerate(observed_slices(x)):
        places = torch.nonzero(seen)[:, 0]
        order = torch.randperm(len(places), generator=generator)
        made[row][..., places] = x[row][..., places[order]]
    return made
