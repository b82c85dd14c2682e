r"""The classifiers of a study: small, the same for every arm, fed with other mixtures of images.

Every arm takes the same number of steps from the same first weights. A batch holds as many images
of either class; of :math:`n` real and :math:`m` extra images, the share

.. math:: \max\Big(s, \frac{n}{n + m}\Big)

is real on average, but never less than :math:`s`. In one arm, a class that has more extra images
than the other counts for more (`Mixture.follows_counts`). There is no early stopping: the last
weights are judged, so that nothing is chosen on images that are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.nets import DenseNet, ResNet
from torch import Tensor, nn

from medvae3d.data.augmentation import Augmentation, RandomIntensity, RandomPose
from medvae3d.errors import SettingError
from medvae3d.seeding import derive_generator, derive_seed
from medvae3d.studies.classification.sequences import SliceLSTM
from medvae3d.studies.classification.tasks import Images

# Pose and intensities of classical augmentation on patches.
CLASSICAL = Augmentation(
    RandomPose(flip_axes=(0, 1), rotation_deg=15.0, scale=0.1, translation=1.0, padding="border"),
    RandomIntensity(gain=0.1, gamma=0.1, offset=0.05, noise=0.03),
)
# What maps can stand: they have a place and a meaning along each axis.
SHIFT_AND_NOISE = Augmentation(
    RandomPose(translation=(2.0, 2.0, 0.0), padding="fill"), RandomIntensity(noise=0.1)
)
AUGMENTATIONS: Mapping[str, Augmentation] = {
    "classical": CLASSICAL,
    "shift_and_noise": SHIFT_AND_NOISE,
}


@dataclass(frozen=True)
class ClassifierSettings:
    """Size and training of a classifier.

    Attributes:
        network: ``resnet``, ``densenet``, ``cnn``, or ``slices``: a network for each slice and an
            LSTM over them.
        channels: Features of each level.
        dropout: Share of features dropped before the last layer.
        steps: Optimiser steps.
        batch_size: Images a step; even, half of them of each class.
        learning_rate: Rate of Adam, falling along half a cosine.
        augmentation: Name of what classical augmentation does.
        least_real: Smallest share of real images in a batch of a mixed arm.
    """

    network: str = "resnet"
    channels: tuple[int, ...] = (8, 16, 32)
    dropout: float = 0.0
    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 2e-3
    augmentation: str = "classical"
    least_real: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        for name, value, allowed in (
            ("network", self.network, NETWORKS),
            ("augmentation", self.augmentation, AUGMENTATIONS),
        ):
            if value not in allowed:
                raise SettingError(
                    f"classifier has {name} {value!r}; allowed are {', '.join(allowed)}."
                )
        if self.batch_size < 2 or self.batch_size % 2:
            raise SettingError(
                f"classifier has batch_size {self.batch_size}; allowed are even numbers from 2 on, "
                f"half a batch for each class."
            )

    def with_steps(self, steps: int) -> ClassifierSettings:
        """The same with another number of steps."""
        return replace(self, steps=steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "channels": list(self.channels)}


@dataclass(frozen=True, eq=False)
class Mixture:
    """What an arm is fed with.

    Attributes:
        real: Real training images; ``None`` for none.
        extra: Further images; ``None`` for none.
        is_augmented: Whether batches are augmented.
        least_real: Smallest share of real images in a batch, where there are any.
        follows_counts: Whether every extra image is as likely as any other, so that a class of
            which there are more counts for more; without, they are drawn evenly by class.
    """

    real: Images | None = field(repr=False)
    extra: Images | None = field(default=None, repr=False)
    is_augmented: bool = True
    least_real: float = 0.5
    follows_counts: bool = False

    @property
    def real_share(self) -> float:
        """Share of real images in a batch on average."""
        if self.real is None:
            return 0.0
        if self.extra is None or not len(self.extra):
            return 1.0
        return max(self.least_real, len(self.real) / (len(self.real) + len(self.extra)))

    def draw(self, size: int, generator: torch.Generator) -> Images:
        """One batch, half of it of each class, or with extra images by their counts.

        Args:
            size: Images in it.
            generator: Random numbers.
        """
        share = self.extra_share
        if share is not None:
            return self._by_counts(size, share, generator)
        parts: list[Tensor] = []
        for value in (0, 1):
            count = min(_rounded(size // 2 * self.real_share, generator), size // 2)
            parts += _picked(self.real, value, count, generator)
            parts += _picked(self.extra, value, size // 2 - count, generator)
        y = torch.arange(2).repeat_interleave(size // 2)
        return Images(torch.cat(parts), y)

    @property
    def extra_share(self) -> float | None:
        """Share of class 1 of extra images where it counts; ``None`` for even ones."""
        if not self.follows_counts or self.extra is None:
            return None
        share = float(self.extra.y.float().mean())
        return None if share == 0.5 else share

    def _by_counts(self, size: int, share: float, generator: torch.Generator) -> Images:
        half = size // 2
        real = [min(_rounded(half * self.real_share, generator), half) for _ in (0, 1)]
        left = size - sum(real)
        second = min(_rounded(left * share, generator), left)
        parts, counts = [], []
        for value, extra in enumerate((left - second, second)):
            parts += _picked(self.real, value, real[value], generator)
            parts += _picked(self.extra, value, extra, generator)
            counts.append(real[value] + extra)
        return Images(torch.cat(parts), torch.arange(2).repeat_interleave(torch.tensor(counts)))


def _rounded(wanted: float, generator: torch.Generator) -> int:
    """Rounded up or down by chance, so that it holds on average."""
    return int(wanted + float(torch.rand((), generator=generator)))


def _picked(
    images: Images | None, value: int, count: int, generator: torch.Generator
) -> list[Tensor]:
    if images is None or not count:
        return []
    pool = images.of_class(value)
    return [pool[torch.randint(len(pool), (count,), generator=generator)]]


def make_classifier(settings: ClassifierSettings, in_channels: int) -> nn.Module:
    """A network from images to two logits, with first weights from torch's own generator.

    Args:
        settings: Size.
        in_channels: Channels of an image.
    """
    return NETWORKS[settings.network](settings, in_channels)


def _resnet(settings: ClassifierSettings, in_channels: int) -> nn.Module:
    # Convolutions with a stride and no pooling also take maps of one voxel along an axis.
    widths = list(settings.channels)
    return ResNet(
        "basic",
        [1] * 4,
        [*widths, *[widths[-1]] * 4][:4],
        n_input_channels=in_channels,
        num_classes=2,
        conv1_t_size=3,
        conv1_t_stride=2,
        no_max_pool=True,
        norm=GROUPS,
    )


def _densenet(settings: ClassifierSettings, in_channels: int) -> nn.Module:
    return DenseNet(
        3,
        in_channels,
        2,
        init_features=settings.channels[0],
        growth_rate=settings.channels[0],
        block_config=(2,) * len(settings.channels),
        norm=("group", {"num_groups": 1}),  # widths of a DenseNet may be odd
        dropout_prob=settings.dropout,
    )


def _cnn(settings: ClassifierSettings, in_channels: int) -> nn.Module:
    """Convolution, batch norm, leaky ReLU and pooling at each level, then one linear layer."""
    layers: list[nn.Module] = []
    for width in settings.channels:
        layers.append(
            Convolution(3, in_channels, width, adn_ordering="NA", act="leakyrelu", norm="batch")
        )
        layers.append(nn.MaxPool3d(2, ceil_mode=True))
        in_channels = width
    layers += [nn.Flatten(), nn.Dropout(settings.dropout), nn.LazyLinear(2)]
    return nn.Sequential(*layers)


def _slices(settings: ClassifierSettings, in_channels: int) -> nn.Module:
    return SliceLSTM(in_channels, settings.channels, dropout=settings.dropout)


# Norms over groups and not over batches: statistics of a batch would be those of a mixture of real
# and synthetic images, and unseen ones are real.
GROUPS = ("group", {"num_groups": 4})
NETWORKS: Mapping[str, Callable[[ClassifierSettings, int], nn.Module]] = {
    "resnet": _resnet,
    "densenet": _densenet,
    "cnn": _cnn,
    "slices": _slices,
}


def train_classifier(
    mixture: Mixture,
    settings: ClassifierSettings,
    seed: int = 0,
    change: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> nn.Module:
    """Trains a classifier on a mixture; the same seed gives the same weights on the CPU.

    Args:
        mixture: What it is fed with.
        settings: Size and training.
        seed: Seed of the first weights, of the batches and of the augmentation.
        change: What is done to each batch after augmentation.

    Raises:
        SettingError: If a class has no image, or images do not fit the network.
    """
    images = _require_both(mixture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "classifier"))
        network = make_classifier(settings, images.x.shape[1])
        try:
            network.eval()(images.x[:1])
        except (RuntimeError, ValueError) as error:
            raise SettingError(
                f"images have {' x '.join(map(str, images.x.shape[2:]))} voxels; a "
                f"{settings.network} with the channels {list(settings.channels)} does not take "
                f"them ({error}). Take larger images, fewer channels, or the network resnet."
            ) from error
    augmentation = AUGMENTATIONS[settings.augmentation]
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, settings.steps))
    network.train()
    with torch.random.fork_rng(devices=[]):
        for step in range(settings.steps):
            generator = derive_generator(seed, "classifier step", step)
            torch.manual_seed(derive_seed(seed, "dropout", step))
            batch = mixture.draw(settings.batch_size, generator)
            x = batch.x
            if mixture.is_augmented:
                x = augmentation({"image": x}, generator)["image"]
            if change is not None:
                x = change(x, generator)
            loss = F.cross_entropy(network(x), batch.y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            decay.step()
    return network.eval()


@torch.no_grad()
def probabilities(network: nn.Module, x: Tensor, size: int = 32) -> np.ndarray:
    """Probability of class 1 for each image, ``(N,)``."""
    found = [network(part).softmax(1)[:, 1] for part in x.split(size)]
    return torch.cat(found).double().numpy()


def _require_both(mixture: Mixture) -> Images:
    for images in (mixture.real, None if mixture.follows_counts else mixture.extra):
        if images is None:
            continue
        missing = [value for value in (0, 1) if not bool((images.y == value).any())]
        if missing:
            raise SettingError(
                f"{len(images)} images to train on have none of class {missing[0]}; every batch "
                f"holds as many of either class. Ask for more cases with --n."
            )
    found = mixture.real if mixture.real is not None else mixture.extra
    if found is None:
        raise SettingError("there is no image to train on. Take an arm that has images.")
    return found
