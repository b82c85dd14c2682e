r"""A Gaussian mixture over the principal components of a latent and over attributes.

.. math::
    z = \bar z + W^\top s + t \odot \epsilon, \qquad
    (s, a) \sim \sum_k w_k\, \mathcal N(m_k, \Sigma), \qquad \epsilon \sim \mathcal N(0, I)

with principal components :math:`W`, scores :math:`s`, attributes :math:`a` and what the components
leave, :math:`t`, for each element of the latent. Given attributes, the mixture stays one: its
weights change to :math:`w_k\, \mathcal N(a; m_{k,a}, \Sigma_{aa})`, its centres move by
:math:`\Sigma_{sa} \Sigma_{aa}^{-1} (a - m_{k,a})`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from medvae3d.numerics import (
    Generators,
    at_least_float32,
    float32_island,
    jittered_cholesky,
    standard_normal,
)
from medvae3d.probability.priors.base import (
    LOG_2_PI,
    checked_latents,
    one_by_one,
    require_attributes,
    require_sizes,
    standard_log_prob,
)


class MixturePrior(nn.Module):
    """A Gaussian mixture over principal components of the latent, and over attributes with them.

    Until it is fitted, it is the standard normal. All that a fit finds is kept in buffers whose
    sizes are set by the arguments, so that a fitted prior loads into a new one. Computed in
    float64.

    Args:
        shape: Shape of one latent, ``(L, i, j, k)`` or ``(L,)``.
        components: Most components :math:`K`; 1 for a single Gaussian.
        rank: Most principal components :math:`r`.
        attributes: Number :math:`F` of attributes, standardised; 0 for none.
        min_scale: Floor of what the principal components leave, per element.

    Shape:
        - ``z``: :math:`(B, L, i, j, k)` or :math:`(B, L)`
        - ``attributes``: :math:`(B, F)`
    """

    keeps_scale = False

    mean: Tensor
    loadings: Tensor
    residual_scale: Tensor
    weights: Tensor
    centres: Tensor
    covariance: Tensor
    fitted: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        components: int = 8,
        rank: int = 32,
        attributes: int = 0,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        size = math.prod(self.shape)
        require_sizes(
            "MixturePrior", components=(components, 1), rank=(rank, 1), attributes=(attributes, 0)
        )
        self.components = components
        self.rank = min(rank, size)
        self.attributes = attributes
        self.min_scale = min_scale
        joint = self.rank + attributes
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("loadings", torch.zeros(self.rank, size))
        self.register_buffer("residual_scale", torch.ones(size))
        self.register_buffer("weights", torch.zeros(components))
        self.register_buffer("centres", torch.zeros(components, joint))
        self.register_buffer("covariance", torch.eye(joint))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @property
    def is_standard(self) -> bool:
        return not bool(self.fitted)

    @property
    def used_components(self) -> int:
        """Number of components with any weight."""
        return int((self.weights > 0).sum())

    # -- fitting --------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(
        self,
        latents: Tensor,
        attributes: Tensor | None = None,
        *,
        seed: int,
        validation: Tensor | tuple[Tensor, Tensor | None] | None = None,
    ) -> MixturePrior:
        """Fits the prior on the latents of the training set.

        Args:
            latents: One or several draws per case from the aggregated posterior, ``(N, ...)``.
            attributes: What the cases are told, ``(N, F)``.
            seed: Seeds the initialisation of the mixture.
            validation: Held-out latents, with their attributes where there are any. The number of
                components up to ``components`` with the highest mean log density on them is kept;
                without them, all components are used (as far as there are cases).

        Raises:
            SettingError: If the sizes do not fit, a value is not finite, or there are too few
                cases.
        """
        z, a = self._checked(latents, attributes)
        held_out = None
        if validation is not None:
            held_out = validation if isinstance(validation, tuple) else (validation, None)
            self._checked(*held_out, least=1)
        used = self._fit_components(z, seed)
        scores = self._scores(z)[:, :used]
        joint = scores if a is None else np.concatenate([scores, a], axis=1)
        most = min(self.components, max(1, len(z) // 4))
        counts = sorted({min(2**i, most) for i in range(most.bit_length() + 1)})
        best, best_score = None, -math.inf
        for count in counts if held_out is not None else [most]:
            mixture = GaussianMixture(
                count, covariance_type="tied", reg_covar=1e-4, n_init=3, random_state=seed
            )
            with warnings.catch_warnings():
                # Too many components for the cases: those that nothing falls to weigh nothing.
                warnings.simplefilter("ignore", ConvergenceWarning)
                mixture.fit(joint)
            self._store(mixture, used)
            if held_out is None:
                return self
            score = self._score(*held_out)
            # Equal but for rounding is no reason for more components.
            if score > best_score + 1e-6:
                best, best_score = mixture, score
        if best is not None:
            self._store(best, used)
        return self

    def _score(self, latents: Tensor, attributes: Tensor | None) -> float:
        device = self.mean.device
        given = None if attributes is None else attributes.to(device)
        return float(self.log_prob(latents.to(device), given).mean())

    def _checked(
        self, latents: Tensor, attributes: Tensor | None, least: int = 3
    ) -> tuple[np.ndarray, np.ndarray | None]:
        z, a = checked_latents(latents, attributes, self.shape, self.attributes, least)
        return z.numpy(), None if a is None else a.numpy()

    def _fit_components(self, z: np.ndarray, seed: int) -> int:
        """Finds the principal components; returns how many the cases allow."""
        used = min(self.rank, z.shape[1], len(z) - 2)
        pca = PCA(used, svd_solver="full" if min(z.shape) <= 2000 else "auto", random_state=seed)
        with np.errstate(invalid="ignore"):  # a constant latent has no variance to explain
            raw = pca.fit_transform(z)
        scale = np.sqrt(np.maximum(pca.explained_variance_, self.min_scale**2))
        rest = z - pca.mean_ - raw @ pca.components_
        # The components took degrees of freedom from what they left.
        variance = np.square(rest).sum(0) / max(1, len(z) - 1 - used)
        self.mean.copy_(torch.from_numpy(pca.mean_))
        self.loadings.zero_()
        self.loadings[:used] = torch.from_numpy(scale[:, None] * pca.components_).to(self.loadings)
        self.residual_scale.copy_(torch.from_numpy(np.sqrt(variance)).clamp_min(self.min_scale))
        return used

    def _scores(self, z: np.ndarray) -> np.ndarray:
        loadings = self.loadings.double().cpu().numpy()
        energy = np.square(loadings).sum(1)
        return (z - self.mean.double().cpu().numpy()) @ loadings.T / np.maximum(energy, 1e-30)

    def _store(self, mixture: GaussianMixture, used: int) -> None:
        # The scores were read off latents that hold the residual noise too, which the model adds
        # once more; what it brings into the scores is taken out of their covariance.
        loadings = self.loadings[:used].double().cpu().numpy()
        projection = loadings / np.square(loadings).sum(1, keepdims=True)
        noise = np.square(self.residual_scale.double().cpu().numpy())
        covariance = mixture.covariances_.copy()
        covariance[:used, :used] -= (projection * noise) @ projection.T
        values, vectors = np.linalg.eigh(covariance)
        covariance = (vectors * np.maximum(values, 1e-4)) @ vectors.T
        index = torch.tensor([*range(used), *range(self.rank, len(self.covariance))])
        index = index.to(self.centres.device)
        self.weights.zero_()
        self.weights[: mixture.n_components] = torch.from_numpy(mixture.weights_).to(self.weights)
        self.centres.zero_()
        centres = torch.from_numpy(mixture.means_).to(self.centres)
        self.centres[: mixture.n_components, index] = centres
        # Components that the cases do not allow have zero loadings, so their scores say nothing.
        self.covariance.copy_(torch.eye(len(self.covariance)))
        self.covariance[index[:, None], index] = torch.from_numpy(covariance).to(self.covariance)
        self.fitted.fill_(True)

    @property
    def slope(self) -> Tensor:
        r"""How a latent moves with each attribute within a component, :math:`(F, d)`, float64.

        :math:`\Sigma_{aa}^{-1} \Sigma_{as} W`, the same for all components. Moving along it keeps
        what is not told of a latent as it is, also its component.
        """
        r = self.rank
        covariance = self.covariance.double()
        factor = jittered_cholesky(covariance[r:, r:])
        scores = torch.cholesky_solve(covariance[r:, :r], factor)
        return scores @ self.loadings.double()

    # -- the mixture over scores ------------------------------------------------------------------

    def _mixture(self, attributes: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights ``(B, K)``, centres ``(B, K, r)`` and covariance ``(r, r)``; B may be 1."""
        log_weights = self.weights.double().log()[None]
        centres, covariance = self.centres.double(), self.covariance.double()
        r = self.rank
        within = covariance[:r, :r]
        if attributes is None or not self.attributes:
            return log_weights, centres[None, :, :r], within
        require_attributes(attributes, self.attributes)
        factor = jittered_cholesky(covariance[r:, r:])
        off = attributes.to(covariance)[:, None] - centres[:, r:]
        white = torch.linalg.solve_triangular(factor, off.mT, upper=False).mT
        slope = torch.linalg.solve_triangular(factor, covariance[r:, :r], upper=False)
        log_weights = (log_weights - 0.5 * white.square().sum(-1)).log_softmax(-1)
        return log_weights, centres[:, :r] + white @ slope, within - slope.mT @ slope

    def log_prob(self, z: Tensor, attributes: Tensor | None = None) -> Tensor:
        r"""Log density of the whole model in nats, ``(B,)``, given attributes if there are any.

        The covariance of a component is :math:`W^\top \Sigma W + \mathrm{diag}(t^2)`; all that is
        inverted is of size :math:`r`.
        """
        if self.is_standard:
            return standard_log_prob(z)
        with float32_island(z.device.type):
            log_weights, centres, within = self._mixture(attributes)
            noise = self.residual_scale.double()
            white = (z.double().flatten(1) - self.mean.double()) / noise
            loadings = self.loadings.double() / noise
            gram = loadings @ loadings.mT
            factor = jittered_cholesky(within)
            eye = torch.eye(self.rank, dtype=gram.dtype, device=gram.device)
            inner = jittered_cholesky(eye + factor.mT @ gram @ factor)
            # |y - A'm|^2 less its part along the components, by the Woodbury identity.
            seen = (white @ loadings.mT)[:, None] - centres @ gram
            distance = (
                white.square().sum(1)[:, None]
                - 2 * ((white @ loadings.mT)[:, None] * centres).sum(-1)
                + ((centres @ gram) * centres).sum(-1)
            )
            along = torch.linalg.solve_triangular(inner, (seen @ factor).mT, upper=False)
            distance = distance - along.square().sum(1)
            log_volume = noise.log().sum() + inner.diagonal().log().sum()
            density = -0.5 * (distance + len(noise) * LOG_2_PI) - log_volume
            return (log_weights + density).logsumexp(1).to(at_least_float32(z).dtype)

    # -- sampling ---------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        count: int,
        attributes: Tensor | None = None,
        generators: Generators = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws latents, float32; one at a time, so that none depends on the size of the batch.

        Args:
            count: How many.
            attributes: What they should have, ``(count, F)``.
            generators: One for all, or one for each.
            temperature: Scales the deviation within a component; below 1, samples keep closer to
                the centres of the training set.
        """
        nothing = self.mean.new_zeros(0, *self.shape)
        draw = partial(self._draw, temperature=temperature)
        return one_by_one(count, (attributes,), generators, draw, nothing)

    def _draw(
        self, attributes: Tensor | None, generator: torch.Generator | None, temperature: float
    ) -> Tensor:
        device = self.mean.device
        if self.is_standard:
            return temperature * standard_normal(self.shape, generator, device=device)
        place = "cpu" if generator is None else generator.device
        pick = torch.rand((), generator=generator, dtype=torch.float64, device=place)
        score_noise = standard_normal((self.rank,), generator, torch.float64, device)
        noise = standard_normal((len(self.mean),), generator, torch.float64, device)
        log_weights, centres, within = self._mixture(attributes)
        edges = log_weights[0].exp().cumsum(0)
        last = self.used_components - 1
        k = min(int((pick.to(device) * edges[-1] >= edges).sum()), last)
        scores = centres[0, k] + temperature * (jittered_cholesky(within) @ score_noise)
        z = self.mean.double() + scores @ self.loadings.double()
        z = z + temperature * self.residual_scale.double() * noise
        return z.float().reshape(self.shape)

    def extra_repr(self) -> str:
        return (
            f"shape={self.shape}, components={self.components}, rank={self.rank}, "
            f"attributes={self.attributes}"
        )


FullGaussianPrior = partial(MixturePrior, components=1)
"""One Gaussian with full covariance between principal components and attributes."""
