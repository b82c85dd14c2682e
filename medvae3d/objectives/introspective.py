r"""Objectives of a model that is its own discriminator: the encoder tells real from made.

No second network judges. The divergence of the posterior from the prior says how real a volume
looks to the encoder: the encoder lowers it for real volumes and raises it for made ones, the
decoder lowers it for what it makes. A made volume is a reconstruction, :math:`x_r`, or the decoded
draw from the prior, :math:`x_p`. Image and mask are one stacked volume :math:`x` of :math:`N`
values, so that a pair of them passes for real only together. The error of a volume is

.. math:: L(x) = \|x - \hat x\|^2,

a sum over voxels and channels; a mask enters it as the probability of each label. Divergences are
in nats, summed over the latent. All losses are means over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.flows.hamiltonian import Identity
from medvae3d.models.latent import Condition, LatentModel, Trace
from medvae3d.numerics import sum_per_sample
from medvae3d.objectives.adversarial import stacked
from medvae3d.objectives.terms import Batch, observed_voxels

ROLES = ("encoder", "decoder")
PUBLISHED = 3 * 256**2
"""Values of a colour image of 256 x 256 pixels, the size that both papers give settings for."""
LEAST_BETA_NEG = 256.0


@dataclass(frozen=True)
class Seen:
    """What the model makes of volumes, real or made, each ``(B,)``.

    Attributes:
        kl: Divergence of the posterior from the prior, in nats.
        error: Squared error of their reconstruction; 0 where nobody asked for it.
    """

    kl: Tensor
    error: Tensor


@dataclass(frozen=True)
class Introspection:
    """All that one step of either player reads.

    Attributes:
        real: Of the batch.
        made: Of its reconstructions and of samples, by name; empty before introspection starts.
        size: Number :math:`N` of observed values in a volume, a scalar.
        trace: The pass through the model that gave the reconstructions.
    """

    real: Seen
    made: dict[str, Seen]
    size: Tensor
    trace: Trace


class IntrospectiveObjective(Protocol):
    """What the two players of introspective training minimise."""

    rebuilds_made: ClassVar[bool]
    """Whether it reads the errors of made volumes, which cost one more pass of the decoder each."""

    def encoder_loss(self, seen: Introspection) -> Tensor:
        """Loss of the encoder, a scalar."""

    def decoder_loss(self, seen: Introspection) -> Tensor:
        """Loss of the decoder, a scalar."""

    def report(self, seen: Introspection) -> dict[str, Tensor]:
        """Scalars for the log."""


def require_introspective(model: LatentModel) -> None:
    """Checks that the encoder can read what the decoder makes.

    Raises:
        SettingError: If it reads an output that the decoder does not make, if the model has a flow,
            or if masks are hidden from the encoder at random, which would tell real from made.
    """
    if not set(model.inputs) <= set(model.heads):
        raise SettingError(
            f"the encoder reads {list(model.inputs)}, the decoder makes {list(model.heads)}; "
            f"introspective training needs an encoder that reads nothing else. Change `inputs` or "
            f"`heads` of the network."
        )
    if not isinstance(model.flow, Identity) or model.mask_dropout:
        raise SettingError(
            f"introspective training of a model with flow {type(model.flow).__name__} and "
            f"mask_dropout {model.mask_dropout}; allowed are no flow and 0. Use "
            f"`medvae3d.models.zoo.vae` without `mask_dropout`."
        )


def introspect(
    model: LatentModel,
    batch: Batch,
    generator: torch.Generator | None,
    role: str,
    *,
    with_made: bool = True,
    rebuild_made: bool = True,
) -> Introspection:
    r"""Shows a model the batch, its reconstructions and samples, in the turn of one player.

    Gradients stop where the losses have :math:`\mathrm{sg}`. The encoder is shown made volumes that
    are cut off from the decoder. The decoder starts from latents that are cut off from the encoder,
    its gradient reaches made volumes through the (frozen) encoder's divergence, and reconstructions
    of made volumes start from cut-off latents towards cut-off targets. Which parameters learn is up
    to the player.

    Args:
        model: See `require_introspective`.
        batch: See `LatentModel`.
        generator: Source of all noise.
        role: ``encoder`` or ``decoder``.
        with_made: Whether to make anything; without, the losses are those of a VAE.
        rebuild_made: Whether to reconstruct what was made.
    """
    if role not in ROLES:
        raise SettingError(f"role {role!r}; allowed are {', '.join(ROLES)}.")
    for_encoder = role == "encoder"
    condition = model.condition(batch, generator)
    posterior = model.encode(batch, condition, generator)
    z = posterior.rsample(generator)
    z = z if for_encoder else z.detach()
    heads = model.decode(z, condition)
    flowed = Identity()(z, lambda z: z.flatten(1).sum(1))
    trace = Trace(posterior, model.prior, z, flowed, heads, condition)
    rebuilt = stacked(batch, heads, real=False)
    real = Seen(posterior.kl(), _error(rebuilt, stacked(batch, heads, real=True)))
    made: dict[str, Seen] = {}
    if with_made:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not for_encoder):
            drawn = model.prior.sample(len(z), generators=generator)
            sampled = stacked(batch, model.decode(drawn, condition), real=False)
        for name, volume in {"rebuilt": rebuilt, "sampled": sampled}.items():
            shown = volume.detach() if for_encoder else volume
            made[name] = _seen(model, shown, batch, condition, generator, role, rebuild_made)
    return Introspection(real, made, observed_voxels(trace, batch).to(z.device), trace)


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    return sum_per_sample((found - wanted).square())


def _seen(
    model: LatentModel,
    volume: Tensor,
    batch: Batch,
    condition: Condition,
    generator: torch.Generator | None,
    role: str,
    rebuild: bool,
) -> Seen:
    parts = dict(batch)
    channels = model.image_channels if "image" in model.heads else 0
    if channels:
        parts["image"] = volume[:, :channels]
    if "mask" in model.heads:
        parts["mask_probability"] = volume[:, channels:]
    posterior = model.encode(parts, condition, generator)
    if not rebuild:
        return Seen(posterior.kl(), torch.zeros_like(posterior.kl()))
    z = posterior.rsample(generator)
    heads = model.decode(z if role == "encoder" else z.detach(), condition)
    return Seen(posterior.kl(), _error(stacked(batch, heads, real=False), volume.detach()))


@dataclass(frozen=True)
class SoftIntrospection:
    r"""Soft-IntroVAE: the encoder lowers the exponential of the bound of made volumes.

    With :math:`s = 1/N`, reconstructions :math:`x_r` and samples :math:`x_p`,

    .. math::
        L_E &= s\,(\beta_\mathrm{rec} L(x) + \beta_\mathrm{kl} \mathrm{KL})
            + \tfrac{1}{2 \alpha} \sum_{t \in \{r, p\}} \overline{\exp\{-\alpha s\,
              (\beta_\mathrm{rec} L(\mathrm{sg}\, x_t)
              + \beta_\mathrm{neg} \mathrm{KL}_t)\}} \\
        L_D &= s\,\Big(\beta_\mathrm{rec} L(x)
            + \tfrac12 \beta_\mathrm{kl} (\mathrm{KL}_r + \mathrm{KL}_p)
            + \tfrac12 \gamma \beta_\mathrm{rec}\, (L(x_r) + L(x_p))\Big).

    Without made volumes, :math:`L_E` is the bound of a VAE with weight
    :math:`\beta_\mathrm{kl} / \beta_\mathrm{rec}` of its divergence.

    Attributes:
        beta_rec: Weight :math:`\beta_\mathrm{rec}` of errors.
        beta_kl: Weight :math:`\beta_\mathrm{kl}` of divergences; usually not below ``beta_rec``.
        beta_neg: Weight :math:`\beta_\mathrm{neg}` of the divergence of made volumes. By default
            :math:`\max(256,\ 1024\, N / (3 \cdot 256^2))`, which is what was published for images
            of 784 to 49,152 values (256) and of 196,608 (1024), and keeps its weight in the
            exponent beyond. Lower it if the exponents in the log leave [-5, 0].
        gamma: Weight :math:`\gamma` of errors of made volumes in the turn of the decoder.
        alpha: Sharpness :math:`\alpha` of the exponential, 2 as published. ``None`` lets it follow
            the divergence of real volumes, taken for a constant,
            :math:`\alpha = \log(2 \beta_\mathrm{neg} / \beta_\mathrm{kl})
            / (s\, \beta_\mathrm{neg} \overline{\mathrm{KL}})`. An encoder that cannot tell made
            volumes from real ones is pushed away from the prior by half of what draws it there
            then; with a fixed sharpness it ends at
            :math:`\alpha s\, \beta_\mathrm{neg} \mathrm{KL} =
            \log(\beta_\mathrm{neg} / \beta_\mathrm{kl})`, however large a divergence that is.

    References:
        Daniel and Tamar, "Soft-IntroVAE: analyzing and improving the introspective variational
        autoencoder", 2021.
    """

    beta_rec: float = 1.0
    beta_kl: float = 1.0
    beta_neg: float | None = None
    gamma: float = 1e-8
    alpha: float | None = 2.0

    rebuilds_made: ClassVar[bool] = True

    def alpha_of(self, seen: Introspection) -> Tensor:
        """The sharpness of the exponential, a scalar without a gradient."""
        if self.alpha is not None:
            return torch.full_like(seen.size, self.alpha)
        beta_neg = self._beta_neg(seen)
        kl = seen.real.kl.detach().mean().clamp_min(1.0)
        return seen.size * (2 * beta_neg / self.beta_kl).log() / (beta_neg * kl)

    def _beta_neg(self, seen: Introspection) -> Tensor:
        if self.beta_neg is not None:
            return torch.full_like(seen.size, self.beta_neg)
        return (1024 * seen.size / PUBLISHED).clamp_min(LEAST_BETA_NEG)

    def exponents(self, seen: Introspection) -> dict[str, Tensor]:
        r"""What is exponentiated, of each sort of made volumes, ``(B,)``.

        .. math:: -\alpha s\, (\beta_\mathrm{rec} L + \beta_\mathrm{neg} \mathrm{KL})

        A sharpness that follows is that of the divergence; the error keeps 2.
        """
        beta_neg = self._beta_neg(seen)
        share = self.alpha_of(seen) / seen.size
        of_error = self.beta_rec * (2.0 / seen.size if self.alpha is None else share)
        return {
            name: -of_error * each.error - share * beta_neg * each.kl
            for name, each in seen.made.items()
        }

    def encoder_loss(self, seen: Introspection) -> Tensor:
        bound = self.beta_rec * seen.real.error + self.beta_kl * seen.real.kl
        loss = bound.mean() / seen.size
        for exponent in self.exponents(seen).values():
            loss = loss + exponent.exp().mean() / (2 * self.alpha_of(seen))
        return loss

    def decoder_loss(self, seen: Introspection) -> Tensor:
        loss = self.beta_rec * seen.real.error.mean()
        for each in seen.made.values():
            loss = loss + 0.5 * self.beta_kl * each.kl.mean()
            loss = loss + 0.5 * self.gamma * self.beta_rec * each.error.mean()
        return loss / seen.size

    def report(self, seen: Introspection) -> dict[str, Tensor]:
        found = _report(seen)
        exponents = self.exponents(seen)
        if exponents:
            every = torch.cat(list(exponents.values())).detach()
            found |= {"exponent_low": every.min(), "exponent_high": every.max()}
        return found


@dataclass(frozen=True)
class HingeIntrospection:
    r"""IntroVAE: the encoder pushes the divergence of made volumes up to a margin.

    .. math::
        L_E &= w_r L(x) + w_\mathrm{kl} \Big\{\mathrm{KL} + \tfrac12 w_\mathrm{neg}
            \sum_{t \in \{r, p\}} \overline{\max(0, m - \mathrm{KL}(\mathrm{sg}\, x_t))}\Big\} \\
        L_D &= w_r L(x) + \tfrac12 w_\mathrm{kl}
            \sum_{t \in \{r, p\}} \overline{\max(\mathrm{KL}_t, f)}.

    The floor :math:`f` is where the decoder rests: what it made looks as real as real volumes do
    then, :math:`f = \mathrm{sg}\,\overline{\mathrm{KL}}`. Both sides have a hinge so, with the
    divergence of made volumes between them. Without a floor, :math:`f = 0`, which is what was
    published, a decoder that is ahead draws it below that of real ones.

    Attributes:
        margin: The margin :math:`m`, in nats. It must lie above where the divergence of real
            volumes settles. By default it follows that divergence: ``margin_ratio`` times its mean
            over the batch, taken for a constant.
        margin_ratio: By how much the margin lies above the divergence of real volumes.
        w_rec: Weight :math:`w_r`. A weight of :math:`1 / (2 \sigma^2)` is that of Gaussian voxels
            of scale :math:`\sigma`; 5 is that of 0.32. For a volume of any size, as both error and
            divergence grow with it.
        w_kl: Weight :math:`w_\mathrm{kl}`.
        w_neg: Weight :math:`w_\mathrm{neg}`.
        rests: Whether the decoder has the floor.

    References:
        Huang et al., "IntroVAE: introspective variational autoencoders for photographic image
        synthesis", 2018.
    """

    margin: float | None = None
    margin_ratio: float = 1.5
    w_rec: float = 5.0
    w_kl: float = 1.0
    w_neg: float = 0.5
    rests: bool = True

    rebuilds_made: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.margin is not None and self.margin <= 0:
            raise SettingError(f"margin {self.margin}; allowed are nats above 0.")
        if self.margin_ratio <= 1:
            raise SettingError(f"margin_ratio {self.margin_ratio}; allowed are numbers above 1.")

    def margin_for(self, seen: Introspection) -> Tensor:
        """The margin in nats, a scalar without a gradient."""
        kl = seen.real.kl.detach().mean()
        return self.margin_ratio * kl if self.margin is None else torch.full_like(kl, self.margin)

    def encoder_loss(self, seen: Introspection) -> Tensor:
        loss = self.w_rec * seen.real.error.mean() + self.w_kl * seen.real.kl.mean()
        for each in seen.made.values():
            short = (self.margin_for(seen) - each.kl).clamp_min(0).mean()
            loss = loss + 0.5 * self.w_kl * self.w_neg * short
        return loss

    def decoder_loss(self, seen: Introspection) -> Tensor:
        loss = self.w_rec * seen.real.error.mean()
        floor = float(self.rests) * seen.real.kl.detach().mean()
        for each in seen.made.values():
            loss = loss + 0.5 * self.w_kl * torch.maximum(each.kl, floor).mean()
        return loss

    def report(self, seen: Introspection) -> dict[str, Tensor]:
        return {**_report(seen), "margin": self.margin_for(seen)}


def _report(seen: Introspection) -> dict[str, Tensor]:
    found = {"error": seen.real.error, "kl": seen.real.kl}
    found |= {f"kl_{name}": each.kl for name, each in seen.made.items()}
    return {name: value.detach().mean() for name, value in found.items()}
