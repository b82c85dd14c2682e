r"""Terms: named functions of a trace and its batch, each in nats or a plain distance, ``(B,)``.

.. math::
    \mathcal L = -\log p(x, m \mid z_K) + \beta\, \big[
        \log q(z_0 \mid x, m) - \log p(z_K) - \log w\big]

A term sums over voxels and is averaged over the batch by :class:`Objective`, so that an ELBO
depends neither on the size of the batch nor on how terms are combined. The target of a head is the
entry of the batch with its name; ``valid`` says where the image was observed, ``mask_valid`` where
the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from monai.losses import DiceLoss
from torch import Tensor

from medvae3d.errors import NonFiniteTermError, SettingError
from medvae3d.numerics import at_least_float32, sum_per_sample
from medvae3d.objectives.schedules import Schedule, as_schedule
from medvae3d.probability.posteriors import DiagonalGaussian

if TYPE_CHECKING:
    from medvae3d.models.latent import Trace

Batch: TypeAlias = Mapping[str, Any]
TermValue: TypeAlias = Callable[["Trace", Batch], Tensor]


def valid_for(name: str, batch: Batch) -> Tensor | None:
    """Where the target of a head was observed; ``None`` for everywhere."""
    valid: Tensor | None = batch.get("valid" if name == "image" else f"{name}_valid")
    return valid


# -- the evidence lower bound -------------------------------------------------------------------


def head_nll(trace: Trace, batch: Batch, head: str = "image") -> Tensor:
    """Minus log likelihood of one head in nats, ``(B,)``."""
    value: Tensor = -trace.heads[head].log_prob(batch[head], valid_for(head, batch))
    return value


def nll(trace: Trace, batch: Batch) -> Tensor:
    """Minus joint log likelihood of all heads in nats, ``(B,)``; given z they are independent."""
    return torch.stack([head_nll(trace, batch, name) for name in trace.heads]).sum(0)


def one_sample_kl(trace: Trace, batch: Batch) -> Tensor:
    r""":math:`\log q(z_0) - \log p(z_K) - \log w` in nats, ``(B,)``: the KL as its one sample.

    Right with every flow and every prior, at the price of noise; it may be negative.
    """
    gap = trace.posterior.log_prob(trace.first_z) - trace.prior.log_prob(trace.flowed.z)
    return gap - trace.flowed.log_weight


def analytic_kl(trace: Trace, batch: Batch) -> Tensor:
    """KL of the posterior to the prior in nats, ``(B,)``, without noise.

    The prior is the standard normal or, of a model with a conditional prior, a Gaussian.

    Raises:
        SettingError: With a flow or another prior, whose KL has no closed form.
    """
    is_closed = trace.prior.is_standard or isinstance(trace.prior, DiagonalGaussian)
    if trace.flowed.num_gradients or not is_closed:
        raise SettingError(
            "the analytic KL holds for a Gaussian prior without a flow; this model has "
            f"{'a flow' if trace.flowed.num_gradients else 'a fitted prior'}. Use one_sample_kl."
        )
    return sum_per_sample(kl_elements(trace))


def kl_elements(trace: Trace) -> Tensor:
    """KL of the first latent's posterior to its prior in nats, element by element."""
    posterior, prior = trace.posterior, trace.prior
    if isinstance(posterior, DiagonalGaussian) and isinstance(prior, DiagonalGaussian):
        return posterior.kl_to(prior)
    return posterior.kl_per_element()


def elbo(trace: Trace, batch: Batch) -> Tensor:
    r"""One-sample ELBO in nats, ``(B,)``.

    The identity flow has ``log_weight`` 0, so the line that trains an HVAE trains a VAE.
    """
    return -nll(trace, batch) - one_sample_kl(trace, batch)


def negative_elbo(trace: Trace, batch: Batch, beta: float = 1.0) -> Tensor:
    """Minus the one-sample ELBO in nats, ``(B,)``, its KL weighted by ``beta``."""
    return nll(trace, batch) + beta * one_sample_kl(trace, batch)


