r"""Metrics of a latent space that are sums of kernels around the training cases.

With a centre :math:`c_i` and a positive definite matrix :math:`M_i` for each case,

.. math::
    K(z) = \sum_i M_i\, e^{-q_i(z)} + \lambda e^{-\tau \|z\|^2} I, \qquad
    q_i(z) = (z - c_i)^\top P_i\, (z - c_i),

with :math:`P_i = I / T^2`, or :math:`P_i = M_i / T^2` where kernels have the shape of their
matrices. :math:`K` is symmetric with no eigenvalue below its floor, and smooth. A Riemannian VAE
takes it for the inverse of its metric, :math:`G^{-1} = K`; geometric sampling of a plain VAE for
the metric itself, :math:`G = K`, with the inverse covariances of posteriors as matrices. Both draw
latents with density :math:`\propto \sqrt{\det K}`, whose gradient has the closed form

.. math::
    \nabla \tfrac12 \log\det K = \sum_i e^{-q_i}\, \mathrm{tr}(K^{-1} M_i)\, P_i (c_i - z)
        - \tau \lambda e^{-\tau \|z\|^2}\, \mathrm{tr}(K^{-1})\, z .

Everything here is float64: the matrices are small, and their determinants are powers of the floor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from medvae3d.errors import MetricError


@dataclass(frozen=True, eq=False)
class KernelMetric:
    r"""The matrix :math:`K(z)` of a set of centres.

    Attributes:
        centroids: :math:`c_i`, :math:`(N, d)`, float64.
        matrices: :math:`M_i`, symmetric, :math:`(N, d, d)`, float64.
        bandwidth: :math:`T`, in units of the latent, or of :math:`M_i^{-1/2}` with ``shaped``.
        floor: :math:`\lambda`.
        decay: :math:`\tau`; 0 for a floor that is the same everywhere.
        shaped: Whether each kernel has the shape of its matrix.
        is_inverse: Whether :math:`K` is the inverse of the metric, as in a Riemannian VAE.
        learned: The last few of the matrices inside of the graph, :math:`(n, d, d)`, where only
            they are; gradients to all others, which would be most of the work, are not taken.

    Shape:
        - ``z``: :math:`(B, d)`, float64
    """

    centroids: Tensor = field(repr=False)
    matrices: Tensor = field(repr=False)
    bandwidth: float = 1.5
    floor: float = 0.01
    decay: float = 0.0
    shaped: bool = False
    is_inverse: bool = True
    learned: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.centroids)

    def distances(self, z: Tensor) -> Tensor:
        """Squared distances :math:`q_i` to all centres, in bandwidths, ``(B, N)``."""
        c = self.centroids
        if not self.shaped:
            squares = z.square().sum(1, keepdim=True) + c.square().sum(1) - 2 * z @ c.T
            return squares / self.bandwidth**2
        along = self._inner(z)
        pulled = (self.matrices @ c[:, :, None])[:, :, 0]
        squares = along - 2 * z @ pulled.T + (pulled * c).sum(1)
        return squares / self.bandwidth**2

    def matrix(self, z: Tensor) -> Tensor:
        """:math:`K(z)`, ``(B, d, d)``."""
        return self._matrix(z, self._kernels(z))

    def tensor(self, z: Tensor) -> Tensor:
        """The metric :math:`G(z)`, ``(B, d, d)``."""
        if not self.is_inverse:
            return self.matrix(z)
        return torch.cholesky_inverse(self.at(z).factor)

    def at(self, z: Tensor) -> LocalMetric:
        """All that is known of the metric at points.

        Raises:
            MetricError: If it is not positive definite there.
        """
        kernels = self._kernels(z)
        matrix = self._matrix(z, kernels)
        factor, info = torch.linalg.cholesky_ex(matrix)
        if bool(info.any()) or not bool(factor.detach().isfinite().all()):
            raise MetricError(self._complaint(matrix.detach()))
        return LocalMetric(self, z, kernels, matrix, factor)

    def half_log_det(self, z: Tensor) -> Tensor:
        r""":math:`\tfrac12 \log\det K(z)`, ``(B,)``."""
        return self.at(z).half_log_det

    def floor_at(self, z: Tensor) -> Tensor:
        r""":math:`\lambda e^{-\tau \|z\|^2}`, ``(B,)``."""
        if not self.decay:
            return z.new_full((len(z),), self.floor)
        return self.floor * torch.exp(-self.decay * z.square().sum(1))

    def pull(self, weights: Tensor, z: Tensor) -> Tensor:
        r"""Minus the weighted gradients of the distances, :math:`-\sum_i s_i \nabla q_i(z)`.

        Args:
            weights: :math:`s`, :math:`(B, N)`.
            z: Points, :math:`(B, d)`.
        """
        c = self.centroids
        if self.shaped:
            pulled = (self.matrices @ c[:, :, None])[:, :, 0]
            shape = self._summed(weights).reshape(-1, *self.matrices.shape[1:])
            drawn = weights @ pulled - (shape @ z[:, :, None])[:, :, 0]
        else:
            drawn = weights @ c - weights.sum(1, keepdim=True) * z
        return 2 / self.bandwidth**2 * drawn

    def _kernels(self, z: Tensor) -> Tensor:
        return torch.exp(-self.distances(z))

    def _matrix(self, z: Tensor, kernels: Tensor) -> Tensor:
        size = z.shape[1]
        eye = torch.eye(size, dtype=z.dtype, device=z.device)
        summed = self._summed(kernels).reshape(-1, size, size)
        return summed + self.floor_at(z)[:, None, None] * eye

    def _inner(self, vectors: Tensor) -> Tensor:
        """:math:`v^T M_i v` for all matrices, ``(B, N)``."""
        outer = vectors[:, :, None] * vectors[:, None, :]
        return self._traces(outer.flatten(1))

    def _parts(self) -> list[Tensor]:
        """All matrices as rows, those outside of the graph first."""
        if self.learned is None:
            return [self.matrices.flatten(1)]
        fixed = self.matrices[: len(self.matrices) - len(self.learned)].detach()
        return [fixed.flatten(1), self.learned.flatten(1)]

    def _summed(self, weights: Tensor) -> Tensor:
        r""":math:`\sum_i s_i M_i`, ``(B, d * d)``."""
        parts = self._parts()
        pieces = weights.split([len(part) for part in parts], dim=1)
        total = pieces[0] @ parts[0]
        for piece, part in zip(pieces[1:], parts[1:], strict=True):
            total = total + piece @ part
        return total

    def _traces(self, flat: Tensor) -> Tensor:
        r""":math:`\mathrm{tr}(A M_i)` of symmetric :math:`A` as rows, ``(B, N)``."""
        parts = [flat @ part.T for part in self._parts()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _complaint(self, matrix: Tensor) -> str:
        finite = matrix.isfinite().all()
        lowest = float(torch.linalg.eigvalsh(matrix).min()) if bool(finite) else float("nan")
        return (
            f"the metric of {len(self)} cases is not positive definite: its smallest eigenvalue is "
            f"{lowest:.3g} with floor {self.floor:.3g} and bandwidth {self.bandwidth:.3g}. Allowed "
            f"are floors above 0 and matrices without NaN or negative eigenvalues: raise `floor`, "
            f"lower the learning rate, or fit the metric again from an intact checkpoint."
        )


@dataclass(frozen=True, eq=False)
class LocalMetric:
    """The metric at points :math:`z`.

    Attributes:
        metric: The metric.
        z: The points, :math:`(B, d)`.
        kernels: :math:`e^{-q_i(z)}`, :math:`(B, N)`.
        matrix: :math:`K(z)`, :math:`(B, d, d)`.
        factor: Its lower Cholesky factor.
    """

    metric: KernelMetric
    z: Tensor
    kernels: Tensor
    matrix: Tensor
    factor: Tensor

    @property
    def half_log_det(self) -> Tensor:
        r""":math:`\tfrac12 \log\det K`, ``(B,)``."""
        return self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def half_log_det_gradient(self) -> Tensor:
        r""":math:`\nabla \tfrac12 \log\det K`, exact, ``(B, d)``."""
        inverse = torch.cholesky_inverse(self.factor)
        traces = self.metric._traces(inverse.flatten(1))
        gradient = self.metric.pull(0.5 * self.kernels * traces, self.z)
        return gradient - self._floor_pull(inverse.diagonal(dim1=-2, dim2=-1).sum(-1))

    def velocity(self, momentum: Tensor) -> Tensor:
        r""":math:`K \rho`, ``(B, d)``."""
        return (self.matrix @ momentum[:, :, None])[:, :, 0]

    def kinetic(self, momentum: Tensor) -> Tensor:
        r""":math:`\tfrac12 \rho^\top K \rho`, ``(B,)``."""
        return 0.5 * (momentum * self.velocity(momentum)).sum(1)

    def kinetic_gradient(self, momentum: Tensor) -> Tensor:
        r""":math:`\nabla_z \tfrac12 \rho^\top K(z) \rho`, ``(B, d)``."""
        weights = 0.5 * self.kernels * self.metric._inner(momentum)
        return self.metric.pull(weights, self.z) - self._floor_pull(momentum.square().sum(1))

    def colour(self, noise: Tensor) -> Tensor:
        r"""White noise as a momentum of covariance :math:`K^{-1}`: :math:`C^{-\top} \gamma`."""
        solved = torch.linalg.solve_triangular(self.factor.mT, noise[:, :, None], upper=True)
        return solved[:, :, 0]

    def _floor_pull(self, traces: Tensor) -> Tensor:
        if not self.metric.decay:
            return torch.zeros_like(self.z)
        return (self.metric.decay * self.metric.floor_at(self.z) * traces)[:, None] * self.z
