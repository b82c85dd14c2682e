r"""A mixture of posteriors: those of pseudo-inputs, volumes that are learned.

.. math:: p(z) = \frac1K \sum_k q(z \mid u_k)

with the encoder frozen and the pseudo-inputs :math:`u_k` moved so that the latents of the training
set become likely. What remains after the fit is the mean and the scale of each posterior, so
drawing needs no encoder. Attributes :math:`a` are told by a kernel, :math:`p(z, a) = \frac1K \sum_k
q(z \mid u_k)\, \mathcal N(a; a_k, h^2)`, which makes the weights of :math:`p(z \mid a)`.

References:
    Tomczak and Welling, "VAE with a VampPrior", 2018, where pseudo-inputs are learned together with
    the model.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from medvae3d.numerics import Generators, at_least_float32, float32_island, standard_normal
from medvae3d.probability.priors.base import (
    LOG_2_PI,
    Aggregate,
    HeldOut,
    checked_latents,
    one_by_one,
    require_attributes,
    require_sizes,
    standard_log_prob,
)
from medvae3d.seeding import derive_generator


class VampPrior(nn.Module):
    """A mixture of diagonal Gaussians, each the posterior of a pseudo-input.

    Until it is fitted, it is the standard normal. `fit_posterior` learns pseudo-inputs, starting at
    training cases; `fit`, for latents without their encoder, lets means and scales go free.

    Args:
        shape: Shape of one latent, ``(L, i, j, k)`` or ``(L,)``.
        components: Most pseudo-inputs :math:`K`.
        attributes: Number :math:`F` of attributes, standardised; 0 for none.
        steps: Steps of the fit.
        at_once: Pseudo-inputs that move in one step; the others stay as they were last seen.
        batch_size: Latents a step.
        learning_rate: Of the fit, in the units of normalised intensities.
        min_scale: Floor of the scales, per element.
    """

    keeps_scale = False

    means: Tensor
    scales: Tensor
    weights: Tensor
    fitted: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        components: int = 16,
        attributes: int = 0,
        steps: int = 200,
        at_once: int = 4,
        batch_size: int = 256,
        learning_rate: float = 0.01,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        require_sizes("VampPrior", components=(components, 1), attributes=(attributes, 0))
        self.shape = tuple(shape)
        self.components = components
        self.attributes = attributes
        self.steps = steps
        self.at_once = at_once
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.min_scale = min_scale
        size = math.prod(self.shape) + attributes
        self.register_buffer("means", torch.zeros(components, size))
        self.register_buffer("scales", torch.ones(components, size))
        self.register_buffer("weights", torch.zeros(components))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @property
    def is_standard(self) -> bool:
        return not bool(self.fitted)

    # -- fitting -----------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(
        self,
        latents: Tensor,
        attributes: Tensor | None = None,
        *,
        seed: int,
        validation: HeldOut | None = None,
    ) -> VampPrior:
        """Fits free means and scales to latents, ``(N, ...)``; ``validation`` is not needed.

        Raises:
            SettingError: If the sizes do not fit, a value is not finite, or there are too few
                cases.
        """
        z, a = checked_latents(latents, attributes, self.shape, self.attributes)
        joint = z if a is None else torch.cat([z, a], 1)
        count = min(self.components, max(1, len(joint) // 4))
        mixture = GaussianMixture(
            count, covariance_type="diag", reg_covar=self.min_scale**2, n_init=3, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(joint.numpy())
        found = (torch.from_numpy(x) for x in (mixture.means_, mixture.covariances_))
        means, variances = found
        self._store(means, variances.sqrt(), torch.from_numpy(mixture.weights_))
        return self

    def fit_posterior(self, aggregate: Aggregate, *, seed: int) -> VampPrior:
        """Learns pseudo-inputs whose posteriors make the latents of the training set likely.

        Raises:
            SettingError: As `fit`.
        """
        z, a = checked_latents(aggregate.latents, aggregate.attributes, self.shape, self.attributes)
        device = self.means.device
        joint = (z if a is None else torch.cat([z, a], 1)).float().to(device)
        generator = derive_generator(seed, "pseudo-inputs")
        count = min(self.components, len(aggregate.inputs))
        start = torch.randperm(len(aggregate.inputs), generator=generator)[:count]
        inputs = [nn.Parameter(aggregate.inputs[i].to(device, copy=True)) for i in start.tolist()]
        told = [] if a is None else [nn.Parameter(joint[i, len(z[0]) :].clone()) for i in start]
        # A kernel as wide as so few centres need; standardised attributes spread over 1.
        width = nn.Parameter(
            torch.full((self.attributes,), math.log(count ** (-1 / (4 + self.attributes))))
            .to(device)
        )  # fmt: skip
        moved = [*inputs, *told, width]
        optimizer = torch.optim.Adam(moved, self.learning_rate)
        rows = [self._component(aggregate, inputs, told, width, k) for k in range(count)]
        means, scales = (torch.stack(each).detach() for each in zip(*rows, strict=True))
        logs = torch.full((count,), -math.log(count), device=device)
        for _ in range(self.steps):
            picked = torch.randperm(len(joint), generator=generator)[: self.batch_size].to(device)
            moving = torch.randperm(count, generator=generator)[: self.at_once].tolist()
            with torch.enable_grad():
                all_means, all_scales = list(means), list(scales)
                for k in moving:
                    all_means[k], all_scales[k] = self._component(aggregate, inputs, told, width, k)
                stacked = torch.stack(all_means), torch.stack(all_scales)
                loss = -_log_mixture(joint[picked], *stacked, logs).mean()
                # The encoder takes no gradients, whether it is frozen or not.
                slopes = torch.autograd.grad(loss, moved, allow_unused=True)
            for parameter, slope in zip(moved, slopes, strict=True):
                parameter.grad = slope
            optimizer.step()
            means, scales = (each.detach() for each in stacked)
        with torch.no_grad():
            rows = [self._component(aggregate, inputs, told, width, k) for k in range(count)]
            means, scales = (torch.stack(each) for each in zip(*rows, strict=True))
            self._store(means, scales, logs.exp())
        return self

    def _component(
        self,
        aggregate: Aggregate,
        inputs: Sequence[Tensor],
        told: Sequence[Tensor],
        width: Tensor,
        k: int,
    ) -> tuple[Tensor, Tensor]:
        """Mean and scale of one pseudo-input's posterior, and of its attributes."""
        mean, scale = aggregate.encode(inputs[k][None], told[k][None] if told else None)
        mean, scale = mean.flatten().float(), scale.flatten().float()
        if told:
            mean, scale = torch.cat([mean, told[k]]), torch.cat([scale, width.exp()])
        return mean, scale.clamp_min(self.min_scale)

    @torch.no_grad()
    def _store(self, means: Tensor, scales: Tensor, weights: Tensor) -> None:
        count = len(means)
        self.means.zero_()
        self.scales.fill_(1.0)
        self.weights.zero_()
        self.means[:count] = means.to(self.means)
        self.scales[:count] = scales.to(self.scales)
        self.weights[:count] = weights.to(self.weights)
        self.fitted.fill_(True)

    # -- the density -------------------------------------------------------------------------------

    def _used(self, attributes: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Means and scales, ``(K, size)``, and log weights, ``(B, K)``; B may be 1."""
        used = self.weights > 0
        means, scales = self.means[used].double(), self.scales[used].double()
        size = math.prod(self.shape)
        logs = self.weights[used].double().log()[None]
        if attributes is not None and self.attributes:
            require_attributes(attributes, self.attributes)
            a = attributes.to(means)
            logs = logs + _log_gaussians(a, means[:, size:], scales[:, size:])
        return means[:, :size], scales[:, :size], logs.log_softmax(1)

    def log_prob(self, z: Tensor, attributes: Tensor | None = None) -> Tensor:
        """Log density in nats, ``(B,)``, given attributes if there are any."""
        if self.is_standard:
            return standard_log_prob(z)
        with float32_island(z.device.type):
            found = _log_mixture(z.double().flatten(1), *self._used(attributes))
            return found.to(at_least_float32(z).dtype)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        attributes: Tensor | None = None,
        generators: Generators = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws latents, float32; ``temperature`` scales the deviation within a component."""
        nothing = self.means.new_zeros(0, *self.shape)
        draw = partial(self._draw, temperature=temperature)
        return one_by_one(count, (attributes,), generators, draw, nothing)

    def _draw(
        self, attributes: Tensor | None, generator: torch.Generator | None, temperature: float
    ) -> Tensor:
        device = self.means.device
        if self.is_standard:
            return temperature * standard_normal(self.shape, generator, device=device)
        place = "cpu" if generator is None else generator.device
        pick = torch.rand((), generator=generator, dtype=torch.float64, device=place).to(device)
        noise = standard_normal((math.prod(self.shape),), generator, torch.float64, device)
        means, scales, logs = self._used(attributes)
        edges = logs[0].exp().cumsum(0)
        k = min(int((pick * edges[-1] >= edges).sum()), len(edges) - 1)
        return (means[k] + temperature * scales[k] * noise).float().reshape(self.shape)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, components={self.components}, attributes={self.attributes}"


def _log_gaussians(x: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    """Log density of each row under each diagonal Gaussian in nats, ``(B, K)``."""
    precision = scales.square().reciprocal()
    square = (
        x.square() @ precision.T
        - 2 * x @ (means * precision).T
        + (means.square() * precision).sum(1)
    )
    return -0.5 * (square + means.shape[1] * LOG_2_PI) - scales.log().sum(1)


def _log_mixture(x: Tensor, means: Tensor, scales: Tensor, logs: Tensor) -> Tensor:
    return (logs + _log_gaussians(x, means, scales)).logsumexp(1)