def free_bits(nats_per_dim: float) -> TermValue:
    r"""Makes the term :math:`\sum_j \max(0, \lambda - \mathrm{KL}_j)` in nats, ``(B,)``.

    Added to an objective with the KL at the same weight, it turns each :math:`\mathrm{KL}_j` into
    :math:`\max(\mathrm{KL}_j, \lambda)`: nothing is gained by switching an element of the latent
    off. It is of the posterior before the flow, works beside either form of the KL, and is taken
    sample by sample, so that it depends neither on the batch nor on the number of processes.

    References:
        Kingma et al., "Improved variational inference with inverse autoregressive flow", 2016.
    """

    def value(trace: Trace, batch: Batch) -> Tensor:
        return sum_per_sample((nats_per_dim - kl_elements(trace)).clamp_min(0))

    return value


def free_bits_kl(nats_per_dim: float) -> TermValue:
    r"""Makes :math:`\sum_j \max(\mathrm{KL}_j, \lambda)` in nats; for use without a flow."""
    shortfall = free_bits(nats_per_dim)

    def value(trace: Trace, batch: Batch) -> Tensor:
        return analytic_kl(trace, batch) + shortfall(trace, batch)

    return value


# -- distances between what is predicted and what was seen -----------------------------------------


def prediction_and_target(trace: Trace, batch: Batch, head: str) -> tuple[Tensor, Tensor]:
    """The mode of an image, or the probability of each label, and what it should be.

    Both are zero where nothing was observed.
    """
    distribution, target = trace.heads[head], batch[head]
    if distribution.output == "mask":
        prediction, target = distribution.foreground(), distribution.encode(target)
    else:
        prediction, target = distribution.mode(), at_least_float32(target)
    valid = valid_for(head, batch)
    if valid is not None:
        seen = valid > 0
        prediction = torch.where(seen, prediction, torch.zeros_like(prediction))
        target = torch.where(seen, target, torch.zeros_like(target))
    return prediction, target


def absolute_error(trace: Trace, batch: Batch, head: str = "image") -> Tensor:
    """Sum of absolute differences over voxels and channels, ``(B,)``."""
    prediction, target = prediction_and_target(trace, batch, head)
    return sum_per_sample((target - prediction).abs())


def in_mask_error(trace: Trace, batch: Batch) -> Tensor:
    r"""Mean absolute difference inside of the true mask, ``(B,)``.

    :math:`\sum m |x - \hat x| / (\sum m + 1)`, where :math:`m` is 1 in each observed channel of a
    foreground voxel.
    """
    prediction, target = prediction_and_target(trace, batch, "image")
    inside = (batch["mask"] > 0).to(prediction.dtype).expand_as(prediction)
    for name in ("image", "mask"):
        valid = valid_for(name, batch)
        if valid is not None:
            inside = inside * (valid > 0)
    error = sum_per_sample(inside * (target - prediction).abs())
    return error / (sum_per_sample(inside) + 1)


def overlap(trace: Trace, batch: Batch, head: str = "mask") -> Tensor:
    """One minus the soft Dice coefficient of the foreground, mean over labels, ``(B,)``.

    An empty prediction of an empty mask is a perfect one.
    """
    prediction, target = prediction_and_target(trace, batch, head)
    loss: Tensor = DiceLoss(reduction="none")(prediction, target)
    return loss.flatten(1).mean(1)


def observed_voxels(trace: Trace, batch: Batch) -> Tensor:
    """How many intensities and labels of the targets were observed, mean over the batch."""
    total = torch.zeros(())
    for name in trace.heads:
        target, valid = batch[name], valid_for(name, batch)
        if valid is None:
            total = total + target[0].numel()
        else:
            seen = (valid > 0).float()
            total = total.to(seen.device) + seen.expand(target.shape).flatten(1).sum(1).mean()
    return total.clamp_min(1)


# -- the objective ------------------------------------------------------------------------------


