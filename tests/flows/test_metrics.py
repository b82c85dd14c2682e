"""Claims about metrics that are sums of kernels, their stored pairs and the paths along them."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.csgraph import dijkstra

from medvae3d.errors import MetricError, SettingError
from medvae3d.flows.geodesics import geodesic, path_energy, path_length, refined
from medvae3d.flows.metrics import KernelMetric
from medvae3d.flows.pairs import CasePairs, case_numbers


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def some_metric(count=7, size=4, seed=0, **options):
    factors = torch.tril(draw(count, size, size, seed=seed + 1)) * 0.5
    matrices = factors @ factors.mT + 0.1 * torch.eye(size, dtype=torch.float64)
    return KernelMetric(draw(count, size, seed=seed), matrices, **{"bandwidth": 0.8, **options})


KINDS = {
    "as in a riemannian vae": {},
    "with a floor that decays": {"decay": 0.2},
    "with shaped kernels": {"shaped": True, "bandwidth": 1.2, "is_inverse": False},
    "both": {"shaped": True, "decay": 0.1, "bandwidth": 1.2, "is_inverse": False},
}


@pytest.fixture(params=KINDS)
def metric(request):
    return some_metric(**KINDS[request.param])


def test_it_is_the_sum_of_its_equation(metric):
    z = draw(3, 4, seed=5)
    for row, point in zip(metric.matrix(z), z, strict=True):
        floor = metric.floor * math.exp(-metric.decay * float(point @ point))
        expected = floor * torch.eye(4, dtype=torch.float64)
        for centre, matrix in zip(metric.centroids, metric.matrices, strict=True):
            off = point - centre
            along = off @ matrix @ off if metric.shaped else off @ off
            expected = expected + matrix * math.exp(-float(along) / metric.bandwidth**2)
        torch.testing.assert_close(row, expected)


def test_it_is_symmetric_and_nowhere_below_its_floor(metric):
    z = 3 * draw(1000, 4, seed=5)
    matrix = metric.matrix(z)
    torch.testing.assert_close(matrix, matrix.mT, rtol=0, atol=1e-14)
    lowest = torch.linalg.eigvalsh(matrix).amin(1)
    assert (lowest >= metric.floor_at(z) * (1 - 1e-9)).all()


def test_the_gradient_of_the_volume_is_exact(metric):
    z = draw(20, 4, seed=5)
    point = z.clone().requires_grad_()
    exact = metric.at(z).half_log_det_gradient()
    half = 0.5 * torch.linalg.slogdet(metric.matrix(point))[1]
    torch.testing.assert_close(metric.half_log_det(z), half.detach())
    (by_autograd,) = torch.autograd.grad(half.sum(), point)
    size = exact.norm(dim=1).clamp_min(1e-3)
    assert ((exact - by_autograd).norm(dim=1) / size).max() < 1e-6
    for axis in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[axis] = 1e-5
        slope = (metric.half_log_det(z + step) - metric.half_log_det(z - step)) / 2e-5
        assert ((exact[:, axis] - slope).abs() / size).max() < 1e-6


def test_the_gradient_of_the_kinetic_energy_is_exact(metric):
    z, momentum = draw(20, 4, seed=5), draw(20, 4, seed=6)
    point = z.clone().requires_grad_()
    energy = 0.5 * (momentum * (metric.matrix(point) @ momentum[:, :, None])[:, :, 0]).sum(1)
    torch.testing.assert_close(metric.at(z).kinetic(momentum), energy.detach())
    (expected,) = torch.autograd.grad(energy.sum(), point)
    torch.testing.assert_close(metric.at(z).kinetic_gradient(momentum), expected)


def test_coloured_noise_has_the_inverse_as_its_covariance(metric):
    local = metric.at(draw(1, 4, seed=5))
    root = torch.stack([local.colour(e[None])[0] for e in torch.eye(4, dtype=torch.float64)], 1)
    torch.testing.assert_close(root @ root.T, torch.linalg.inv(local.matrix[0]))


def test_the_metric_is_the_inverse_of_its_matrix_or_the_matrix_itself(metric):
    z = draw(3, 4, seed=5)
    expected = torch.linalg.inv(metric.matrix(z)) if metric.is_inverse else metric.matrix(z)
    torch.testing.assert_close(metric.tensor(z), expected)


def test_without_a_floor_it_is_not_positive_definite_far_away_and_says_so():
    bare = some_metric(floor=0.0)
    with pytest.raises(MetricError, match=r"not positive definite.*floor 0 .*raise `floor`"):
        bare.at(100 + draw(2, 4))


def test_matrices_with_nan_or_negative_eigenvalues_are_named():
    metric = some_metric()
    metric.matrices[0, 0, 0] = math.nan
    with pytest.raises(MetricError, match="eigenvalue is nan"):
        metric.at(metric.centroids[:1])
    metric.matrices[0] = -5 * torch.eye(4, dtype=torch.float64)
    with pytest.raises(MetricError, match="eigenvalue is -"):
        metric.at(metric.centroids[:1])


# Pairs of cases.


def pairs(count=3, size=2, queue=0, seed=0):
    made = CasePairs(size, queue)
    names = [f"case_{i}" for i in range(count)]
    made.fit(draw(count, size, seed=seed), torch.eye(size).expand(count, size, size), names)
    return made


def test_pairs_load_into_new_ones_of_another_size():
    file = io.BytesIO()
    torch.save(pairs(5).state_dict(), file)
    file.seek(0)
    new = CasePairs(2, queue=9)
    new.load_state_dict(torch.load(file, weights_only=True))
    assert new.is_fitted and len(new) == 5
    assert torch.equal(new.centroids, pairs(5).centroids)


def test_pairs_tell_their_cases_without_their_names():
    made = pairs(3)
    assert made.holds(["case_0", "case_2", "case_3"]) == [True, True, False]
    assert not any("case" in str(value) for value in made.state_dict().values())


def test_a_case_that_comes_twice_counts_once():
    made = CasePairs(1)
    made.fit(torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(3, 1, 1), ["a", "b", "a"])
    assert made.centroids[:, 0].tolist() == [1, 2]


def test_the_queue_keeps_the_latest_pair_of_the_latest_cases():
    made = CasePairs(1, queue=3)

    def see(**values):
        numbers = case_numbers(list(values))
        centres = torch.tensor(list(values.values()))[:, None]
        made.remember(centres, torch.ones(len(values), 1, 1), numbers)
        return sorted(made.all()[0][:, 0].tolist())

    assert see(a=1.0, b=2.0) == [1, 2]
    assert see(a=3.0, c=4.0) == [2, 3, 4]
    assert see(d=5.0) == [2, 4, 5]  # the oldest place is that of a
    assert sorted(made.others(case_numbers(["d"]))[0][:, 0].tolist()) == [2, 4]
    assert not made.is_fitted


@pytest.mark.parametrize(
    ("centroids", "factors", "names", "said"),
    [
        (torch.zeros(0, 2), torch.zeros(0, 2, 2), [], "N of at least 1"),
        (torch.zeros(2, 3), torch.zeros(2, 2, 2), ["a", "b"], "whose latent is a vector of 2"),
        (torch.zeros(2, 2), torch.zeros(2, 2, 2), ["a"], "2 pairs for 1 names"),
        (torch.full((1, 2), math.nan), torch.zeros(1, 2, 2), ["a"], "1 of 1 cases"),
    ],
)
def test_pairs_that_make_no_metric_are_refused(centroids, factors, names, said):
    with pytest.raises(MetricError, match=said):
        CasePairs(2).fit(centroids, factors, names)


# Paths.


def test_the_geodesic_of_a_constant_metric_is_a_straight_line():
    flat = KernelMetric(torch.zeros(0, 3).double(), torch.zeros(0, 3, 3).double())
    first, last = draw(3), draw(3, seed=1)
    line = torch.lerp(first, last, torch.linspace(0, 1, 9, dtype=torch.float64)[:, None])
    torch.testing.assert_close(geodesic(flat, first, last, 9), line, rtol=0, atol=1e-5)
    length = float((last - first).norm()) / math.sqrt(flat.floor)
    assert path_length(flat, line) == pytest.approx(length)
    assert float(path_energy(flat, line)) == pytest.approx(length**2)


def arc():
    """Centres along half a circle; the straight line between its ends is empty."""
    angle = torch.linspace(0, math.pi, 13, dtype=torch.float64)
    centres = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    eye = torch.eye(2, dtype=torch.float64).expand(13, 2, 2)
    return KernelMetric(centres, eye, bandwidth=0.5, floor=1e-3)


def test_the_geodesic_follows_the_cases_and_is_as_short_as_on_a_fine_grid():
    metric = arc()
    first, last = metric.centroids[0], metric.centroids[-1]
    path = geodesic(metric, first, last, 25)
    assert torch.equal(path[0], first) and torch.equal(path[-1], last)
    found = path_length(metric, path)
    straight = path_length(metric, torch.stack([first, last]))
    assert found < 0.5 * straight
    nearest = torch.cdist(path, metric.centroids).amin(1)
    assert nearest.max() < 0.6
    # Dijkstra over a grid with 16 directions is a few percent too long at most.
    side = 0.125
    x, y = np.meshgrid(np.arange(-2.5, 2.51, side), np.arange(-0.5, 2.51, side), indexing="ij")
    nodes = torch.tensor(np.stack([x.ravel(), y.ravel()], 1))
    count, rows = x.shape[1], x.shape[0]
    graph = lil_matrix((len(nodes), len(nodes)))
    moves = [(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2)]
    index = np.arange(len(nodes)).reshape(rows, count)
    for a, b in moves:
        here = index[: rows - a, max(0, -b) : count - max(0, b)].ravel()
        there = index[a:, max(0, b) : count + min(0, b)].ravel()
        step = nodes[there] - nodes[here]
        tensor = metric.tensor(0.5 * (nodes[there] + nodes[here]))
        graph[here, there] = (step * (tensor @ step[:, :, None])[:, :, 0]).sum(1).sqrt().numpy()
    start, goal = (int((nodes - end).norm(dim=1).argmin()) for end in (first, last))
    shortest = dijkstra(graph.tocsr(), directed=False, indices=start)[goal]
    assert 0.9 * shortest < found < 1.02 * shortest


def test_the_geodesic_has_constant_speed():
    path = geodesic(arc(), arc().centroids[0], arc().centroids[-1], 25)
    middles, steps = 0.5 * (path[1:] + path[:-1]), path[1:] - path[:-1]
    speed = (steps * (arc().tensor(middles) @ steps[:, :, None])[:, :, 0]).sum(1).sqrt()
    assert speed.std() / speed.mean() < 0.05


def test_a_path_is_refined_at_equal_distances_and_has_two_ends_at_least():
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]).double()
    fine = refined(corner, 5)
    torch.testing.assert_close(fine[3], torch.tensor([1.0, 0.5]).double())
    with pytest.raises(SettingError, match="two ends"):
        geodesic(arc(), corner[0], corner[1], 1)


def test_gradients_reach_the_learned_matrices_alone_and_are_the_same():
    plain, z = some_metric(), draw(3, 4, seed=5)
    matrices = plain.matrices.clone().requires_grad_()
    learned = plain.matrices[-2:].clone().requires_grad_()
    whole = KernelMetric(plain.centroids, matrices, 0.8)
    parted = KernelMetric(plain.centroids, plain.matrices, 0.8, learned=learned)
    gradients = []
    for metric, wanted in ((whole, matrices), (parted, learned)):
        local = metric.at(z)
        value = local.half_log_det + local.kinetic(z) + local.kinetic_gradient(z).sum(1)
        value = value + local.half_log_det_gradient().square().sum(1)
        gradients.append(torch.autograd.grad(value.sum(), wanted)[0])
    torch.testing.assert_close(gradients[0][-2:], gradients[1])
