r"""Terms in which a discriminator judges what a model made.

A discriminator maps a volume to a list of feature maps, the last of them its logits :math:`D`. With
the hinge,

.. math::
    \mathcal L_D = \tfrac12 \big[\overline{\max(0, 1 - D(x))}
        + \overline{\max(0, 1 + D(\hat x))}\big], \qquad \mathcal L_G = -\overline{D(\hat x)},

with least squares :math:`\tfrac12[\overline{(D(x) - 1)^2} + \overline{D(\hat x)^2}]` and
:math:`\overline{(D(\hat x) - 1)^2}`, and with the logistic loss
:math:`-\tfrac12[\overline{\log \sigma(D(x))} + \overline{\log(1 - \sigma(D(\hat x)))}]` and
:math:`-\overline{\log \sigma(D(\hat x))}`. All pairs are written out: MONAI's
``PatchAdversarialLoss`` puts a tanh or a leaky rectifier before them, which is another loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter
from torch import Tensor, nn

from medvae3d.errors import SettingError
from medvae3d.objectives.terms import Batch, valid_for

if TYPE_CHECKING:
    from medvae3d.models.latent import Trace

Discriminator: TypeAlias = Callable[[Tensor], list[Tensor]]

KINDS = ("hinge", "least_squares", "logistic")


def require_kind(kind: str) -> None:
    """Checks the name of an adversarial loss."""
    if kind not in KINDS:
        raise SettingError(f"adversarial loss {kind!r}; allowed are {', '.join(KINDS)}.")


def generator_score(logits: Tensor, kind: str = "hinge") -> Tensor:
    """How far fakes are from passing for real, mean over patches, ``(B,)``."""
    require_kind(kind)
    logits = logits.float().flatten(1)
    if kind == "logistic":
        return F.softplus(-logits).mean(1)
    return -logits.mean(1) if kind == "hinge" else (logits - 1).square().mean(1)


def discriminator_score(real: Tensor, fake: Tensor, kind: str = "hinge") -> Tensor:
    """The discriminator's own loss from logits of real volumes and fakes, a scalar."""
    require_kind(kind)
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    if kind == "logistic":
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def discriminator_loss(
    discriminator: Discriminator, real: Tensor, fake: Tensor, kind: str = "hinge"
) -> tuple[Tensor, Tensor]:
    """Judges real volumes and fakes, which are cut off from the model that made them.

    Returns:
        The loss, and the share of patches told rightly (an even number of each), both scalars.
    """
    real_logits = discriminator(real.detach())[-1]
    fake_logits = discriminator(fake.detach())[-1]
    middle = 0.5 if kind == "least_squares" else 0.0
    right = (real_logits.detach() > middle).float().mean()
    right = right + (fake_logits.detach() <= middle).float().mean()
    return discriminator_score(real_logits, fake_logits, kind), 0.5 * right


def pair(batch: Batch, *, trace: Trace, real: bool, mask_smoothing: float = 0.0) -> Tensor:
    """Stacks image and mask as the discriminator sees them, real or made, ``(B, C + N, I, J, K)``.

    A made image is the mode of its head, a made mask the probability of each foreground label.
    Where the model makes no mask but was given one, both sides show the given one; where it makes
    no image, both are masks alone. What was not observed is 0 on both sides, so that it cannot give
    them away.

    Args:
        batch: The batch.
        trace: What the model made of it.
        real: Whether to show what was observed.
        mask_smoothing: Standard deviation in voxels of a Gaussian over both masks. Binary against
            soft values would make the task trivial; 0.7 is a good value for a model of masks alone.
    """
    return stacked(batch, trace.heads, real=real, mask_smoothing=mask_smoothing)


def stacked(
    batch: Batch, heads: Mapping[str, Any], *, real: bool, mask_smoothing: float = 0.0
) -> Tensor:
    """The volumes of :func:`pair` from heads alone, such as those of a latent from the prior."""
    parts: list[Tensor] = []
    if "image" in heads:
        image = batch["image"].float() if real else heads["image"].mode()
        parts.append(_where_valid(image, valid_for("image", batch)))
    mask = batch.get("mask")
    if "mask" in heads:
        head = heads["mask"]
        parts.append(head.encode(mask) if real else head.foreground())
    elif mask is not None:
        parts.append((mask > 0).float())
    if mask is not None:
        smooth = GaussianFilter(3, mask_smoothing) if mask_smoothing else nn.Identity()
        parts[-1] = _where_valid(smooth.to(mask.device)(parts[-1]), valid_for("mask", batch))
    return torch.cat([part.float() for part in parts], dim=1)


