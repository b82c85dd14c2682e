"""Claims about the Riemannian VAE as a model: its metric of all cases, its samples, training."""

from __future__ import annotations

import io
from functools import partial

import pytest
import torch
from small_models import generators

from medvae3d.errors import MetricError, SettingError, StuckSamplerError
from medvae3d.flows.geodesics import path_length
from medvae3d.models.statistics import TrainingStatistics
from medvae3d.models.volume_prior import VolumePrior
from medvae3d.models.zoo import rhvae, vae
from medvae3d.objectives.compositions import joint_objective
from medvae3d.objectives.terms import elbo
from medvae3d.synthesis.exploring import path_between
from medvae3d.training.fitting import PriorFitter
from medvae3d.training.loading import BatchPreparation, StepLoader
from medvae3d.training.metrics import MetricFitter, fit_metric
from medvae3d.training.optimizers import adamw
from medvae3d.training.players import ModelPlayer
from medvae3d.training.trainer import PlayerTrainer

vae_geometric = partial(vae, vector_latent=True, prior="geometric")
SIZES = {"channels": (4, 8), "latent_channels": 3}
SHAPE = (8, 8, 8)
PREPARATION = BatchPreparation(TrainingStatistics(), (1.0, 1.0, 1.0))


def cases(count=6, prefix="train", seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        label = torch.zeros(1, *SHAPE)
        label[:, 2 : 4 + number % 3, 2:5, 3:6] = 1
        image = label - 0.8 + 0.2 * torch.randn(1, *SHAPE, generator=generator)
        made.append({"image": image, "label": label, "case": f"{prefix}_{number}"})
    return made


def model(make=rhvae, seed=0, **options):
    torch.manual_seed(seed)
    made = make(SHAPE, **{**SIZES, **options})
    if isinstance(made.sampling_prior, VolumePrior):
        made.sampling_prior.steps = 25  # long enough for latents of three elements
    return made


def fitted(make=rhvae, **options):
    made = model(make, **options)
    if make is vae_geometric:  # posteriors of an untrained encoder are as wide as the prior
        with torch.no_grad():
            made.encoder.head[1].bias[3:] -= 2
    fit_metric(made, cases(), PREPARATION)
    return made


def batch(count=3):
    some = cases(count)
    return {
        "image": torch.stack([case["image"] for case in some]),
        "mask": torch.stack([case["label"] for case in some]),
        "case": [case["case"] for case in some],
    }


def train(made, steps=3, handlers=(), watch=True):
    optimizer = adamw(made, 1e-3)
    player = ModelPlayer(
        made, joint_objective(), optimizer, watch={"metric": made.flow.network} if watch else None
    )
    trainer = PlayerTrainer(
        "cpu", 1, StepLoader(cases(), 2), [player], PREPARATION, epoch_length=steps,
        precision="float32", train_handlers=list(handlers),
    )  # fmt: skip
    trainer.run()
    return trainer.state.output


# 13
def test_the_final_metric_is_of_all_training_cases_and_of_no_other():
    made = fitted()
    names = [case["case"] for case in cases()]
    for pairs in (made.flow.pairs, made.sampling_prior.pairs):
        assert pairs.is_fitted and len(pairs) == 6
        assert all(pairs.holds(names))
        assert not any(pairs.holds(["validation_0", "test_0", "train_6"]))
    loaded = batch(6)
    means = made.encode(loaded, made.condition(loaded)).mean
    torch.testing.assert_close(made.flow.pairs.centroids, means)


def test_a_queue_shorter_than_the_training_set_does_not_limit_the_final_metric():
    made = model(queue=2)
    train(made)
    assert len(made.flow.pairs) == 2
    fit_metric(made, cases(), PREPARATION)
    assert len(made.flow.pairs) == 6


# 14
def test_training_logs_the_gradient_of_the_metric_network_and_the_solver():
    found = train(model(step_size=0.01))
    assert found["model/metric_gradient_norm"] > 0
    assert found["model/metric_gradient_norm"] <= found["model/gradient_norm"]
    assert found["model/solver_residual"] < 1e-6
    assert found["model/moved"] > 1e-3
    assert min(found["model/force_norm"], found["model/momentum_norm"]) > 0
    assert len(fitted().flow.pairs)


def test_a_fixed_metric_is_the_identity_for_every_case_and_learns_nothing():
    made = model(learn_metric=False, step_size=0.01)
    assert train(made)["model/metric_gradient_norm"] == 0
    fit_metric(made, cases(), PREPARATION)
    assert torch.equal(made.flow.pairs.factors, torch.eye(3).expand(6, 3, 3))
    assert made.sample_latent(2, generators=generators(0, 1)).isfinite().all()


def test_a_fitted_model_loads_into_a_new_one_and_makes_the_same_samples():
    made = fitted()
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    new = model(seed=1).eval()
    new.load_state_dict(torch.load(file, weights_only=True))
    one, other = (each.sample_latent(2, generators=generators(0, 1)) for each in (made, new))
    assert torch.equal(one, other)
    seen = batch()
    bounds = [
        elbo(each.trace(seen, torch.Generator().manual_seed(0)), seen) for each in (made, new)
    ]
    assert torch.equal(*bounds)


@pytest.mark.parametrize("make", [rhvae, vae_geometric], ids=["rhvae", "geometric"])
def test_handlers_fit_the_metric_at_the_end_whatever_their_order(make):
    scales = []
    for reverse in (False, True):
        made = model(make)
        loader = StepLoader(cases(), 2)
        handlers = [
            PriorFitter({"model": made}, loader, PREPARATION, passes=1),
            MetricFitter({"model": made}, cases(), PREPARATION),
        ]
        for each in reversed(handlers) if reverse else handlers:
            each.fit()
        scales.append(float(made.latent_scale))
        assert made.sampling_prior.pairs.is_fitted
        assert made.sample_latent(2, generators=generators(0, 1)).isfinite().all()
    assert scales == [1, 1]


def test_a_fit_leaves_other_models_alone():
    plain = model(vae, vector_latent=True, components=0)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    MetricFitter({"model": plain}, cases(), PREPARATION).fit()
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


# 12
@pytest.mark.parametrize("make", [rhvae, vae_geometric], ids=["rhvae", "geometric"])
def test_samples_differ_from_training_cases_by_more_than_the_spread_of_a_posterior(make):
    made = fitted(make)
    z = made.sample_latent(12, generators=generators(0)[0])
    loaded = batch(6)
    with torch.no_grad():
        posterior = made.encode(loaded, made.condition(loaded))
    nearest = torch.cdist(z, posterior.mean).amin(1)
    assert nearest.median() > float(posterior.scale.mean())
    cold = made.sample_latent(12, generators=generators(0)[0], temperature=0.0)
    assert torch.cdist(cold, posterior.mean).amin(1).max() < 1e-5


@pytest.mark.parametrize("make", [rhvae, vae_geometric], ids=["rhvae", "geometric"])
def test_a_sample_depends_on_its_own_generator_alone_bit_for_bit(make):
    prior = fitted(make).sampling_prior
    whole = prior.sample(5, generators=generators(*range(5)))
    assert torch.equal(whole[3:], prior.sample(2, generators=generators(3, 4)))


def test_acceptance_at_the_defaults_is_good():
    for make in (rhvae, vae_geometric):
        assert 0.6 < float(fitted(make).sampling_prior.acceptance) < 0.99


def test_the_metric_of_a_plain_model_is_of_inverse_covariances():
    made = fitted(vae_geometric)
    loaded = batch(6)
    posterior = made.encode(loaded, made.condition(loaded))
    metric = made.sampling_prior.metric
    assert metric.shaped and not metric.is_inverse
    expected = torch.diag_embed(posterior.scale.double() ** -2)
    torch.testing.assert_close(metric.matrices, expected, rtol=1e-5, atol=1e-5)


def test_a_geodesic_of_a_fitted_model_leads_from_case_to_case_and_is_no_longer_than_the_line():
    made = fitted()
    first, last = made.flow.pairs.centroids[:2].double()
    path = path_between(made, first.float(), last.float(), 5, "geodesic").double()
    torch.testing.assert_close(path[[0, -1]], torch.stack([first, last]), atol=1e-5, rtol=1e-5)
    line = torch.lerp(first, last, torch.linspace(0, 1, 5, dtype=torch.float64)[:, None])
    metric = made.flow.metric
    assert path_length(metric, path) <= path_length(metric, line) * (1 + 1e-6)


# Bad input.


def test_a_prior_that_was_not_fitted_says_what_is_missing():
    with pytest.raises(MetricError, match=r"MetricFitter"):
        model().sample_latent(1, generators=generators(0))


def test_a_learned_metric_is_not_asked_of_a_model_without_one():
    made = model(vae, vector_latent=True, sampling_prior=VolumePrior((3,)))
    with pytest.raises(MetricError, match=r"set `geometry`"):
        fit_metric(made, cases(), PREPARATION)


def test_chains_that_do_not_move_are_no_samples():
    prior = fitted().sampling_prior
    prior.step_size.fill_(1e9)
    with pytest.raises(StuckSamplerError, match=r"1 of 1 chains did not .* down to 3\.91e\+06"):
        prior.sample(2, generators=generators(0, 1))


def test_a_chain_that_begins_at_a_much_narrower_posterior_moves_with_a_shorter_step(monkeypatch):
    """The step fits the mean case; that of the narrow one is found, and no other is changed."""
    prior = VolumePrior((4,), "posterior", decay=0.01, steps=12)
    means = 3 * torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    scales = torch.full((24, 4), 0.4)
    scales[0] = 0.008
    prior.fit_cases(means, torch.diag_embed(1 / scales), [str(i) for i in range(24)], seed=0)
    assert float(prior.acceptance) > 0.8

    def draws(**options):
        return prior.sample(48, generators=generators(0)[0], **options)

    drawn, starts = draws(), draws(temperature=0.0)
    assert torch.equal(drawn, draws())
    narrow = (starts - means[0]).norm(dim=1) < 1e-4
    assert 0 < int(narrow.sum()) < 48
    assert float((drawn - starts).norm(dim=1).min()) > 0.008
    monkeypatch.setattr("medvae3d.models.volume_prior.HALVINGS", 0)
    with pytest.raises(StuckSamplerError, match=f"{int(narrow.sum())} of 48 chains did not move"):
        draws()
    monkeypatch.setattr(VolumePrior, "_require_moved", lambda *_: None)
    still = (draws() == starts).all(1)
    assert torch.equal(still, narrow)
    assert torch.equal(draws()[~narrow], drawn[~narrow])


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (2, 4, 4, 4)},
        {"steps": 0},
        {"reach": None},
        {"reach": -1.0},
        {"floor": 0.0},
        {"geometry": "flat"},
    ],
)
def test_priors_without_meaning_are_refused(options):
    with pytest.raises(SettingError):
        VolumePrior(**{"shape": (3,), **options})


