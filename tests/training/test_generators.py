"""Generators of GANs: what their noise is, what they change, and models of codes as players."""

from __future__ import annotations

import contextlib

import pytest
import torch

from medvae3d.errors import SettingError
from medvae3d.models.zoo import autoencoder_of, dcgan, vae, vae_noise_gan, vqvae
from medvae3d.networks.discriminators import PatchDiscriminator
from medvae3d.objectives.codes import code_objective, returned
from medvae3d.objectives.compositions import generator_objective, joint_objective
from medvae3d.training.fitting import PriorFitter
from medvae3d.training.generators import CodebookPlayer, GeneratorPlayer
from medvae3d.training.loading import BatchPreparation, CaseLoader, StepLoader
from medvae3d.training.parts import decoder_side
from medvae3d.training.players import DiscriminatorPlayer, ModelPlayer, Turn
from medvae3d.training.validation import LatentEvaluator

SHAPE = (8, 8, 8)
SIZES = {"channels": (4, 8), "latent_channels": 2, "components": 2, "rank": 2}


def cases(count=6):
    generator = torch.Generator().manual_seed(1)
    items = []
    for index in range(count):
        label = torch.zeros(1, *SHAPE, dtype=torch.uint8)
        label[:, 2 : 4 + index % 3, 2:6, 2:6] = 1
        noise = 0.1 * torch.randn(1, *SHAPE, generator=generator)
        items.append({"image": label.float() - 0.5 + noise, "label": label, "case": f"c{index}"})
    return items


def batch(count=2):
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(count, 1, *SHAPE, generator=generator) > 0.6).float()
    return {"image": torch.randn(count, 1, *SHAPE, generator=generator), "mask": mask}


def made(make, **options):
    torch.manual_seed(0)
    return make(SHAPE, **(SIZES | options))


def judge():
    torch.manual_seed(1)
    return PatchDiscriminator(2, channels=(4, 8))


def adam(module, rate=1e-3):
    return torch.optim.Adam(module.parameters(), rate)


def weights(module):
    return {name: value.clone() for name, value in module.named_parameters()}


def changed(before, module):
    return any(not torch.equal(before[name], p) for name, p in module.named_parameters())


def play(players, step=0):
    turn = Turn(batch(), step, torch.Generator().manual_seed(step))
    for player in players:
        player.network.train()
        player.play(turn, contextlib.nullcontext)
    return turn


@pytest.mark.parametrize("kind", ["logistic", "least_squares"])
def test_generator_and_discriminator_change_themselves_alone(kind):
    network, discriminator = made(dcgan), judge()
    assert network.encoder is None and network.sampling_prior is None
    objective = generator_objective(discriminator, kind=kind)
    one = GeneratorPlayer(network, objective, adam(network))
    other = DiscriminatorPlayer(discriminator, adam(discriminator), kind=kind)
    before = weights(network), weights(discriminator)
    turn = play([one])
    assert any(not torch.equal(before[0][k], p) for k, p in network.named_parameters())
    assert not changed(before[1], discriminator)
    middle = weights(network)
    other.play(turn, contextlib.nullcontext)
    assert changed(before[1], discriminator) and not changed(middle, network)


def test_the_loss_of_the_generator_is_that_of_its_equation():
    network, discriminator = made(dcgan).eval(), judge().eval()
    player = GeneratorPlayer(network, generator_objective(discriminator), adam(network))
    turn = Turn(batch(), 0, torch.Generator().manual_seed(3))
    player.play(turn, contextlib.nullcontext)
    network = made(dcgan).eval()
    z = network.prior.sample(2, generators=torch.Generator().manual_seed(3))
    heads = network.decode(z, network.condition(batch()))
    volume = torch.cat([heads["image"].mode(), heads["mask"].foreground()], 1)
    wanted = -discriminator(volume)[-1].sigmoid().log().mean()
    assert turn.log["model/loss"] == pytest.approx(wanted.item(), rel=1e-5)


def test_a_posterior_gives_other_volumes_with_other_noise_and_leaves_the_encoder():
    network, discriminator = made(vae_noise_gan), judge()
    objective = generator_objective(discriminator)
    player = GeneratorPlayer(network, objective, adam(decoder_side(network)), noise="posterior")
    before = weights(network.encoder)
    volumes = [
        play([player], step).traces["model"][0].heads["image"].mode().detach() for step in (0, 1)
    ]
    assert not torch.allclose(*volumes)
    assert not changed(before, network.encoder)
    assert all(p.grad is None for p in network.encoder.parameters())


