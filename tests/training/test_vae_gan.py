"""VAE-GAN: three groups of parameters, each taught by its own losses, and the rule of balance."""

from __future__ import annotations

import contextlib

import pytest
import torch
from small_models import SmallDiscriminator

from medvae3d.errors import SettingError
from medvae3d.models.zoo import vae
from medvae3d.networks.discriminators import PatchDiscriminator
from medvae3d.objectives.adversarial import pair
from medvae3d.objectives.vae_gan import Equilibrium, FeatureError, vae_gan_objectives
from medvae3d.training.parts import decoder_side
from medvae3d.training.players import Turn
from medvae3d.training.vae_gan import (
    BalancedDecoderPlayer,
    BalancedDiscriminatorPlayer,
    PartModelPlayer,
)

SHAPE = (8, 8, 8)
ALWAYS = Equilibrium(margin=1e6)


def model():
    torch.manual_seed(0)
    return vae(SHAPE, channels=(4, 8), latent_channels=2, components=0)


def judge():
    torch.manual_seed(1)
    return PatchDiscriminator(2, channels=(4, 8))


def batch(count=2):
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(count, 1, *SHAPE, generator=generator) > 0.6).float()
    return {"image": torch.randn(count, 1, *SHAPE, generator=generator), "mask": mask}


def team(network, discriminator, equilibrium=ALWAYS, **options):
    encoder, decoder = vae_gan_objectives(network, discriminator, **options)
    adam = lambda module: torch.optim.Adam(module.parameters(), 1e-3)
    return [
        PartModelPlayer(network, encoder, adam(network.encoder), name="encoder"),
        BalancedDecoderPlayer(
            network,
            decoder,
            adam(decoder_side(network)),
            name="decoder",
            discriminator=discriminator,
            equilibrium=equilibrium,
        ),
        BalancedDiscriminatorPlayer(discriminator, adam(discriminator), network, source="decoder"),
    ]


def weights(module):
    return {name: value.clone() for name, value in module.named_parameters()}


def changed(before, module):
    return any(not torch.equal(before[name], p) for name, p in module.named_parameters())


def play(players, step=0):
    turn = Turn(batch(), step, torch.Generator().manual_seed(step))
    for player in players:
        player.play(turn, contextlib.nullcontext)
    return turn.log


@pytest.mark.parametrize("turn", range(3))
def test_each_of_three_players_changes_its_own_parameters_alone(turn):
    network, discriminator = model(), judge()
    players = team(network, discriminator)
    parts = [network.encoder, network.decoder, discriminator]
    shared = Turn(batch(), 0, torch.Generator().manual_seed(0))
    for player in players[:turn]:
        player.play(shared, contextlib.nullcontext)
    before = [weights(part) for part in parts]
    grads = [[None if p.grad is None else p.grad.clone() for p in m.parameters()] for m in parts]
    players[turn].play(shared, contextlib.nullcontext)
    assert [changed(b, part) for b, part in zip(before, parts, strict=True)] == [
        index == turn for index in range(3)
    ]
    for index, part in enumerate(parts):
        if index != turn:
            for old, p in zip(grads[index], part.parameters(), strict=True):
                assert (old is None and p.grad is None) or torch.equal(old, p.grad)


def test_the_encoder_has_no_adversarial_term():
    encoder, decoder = vae_gan_objectives(model(), judge())
    assert [term.name for term in encoder.terms] == ["kl", "absolute_error", "mask_nll", "features"]
    assert "adversarial" in [term.name for term in decoder.terms]


def test_the_feature_error_is_half_a_squared_distance_and_0_for_equal_volumes():
    network, data = model(), batch()
    discriminator = SmallDiscriminator(2)
    trace = network.trace(data, torch.Generator().manual_seed(0))
    real, fake = (
        discriminator(pair(data, trace=trace, real=each))[0].detach() for each in (True, False)
    )
    found = FeatureError(discriminator, 0)(trace, data)
    assert found.tolist() == pytest.approx(
        (0.5 * (real - fake).square().flatten(1).sum(1)).tolist(), rel=1e-5
    )
    share = FeatureError(discriminator, 0, relative=True)(trace, data)
    wanted = 0.5 * (real - fake).square().flatten(1).mean(1) / real.square().mean()
    assert share.tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    image = {**data, "image": trace.heads["image"].mode().detach()}
    only_image = lambda x: [x[:, :1], x]
    assert FeatureError(only_image)(trace, image).tolist() == [0, 0]


def test_scores_and_features_have_their_share_of_the_gradient_at_the_last_layer():
    network, discriminator, data = model(), judge().eval(), batch()
    last = network.decoder.output.conv.weight

    def gradient(**options):
        trace = network.trace(data, torch.Generator().manual_seed(0))
        _, decoder = vae_gan_objectives(
            network, discriminator, gamma=2.0, **({"feature_weight": 0.0} | options)
        )
        return torch.autograd.grad(decoder(trace, data, 0)[0], last)[0]

    plain = gradient(adversarial_weight=0.0)
    featured = gradient(adversarial_weight=0.0, feature_weight=0.3) - plain
    assert featured.norm() == pytest.approx(0.3 * plain.norm().item(), rel=1e-2)
    judged = gradient(adversarial_weight=0.1) - plain
    # Two scores of a tenth each, which point the same way or not.
    assert 0 < judged.norm() <= 0.2001 * plain.norm()
    torch.testing.assert_close(
        gradient(adversarial_weight=0.3) - plain, 3 * judged, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("real", "fake", "wanted"),
    [
        (0.7, 0.7, (True, True)),
        (0.1, 0.7, (True, False)),  # the discriminator is ahead
        (0.7, 0.1, (True, False)),
        (1.5, 0.7, (False, True)),  # the decoder is ahead
        (0.7, 1.5, (False, True)),
        (0.1, 1.5, (True, True)),  # both would rest
    ],
)
def test_who_is_ahead_rests(real, fake, wanted):
    assert Equilibrium(0.68, 0.4)(real, fake) == wanted


def test_before_the_start_of_the_discriminator_nobody_asks_it():
    def nobody(volume):
        raise AssertionError("too early")

    network, discriminator = model(), judge()
    encoder, decoder = vae_gan_objectives(network, discriminator, adversarial_start=3)
    trace = network.trace(batch(), torch.Generator().manual_seed(0))
    discriminator.forward = nobody
    for objective in (encoder, decoder):
        _, values = objective(trace, batch(), 2)
        assert not any(values[name] for name in values if name in ("features", "adversarial"))
        with pytest.raises(AssertionError, match="too early"):
            objective(trace, batch(), 3)
    adam = torch.optim.Adam(decoder_side(network).parameters(), 1e-3)
    player = BalancedDecoderPlayer(
        network,
        decoder,
        adam,
        name="decoder",
        discriminator=discriminator,
        adversarial_start=3,
    )
    before = weights(network.decoder)
    assert "decoder/real_cost" not in play([player], 2)
    assert changed(before, network.decoder)


def test_who_rests_keeps_its_weights_and_the_log_says_so():
    for middle, learns in ((10.0, (1.0, 0.0)), (-10.0, (0.0, 1.0))):
        network, discriminator = model(), judge()
        players = team(network, discriminator, Equilibrium(middle, 0.1))
        before = weights(network.decoder), weights(discriminator)
        log = play(players)
        found = (log["decoder/learns"], log["decoder/discriminator_learns"])
        assert found == learns
        assert changed(before[0], network.decoder) == bool(learns[0])
        assert changed(before[1], discriminator) == bool(learns[1])
    with pytest.raises(SettingError, match="margin"):
        Equilibrium(margin=-1)
