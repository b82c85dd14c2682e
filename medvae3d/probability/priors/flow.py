r"""A normalising flow over the principal components of a latent, given attributes.

Elements are standardised, :math:`y = (z - \bar z) / t`, and split by the orthonormal principal
components :math:`V` into scores :math:`s = V y` and what they leave. The flow is fitted to scores
of unit size; the rest is a Gaussian of one scale:

.. math::
    \log p(z \mid a) = \log p_\mathrm{flow}(s / \sigma \mid a) - \sum_j \log \sigma_j
    + \log \mathcal N\big(\|y\|^2 - \|s\|^2;\ \tau\big) - \sum_j \log t_j

where the last Gaussian has as many dimensions as the components leave. The flow is a neural spline
flow of the library zuko.

References:
    Durkan et al., "Neural spline flows", 2019. Rozet et al., "Zuko: normalizing flows in PyTorch".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from medvae3d.errors import SettingError
from medvae3d.numerics import Generators, at_least_float32, float32_island, standard_normal
from medvae3d.probability.priors.base import (
    LOG_2_PI,
    HeldOut,
    checked_latents,
    one_by_one,
    require_attributes,
    require_sizes,
    standard_log_prob,
)
from medvae3d.seeding import derive_generator, derive_seed


def spline_flow(features: int, context: int, **sizes: Any) -> nn.Module:
    """Builds a neural spline flow of zuko.

    Raises:
        SettingError: If zuko is not installed.
    """
    try:
        from zuko.flows import NSF
    except ImportError:
        raise SettingError(
            "the prior `flow` needs the package zuko, which is not installed. Install it with "
            "`pip install 'medvae3d[flow]'`, or choose another prior, such as `mixture`."
        ) from None
    flow: nn.Module = NSF(features, context, **sizes)
    return flow


class FlowPrior(nn.Module):
    """A neural spline flow over principal components of the latent; told attributes or not.

    Until it is fitted, it is the standard normal.

    Args:
        shape: Shape of one latent, ``(L, i, j, k)`` or ``(L,)``.
        rank: Principal components :math:`r` that the flow models.
        attributes: Number :math:`F` of attributes, standardised; 0 for none.
        transforms: Layers of the flow.
        width: Width of the two hidden layers of each.
        steps: Steps of the fit.
        batch_size: Latents a step.
        learning_rate: Of the fit; it falls along half a cosine.
        forgetting: Share of latents that are fitted without their attributes, so that the prior
            also draws without any. A further input tells the flow which is the case.
        min_scale: Floor of all scales.

    Raises:
        SettingError: If zuko is not installed, or a size is not positive.
    """

    keeps_scale = False

    mean: Tensor
    element_scale: Tensor
    components: Tensor
    score_scale: Tensor
    residual_scale: Tensor
    fitted: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        rank: int = 32,
        attributes: int = 0,
        transforms: int = 3,
        width: int = 64,
        steps: int = 500,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        forgetting: float = 0.1,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        require_sizes("FlowPrior", rank=(rank, 1), attributes=(attributes, 0))
        self.shape = tuple(shape)
        size = math.prod(self.shape)
        self.rank = min(rank, size)
        self.attributes = attributes
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.forgetting = forgetting
        self.min_scale = min_scale
        self.sizes = {"transforms": transforms, "hidden_features": (width, width)}
        self.context = attributes + 1 if attributes else 0
        self.flow = spline_flow(self.rank, self.context, **self.sizes)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("element_scale", torch.ones(size))
        self.register_buffer("components", torch.zeros(self.rank, size))
        self.register_buffer("score_scale", torch.ones(self.rank))
        self.register_buffer("residual_scale", torch.ones(()))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @property
    def is_standard(self) -> bool:
        return not bool(self.fitted)

    def _told(self, attributes: Tensor | None, count: int) -> Tensor | None:
        """Attributes and whether they are known, ``(B, F + 1)``; nothing for a prior without."""
        if not self.attributes:
            return None
        if attributes is None:
            return self.mean.new_zeros(count, self.context)
        require_attributes(attributes, self.attributes)
        return torch.cat([attributes.to(self.mean), self.mean.new_ones(count, 1)], 1)

    # -- fitting -----------------------------------------------------------------------------------

    def fit(
        self,
        latents: Tensor,
        attributes: Tensor | None = None,
        *,
        seed: int,
        validation: HeldOut | None = None,
    ) -> FlowPrior:
        """Fits components, then the flow.

        Args:
            latents: One or several draws per case from the aggregated posterior, ``(N, ...)``.
            attributes: What the cases are told, ``(N, F)``.
            seed: Seeds weights and order.
            validation: Held-out latents, with their attributes where there are any. The weights of
                the highest mean log density on them are kept.

        Raises:
            SettingError: If the sizes do not fit, a value is not finite, or there are fewer latents
                than the components need.
        """
        z, a = checked_latents(latents, attributes, self.shape, self.attributes)
        if len(z) < self.rank + 2:
            raise SettingError(
                f"{len(z)} latents for a flow over {self.rank} components; allowed are "
                f"{self.rank + 2} and more. Raise `prior_passes` or lower `network_def#rank`."
            )
        scores = self._fit_components(z, seed)
        told = None if a is None else a.float().to(self.mean.device)
        held_out = None
        if validation is not None:
            held_out = validation if isinstance(validation, tuple) else (validation, None)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(derive_seed(seed, "flow"))
            fresh = spline_flow(self.rank, self.context, **self.sizes)
            self.flow.load_state_dict(fresh.state_dict())
        frozen = [p for p in self.flow.parameters() if not p.requires_grad]
        self.flow.requires_grad_(True)
        try:
            with torch.enable_grad():
                self._fit_flow(scores, told, held_out, seed)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for parameter in self.flow.parameters():
                parameter.grad = None
        self.fitted.fill_(True)
        return self

    @torch.no_grad()
    def _fit_components(self, z: Tensor, seed: int) -> Tensor:
        """Finds the principal components of standardised elements; returns scores of unit size."""
        mean = z.mean(0)
        scale = z.std(0).clamp_min(self.min_scale)
        y = (z - mean) / scale
        pca = PCA(self.rank, svd_solver="full" if min(z.shape) <= 2000 else "auto",
                  random_state=seed)  # fmt: skip
        pca.fit(y.numpy())
        axes = torch.from_numpy(pca.components_.copy())
        scores = y @ axes.T
        spread = scores.std(0).clamp_min(self.min_scale)
        free = z.shape[1] - self.rank
        left = (y.square().sum() - scores.square().sum()).clamp_min(0)
        # The components took degrees of freedom from what they left.
        residual = (left / max(1, free * max(1, len(z) - 1 - self.rank))).sqrt()
        self.mean.copy_(mean)
        self.element_scale.copy_(scale)
        self.components.copy_(axes)
        self.score_scale.copy_(spread)
        self.residual_scale.copy_(residual.clamp_min(self.min_scale))
        return (scores / spread).float().to(self.mean.device)

    def _fit_flow(
        self,
        scores: Tensor,
        told: Tensor | None,
        held_out: tuple[Tensor, Tensor | None] | None,
        seed: int,
    ) -> None:
        generator = derive_generator(seed, "latents")
        optimizer = torch.optim.AdamW(self.flow.parameters(), self.learning_rate, weight_decay=1e-3)
        best, best_score = None, -math.inf
        for step in range(self.steps):
            pick = torch.randperm(len(scores), generator=generator)[: self.batch_size]
            rows = self._told(None if told is None else told[pick.to(told.device)], len(pick))
            if rows is not None:
                said = (torch.rand(len(rows), 1, generator=generator) >= self.forgetting).to(rows)
                rows = rows * said
            loss = -self.flow(rows).log_prob(scores[pick.to(scores.device)]).mean()
            for group in optimizer.param_groups:
                share = 0.5 * (1 + math.cos(math.pi * step / self.steps))
                group["lr"] = self.learning_rate * share
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.flow.parameters(), 5.0)
            optimizer.step()
            if held_out is not None and (step + 1) % max(1, self.steps // 10) == 0:
                score = self._score(*held_out)
                if score > best_score:
                    state = self.flow.state_dict()
                    best, best_score = {k: v.clone() for k, v in state.items()}, score
        if best is not None:
            self.flow.load_state_dict(best)

    @torch.no_grad()
    def _score(self, latents: Tensor, attributes: Tensor | None) -> float:
        device = self.mean.device
        told = None if attributes is None else attributes.to(device)
        return float(self._log_prob(latents.to(device), told).mean())

    # -- the density -------------------------------------------------------------------------------

    def log_prob(self, z: Tensor, attributes: Tensor | None = None) -> Tensor:
        """Log density in nats, ``(B,)``, given attributes if there are any."""
        return standard_log_prob(z) if self.is_standard else self._log_prob(z, attributes)

    def _log_prob(self, z: Tensor, attributes: Tensor | None) -> Tensor:
        with float32_island(z.device.type):
            y = (z.double().flatten(1) - self.mean.double()) / self.element_scale.double()
            scores = y @ self.components.double().T
            white = (scores / self.score_scale.double()).float()
            found = self.flow(self._told(attributes, len(z))).log_prob(white).double()
            found = found - self.score_scale.double().log().sum()
            found = found - self.element_scale.double().log().sum()
            free = len(self.mean) - self.rank
            if free:
                tau = self.residual_scale.double()
                rest = (y.square().sum(1) - scores.square().sum(1)) / tau.square()
                found = found - 0.5 * (rest + free * LOG_2_PI) - free * tau.log()
            return found.to(at_least_float32(z).dtype)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        attributes: Tensor | None = None,
        generators: Generators = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws latents, float32; ``temperature`` scales the noise that the flow transforms."""
        nothing = self.mean.new_zeros(0, *self.shape)
        draw = partial(self._draw, temperature=temperature)
        with float32_island(self.mean.device.type):
            return one_by_one(count, (attributes,), generators, draw, nothing)

    def _draw(
        self, attributes: Tensor | None, generator: torch.Generator | None, temperature: float
    ) -> Tensor:
        device = self.mean.device
        if self.is_standard:
            return temperature * standard_normal(self.shape, generator, device=device)
        base = standard_normal((1, self.rank), generator, device=device)
        noise = standard_normal((len(self.mean),), generator, torch.float64, device)
        scores = self.flow(self._told(attributes, 1)).transform.inv(temperature * base)[0]
        axes = self.components.double()
        y = (scores.double() * self.score_scale.double()) @ axes
        if len(self.mean) > self.rank:
            rest = noise - (axes @ noise) @ axes
            y = y + temperature * self.residual_scale.double() * rest
        z = self.mean.double() + self.element_scale.double() * y
        return z.float().reshape(self.shape)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, rank={self.rank}, attributes={self.attributes}"