class Balance(Protocol):
    """Sets the weight of a term against the values of others, from their gradients."""

    against: tuple[str, ...]

    def __call__(self, reference: Tensor, value: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Term:
    """A named part of an objective.

    Attributes:
        name: For the log.
        value: Function of trace and batch, ``(B,)``. If it has an attribute ``start``, it is not
            evaluated before that step and counts as 0.
        weight: A number or a schedule.
        is_mean: Whether the value is a mean over voxels already. It is then multiplied by the
            number of observed voxels, so that its weight compares with that of terms in nats per
            voxel.
        balance: Adapts the weight further, against the weighted sum of other terms; see
            :class:`~medvae3d.objectives.adversarial.AdaptiveWeight`.
    """

    name: str
    value: TermValue
    weight: Schedule | float = 1.0
    is_mean: bool = False
    balance: Balance | None = None

    def has_started(self, step: int) -> bool:
        """Whether the term counts in this step."""
        return step >= getattr(self.value, "start", 0)


class Objective:
    """The weighted sum of its terms, and each term's own value for the log.

    Terms are given one by one or, as configuration files do, as one list.

    Args:
        *terms: The terms.
        per_voxel: Whether to divide the total by the number of observed voxels, so that learning
            rates and limits of the gradient norm do not depend on the size of a volume. Values for
            the log stay as they are.
    """

    def __init__(self, *terms: Term | list[Term], per_voxel: bool = False) -> None:
        self.terms: tuple[Term, ...] = tuple(
            term for given in terms for term in (given if isinstance(given, list) else [given])
        )
        self.per_voxel = per_voxel
        names = [term.name for term in self.terms]
        if not names or len(set(names)) < len(names):
            raise SettingError(f"the terms {names} of an objective: allowed is each name once.")
        for term in self.terms:
            unknown = set(term.balance.against if term.balance else ()) - set(names)
            if unknown:
                raise SettingError(
                    f"term {term.name} is balanced against {sorted(unknown)}; the terms are "
                    f"{names}."
                )

    def __call__(self, trace: Trace, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Evaluates all terms.

        Returns:
            The loss, a scalar, and the batch mean of each term, outside of the graph.

        Raises:
            NonFiniteTermError: If a term is infinite or NaN.
        """
        samples = {
            term.name: term.value(trace, batch) for term in self.terms if term.has_started(step)
        }
        _require_finite(samples, trace, batch, step)
        values = {name: value.mean() for name, value in samples.items()}
        size = observed_voxels(trace, batch)
        total = trace.flowed.z.new_zeros(())
        weights: dict[str, float | Tensor] = {}
        for term in self.terms:
            weight: float | Tensor = as_schedule(term.weight)(step)
            weights[term.name] = weight * size.to(total.device) if term.is_mean else weight
        for term in self.terms:
            if term.name not in values:
                continue
            weight = weights[term.name]
            if term.balance is not None:
                against = [name for name in term.balance.against if name in values]
                reference = sum(weights[name] * values[name] for name in against)
                weight = weight * term.balance(torch.as_tensor(reference), values[term.name])
            total = total + weight * values[term.name]
        if self.per_voxel:
            total = total / size.to(total.device)
        zero = torch.zeros((), device=total.device)
        return total, {
            term.name: values[term.name].detach() if term.name in values else zero
            for term in self.terms
        }


def _require_finite(samples: Mapping[str, Tensor], trace: Trace, batch: Batch, step: int) -> None:
    good = {name: value.detach().isfinite() for name, value in samples.items()}
    # One look at the device for all terms together.
    if not good or bool(torch.stack([each.all() for each in good.values()]).all()):
        return
    broken = [name for name, each in good.items() if not each.all()]
    names = list(batch.get("case", []))
    bad = torch.stack([(~good[name]).reshape(-1) for name in broken]).any(0).tolist()
    cases = [name for name, is_bad in zip(names, bad, strict=False) if is_bad]
    low, high = (edge.item() for edge in trace.posterior.scale.detach().aminmax())
    raise NonFiniteTermError(
        f"step {step}: {' and '.join(broken)} not finite for "
        f"{', '.join(map(str, cases)) if cases else f'{sum(bad)} unnamed cases'}; posterior scale "
        f"in [{low:.2g}, {high:.2g}]. Lower the learning rate or the flow's step size, and check "
        f"these cases with `medvae3d data check`; the last checkpoint is intact."
    )