@pytest.mark.slow
def test_a_trained_model_uses_its_metric_and_samples_away_from_its_cases():
    """Sixty steps on six phantoms: the flow moves, the metric is learned, samples are no copies."""
    made = model(step_size=0.01)
    before = made.flow.network.output.weight.clone()
    fit = MetricFitter({"model": made}, cases(), PREPARATION)
    found = train(made, 60, [fit])
    assert found["model/metric_gradient_norm"] > 0
    assert not torch.equal(made.flow.network.output.weight, before)
    made.eval()
    seen = batch(6)
    with torch.no_grad():
        posterior = made.encode(seen, made.condition(seen))
        rebuilt = made.decode(posterior.mean, made.condition(seen))["image"].mode()
        z = made.sample_latent(12, generators=generators(0)[0])
        drawn = made.decode(z, made.condition({"image": z.new_zeros(12, 1, *SHAPE)}))
        drawn = drawn["image"].mode()
    distance = lambda a, b: (a[:, None] - b[None]).flatten(2).pow(2).mean(2).sqrt()
    copies = distance(drawn, rebuilt).amin(1)
    assert copies.median() > 1e-3
    cold = made.sample_latent(1, generators=generators(0), temperature=0.0)
    still = made.decode(cold, made.condition({"image": z.new_zeros(1, 1, *SHAPE)}))["image"].mode()
    assert distance(still, rebuilt).min() < 1e-5 < 0.1 * copies.median()
