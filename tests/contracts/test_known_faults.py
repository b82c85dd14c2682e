"""Faults that public code has had, each planted here, and the tests that see them.

Every fault was published, covered by tests, and wrong. Each is put into the place of our own part
for the time of a test, and the tests that are to see it are run on both: they pass on ours and fail
on the fault.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contracts import test_evidence, test_heads
from flows import test_hamiltonian, test_integrators, test_metrics, test_riemannian, test_volume
from models import test_latent, test_rhvae
from probability import test_posteriors
from synthesis import test_tiling

from bundles import test_configs
from medvae3d.apps.catalogue import shipped_bundles
from medvae3d.apps.trust import require_own_weights
from medvae3d.errors import BundleError
from medvae3d.evaluation import evidence
from medvae3d.flows import hamiltonian, implicit, integrators, metrics, pairs, riemannian, volume
from medvae3d.models import latent
from medvae3d.numerics import sum_per_sample
from medvae3d.probability import likelihoods, posteriors
from medvae3d.synthesis import tiling

Check = Callable[[], None]
OWN = SimpleNamespace(
    slope=integrators.slope,
    move=hamiltonian.HamiltonianFlow.move,
    riemannian_move=riemannian.RiemannianFlow.move,
    fixed_point=implicit.fixed_point,
    fit=pairs.CasePairs.fit,
    config=test_configs.config,
)


@dataclass(frozen=True)
class Fault:
    """A planted fault.

    Attributes:
        places: Objects whose attribute is exchanged.
        name: The attribute.
        planted: What it is exchanged for.
        checks: Tests, each of which has to fail.
    """

    places: tuple[Any, ...]
    name: str
    planted: Any
    checks: tuple[Check, ...]


# -- Hamiltonian VAEs ---------------------------------------------------------------------------


def drift_before_the_kick(z, momentum, start, slope_at, kick_size, drift_size, coefficients=None):
    """The position moves by the momentum from before the kick."""
    kicked = momentum + 0.5 * kick_size * start.force
    z = z + drift_size * momentum
    start = slope_at(z)
    return z, kicked + 0.5 * kick_size * start.force, start


def tempered_momentum_overwritten(self, z, noise, potential):
    """The cooled momentum is replaced by the one from before: nothing is ever cooled."""
    hot = self.beta[0].sqrt()
    schedule = self.beta
    self.beta = schedule[:1].expand(len(schedule))
    flowed, momentum = OWN.move(self, z, noise, potential)
    self.beta = schedule
    last = momentum / hot
    return replace(flowed, log_weight=0.5 * sum_per_sample(noise.square() - last.square())), last


def scale_of_another_formula(self, z):
    """Drawn with softplus, scored with the exponential of half of the same number."""
    raw = torch.log(torch.expm1(self.scale - posteriors.MIN_SCALE))
    return sum_per_sample(torch.distributions.Normal(self.mean, (raw / 2).exp()).log_prob(z))


def no_constant(self, x, valid=None):
    """The constant stands on a line of its own and is dropped."""
    error = (x - self.mean) / self.scale
    density = -0.5 * error.square() - self.scale.log()
    -0.5 * math.log(2 * math.pi)
    return sum_per_sample(density)


def detached_force(potential, z, *, first_order=False):
    """The gradient is cut out of the graph, and nothing says so."""
    return OWN.slope(potential, z, first_order=True)


def mean_of_logarithms(self):
    """The mean inside of the logarithm is taken outside."""
    return self.values.mean(0)


def forgotten_number_of_draws(self):
    """The sum of weights, not their mean."""
    return self.values.logsumexp(0)


# -- Riemannian VAEs ----------------------------------------------------------------------------


def without_the_determinant(self, *args, **options):
    """Only the first three terms of the bound."""
    full, self.full_bound = self.full_bound, False
    moved = OWN.riemannian_move(self, *args, **options)
    self.full_bound = full
    return moved


def determinant_of_another_colour(self, z, noise, potential, metric=None, own=None):
    """The momentum is coloured by one matrix, and the volume of the metric is counted for it."""
    flowed, momentum = OWN.riemannian_move(self, z, noise, potential, metric, own)
    if own is None:
        return flowed, momentum
    metric = self.metric if metric is None else metric
    counted = own.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    wrong = -metric.half_log_det(z.flatten(1).double())
    weight = flowed.log_weight + (wrong - counted).to(flowed.log_weight)
    return replace(flowed, log_weight=weight), momentum


def one_iteration(function, start, solver):
    """Implicit equations are taken for explicit ones."""
    solved = OWN.fixed_point(function, start, implicit.Solver(1, solver.tolerance))
    return replace(solved, residual=torch.zeros_like(solved.residual))


def metric_in_a_closure(self, centroids, factors, cases):
    """What the metric is made of lives in a function, where no state dict finds it."""
    kept = (centroids.double(), factors.double())
    self.all = lambda: kept


def the_last_of_a_queue(self, centroids, factors, cases):
    """The final metric is that of the last few batches."""
    OWN.fit(self, centroids[-2:], factors[-2:], cases[-2:])


def with_a_validation_case(self, centroids, factors, cases):
    """All cases of the list, whatever they are for."""
    more = torch.cat([centroids, centroids[:1] + 1]), torch.cat([factors, factors[:1]])
    OWN.fit(self, *more, [*cases, "validation_0"])


def no_bound(self, z, log_density):
    """The density of the whole space, which is none."""
    return log_density


def gradient_without_the_trace(self):
    """The matrix in the place of its trace: d times too small where it is isotropic."""
    return test_volume.isotropic_force(self)


def ratio_of_exponentials(target, start, noise, step_size, leapfrog_steps=15):
    """Metropolis steps on densities, not on their logarithms."""
    slope_at = lambda z: integrators.Slope(
        -target.metric.half_log_det(z), target.metric.at(z).half_log_det_gradient()
    )
    z, moves, here = start, torch.zeros(len(start)), slope_at(start)
    accepted = torch.zeros(len(start), dtype=start.dtype)
    for momentum, uniform in zip(noise.momenta, noise.uniforms, strict=True):
        point, p, there = z, momentum, here
        for _ in range(leapfrog_steps):
            point, p, there = integrators.palindromic_step(
                point, p, there, slope_at, step_size, step_size
            )
        new = torch.exp(-there.energy - 0.5 * p.square().sum(1))
        ratio = new / torch.exp(-here.energy - 0.5 * momentum.square().sum(1))
        taken = uniform < ratio
        z = torch.where(taken[:, None], point, z)
        here = slope_at(z)
        moves, accepted = moves + taken, accepted + ratio.clamp_max(1)
    steps = len(noise.momenta)
    return volume.Chains(z, accepted / steps, moves / steps, 0)


# -- around the models --------------------------------------------------------------------------


def mean_plus_scale(self, image):
    """What `eval()` returns is not the mean of the posterior."""
    batch = {"image": image}
    posterior = self.encode(batch, self.condition(batch))
    heads = self.decode(posterior.mean + posterior.scale, self.condition(batch))
    return torch.cat([heads["mask"].field(), heads["image"].mode()], dim=1)


def scale_not_undone(self, count, attributes=None, generators=None, temperature=1.0):
    """Latents are scaled for training and not scaled back for sampling."""
    prior = self.sampling_prior or self.prior
    return prior.sample(count, attributes, generators, temperature)


def weights_over_at_least_one(inputs, size, batch, predictor, *, overlap, mode):
    """Windows are blended by Hann weights whose sum is divided by one where it is less."""
    window = torch.ones(())
    for side in size:
        window = window[..., None] * torch.hann_window(side, periodic=False)
    shape = inputs.shape[2:]
    total, weights = None, torch.zeros(shape)
    corners = [
        sorted({*range(0, n - s + 1, max(1, int(s * (1 - overlap)))), n - s})
        for n, s in zip(shape, size, strict=True)
    ]
    for i in corners[0]:
        for j in corners[1]:
            for k in corners[2]:
                at = [slice(a, a + s) for a, s in zip((i, j, k), size, strict=True)]
                made = predictor(inputs[:, :, at[0], at[1], at[2]])
                if total is None:
                    total = made.new_zeros(len(inputs), made.shape[1], *shape)
                total[:, :, at[0], at[1], at[2]] += made * window
                weights[at[0], at[1], at[2]] += window
    return total / weights.clamp_min(1)


def metadata_of_another_bundle(name, file):
    """Metadata left over from the bundle that this one was copied from."""
    return OWN.config("hippocampus_mri_hvae" if file == "metadata" else name, file)


# -- the table ----------------------------------------------------------------------------------


FAULTS = {
    "the position drifts by the old momentum": Fault(
        (integrators, hamiltonian), "palindromic_step", drift_before_the_kick,
        (
            partial(test_integrators.test_leapfrog_keeps_volume, test_integrators.quartic),
            test_integrators.test_leapfrog_runs_backwards_step_by_step,
            partial(test_hamiltonian.test_the_flow_runs_backwards, torch.float64, 1e-10),
            test_hamiltonian.test_the_energy_error_falls_by_four_when_the_step_is_halved,
        ),
    ),
    "the tempered momentum is overwritten": Fault(
        (hamiltonian.HamiltonianFlow,), "move", tempered_momentum_overwritten,
        (
            partial(test_hamiltonian.test_the_map_shrinks_volume_by_the_temperature_alone, 0.3),
            partial(test_hamiltonian.test_weights_average_to_the_evidence, 3, 0.1, 0.3),
            partial(test_hamiltonian.test_cooling_undoes_the_first_spread_exactly, 0.3),
        ),
    ),
    "the scale is read by two formulas": Fault(
        (posteriors.DiagonalGaussian,), "log_prob", scale_of_another_formula,
        (
            test_posteriors.test_density_and_kl_agree_with_torch,
            partial(test_evidence.test_the_estimate_agrees_with_the_exact_evidence, "vae"),
        ),
    ),
    "a constant of the likelihood is dropped": Fault(
        (likelihoods.GaussianImage,), "log_prob", no_constant,
        (
            partial(
                test_heads.test_an_image_density_normalises_to_one, likelihoods.GaussianHead(2)
            ),
            partial(test_evidence.test_the_estimate_agrees_with_the_exact_evidence, "hvae"),
        ),
    ),
    "the force is detached without saying so": Fault(
        (hamiltonian, riemannian), "slope", detached_force,
        (test_hamiltonian.test_the_gradient_passes_through_the_force,),
    ),
    "the estimate is a mean of logarithms": Fault(
        (evidence.LogWeights,), "importance_weighted", property(mean_of_logarithms),
        (
            partial(
                test_evidence
                .test_the_log_likelihood_of_held_out_cases_says_how_far_it_may_be_trusted, "vae"
            ),
        ),
    ),
    "the estimate forgets the number of draws": Fault(
        (evidence.LogWeights,), "importance_weighted", property(forgotten_number_of_draws),
        (
            partial(
                test_evidence
                .test_the_log_likelihood_of_held_out_cases_says_how_far_it_may_be_trusted, "vae"
            ),
        ),
    ),
    "the bound lacks the determinant of the metric": Fault(
        (riemannian.RiemannianFlow,), "move", without_the_determinant,
        (
            partial(
                test_riemannian.test_weights_average_to_the_evidence_with_the_full_bound, 0.1, 0.5
            ),
            partial(test_evidence.test_the_estimate_agrees_with_the_exact_evidence, "rhvae"),
            partial(test_riemannian.test_a_flow_that_does_not_move_has_the_bound_of_a_plain_model,
                    0.3),
            partial(
                test_riemannian.test_only_the_public_form_makes_the_metric_grow_without_end, 1.0
            ),
        ),
    ),
    "the momentum has the colour of one matrix and the volume of another": Fault(
        (riemannian.RiemannianFlow,), "move", determinant_of_another_colour,
        (
            test_riemannian.test_weights_average_to_the_evidence_with_another_colouring,
            test_riemannian
            .test_with_a_momentum_of_its_own_colour_the_scale_of_the_metric_has_an_optimum,
        ),
    ),
    "implicit equations are iterated once": Fault(
        (implicit,), "fixed_point", one_iteration,
        (
            test_riemannian.test_the_flow_runs_backwards_where_its_equations_are_solved,
            partial(test_riemannian.test_cooling_changes_volume_by_the_temperature_alone),
        ),
    ),
    "the metric lives in a closure": Fault(
        (pairs.CasePairs,), "fit", metric_in_a_closure,
        (test_riemannian.test_a_metric_loads_into_a_flow_that_has_none,),
    ),
    "the final metric is that of the last batches": Fault(
        (pairs.CasePairs,), "fit", the_last_of_a_queue,
        (
            test_rhvae.test_the_final_metric_is_of_all_training_cases_and_of_no_other,
            test_rhvae.test_a_queue_shorter_than_the_training_set_does_not_limit_the_final_metric,
        ),
    ),
    "the final metric holds a validation case": Fault(
        (pairs.CasePairs,), "fit", with_a_validation_case,
        (test_rhvae.test_the_final_metric_is_of_all_training_cases_and_of_no_other,),
    ),
    "the volume element is sampled on the whole space": Fault(
        (volume.VolumeTarget,), "bounded", no_bound,
        (
            test_volume.test_chains_drift_away_from_a_raw_target_and_not_from_a_bounded_one,
            test_volume.test_no_state_leaves_the_reach,
        ),
    ),
    "the gradient of the volume lacks its trace": Fault(
        (metrics.LocalMetric,), "half_log_det_gradient", gradient_without_the_trace,
        (
            lambda: test_metrics.test_the_gradient_of_the_volume_is_exact(
                test_metrics.some_metric()
            ),
            test_riemannian.test_the_energy_error_falls_by_four_when_the_step_is_halved,
        ),
    ),
    "acceptance is a ratio of exponentials": Fault(
        (test_volume,), "volume_chains", ratio_of_exponentials,
        (test_volume.test_energies_of_any_size_do_not_overflow,),
    ),
    "evaluation shows the mean plus the scale": Fault(
        (latent.LatentModel,), "forward", mean_plus_scale,
        (
            test_latent
            .test_evaluation_is_deterministic_and_shows_the_mean_of_the_posterior,
        ),
    ),
    "the latent scale is not undone": Fault(
        (latent.LatentModel,), "sample_latent", scale_not_undone,
        (test_latent.test_the_latent_scale_is_undone_on_sampling,),
    ),
    "blended windows do not add up to one": Fault(
        (tiling,), "sliding_window_inference", weights_over_at_least_one,
        (test_tiling.test_blending_keeps_a_constant_constant,),
    ),
    "metadata is that of another bundle": Fault(
        (test_configs,), "config", metadata_of_another_bundle,
        (partial(test_configs.test_metadata_agrees_with_the_configurations, "sts_petct_hvae"),),
    ),
}  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize("name", FAULTS)
def test_a_known_fault_is_seen(name, monkeypatch):
    fault = FAULTS[name]
    for check in fault.checks:
        check()
    for place in fault.places:
        monkeypatch.setattr(place, fault.name, fault.planted)
    for check in fault.checks:
        with pytest.raises(AssertionError):
            check()


@pytest.mark.integration
def test_weights_of_another_model_under_the_name_of_one_are_seen(tmp_path):
    """What a training script did that saved the lung model under the name of the heart's."""
    own, other = (shipped_bundles()[name] for name in ("sts_petct_hvae", "hippocampus_mri_hvae"))
    folder = shutil.copytree(own / "models", tmp_path / "models")
    assert require_own_weights(folder / "model.pt") == require_own_weights(
        own / "models" / "model.pt"
    )
    shutil.copyfile(other / "models" / "model.pt", folder / "model.pt")
    with pytest.raises(BundleError, match="not the weights that the bundle came with"):
        require_own_weights(folder / "model.pt")