def _where_valid(x: Tensor, valid: Tensor | None) -> Tensor:
    return x if valid is None else torch.where(valid > 0, x, torch.zeros_like(x))


@contextmanager
def judging(discriminator: Discriminator) -> Iterator[None]:
    """Keeps the discriminator's parameters out of the graph of what it judges."""
    parameters = list(discriminator.parameters()) if isinstance(discriminator, nn.Module) else []
    free = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in free:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class AdversarialScore:
    """The term that makes a model's volumes pass for real; a mean over patches, ``(B,)``.

    Attributes:
        discriminator: The judge. Its parameters receive no gradient from this term.
        start: First step at which the term counts; before, the discriminator is not even asked.
        kind: ``hinge``, ``least_squares`` or ``logistic``.
        mask_smoothing: See :func:`pair`.
    """

    discriminator: Discriminator
    start: int = 0
    kind: str = "hinge"
    mask_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_kind(self.kind)

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        fake = pair(batch, trace=trace, real=False, mask_smoothing=self.mask_smoothing)
        with judging(self.discriminator):
            return generator_score(self.discriminator(fake)[-1], self.kind)


@dataclass(frozen=True)
class FeatureMatching:
    r"""Distance between features of real and made volumes, ``(B,)``.

    .. math:: \sum_l \overline{|D_l(x) - D_l(\hat x)|}

    over all feature maps but the logits, each a mean over its elements.

    Attributes:
        discriminator: Gives the features. Its parameters receive no gradient from this term.
        start: First step at which the term counts.
        mask_smoothing: See :func:`pair`.

    References:
        Wang et al., "High-resolution image synthesis with conditional GANs", 2018.
    """

    discriminator: Discriminator
    start: int = 0
    mask_smoothing: float = 0.0

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        smoothing = self.mask_smoothing
        real = pair(batch, trace=trace, real=True, mask_smoothing=smoothing)
        fake = pair(batch, trace=trace, real=False, mask_smoothing=smoothing)
        with torch.no_grad():
            wanted = self.discriminator(real)[:-1]
        with judging(self.discriminator):
            found = self.discriminator(fake)[:-1]
        return torch.stack(
            [
                (a.float() - b.float()).abs().flatten(1).mean(1)
                for a, b in zip(wanted, found, strict=True)
            ]
        ).sum(0)


class AdaptiveWeight:
    r"""Sets an adversarial term to the strength of the reconstruction, at the decoder's last layer.

    .. math::
        \lambda = \mathrm{clip}\Big(
            \frac{\|\nabla_W L_\mathrm{rec}\|}{\|\nabla_W L_G\| + 10^{-4}},\ 0,\ 10^4\Big)

    It is a number, outside of the graph. Without gradients, as in validation, it cannot be measured
    and is 0: the term is then logged and does not count. Over several processes the gradients are
    averaged before their norms are taken, so that all of them find the same number.

    Args:
        layer: Weight :math:`W` of the decoder's last layer.
        against: Names of the terms that make up :math:`L_\mathrm{rec}`.
        top: Upper limit.

    References:
        Esser et al., "Taming transformers for high-resolution image synthesis", 2021.
    """

    def __init__(self, layer: nn.Parameter, against: Sequence[str], top: float = 1e4) -> None:
        self.layer = layer
        self.against = tuple(against)
        self.top = top

    def __call__(self, reference: Tensor, value: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not value.requires_grad or not reference.requires_grad:
            return torch.zeros((), device=value.device)
        ratio = self._norm(reference) / (self._norm(value) + 1e-4)
        return ratio.clamp(0, self.top).detach()

    def _norm(self, loss: Tensor) -> Tensor:
        gradient: Tensor | None = torch.autograd.grad(
            loss, self.layer, retain_graph=True, allow_unused=True
        )[0]
        if gradient is None:
            gradient = torch.zeros_like(self.layer)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(gradient)
            gradient = gradient / dist.get_world_size()
        return gradient.float().norm()
