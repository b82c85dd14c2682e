"""The learned perceptual distance LPIPS over AlexNet, with weights that the user has on disk."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvae3d.evaluation.feature_networks import at_least, load_exactly, read_weights
from medvae3d.evaluation.features import slices_along


class LPIPS(nn.Module):
    r"""Learned perceptual distance of slices along all three axes (2.5-D), from a local file.

    .. math:: d = \sum_l \overline{w_l^\top (\hat f_l(x) - \hat f_l(y))^2}

    over AlexNet's five layers, whose responses have unit norm in each pixel.

    Args:
        weights: The state dict of ``LPIPS(net="alex")`` of the package ``lpips``, or of its copy in
            torchmetrics: trunk (``net.slice1.0.weight``) and calibration
            (``lin0.model.1.weight``).
        licence: Of the weights. The calibration is BSD-2-Clause; AlexNet was trained on ImageNet,
            whose images are for non-commercial research.
        slice_step: Distance between slices that are looked at.

    Raises:
        UnreadableFileError: If the weights are not those of this network.

    References:
        - Zhang et al., The unreasonable effectiveness of deep features, CVPR 2018.
    """

    def __init__(
        self,
        weights: str | Path,
        licence: str = "calibration BSD-2-Clause; trunk trained on ImageNet (research only)",
        slice_step: int = 2,
    ) -> None:
        super().__init__()
        self.licence, self.slice_step = licence, slice_step
        widths = (3, 64, 192, 384, 256, 256)
        shapes = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, kernel, stride, padding)
            for a, b, (kernel, stride, padding) in zip(widths, widths[1:], shapes, strict=False)
        )
        self.calibrations = nn.ModuleList(nn.Conv2d(b, 1, 1, bias=False) for b in widths[1:])
        state = {_lpips_key(k): v for k, v in read_weights(weights, "LPIPS").items()}
        # The second copy of the calibration and the constants that scale colours.
        state = {k: v for k, v in state.items() if not k.startswith(("lins.", "scaling_layer."))}
        load_exactly(self, state, weights, "LPIPS over AlexNet")

    def features(self, x: Tensor) -> list[Tensor]:
        """Responses of unit norm of one-channel images from -1 to 1."""
        shift = x.new_tensor([-0.030, -0.088, -0.188])[:, None, None]
        scale = x.new_tensor([0.458, 0.448, 0.450])[:, None, None]
        x = (at_least(x, 64).expand(-1, 3, -1, -1) - shift) / scale
        found = []
        for index, convolution in enumerate(self.convolutions):
            if index in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(convolution(x))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    @torch.no_grad()
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Distance of images by channel, ``(B, C)``."""
        rows = [
            [self._one(a[None, None], b[None, None]) for a, b in zip(*pair, strict=True)]
            for pair in zip(x.float(), other.float(), strict=True)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def _one(self, x: Tensor, other: Tensor) -> float:
        planes = []
        for axis in (2, 3, 4):
            pair = [self.features(slices_along(v, axis, self.slice_step)) for v in (x, other)]
            layers = [
                calibration((a - b).square()).mean()
                for a, b, calibration in zip(*pair, self.calibrations, strict=True)
            ]
            planes.append(torch.stack(layers).sum())
        return float(torch.stack(planes).mean())


def _lpips_key(key: str) -> str:
    for index, layer in enumerate(("1.0", "2.3", "3.6", "4.8", "5.10")):
        if key.startswith(f"net.slice{layer}."):
            return key.replace(f"net.slice{layer}.", f"convolutions.{index}.")
        if key.startswith(f"lin{index}.model.1."):
            return key.replace(f"lin{index}.model.1.", f"calibrations.{index}.")
    return key
