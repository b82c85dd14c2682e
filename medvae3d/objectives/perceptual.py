r"""Perceptual distances: differences of features rather than of voxels.

.. math:: d(x, \hat x) = \sum_l \overline{\Big\| \frac{f_l(x)}{\|f_l(x)\|}
          - \frac{f_l(\hat x)}{\|f_l(\hat x)\|} \Big\|^2}

Features come from a network that is **fixed and random** unless somebody hands in trained weights:
it needs no download and no licence, and what it compares is local texture at a few scales, not
semantics. Masks do not belong into an image network; compare them with an overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvae3d.errors import SettingError, UnreadableFileError
from medvae3d.models.weights import read_tensors
from medvae3d.numerics import float32_island
from medvae3d.objectives.terms import Batch, prediction_and_target

if TYPE_CHECKING:
    from medvae3d.models.latent import Trace

Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Maps two images ``(B, C, I, J, K)`` to their distance, ``(B,)``."""


class RandomFeatureDistance(nn.Module):
    """Perceptual distance under a fixed random network; each channel is looked at on its own.

    The network is drawn from its seed, has no parameters and no modes, and is in nobody's
    optimiser.

    Args:
        dims: 3 for volumes in full, 2 for slices along all three axes (2.5-D).
        widths: Feature channels of each level; the resolution halves from one to the next.
        seed: Draws the weights.
        slice_step: In 2.5-D, the distance between slices that are looked at.

    Shape:
        - both inputs: :math:`(B, C, I, J, K)`
        - output: :math:`(B,)`
    """

    is_trained = False

    def __init__(
        self,
        dims: Literal[2, 3] = 3,
        widths: Sequence[int] = (8, 16, 32),
        seed: int = 0,
        slice_step: int = 2,
    ) -> None:
        super().__init__()
        if dims not in (2, 3) or not widths or slice_step < 1:
            raise SettingError(
                f"RandomFeatureDistance(dims={dims}, widths={tuple(widths)}, "
                f"slice_step={slice_step}): allowed are 2 or 3 dims, at least one width, and steps "
                f"of 1 or more."
            )
        self.dims = dims
        self.slice_step = slice_step
        self.levels = len(widths)
        generator = torch.Generator().manual_seed(seed)
        previous = 1
        for level, width in enumerate(widths):
            shape = (width, previous, *[3] * dims)
            weight = torch.randn(shape, generator=generator) * (2 / (previous * 3**dims)) ** 0.5
            self.register_buffer(f"weight_{level}", weight)
            self.register_buffer(f"bias_{level}", 0.1 * torch.randn(width, generator=generator))
            previous = width

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of one-channel images, each voxel's features of unit norm."""
        convolve: Callable[..., Tensor] = F.conv3d if self.dims == 3 else F.conv2d
        pool: Callable[..., Tensor] = F.avg_pool3d if self.dims == 3 else F.avg_pool2d
        found = []
        for level in range(self.levels):
            if level and min(x.shape[2:]) >= 2:
                x = pool(x, 2)
            weight = self.get_buffer(f"weight_{level}")
            bias = self.get_buffer(f"bias_{level}")
            x = F.silu(convolve(x, weight, bias, padding=1))
            # Inside of the root: the gradient at zero features stays finite.
            found.append(x * (x.square().sum(1, keepdim=True) + 1e-6).rsqrt())
        return found

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        with float32_island(x.device.type):
            x, other = x.float(), other.float()
            if self.dims == 3:
                return self._distance(x, other, len(x))
            views = [self._slices(x, axis) for axis in (2, 3, 4)]
            others = [self._slices(other, axis) for axis in (2, 3, 4)]
            distances = [self._distance(*both, len(x)) for both in zip(views, others, strict=True)]
            return torch.stack(distances).mean(0)

    def _slices(self, x: Tensor, axis: int) -> Tensor:
        # From the middle of a step, so that the first slice is not the edge of the volume.
        slices = x.movedim(axis, 1)[:, self.slice_step // 2 :: self.slice_step]
        return slices if slices.shape[1] else x.movedim(axis, 1)[:, :1]

    def _distance(self, x: Tensor, other: Tensor, count: int) -> Tensor:
        sizes = x.shape[-self.dims :]
        both = zip(
            self.features(x.reshape(-1, 1, *sizes)),
            self.features(other.reshape(-1, 1, *sizes)),
            strict=True,
        )
        return torch.stack(
            [(a - b).square().sum(1).reshape(count, -1).mean(1) for a, b in both]
        ).sum(0)


class TrainedFeatureDistance(nn.Module):
    """Perceptual distance under MONAI's ``PerceptualLoss`` with weights from a local file (2.5-D).

    Nothing is downloaded. Mind the licence of the weights: those of torchvision were trained on
    ImageNet, whose images are for non-commercial research; say in the model card what was used.

    Args:
        weights: State dict of torchvision's ``resnet50``.
        slice_ratio: Share of the slices along each axis that is looked at.

    Raises:
        UnreadableFileError: If there is no such file, or something else in it.
        SettingError: If torchvision is not installed.
    """

    is_trained = True

    def __init__(self, weights: str | Path, slice_ratio: float = 1.0) -> None:
        super().__init__()
        path = Path(weights)
        if not path.is_file():
            raise UnreadableFileError(
                f"perceptual weights {path} not found; nothing is downloaded here. Put "
                f"torchvision's resnet50 state dict there, or use RandomFeatureDistance, which "
                f"needs none."
            )
        from monai.losses import PerceptualLoss

        try:
            read_tensors(path)
            network = PerceptualLoss(
                spatial_dims=3,
                network_type="resnet50",
                is_fake_3d=True,
                fake_3d_ratio=slice_ratio,
                pretrained=True,
                pretrained_path=str(path),
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise UnreadableFileError(
                f"{path} does not hold the weights of torchvision's resnet50 ({error}). Use a "
                f"state dict of that network, or RandomFeatureDistance, which needs none."
            ) from error
        except (ImportError, AttributeError) as error:
            raise SettingError(
                f"MONAI's perceptual loss needs torchvision ({error}). Install it, or use "
                f"RandomFeatureDistance, which needs nothing."
            ) from error
        # Hidden from parameters(), train() and state_dict(): frozen for good, saved with nobody.
        object.__setattr__(self, "_network", network.eval().requires_grad_(False))
        self._network: nn.Module

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        with float32_island(x.device.type):
            self._network.to(x.device)
            # MONAI averages over the batch and takes one or three channels: one image at a time.
            rows = [
                torch.stack([self._one(*both) for both in zip(sample, twin, strict=True)]).mean()
                for sample, twin in zip(x.float(), other.float(), strict=True)
            ]
            return torch.stack(rows)

    def _one(self, x: Tensor, other: Tensor) -> Tensor:
        # MONAI draws the slices that it looks at from the global state; here, the same each time.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            value: Tensor = self._network(
                x.expand(1, 3, -1, -1, -1), other.expand(1, 3, -1, -1, -1)
            )
        return value


@dataclass(frozen=True)
class Perceptual:
    """The term: perceptual distance of the image times its number of voxels and channels, ``(B,)``.

    The factor makes it a sum over voxels like the other terms. One distance a sample is spread over
    all voxels and summed, as the discriminative HVAE does; its weight then compares with that of
    :func:`~medvae3d.objectives.terms.absolute_error`.

    Attributes:
        distance: Measures it.
        start: First step at which the term counts.
    """

    distance: Distance
    start: int = 0

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        prediction, target = prediction_and_target(trace, batch, "image")
        return target[0].numel() * self.distance(target, prediction)