def test_the_autoencoder_shares_the_encoder_and_has_a_decoder_of_its_own():
    network = made(vae_noise_gan)
    twin = autoencoder_of(network)
    before = weights(network.encoder), weights(network.decoder)
    play([ModelPlayer(twin, joint_objective(), adam(twin), name="autoencoder")])
    assert changed(before[0], network.encoder)
    assert not changed(before[1], network.decoder)
    assert changed(before[1], twin.decoder)


def test_a_generator_may_begin_as_the_decoder_of_the_autoencoder():
    network, discriminator = made(vae_noise_gan), judge()
    twin = autoencoder_of(network)
    torch.nn.init.normal_(twin.decoder.output.conv.weight)
    player = GeneratorPlayer(
        network,
        generator_objective(discriminator),
        adam(decoder_side(network), 0.0),
        begins_as=twin,
        start=2,
    )
    for step, same in ((1, False), (2, True)):
        play([player], step)
        pairs = zip(network.decoder.parameters(), twin.decoder.parameters(), strict=True)
        assert all(torch.equal(*each) for each in pairs) is same
    torch.nn.init.normal_(twin.decoder.output.conv.weight)
    play([player], 3)
    found = network.decoder.output.conv.weight
    assert not torch.equal(found, twin.decoder.output.conv.weight), "it is a copy, once"


def test_a_generator_has_the_parameters_of_the_decoder_that_it_is_compared_with():
    """And of a VAE-GAN, whose decoder and discriminator are these."""
    count = lambda module: sum(p.numel() for p in module.parameters())
    sizes = {"vector_latent": True, "latent_channels": 4}
    generator, autoencoder = made(dcgan, **sizes), made(vae, **sizes)
    assert count(generator) == count(decoder_side(autoencoder))
    assert count(generator) < count(autoencoder)


def test_three_noises_are_three_sources():
    found = {}
    loader = StepLoader(cases(), 2, seed=3)
    for noise in ("normal", "posterior", "prior"):
        network, discriminator = made(vae_noise_gan), judge()
        preparation = BatchPreparation(network.statistics, (1.0, 1.0, 1.0))
        fitter = PriorFitter({"model": network}, loader, preparation, passes=2)
        player = GeneratorPlayer(
            network,
            generator_objective(discriminator),
            adam(decoder_side(network)),
            noise=noise,
            fitter=fitter,
        )
        found[noise] = play([player]).traces["model"][0].first_z
        assert network.training
        assert bool(network.sampling_prior.fitted) == (noise == "prior")
    # An untrained encoder tells nothing: its posteriors have a scale of softplus(0) = 0.69.
    assert found["normal"].std() > 0.8 > found["posterior"].std()
    assert not torch.allclose(found["prior"], found["posterior"])


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (dcgan, {"noise": "posterior"}, "has none"),
        (dcgan, {"noise": "uniform"}, "allowed are normal"),
        (
            lambda *a, **k: vae(*a, **{**k, "components": 0}),
            {"noise": "prior"},
            "network_def#prior",
        ),
    ],
)
def test_noise_that_there_is_not_is_refused(make, options, match):
    network = made(make)
    with pytest.raises(SettingError, match=match):
        GeneratorPlayer(network, generator_objective(judge()), adam(network), **options)


def test_a_generator_learns_where_the_lesion_is():
    """After some steps its masks have the voxels that all masks of the batch have."""
    network, discriminator = made(dcgan, vector_latent=True, latent_channels=4), judge()
    objective = generator_objective(discriminator, kind="least_squares")
    players = [
        GeneratorPlayer(network, objective, torch.optim.Adam(network.parameters(), 3e-3)),
        DiscriminatorPlayer(discriminator, adam(discriminator), kind="least_squares"),
    ]
    loader = StepLoader(cases(), 6, seed=0)
    for step in range(120):
        data = loader.batch(step)
        turn = Turn(data, step, torch.Generator().manual_seed(step))
        for player in players:
            player.network.train()
            player.play(turn, contextlib.nullcontext)
    z = network.sample_latent(8, generators=torch.Generator().manual_seed(0))
    heads = network.decode(z, network.condition(data))
    inside = heads["mask"].foreground()[:, :, 2:4, 2:6, 2:6].mean()
    outside = heads["mask"].foreground()[:, :, 6:].mean()
    assert inside > 4 * outside


def test_a_model_of_codes_trains_encoder_decoder_and_codes():
    network = made(vqvae, codes=8, prior_width=8, prior_steps=2)
    player = CodebookPlayer(network, code_objective(), adam(network), dataset=cases())
    before = weights(network.encoder)
    log = play([player]).log
    assert changed(before, network.encoder), "the straight-through gradient reaches the encoder"
    assert 1 <= log["model/perplexity"] <= 8
    assert log["model/kl"] == pytest.approx(8 * torch.tensor(8.0).log().item(), rel=1e-5)
    assert int(network.posterior.books[0].updates) == 1


