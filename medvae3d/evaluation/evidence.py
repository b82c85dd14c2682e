r"""How much of the evidence a bound reaches, with and without the flow, from the same weights.

One pass gives an unbiased log weight :math:`\log w = \log p(x, m, z_K) - \log q(z_0) + \log w_K`
(see `medvae3d.flows.hamiltonian`), hence two bounds on :math:`\log p(x, m)`:

.. math::
    \mathcal L = \mathbb E[\log w] \;\le\;
    \mathcal L_S = \mathbb E\Big[\log \frac1S \sum_{s=1}^S w_s\Big] \;\le\; \log p(x, m)

Both come from the same :math:`S` draws, and both flows from the same first latents, so that their
difference is paired.

References:
    Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.evaluation.intervals import mean_error
from medvae3d.evaluation.voxelwise import unit
from medvae3d.models.latent import Batch, Trace
from medvae3d.objectives.terms import elbo, observed_voxels
from medvae3d.probability.posteriors import DiagonalGaussian
from medvae3d.seeding import derive_seed


class Traced(Protocol):
    """A model that can be run once, with its flow or without."""

    def trace(
        self, batch: Batch, generator: torch.Generator | None = None, *, with_flow: bool = True
    ) -> Trace: ...


@dataclass(frozen=True, eq=False)
class LogWeights:
    """Log weights of a set of cases.

    Attributes:
        values: In nats, one row a draw, :math:`(S, N)`.
        voxels: Intensities and labels that were observed, of each case, :math:`(N,)`.
        scores: Errors of the reconstructions, mean over draws, by name, :math:`(N,)`.
        flow: Energy error and displacement of each trajectory, by name.
    """

    values: Tensor = field(repr=False)
    voxels: Tensor = field(repr=False)
    scores: dict[str, Tensor] = field(default_factory=dict, repr=False)
    flow: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def elbo(self) -> Tensor:
        """Mean over draws in nats, ``(N,)``."""
        return self.values.mean(0)

    @property
    def importance_weighted(self) -> Tensor:
        """The tighter bound in nats, ``(N,)``."""
        return self.values.logsumexp(0) - math.log(len(self.values))

    @property
    def standard_error(self) -> Tensor:
        """Standard error over draws of `importance_weighted`, to first order, in nats, ``(N,)``."""
        shares = self.values.softmax(0) * len(self.values)
        return shares.std(0) / math.sqrt(len(self.values))

    @property
    def effective_samples(self) -> Tensor:
        r""":math:`(\sum_s w_s)^2 / \sum_s w_s^2`, ``(N,)``: 1 where one draw outweighs the rest."""
        return 1 / self.values.softmax(0).square().sum(0)


@torch.no_grad()
def log_weights(
    model: Traced,
    batches: Sequence[Batch],
    samples: int = 16,
    seed: int = 0,
    *,
    with_flow: bool = True,
    progress: Callable[[], None] | None = None,
    require_density: bool = False,
) -> LogWeights:
    """Draws log weights in float32; the first latents depend on the seed alone, not on the flow.

    Args:
        model: A latent model in evaluation mode.
        batches: What it sees; as many cases a batch as memory allows, since the noise depends on
            how they are put together.
        samples: Draws a case :math:`S`.
        seed: Seed of all noise.
        with_flow: Whether the flow runs.
        progress: Called after each pass.
        require_density: Whether to refuse a posterior without a density.

    Raises:
        SettingError: If it is refused.
    """
    columns: list[Tensor] = []
    voxels: list[Tensor] = []
    scores: dict[str, list[Tensor]] = defaultdict(list)
    flow: dict[str, list[Tensor]] = defaultdict(list)
    for number, batch in enumerate(batches):
        rows, errors = [], defaultdict(list)
        for sample in range(samples):
            seed_here = derive_seed(seed, "evidence", number, sample)
            generator = torch.Generator().manual_seed(seed_here)
            trace = model.trace(batch, generator, with_flow=with_flow)
            if require_density and not isinstance(trace.posterior, DiagonalGaussian):
                raise SettingError(
                    f"the posterior is a {type(trace.posterior).__name__}, which has no density, "
                    f"so there is no importance-weighted log likelihood; compare such a model by "
                    f"its reconstructions and samples."
                )
            rows.append(elbo(trace, batch).double())
            for name, value in _errors(trace, batch).items():
                errors[name].append(value)
            flowed = trace.flowed
            error, far, moved = flowed.energy_error, flowed.displacement, flowed.moved
            if error is not None and far is not None and moved is not None:
                flow["energy_error"].append(error.double())
                flow["displacement"].append(far.double())
                flow["relative_displacement"].append(moved.double())
            if progress is not None:
                progress()
        columns.append(torch.stack(rows))
        for name, values in errors.items():
            scores[name].append(torch.stack(values).mean(0))
        voxels.append(observed_voxels(trace, batch).double().expand(len(rows[0])))
    return LogWeights(
        torch.cat(columns, 1),
        torch.cat(voxels),
        {name: torch.cat(values) for name, values in scores.items()},
        {name: torch.cat(values) for name, values in flow.items()},
    )


def _errors(trace: Trace, batch: Batch) -> dict[str, Tensor]:
    """NMSE and Dice of what the latent after the flow decodes to, ``(B,)`` each."""
    found = {}
    if "image" in trace.heads:
        real, made = unit(batch["image"]), unit(trace.heads["image"].mode())
        valid = batch.get("valid")
        error, norm = (made - real).square(), real.square()
        if valid is not None:  # not by a product: what was not observed may be NaN
            error, norm = (torch.where(valid > 0, each, 0.0) for each in (error, norm))
        found["nmse"] = (error.flatten(1).sum(1) / norm.flatten(1).sum(1)).double()
    if "mask" in trace.heads:
        mode = (trace.heads["mask"].mode() > 0).flatten(1).double()
        mask = (batch["mask"] > 0).flatten(1).double()
        found["dice"] = (2 * (mode * mask).sum(1) + 1e-6) / (mode.sum(1) + mask.sum(1) + 1e-6)
    return found


def bounds(weights: LogWeights) -> dict[str, Any]:
    """Both bounds, in nats and in nats per observed voxel, with standard errors over cases."""
    return {
        "elbo": mean_error(weights.elbo),
        "elbo per voxel": mean_error(weights.elbo / weights.voxels),
        "importance weighted": mean_error(weights.importance_weighted),
        "importance weighted per voxel": mean_error(weights.importance_weighted / weights.voxels),
        **{f"{name} of a draw": mean_error(value) for name, value in weights.scores.items()},
    }


def log_likelihood(
    model: Traced,
    batches: Sequence[Batch],
    samples: int = 100,
    seed: int = 0,
    *,
    progress: Callable[[], None] | None = None,
) -> dict[str, Any]:
    r"""Estimates :math:`\log p(x, m)` of held-out cases by importance sampling; plain numbers.

    The estimate is a bound from below that becomes exact with many draws. How far it may be trusted
    is said by the effective number of draws: close to 1, it is little more than the best of them,
    and a comparison of models by it is one of their posteriors too.

    Args:
        model: A latent model in evaluation mode, with a Gaussian posterior, or a flow after one.
        batches: See `log_weights`.
        samples: Draws a case.
        seed: See `log_weights`.
        progress: See `log_weights`.

    Returns:
        ``log likelihood`` and the same ``per voxel``, each with mean, standard error over cases and
        number of cases; ``error of draws``, the standard error of that mean that comes from the
        draws; median and smallest number of ``effective samples``; ``samples``; and ``by case``.

    Raises:
        SettingError: If the posterior has no density, so that there is no estimate.
    """
    drawn = log_weights(model, batches, samples, seed, progress=progress, require_density=True)
    values, effective = drawn.importance_weighted, drawn.effective_samples
    return {
        "log likelihood": mean_error(values),
        "log likelihood per voxel": mean_error(values / drawn.voxels),
        "error of draws": float(drawn.standard_error.square().sum().sqrt() / len(values)),
        "effective samples": {
            "median": float(effective.median()),
            "smallest": float(effective.min()),
        },
        "samples": samples,
        "by case": {
            "log likelihood": values.tolist(),
            "standard error": drawn.standard_error.tolist(),
            "effective samples": effective.tolist(),
        },
    }


def difference(with_flow: LogWeights, without: LogWeights) -> dict[str, Any]:
    """What the flow adds, case by case, in nats."""
    return {
        "elbo": mean_error(with_flow.elbo - without.elbo),
        "importance weighted": mean_error(
            with_flow.importance_weighted - without.importance_weighted
        ),
        **{
            f"{name} of a draw": mean_error(with_flow.scores[name] - without.scores[name])
            for name in with_flow.scores
        },
    }


def evidence(
    model: Traced,
    batches: Sequence[Batch],
    samples: int = 16,
    seed: int = 0,
    *,
    progress: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Both bounds without the flow and, if the model has one, with it; plain numbers.

    Args:
        model: See `log_weights`.
        batches: See `log_weights`.
        samples: See `log_weights`.
        seed: See `log_weights`.
        progress: See `log_weights`.
    """
    without = log_weights(model, batches, samples, seed, with_flow=False, progress=progress)
    steps = int(getattr(getattr(model, "flow", None), "num_steps", 0))
    found: dict[str, Any] = {
        "cases": without.values.shape[1],
        "draws": samples,
        "voxels": float(without.voxels.mean()),
        "rows": {"K = 0": bounds(without)},
    }
    if not steps:
        return found
    moved = log_weights(model, batches, samples, seed, progress=progress)
    found["rows"][f"K = {steps}"] = bounds(moved)
    found["rows"]["difference"] = difference(moved, without)
    sizes = model.flow.step_size.detach()  # type: ignore[attr-defined]
    found["flow"] = {
        "num_steps": steps,
        "smallest_step_size": float(sizes.min()),
        "largest_step_size": float(sizes.max()),
        "median_energy_error": float(moved.flow["energy_error"].abs().median()),
        "displacement": float(moved.flow["displacement"].mean()),
        "relative_displacement": float(moved.flow["relative_displacement"].mean()),
    }
    return found
