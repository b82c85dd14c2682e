r"""Terms that keep a latent from telling the class of its case: :math:`\mathcal I(z; y) \to 0`.

Three ways. A case drawn as another class :math:`y'` has to keep its latent,

.. math::
    -\log q\big(z \mid x + \mu(z, y') - \mu(z, y)\big), \qquad z \sim q(z \mid x),

with the decoder's means :math:`\mu`, so that what it leaves of a case stays; the same for the mask.
The decoder rests here and :math:`z` is given: the encoder learns not to see what the class alone
changes. There is no game that can turn in circles. The Hilbert-Schmidt
independence criterion needs no network but batches of a dozen cases and more,

.. math::
    \mathrm{HSIC}(z, y) = \tfrac{1}{B^2}\, \mathrm{tr}(K H L H), \qquad
    H = I - \tfrac1B \mathbf 1 \mathbf 1^\top,

with a Gaussian kernel :math:`K` of latents, its width the median distance, and :math:`L` 1 for two
cases of one class. Or a classifier :math:`d` of latents, trained in turns of its own, whose answer
has to stay at the frequencies :math:`\pi` of the classes:
:math:`\mathrm{KL}(\pi \,\|\, d(y \mid z))`. That is the adversary of a gradient reversal with a
minimum at chance in the place of one beyond it.

References:
    Gretton et al., "Measuring statistical dependence with Hilbert-Schmidt norms", 2005.
    Pesteie, Abolmaesumi and Rohling, IEEE TMI 2019, for a latent apart from its label; these terms
    are this library's reading of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medvae3d.errors import SettingError
from medvae3d.models.latent import LatentModel
from medvae3d.objectives.adversarial import judging
from medvae3d.objectives.schedules import warm_up
from medvae3d.objectives.terms import Batch, Objective, Term, nll, one_sample_kl, overlap

if TYPE_CHECKING:
    from medvae3d.models.latent import Trace
    from medvae3d.models.traces import Condition


def hsic(z: Tensor, classes: Tensor) -> Tensor:
    """Dependence of latents ``(B, ...)`` and class numbers ``(B,)``, from 0 to 1; a scalar.

    Divided by that of each with itself, so that its size does not depend on how many classes there
    are or how latents are spread; 0 for fewer than two classes in the batch.
    """
    flat = z.flatten(1).float()
    count = len(flat)
    square = (flat[:, None] - flat[None]).square().sum(-1)
    others = square.detach()[~torch.eye(count, dtype=torch.bool, device=z.device)]
    width = others.median().clamp_min(1e-6) if len(others) else square.new_ones(())
    first = torch.exp(-square / width)
    second = (classes[:, None] == classes[None]).float()
    centre = torch.eye(count, device=z.device) - 1 / count
    first, second = centre @ first @ centre, centre @ second @ centre
    norm = first.square().sum().sqrt() * second.square().sum().sqrt()
    return (first * second).sum() / norm.clamp_min(1e-6)


def class_numbers(model: LatentModel, trace: Trace) -> Tensor:
    """Number of the class of each case, ``(B,)``, from what the model was told."""
    return _natural(model, trace)[:, model.statistics.class_columns].argmax(1)


def _natural(model: LatentModel, trace: Trace) -> Tensor:
    """What the model was told, in natural values, ``(B, F)``."""
    told = trace.condition.attributes
    if told is None:
        raise SettingError(
            "the latent is to tell no class, and none was told. Give the model attributes of the "
            "form class:NAME, and every case a class."
        )
    return told * model.statistics.scale + model.statistics.mean


@dataclass(frozen=True)
class Dependence:
    """HSIC of latents and classes, the same for all cases of a batch, ``(B,)``.

    Attributes:
        model: Says which attributes are classes.
    """

    model: LatentModel

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        value = hsic(trace.first_z, class_numbers(self.model, trace))
        return value.expand(len(trace.first_z))


@dataclass(frozen=True)
class Counterfactual:
    """Latent of each case, read off the same case as the next class, in nats, ``(B,)``.

    Attributes:
        model: Says which attributes are classes.
        start: First step at which the term counts: earlier, the decoder does not know the classes.
    """

    model: LatentModel
    start: int = 0

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        model, z = self.model, trace.first_z.detach()
        as_next = self._next_class(trace)
        with torch.no_grad():
            drawn = model.decode(trace.flowed.z, as_next)
            changed = {**batch, "mask_probability": None}
            own, other = (heads["image"].mode() for heads in (trace.heads, drawn))
            changed["image"] = batch["image"] + (other - own)
            if "mask" in drawn:
                own, other = (heads["mask"].mode() for heads in (trace.heads, drawn))
                changed["mask"] = torch.where(own == other, batch["mask"].to(other), other)
        # Nothing is hidden from the encoder but what was not observed: terms have no generator.
        x = model.encoder_input(changed, as_next, hiding=False)
        return -model.read_input(x, as_next)[1].log_prob(z)

    def _next_class(self, trace: Trace) -> Condition:
        statistics, natural = self.model.statistics, _natural(self.model, trace)
        columns = statistics.class_columns
        # The last class comes before the first. One that is told none is taken for the first.
        numbers = (natural[:, columns].argmax(1) + 1) % len(columns)
        natural[:, columns] = torch.eye(len(columns), device=natural.device)[numbers].to(natural)
        return replace(trace.condition, attributes=statistics.standardise(natural))


@dataclass(frozen=True)
class Tell:
    r"""What a classifier of latents tells of the class beyond its frequency, in nats, ``(B,)``.

    Attributes:
        model: Says which attributes are classes.
        classifier: Latents to one logit a class. Its parameters receive no gradient from this term.
        start: First step at which the term counts.
    """

    model: LatentModel
    classifier: nn.Module
    start: int = 0

    def __call__(self, trace: Trace, batch: Batch) -> Tensor:
        statistics = self.model.statistics
        share = statistics.mean[statistics.class_columns].clamp_min(1e-6)
        share = share / share.sum()
        with judging(self.classifier):
            logs = self.classifier(trace.first_z).log_softmax(1)
        return (share * (share.log() - logs)).sum(1)


def icvae_objective(
    model: LatentModel,
    classifier: nn.Module | None = None,
    *,
    independence: float = 1.0,
    counterfactual: float = 0.0,
    beta: float = 1.0,
    warm_up_steps: int = 0,
    start: int = 0,
    overlap_weight: float = 0.0,
) -> Objective:
    r"""The bound of a model whose latent is not to tell the class.

    .. math:: -\log p(x, m \mid z, y) + \beta\, \mathrm{KL} + \lambda N\, \mathcal I(z; y)
        - \gamma \log q(z \mid x', m')

    Args:
        model: The model.
        classifier: Tells the class from a latent; HSIC takes its place without one.
        independence: Weight :math:`\lambda`, per voxel; 0 for none of both.
        counterfactual: Weight :math:`\gamma` of a case's latent, read off the same case as another
            class; 0 for none.
        beta: Final weight of the KL.
        warm_up_steps: Steps over which it rises.
        start: First step of the classifier's and of the counterfactual term.
        overlap_weight: Weight of one minus the soft Dice of the mask.
    """
    value = Dependence(model) if classifier is None else Tell(model, classifier, start)
    terms = [
        Term("nll", nll),
        Term("kl", one_sample_kl, weight=warm_up(warm_up_steps, top=beta)),
    ]
    if independence:
        terms.append(Term("independence", value, weight=independence, is_mean=True))
    if counterfactual:
        terms.append(Term("counterfactual", Counterfactual(model, start), weight=counterfactual))
    if overlap_weight:
        terms.append(Term("overlap", overlap, weight=overlap_weight, is_mean=True))
    return Objective(terms, per_voxel=True)
