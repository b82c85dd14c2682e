r"""Paths between latents that keep to where the cases are.

A geodesic of a metric :math:`G` minimises the energy of a path, here of its :math:`P` points,

.. math::
    E = \sum_{k} (z_{k+1} - z_k)^\top G\big(\tfrac12 (z_k + z_{k+1})\big) (z_{k+1} - z_k),

and then has constant speed. The energy has more than one minimum, so two paths are improved, the
straight line and the shortest path along a graph of centres, and the shorter one is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from medvae3d.errors import SettingError
from medvae3d.flows.metrics import KernelMetric

_NEIGHBOURS = 12
_MOST_CENTRES = 256


def path_energy(metric: KernelMetric, path: Tensor) -> Tensor:
    """Energy of a path of ``(P, d)`` points."""
    return _squares(metric, path).sum() * (len(path) - 1)


def path_length(metric: KernelMetric, path: Tensor) -> float:
    """Length of a path of ``(P, d)`` points, in the metric."""
    with torch.no_grad():
        return float(_squares(metric, refined(path, 8 * len(path))).clamp_min(0).sqrt().sum())


def geodesic(
    metric: KernelMetric, first: Tensor, last: Tensor, points: int = 16, iterations: int = 200
) -> Tensor:
    """Finds a path of least energy between two latents.

    Args:
        metric: The metric.
        first: Where it begins, :math:`(d,)` or any shape of :math:`d` elements.
        last: Where it ends.
        points: Points of the path, both ends among them.
        iterations: Most iterations of the optimiser.

    Returns:
        The path, :math:`(P, d)`, or with the shape of a latent in the place of :math:`d`; in the
        type of ``first``.

    Raises:
        SettingError: If there are fewer than two points.
    """
    if points < 2:
        raise SettingError(f"a path of {points} points; it has two ends, so give 2 or more.")
    ends = torch.stack([first.flatten(), last.flatten()]).double()
    best, shortest = refined(ends, points), float("inf")
    for start in (ends, _along_centres(metric, ends)):
        inner = _relaxed(metric, refined(start, points), iterations)[1:-1]
        path = torch.cat([ends[:1], inner, ends[1:]])
        length = path_length(metric, path)
        if length < shortest:
            best, shortest = path, length
    return best.reshape(points, *first.shape).to(first.dtype)


def refined(path: Tensor, points: int) -> Tensor:
    """The same polygon with points at equal distances."""
    steps = (path[1:] - path[:-1]).norm(dim=1)
    at = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    wanted = torch.linspace(0, 1, points, dtype=path.dtype, device=path.device) * at[-1]
    piece = torch.searchsorted(at, wanted, right=True).sub(1).clamp(0, len(steps) - 1)
    share = (wanted - at[piece]) / steps[piece].clamp_min(1e-300)
    return torch.lerp(path[piece], path[piece + 1], share[:, None])


def _squares(metric: KernelMetric, path: Tensor) -> Tensor:
    """Squared lengths of the pieces, ``(P - 1,)``."""
    steps, middles = path[1:] - path[:-1], 0.5 * (path[1:] + path[:-1])
    if not metric.is_inverse:
        return (steps * (metric.matrix(middles) @ steps[:, :, None])[:, :, 0]).sum(1)
    factor = metric.at(middles).factor
    solved = torch.cholesky_solve(steps[:, :, None], factor)[:, :, 0]
    return (steps * solved).sum(1)


def _relaxed(metric: KernelMetric, path: Tensor, iterations: int) -> Tensor:
    """Moves the inner points to where the energy is least."""
    inner = path[1:-1].clone().requires_grad_()
    if not len(inner):
        return path
    optimizer = torch.optim.LBFGS(
        [inner], max_iter=iterations, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )
    with torch.no_grad():
        unit = path_energy(metric, path).clamp_min(1e-300)

    def closure() -> Tensor:
        optimizer.zero_grad()
        energy = path_energy(metric, torch.cat([path[:1], inner, path[-1:]])) / unit
        energy.backward()
        return energy

    with torch.enable_grad():
        optimizer.step(closure)
    return torch.cat([path[:1], inner.detach(), path[-1:]])


@torch.no_grad()
def _along_centres(metric: KernelMetric, ends: Tensor) -> Tensor:
    """The shortest path between the ends over a graph of the centres that are nearest to them."""
    centres = metric.centroids
    if len(centres) > _MOST_CENTRES:
        near = torch.cdist(centres, ends).sum(1).argsort()[:_MOST_CENTRES]
        centres = centres[near]
    nodes = torch.cat([ends, centres])
    far = torch.cdist(nodes, nodes)
    count = min(_NEIGHBOURS + 1, len(nodes))
    near = far.topk(count, largest=False).indices
    graph = np.zeros((len(nodes), len(nodes)))
    line = torch.linspace(0, 1, 9, dtype=nodes.dtype, device=nodes.device)[:, None]
    for row, columns in enumerate(near.tolist()):
        for column in columns:
            if column != row and float(far[row, column]) > 0:
                piece = torch.lerp(nodes[row], nodes[column], line)
                cost = float(_squares(metric, piece).clamp_min(0).sqrt().sum())
                graph[row, column] = graph[column, row] = cost
    _, before = dijkstra(graph, indices=0, return_predecessors=True)
    node, route = 1, [1]
    while node != 0:
        node = int(before[node])
        if node < 0:  # the ends lie in parts of the graph that are not connected
            return ends
        route.append(node)
    return nodes[route[::-1]]