def test_codes_settle_from_a_step_on_also_when_a_run_begins_there():
    network = made(vqvae, codes=8, prior_width=8, prior_steps=2)
    options = {"dataset": cases(), "settle_start": 1}
    player = CodebookPlayer(network, code_objective(), adam(network), **options)
    book = network.posterior.books[0]
    for step, revives in ((0, True), (1, False), (0, True), (5, False)):
        play([player], step)
        assert book.revives == revives


def test_validation_tells_the_share_of_codes_that_come_back():
    network = made(vqvae, codes=8, prior_width=8, prior_steps=2)
    preparation = BatchPreparation(network.statistics, (1.0, 1.0, 1.0))
    player = CodebookPlayer(network, code_objective(), adam(network), dataset=cases())
    play([player])
    evaluator = LatentEvaluator("cpu", CaseLoader(cases(), 6), {"model": network}, preparation)
    evaluator.run()
    unseen = next(iter(CaseLoader(cases(), 6)))
    share = returned(network.eval(), network.trace(unseen), unseen).mean()
    assert evaluator.state.metrics["model/codes_returned"] == pytest.approx(float(share))


def test_a_codebook_that_the_cases_cannot_fill_is_refused_before_training():
    network = made(vqvae, codes=64, prior_width=8)
    with pytest.raises(SettingError, match="64 codes, and 6 training cases"):
        CodebookPlayer(network, code_objective(), adam(network), dataset=cases())
    with pytest.raises(SettingError, match="not one of codes"):
        CodebookPlayer(made(vae), code_objective(), adam(made(vae)), dataset=cases())


@pytest.mark.parametrize("prior", ["normal", "gaussian", "mixture", "vamp", "flow"])
def test_every_prior_is_fitted_after_training_and_loads_strictly(prior):
    network = made(vae, prior=prior, rank=2, attributes=("log_volume",)).eval()
    preparation = BatchPreparation(network.statistics, (1.0, 1.0, 1.0))
    if hasattr(network.sampling_prior, "steps"):
        network.sampling_prior.steps = 3
    loader = StepLoader(cases(), 2, seed=3)
    PriorFitter({"model": network}, loader, preparation, passes=4).fit()
    assert (network.sampling_prior is None) == (prior == "normal")
    assert all(p.grad is None for p in network.parameters())
    again = made(vae, prior=prior, rank=2, attributes=("log_volume",)).eval()
    again.load_state_dict(network.state_dict())
    draws = [
        each.sample_latent(2, torch.zeros(2, 1), torch.Generator().manual_seed(0))
        for each in (network, again)
    ]
    assert torch.equal(*draws)
    assert draws[0].isfinite().all()


def test_a_prior_over_codes_is_fitted_by_the_same_handler():
    network = made(vqvae, codes=8, prior_width=8, prior_steps=3).eval()
    preparation = BatchPreparation(network.statistics, (1.0, 1.0, 1.0))
    PriorFitter({"model": network}, StepLoader(cases(), 2), preparation, passes=2).fit()
    assert bool(network.sampling_prior.fitted)
    assert network.latent_scale == 1
    z = network.sample_latent(2, generators=torch.Generator().manual_seed(0))
    assert torch.equal(network.posterior.embed(network.posterior.indices(z)), z)


def test_a_prior_over_codes_is_told_the_masks_that_were_seen():
    network = made(vqvae, codes=8, prior_width=8, prior_steps=3, told_mask=True).eval()
    told = []
    fit = network.sampling_prior.fit
    network.sampling_prior.fit = lambda *z, **more: told.append(more) or fit(*z, **more)
    preparation = BatchPreparation(network.statistics, (1.0, 1.0, 1.0))
    PriorFitter({"model": network}, StepLoader(cases(), 6), preparation, passes=1).fit()
    (more,) = told
    assert more["shares"].shape == (6, 8, 2)
    assert (more["shares"][..., 1] == 1).all()
    voxels = torch.stack([case["label"].sum() for case in cases()]).float()
    found = 64 * more["shares"][..., 0].sum(1)
    torch.testing.assert_close(found.sort().values, voxels.sort().values)
    mask = torch.zeros(2, 1, *SHAPE)
    z = network.sample_latent(2, generators=torch.Generator().manual_seed(0), mask=mask)
    assert torch.equal(network.posterior.embed(network.posterior.indices(z)), z)


def test_a_prior_of_no_name_is_refused():
    with pytest.raises(SettingError, match=r"'mixtur'; allowed are normal"):
        made(vae, prior="mixtur")
