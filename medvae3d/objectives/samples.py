r"""Terms on what a model makes of the prior, beside what it rebuilds.

A trace holds reconstructions only. The noise :math:`\epsilon` of the draw
:math:`z = \mu + \sigma \odot \epsilon` that it was made of is itself a draw from the standard
normal prior, so that a sample :math:`x_p` with latent :math:`\epsilon` costs a pass of the decoder
and no further random number: a term that counts for nothing leaves a run as it was, bit for bit,
and model and discriminator judge the same noise within a step.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from medvae3d.flows.hamiltonian import Identity
from medvae3d.models.latent import Condition, LatentModel, Trace
from medvae3d.objectives.adversarial import (
    Discriminator,
    generator_score,
    judging,
    require_kind,
    stacked,
)
from medvae3d.objectives.terms import Batch
from medvae3d.probability.posteriors import PointMass


def generated_trace(model: LatentModel, z: Tensor, condition: Condition) -> Trace:
    """What a model makes of given latents, as a trace without an encoder's part.

    All mass of its posterior lies on the latents, so terms that read heads can judge it.
    """
    flowed = Identity()(z, lambda z: z.flatten(1).sum(1))
    prior = model.prior_given(condition)
    return Trace(PointMass(z), prior, z, flowed, model.decode(z, condition), condition)


def prior_draw(trace: Trace) -> Tensor:
    """The noise of a trace as a draw from the standard normal, in the shape of the latent.

    It is cut off from the encoder.
    """
    noise = (trace.first_z - trace.posterior.mean) / trace.posterior.scale
    return noise.detach()


def prior_volumes(
    model: LatentModel, trace: Trace, batch: Batch, mask_smoothing: float = 0.0
) -> Tensor:
    """Decoded draws from the prior, stacked as a discriminator sees them, ``(B, C + N, I, J, K)``.

    They are made under the condition of the trace; see
    :func:`~medvae3d.objectives.adversarial.pair` for the rest.
    """
    heads = model.decode(prior_draw(trace), trace.condition)
    return stacked(batch, heads, real=False, mask_smoothing=mask_smoothing)


@dataclass(frozen=True)
class SampleScore:
    """The term that makes samples from the prior pass for real; a mean over patches, ``(B,)``.

    It teaches the decoder alone. Its counterpart for reconstructions is
    :class:`~medvae3d.objectives.adversarial.AdversarialScore`.

    Attributes:
        model: Whose decoder makes the samples, under the standard normal prior.
        discriminator: The judge. Its parameters receive no gradient from this term.
        start: First step at which the term counts.
        kind: ``hinge``, ``least_squares`` or ``logistic``.
        mask_smoothing: See :func:`~medvae3d.objectives.adversarial.pair`.
    """

    model: LatentModel
    discriminator: Discriminator
    start: int = 0
    kind: str = "hinge"
    mask_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_kind(self.kind)

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        fake = prior_volumes(self.model, trace, batch, self.mask_smoothing)
        with judging(self.discriminator):
            return generator_score(self.discriminator(fake)[-1], self.kind)
